"""What runs in a call process before its jail is closed: hooks at fork, and that none brings chance
or time with it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from schemas.modules import VETTED_MODULES
from tests.sandbox_worker.harness import worker
from tests.sandbox_worker.zygotes import refusal_of
from tests.support.packages import lock, package_folder

COUNT = '''
import os, posix, sys

found, register = set(), os.register_at_fork

def remember(**given):
    found.update((when, hook.__module__) for when, hook in given.items())
    register(**given)

os.register_at_fork = posix.register_at_fork = remember
for name in sys.argv[1:]:
    __import__(name)
import json
print(json.dumps(sorted(found)))
'''
USE = '''
import random
import uuid
from sandbox_worker.sdk import method

def fresh():
    # From Python 3.13 on it asks for the time where there is no entropy, and that is refused too.
    try:
        return random.Random().random()
    except PermissionError:
        return "refused"

@method()
def main(ctx, text):
    return eval(text.text)
'''


def test_of_the_vetted_modules_one_has_code_run_at_fork() -> None:
    """`random` draws entropy there, and it is the one that calls are given anew."""
    done = subprocess.run(
        [sys.executable, "-c", COUNT, *sorted(VETTED_MODULES)], capture_output=True, check=True
    )

    assert json.loads(done.stdout) == [["after_in_child", "random"]]


@pytest.mark.jail
@pytest.mark.system
def test_chance_is_the_same_in_every_worker_and_call(tmp_path: Path) -> None:
    """Without `random.read` every generator starts at a constant, in another zygote too; what needs
    entropy, and an id made of time, is refused."""
    seen = set()
    for _ in range(2):
        with worker(tmp_path, USE, modules=("random", "uuid")) as one:
            for _ in range(2):
                seen.add(str(one.value("[random.random(), fresh()]")))
            refused = [one.call(text) for text in (
                "uuid.uuid1()", "uuid.uuid4()", "random.SystemRandom().random()",
            )]

    assert len(seen) == 1
    assert [(end.code, end.denied) for end in refused] == [
        ("plugin_error", "clock"), ("plugin_error", "random"), ("plugin_error", "random"),
    ]


HOOKS = {
    "of its own": "import os\nos.register_at_fork(after_in_child=lambda: None)\n",
    "by another name": "import posix\nposix.register_at_fork(before=lambda: 1)\n",
    "of a class": "import os\nclass Hook:\n    def __call__(self): pass\n"
                  "os.register_at_fork(after_in_parent=Hook())\n",
}


@pytest.mark.jail
@pytest.mark.system
@pytest.mark.parametrize("how", HOOKS)
def test_an_approved_package_has_no_code_run_at_fork(tmp_path: Path, how: str) -> None:
    """Such code would run in a call process before its jail is closed: the start is refused."""
    with package_folder({"package.py": HOOKS[how]}) as path:
        refusal = refusal_of(
            tmp_path, "import package\n", modules=("package",),
            changes={"modules": ("package",), "packages": lock(path)},
        )

    assert "has code run at every fork, in package" in str(refusal)


@pytest.mark.jail
@pytest.mark.system
def test_a_package_may_use_a_module_that_has_code_run_at_fork(tmp_path: Path) -> None:
    """`random` and `logging` of the library are no reason to refuse a package."""
    with package_folder({"package.py": "import logging, random\n"}) as path:
        refusal = refusal_of(
            tmp_path, "import package\n", modules=("package",),
            changes={"modules": ("package",), "packages": lock(path)},
        )

    assert refusal is None
