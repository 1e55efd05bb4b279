"""What type checkers say to an author: each wrong signature at its line, nothing to a right one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.authoring.folders import ENVIRONMENT, ROOT

SAMPLE = '''
import datetime

import msgspec

from sandbox_worker.sdk import Context, DatasetSlicePayload, JSONPayload, TextPayload, method


class Answer(msgspec.Struct):
    words: int


@method()
def to_struct(context: Context, text: TextPayload) -> Answer:
    return Answer(1)


@method(deterministic=True, timeout_ms=100)
def to_text(context: Context, answer: Answer) -> str:
    context.log(context.request_id + context.method)
    context.progress(0.5, "half")
    return context.resource("words.txt").decode() + context.artifact.read(3).decode()


@method()
def to_list(context: Context, document: JSONPayload) -> list[Answer]:
    return []


@method()
def to_dict(context: Context, keys: DatasetSlicePayload) -> dict[str, int] | None:
    return None


# WRONG below: the decorator of each is what mypy names, or the line that says so.
@method()  # WRONG
def no_payload(context: Context) -> str:
    return ""


@method()  # WRONG
def three(context: Context, one: TextPayload, two: TextPayload) -> str:
    return ""


@method()  # WRONG
def other_order(text: TextPayload, context: Context) -> str:
    return ""


@method()  # WRONG
def to_date(context: Context, text: TextPayload) -> datetime.date:
    return datetime.date(2020, 1, 1)


@method()  # WRONG
async def later(context: Context, text: TextPayload) -> str:
    return ""


@method(deterministic="yes")  # WRONG
def option(context: Context, text: TextPayload) -> str:
    return ""


@method  # WRONG
def no_brackets(context: Context, text: TextPayload) -> str:
    return ""


@method()
def other_value(context: Context, text: TextPayload) -> Answer:
    return text  # WRONG


@method()
def no_such_thing(context: Context, text: TextPayload) -> str:
    return context.clock()  # WRONG


to_struct(Context(), "text")  # WRONG
'''


WRONG = {
    ("sample.py", number)
    for number, line in enumerate(SAMPLE.splitlines(), 1) if line.endswith("# WRONG")
}
PYRIGHT = shutil.which("basedpyright") or shutil.which("pyright")


def write_sources(folder: Path) -> None:
    """Write the sample and what `new` makes."""
    (folder / "sample.py").write_text(SAMPLE)
    template = ROOT / "broker" / "authoring" / "template"
    for name in ("plugin.py", "test_plugin.py"):
        (folder / name).write_text((template / f"{name}.txt").read_text())


@pytest.mark.skipif(PYRIGHT is None, reason="it brings a whole node: pip install basedpyright")
def test_pyright_finds_each_wrong_method_and_passes_the_template(tmp_path: Path):
    """Strict pyright names every marked line and no other, and has nothing to say of a new
    plugin."""
    write_sources(tmp_path)
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({
        "typeCheckingMode": "strict", "include": ["*.py"], "extraPaths": [str(ROOT)],
    }))
    done = subprocess.run(
        [str(PYRIGHT), "--outputjson", "--pythonpath", sys.executable], cwd=tmp_path,
        env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=120,
    )
    found = {
        (Path(one["file"]).name, one["range"]["start"]["line"] + 1)
        for one in json.loads(done.stdout)["generalDiagnostics"]
    }
    assert found == WRONG, done.stdout


def test_mypy_finds_each_wrong_method_and_passes_the_template(tmp_path: Path):
    """Strict mypy names every marked line and no other, and has nothing to say of a new plugin."""
    write_sources(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "sample.py", "plugin.py",
         "test_plugin.py"],
        cwd=tmp_path, env={**ENVIRONMENT, "MYPYPATH": str(ROOT)}, capture_output=True, text=True,
        check=False, timeout=120,
    )
    found = {
        (name, int(line))
        for name, line in re.findall(r"^(\w+\.py):(\d+): error", done.stdout, re.MULTILINE)
    }
    assert found == WRONG, done.stdout
