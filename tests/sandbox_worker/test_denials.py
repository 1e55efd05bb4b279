"""What was denied last: each class is noticed, named with its remedy, and decides nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from sandbox_worker import denials
from schemas.denials import DENIALS, DeniedClass, denied_hint
from schemas.messages import CallFailure
from tests.sandbox_worker.harness import Worker, worker

pytestmark = [pytest.mark.jail, pytest.mark.system]

PLUGIN = '''
import os
import sys
import time

from sandbox_worker.sdk import method


def _zygote_module(name):
    # What hostile code does: reach a module that was hidden, through a frame that outlived it.
    frame = sys._getframe()
    while name not in frame.f_globals:
        frame = frame.f_back
    return frame.f_globals[name]


@method()
def main(ctx, text):
    exec(text.text, globals() | {"ctx": ctx})
    raise ValueError("it was not denied")
'''

LEAN = '''
import time

from sandbox_worker.sdk import method


@method()
def main(ctx, text):
    if text.text == "clock":
        time.monotonic()
    if text.text == "import":
        import wave
    return ctx.env["HOME"]
'''

TRIED = [
    ("file", 'open("/etc/passwd")'),
    ("file", 'os.listdir("/")'),
    ("file", 'import io; io.open("/tmp/x", "w")'),
    ("socket", "import socket"),
    ("process", 'os.execv("/bin/sh", ["sh"])'),
    ("process", "os.fork()"),
    ("process", 'raise OSError(os.system("true"))'),
    ("process", "os.kill(1, 9)"),
    ("process", "import subprocess"),
    ("thread", "import _thread; _thread.start_new_thread(print, ())"),
    ("thread", "import threading"),
    ("clock", "time.time()"),
    ("clock", "time.sleep(0)"),
    ("clock", "time.localtime()"),
    ("random", "os.urandom(8)"),
    ("random", "os.getrandom(8)"),
    ("environment", 'os.environ["HOME"]'),
    ("environment", 'if os.getenv("HOME") is None: raise KeyError'),
    ("environment", 'ctx.env["HOME"]'),
    ("import", "import wave"),
    ("import", "from xml.dom import minidom"),
]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """A worker whose plugin tries what it is told to."""
    with worker(tmp_path_factory.mktemp("worker"), PLUGIN) as running:
        yield running


def _failure(one: Worker, text: str) -> CallFailure:
    end = one.call(text)
    assert isinstance(end, CallFailure), end
    return end


@pytest.mark.parametrize(("denied", "code"), TRIED, ids=[code for _, code in TRIED])
def test_each_class_is_noticed(one: Worker, denied: str, code: str) -> None:
    """A failure names the class of what was denied, and the words of the plugin stay apart."""
    end = _failure(one, code)

    assert (end.code, end.denied) == ("plugin_error", denied)
    assert end.plugin_message is not None
    assert "it was not denied" not in end.plugin_message


def test_every_class_is_tried_and_has_its_remedy() -> None:
    """The classes that are noticed are the closed list, and every one has a page."""
    noticed = {denied for denied, _ in TRIED}

    assert noticed == set(DENIALS) == set(get_args(DeniedClass))
    assert set(denials._EVENTS.values()) | set(denials._MODULES.values()) <= noticed


def test_code_that_needs_no_hook_still_gets_its_hint(tmp_path: Path) -> None:
    """A source that reaches no file, process or thread runs without the hook and is told the rest.

    The hook costs every call some copied pages.
    """
    assert not denials.worth_hearing(compile(LEAN, "plugin.py", "exec"))
    assert denials.worth_hearing(compile("def f():\n def g():\n  open('x')", "f", "exec"))
    with worker(tmp_path, LEAN) as running:
        for denied in ("clock", "import", "environment"):
            assert _failure(running, denied).denied == denied


def test_nothing_denied_is_nothing_said(one: Worker) -> None:
    """An error without a denied operation has no class, nor has one of an earlier call."""
    assert _failure(one, "os.getcwd").denied is None
    assert _failure(one, "open(0)").denied is None
    assert _failure(one, 'open("/")').denied == "file"
    assert _failure(one, "1 / 0").denied is None


def test_arguments_are_never_told(one: Worker) -> None:
    """Only the plugin's own message can hold what it tried to open; the class cannot."""
    end = _failure(one, 'try: open("/secret/name")\nexcept OSError: raise ValueError from None')

    assert end.denied == "file"
    assert "secret" not in str(end)


def test_hostile_code_can_choose_only_among_the_classes(one: Worker) -> None:
    """A forged class is another class of the list; a word that is none ends the call as invalid."""
    forged = _failure(one, 'sys.audit("open", "x"); raise ValueError')
    module = 'sys.modules["sandbox_worker.denials"]'
    unknown = _failure(one, f'{module}.last = "root password"; raise ValueError')

    assert (forged.code, forged.denied) == ("plugin_error", "file")
    assert (unknown.code, unknown.denied) == ("output_invalid", None)


def test_a_death_by_sigsys_says_so_and_claims_nothing(one: Worker) -> None:
    """The kernel ended it: the code is `system_call_forbidden`, and there is no hint to believe."""
    end = _failure(one, '_zygote_module("linux").call(101, 0, 0, 0, 0)')

    assert (end.code, end.denied) == ("system_call_forbidden", None)


def test_a_hint_names_what_would_cover_it_and_the_line_to_add() -> None:
    """A refusal's hint marks the claim as the plugin's, and says what to write."""
    assert denied_hint("clock") == (
        "the plugin's process says that the sandbox denied: clock (reading or waiting for a "
        "clock); what would cover it: the capability clock.read; add to plugin.toml: "
        'capabilities = ["clock.read"]'
    )
    assert "always refused in this version" in denied_hint("socket")
    assert "plugin.toml" not in denied_hint("socket")
    assert denied_hint(None) == ""
    assert denied_hint("new.word").endswith("denied: new.word")
