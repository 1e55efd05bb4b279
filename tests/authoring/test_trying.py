"""`omega-plugin new`, `call`, `dev` and `test`, as an author uses them, in the real sandbox."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.authoring.local import version_after
from broker.authoring.trying import folder_state, saves
from tests.authoring.folders import ENVIRONMENT, plugin_folder
from tests.broker.test_machine import FILTERED
from tests.support.gateway import wait_for

pytestmark = [pytest.mark.jail, pytest.mark.system]

COMMAND = [sys.executable, "-m", "broker.authoring.main"]


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder of its own."""
    return subprocess.run(
        [*COMMAND, *arguments], cwd=folder, capture_output=True, text=True, check=False,
        timeout=60, env=environment(folder),
    )


def environment(folder: Path) -> dict[str, str]:
    """An environment whose temporary folder is the test's, so that what is left there is seen."""
    return {**ENVIRONMENT, "TMPDIR": str(folder)}


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """The folder that `new` makes."""
    done = run("new", "word-thing", folder=tmp_path)
    assert (done.returncode, "omega-plugin test" in done.stderr) == (0, True), done.stderr
    return tmp_path / "word-thing"


class Running:
    """A command that runs on, and what it has said so far."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._said = folder.parent / "said.txt"
        with self._said.open("wb") as said:
            self.process = subprocess.Popen(
                [*COMMAND, *arguments], cwd=folder, stdin=subprocess.DEVNULL, stdout=said,
                stderr=said, env=environment(folder.parent),
            )

    def said(self) -> str:
        """Everything on stdout and stderr."""
        return self._said.read_text()

    def says(self, words: str, times: int = 1) -> str:
        """Wait until it has said something so often; gives all it said."""
        def found() -> bool:
            assert self.process.poll() is None, self.said()
            return self.said().count(words) >= times
        wait_for(words, found)
        return self.said()


@contextlib.contextmanager
def running(
    folder: Path, *arguments: str, end: signal.Signals = signal.SIGINT
) -> Iterator[Running]:
    """Run a command until the block ends; then a signal ends it with 0 and leaves nothing."""
    command = Running(folder, *arguments)
    try:
        yield command
        command.process.send_signal(end)
        assert command.process.wait(20) == 0, command.said()
        left = [path.name for path in folder.parent.iterdir() if path.name.startswith("omega-")]
        assert left == []
    finally:
        command.process.kill()
        command.process.wait()


def change(folder: Path, old: str, new: str) -> None:
    """Save plugin.py with one thing changed."""
    path = folder / "plugin.py"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_new_plugin_is_whole_and_not_written_over(plugin: Path):
    """`check` has nothing to say of it, and a second `new` does not touch it."""
    done = run("check", folder=plugin)
    assert (done.returncode, done.stderr, "nothing to mend" in done.stdout) == (0, "", True)
    again = run("new", "word-thing", folder=plugin.parent)
    assert (again.returncode, "is there already" in again.stderr) == (2, True)


def test_tests_that_need_a_sandbox_are_skipped_with_the_doctors_reason(plugin: Path):
    """Where the kernel has no Landlock the other tests run, and the reason is the doctor's."""
    (plugin / "tests" / "test_marked.py").write_text(
        "import pytest\n\n@pytest.mark.needs_sandbox\ndef test_marked():\n    assert False\n"
    )
    script = plugin.parent / "tests.py"
    script.write_text(
        "import os, pytest, sys\n"
        f"os.chdir({str(plugin)!r})\n"
        "sys.exit(pytest.main(['-rs', '-p', 'broker.authoring.pytest_plugin', "
        "'-p', 'no:cacheprovider']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", FILTERED, "444", "38", str(script)], env=ENVIRONMENT,
        capture_output=True, text=True, check=False, timeout=60,
    )
    assert (done.returncode, "2 passed, 2 skipped" in done.stdout) == (0, True), done.stdout
    assert "Landlock: found no Landlock (Function not implemented)" in " ".join(done.stdout.split())


