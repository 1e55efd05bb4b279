"""What mypy says to an author: each wrong signature at its line, nothing to a right one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.authoring.folders import ENVIRONMENT, ROOT

SAMPLE = '''
import datetime
from collections.abc import Sequence

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


def test_mypy_finds_each_wrong_method_and_passes_the_template(tmp_path: Path):
    """Strict mypy names every marked line and no other, and has nothing to say of a new plugin."""
    (tmp_path / "sample.py").write_text(SAMPLE)
    template = ROOT / "broker" / "authoring" / "template"
    for name in ("plugin.py", "test_plugin.py"):
        (tmp_path / name).write_text((template / f"{name}.txt").read_text())
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
    wrong = {
        ("sample.py", number)
        for number, line in enumerate(SAMPLE.splitlines(), 1) if line.endswith("# WRONG")
    }
    assert found == wrong, done.stdout
