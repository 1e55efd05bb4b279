"""The fixtures that authors' tests use: each holds what it promises, and fails where it must."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.authoring.folders import ENVIRONMENT, PLUGIN, TOML, plugin_folder

TESTS = r'''
import time

import pytest

from broker.authoring.testing import Snapshot
from broker.client import Refused
from sandbox_worker.sdk import DatasetSlicePayload, JSONPayload, TextPayload
from schemas.events import InvokeAccept, InvokeEnd, PluginEnable


def test_gateway(gateway):
    assert gateway.operator.status().domain == "development"


def test_call_and_ledger(call, ledger):
    assert ledger.events() == []
    answer = call("count", "one two")
    assert answer.json() == {"words": 2}
    assert [one.method for one in ledger.of(InvokeAccept)] == ["count"]
    assert isinstance(ledger.event(answer).fields, InvokeEnd)
    assert ledger.of(PluginEnable) == []
    assert call.manifest.limits.cpu_ms == 5000


def test_refusal_and_print(call, capsys):
    with pytest.raises(Refused) as caught:
        call("fail", "some text")
    assert caught.value.code == "plugin_error"
    assert "ValueError: on purpose" in capsys.readouterr().err


def test_payloads_of_the_sdk(call, snapshot):
    assert call("fail_not", TextPayload("x")).text == "x"
    with pytest.raises(Refused, match="takes text, found json"):
        call("fail_not", JSONPayload({"b": 1, "a": [2]}))
    with pytest.raises(Refused, match="takes text, found dataset_slice"):
        call("fail_not", DatasetSlicePayload("names", ("a", "b")))


def test_progress(call):
    notes = []
    call("fail_not", "x", on_progress=notes.append)
    assert [note.note for note in notes] == ["half"]


def test_snapshot(snapshot, request):
    folder = request.path.parent / "snapshots"
    with pytest.raises(AssertionError, match="omega-plugin test --rewrite-snapshots"):
        snapshot("count", "one two")
    folder.mkdir()
    kept = folder / "test_all-test_snapshot-1.txt"
    kept.write_text('{\n  "words": 2\n}\n')
    snapshot("count", "one two")
    with pytest.raises(AssertionError, match="no answer is kept"):
        snapshot("count", "one")


def test_snapshot_of_another_answer(snapshot, request):
    kept = request.path.parent / "snapshots" / "test_all-test_snapshot_of_another_answer.txt"
    kept.write_text('{\n  "words": 3\n}\n')
    with pytest.raises(AssertionError, match="answered something else"):
        snapshot("count", "one two")


def test_rewriting(call, request):
    path = request.path.parent / "snapshots" / "mine"
    Snapshot(call, str(path), rewrite=True)("count", "one two")
    Snapshot(call, str(path), rewrite=False)("count", "one two")


def test_snapshot_needs_determinism(snapshot):
    with pytest.raises(AssertionError, match="deterministic=True"):
        snapshot("fail_not", "x")


def test_sandboxed_plugin_is_the_calls(sandboxed_plugin, call):
    assert sandboxed_plugin.manifest.id == call.manifest.id == "word-count"
'''
MORE = '''

@method()
def fail(context: Context, text: TextPayload) -> str:
    raise ValueError("on purpose")


@method()
def fail_not(context: Context, text: TextPayload) -> str:
    context.progress(0.5, "half")
    return text.text
'''


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the tests below a folder."""
    return subprocess.run(
        [sys.executable, "-m", "broker.authoring.main", "test", "-p", "no:cacheprovider",
         *arguments],
        cwd=folder, capture_output=True, text=True, check=False, timeout=60, env=ENVIRONMENT,
    )


def test_every_fixture_holds_what_it_promises(tmp_path: Path):
    """Calls, refusals, prints, notes, events and kept answers; a changed answer is found."""
    folder = plugin_folder(tmp_path / "plugin", PLUGIN + MORE, TOML)
    (folder / "test_all.py").write_text(TESTS)
    done = run(folder)
    assert (done.returncode, "10 passed" in done.stdout) == (0, True), done.stdout


def test_a_folder_with_mistakes_fails_with_all_of_them(tmp_path: Path):
    """The reason is the mistake itself, and a test without a plugin's folder says so."""
    folder = plugin_folder(tmp_path / "plugin", "import re\n" + PLUGIN)
    for name, path in (("one", folder), ("two", tmp_path)):
        (path / f"test_{name}.py").write_text(f"def test_{name}(call):\n    pass\n")
    done = run(tmp_path)
    assert (done.returncode, "2 errors" in done.stdout) == (1, True), done.stdout
    assert 'Write: modules = ["msgspec", "re"]' in done.stdout
    assert "holds a plugin.toml" in done.stdout