def test_a_saved_file_is_answered_again(plugin: Path):
    """`call --watch` answers, tells a mistake and goes on, and answers what is saved next, with the
    time that it took."""
    with running(plugin, "call", "count", "--text", "one two", "--watch") as command:
        said = command.says("to the answer")
        assert '{"words":2}' in said
        assert re.search(r"processor \d+ of 1000 ms, wall \d+ of 3000 ms", said)
        assert re.search(r"memory \d+ of 256 MiB, output 11 of 65536 bytes", said)
        assert "a second run under another hash seed" in said
        change(plugin, "len(text.text.split())", "len(text.text.split()")
        assert "plugin.py line" in command.says("'(' was never closed")
        change(plugin, "len(text.text.split()", "7 * len(text.text.split())")
        said = command.says("to the answer", 2)
        assert '{"words":14}' in said
        assert "word-thing 0.1.1-dev.1 count" in said
        assert re.search(r"\d+ ms from the file", said)


def test_an_answer_that_hangs_on_the_hash_seed_is_caught_while_it_is_written(plugin: Path):
    """The first call tells that two runs gave different answers, and what to write instead."""
    change(plugin, "len(text.text.split())", "hash(text.text) % 2**31")
    done = run("call", "count", "--text", "one two", folder=plugin)

    assert (done.returncode, done.stdout) == (1, "")
    assert "nondeterministic_output" in done.stderr
    assert "sorted(...)" in done.stderr


def test_the_lines_that_dev_prints_work_as_they_are(plugin: Path):
    """Run by other processes they call the plugin; a save swaps what answers; SIGTERM ends all."""
    with running(plugin, "dev", end=signal.SIGTERM) as command:
        said = command.says("omega-gateway invoke")
        lines = said[said.index("from broker.client") : said.index("# in a shell")]

        def answer() -> str:
            done = subprocess.run(
                [sys.executable, "-c", lines], env=ENVIRONMENT, cwd=plugin.parent, text=True,
                capture_output=True, check=True, timeout=60,
            )
            return done.stdout
        assert '{"words":2}' in answer()
        change(plugin, "len(text.text.split())", "len(text.text)")
        command.says("0.1.1-dev.1 serves")
        assert '{"words":9}' in answer()
        shell = said[said.index("omega-gateway invoke") :].splitlines()[0]
        done = subprocess.run(
            shell.replace("omega-gateway", f"{sys.executable} -m broker.cli.main", 1), shell=True,
            env=ENVIRONMENT, cwd=plugin.parent, text=True, capture_output=True, check=False,
            timeout=60,
        )
        assert (done.returncode, done.stdout) == (0, '{"words":9}\n'), done.stderr


@pytest.mark.parametrize(("last", "own", "found"), [
    ("1.0.0", "1.0.0", "1.0.1-dev.7"),
    ("1.0.1-dev.6", "1.0.0", "1.0.1-dev.7"),
    ("1.0.1-dev.6", "1.0.1", "1.0.1"),
    ("1.0.1", "1.0.1", "1.0.2-dev.7"),
    ("1.0.0-rc.1", "1.0.0-rc.1", "1.0.0-rc.1.dev.7"),
    ("1.0.0-rc.1", "1.0.0-rc.2", "1.0.0-rc.2"),
    ("2.0.0", "1.0.0", "1.0.1-dev.7"),
])
def test_a_changed_folder_gets_a_version_that_rises(last: str, own: str, found: str):
    """Its own where that is higher, else a pre-release of the next; never a lower one made up."""
    assert version_after(last, own, 7) == found


def test_a_save_during_the_first_call_is_answered_too(tmp_path: Path):
    """What a folder held when its files were read is what later states are held against."""
    folder = plugin_folder(tmp_path / "plugin")
    before = folder_state(str(folder))
    (folder / "plugin.py").write_text((folder / "plugin.py").read_text() + "\n# saved\n")
    assert next(saves(str(folder), before)) is True
