"""The scripts as a newcomer runs them: from any folder, twice, interrupted, on wrong machines."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gateway import ROOT, wait_for

pytestmark = [pytest.mark.system, pytest.mark.jail]

PATIENCE_S = 120
LEFT_OUT = shutil.ignore_patterns(".git", ".venv*", ".*_cache", ".hypothesis", "__pycache__")

FILTERED = """
import os, sys
from broker import seal
number, answer = int(sys.argv[1]), int(sys.argv[2])
seal._no_new_privileges()
seal._install_filter(seal._assemble([(0x15, 0, 1, number), (6, 0, 0, 0x50000 | answer)]))
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Become a program under a filter that answers one system call with an errno."""

WRAPPER = """#!/bin/bash
# A Python that says of itself: CHANGE
if [ "$1" = -c ]; then [ -z "$2" ]; exit; fi
exec PYTHON -c "import runpy, sys; CHANGE; sys.path.insert(0, '')
runpy.run_path(sys.argv[1], run_name='__main__')" "$1"
"""


class Copy:
    """A copy of the project with its own temporary folder, as a clone on another machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.project = folder / "project"
        self.temporary = folder / "t"
        self.temporary.mkdir(mode=0o700)
        shutil.copytree(ROOT, self.project, ignore=LEFT_OUT)

    def prepare(self) -> None:
        """Make the virtual environment without a network: the packages are those of this run."""
        environment = self.project / ".venv"
        base = getattr(sys, "_base_executable", sys.executable)
        subprocess.run(
            [base, "-m", "venv", "--without-pip", str(environment)], check=True, timeout=PATIENCE_S
        )
        python = environment / "bin" / "python"
        (packages,) = environment.glob("lib/python*/site-packages")
        installed = sysconfig.get_path("purelib")
        (packages / "packages.pth").write_text(f"{self.project}\n{installed}\n")
        for name, module in (("gateway", "cli"), ("plugin", "authoring")):
            script = environment / "bin" / f"omega-{name}"
            script.write_text(
                f"#!{python}\nfrom broker.{module}.main import main\nimport sys\nsys.exit(main())\n"
            )
            script.chmod(0o755)
        stamp = 'source scripts/environment.bash; environment_stamp .venv/bin/python run'
        done = subprocess.run(
            ["bash", "-c", stamp], cwd=self.project, capture_output=True, check=True, timeout=30
        )
        (environment / ".prepared-run").write_bytes(done.stdout)

    def command(self, name: str) -> str:
        """The path of one script."""
        return str(self.project / "scripts" / name)

    def environment(self, **more: str) -> dict[str, str]:
        """The environment of somebody who has just logged in."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        own = {"HOME": str(self.folder), "TMPDIR": str(self.temporary)}
        return {**kept, **own, **more}

    def run(self, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command from a folder that has nothing to do with the project."""
        return subprocess.run(
            command, cwd="/", env=self.environment(**more), capture_output=True, text=True,
            timeout=PATIENCE_S, check=False,
        )

    def processes(self) -> list[str]:
        """The command lines of processes that belong to this copy."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(self.folder) in line:
                found.append(line)
        return found


@pytest.fixture
def copy() -> Iterator[Copy]:
    """A copy without a virtual environment."""
    with tempfile.TemporaryDirectory(prefix="oq-") as folder:
        yield Copy(Path(folder))


@pytest.fixture(scope="module")
def bare() -> Iterator[Copy]:
    """A copy for all tests that hold that nothing in it is changed or made."""
    with tempfile.TemporaryDirectory(prefix="oq-") as folder:
        yield Copy(Path(folder))


@pytest.fixture
def prepared(copy: Copy) -> Copy:
    """A copy whose virtual environment is there."""
    copy.prepare()
    return copy


def test_quickstart_shows_everything_twice_in_a_row(prepared: Copy) -> None:
    """Both runs end with 0 within a minute, show each promised thing, and leave nothing behind."""
    for _ in range(2):
        before = time.monotonic()
        done = prepared.run(prepared.command("quickstart"))
        assert done.returncode == 0, done.stdout + done.stderr
        assert time.monotonic() - before < 60
        shown = done.stdout
        for words in (
            '"reading_ease":', "receipt ", "usage ", "commitment key ", '"all_stopped":true',
            "refused: plugin_error: ", "refused: system_call_forbidden: ",
            "refused: message_unknown: ", "refused: frame_malformed: ",
            "OK omega-gateway/development/", " in all\n",
        ):
            assert words in shown, f"{words!r} is not in:\n{shown}"
        assert re.search(r"^holds +yes", shown, re.MULTILINE)
        size = re.search(r"topics\.txt: .*, ([0-9]+) bytes", shown)
        assert size is not None
        assert int(size[1]) > 300_000
        assert "making the virtual environment" not in shown
        assert list(prepared.temporary.iterdir()) == []
        assert prepared.processes() == []


def test_an_interrupted_quickstart_stops_everything(prepared: Copy) -> None:
    """SIGTERM while the gateway serves ends the broker, its workers and the temporary home."""
    with open(prepared.folder / "said", "wb") as said:
        process = subprocess.Popen(
            [prepared.command("quickstart")], cwd="/", env=prepared.environment(), stdout=said,
            stderr=said,
        )
    wait_for("the call", lambda: "== 5." in (prepared.folder / "said").read_text())
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 143
    wait_for("every process to end", lambda: not prepared.processes())
    assert list(prepared.temporary.iterdir()) == []


def wrapper(copy: Copy, change: str) -> str:
    """A Python that says something else of itself."""
    path = copy.folder / "python-wrapper"
    path.write_text(WRAPPER.replace("CHANGE", change).replace("PYTHON", sys.executable))
    path.chmod(0o755)
    return str(path)


OLDER = "sys.version_info = (3, 10, 14, 'final', 0); sys.version = '3.10.14 (main) [GCC 12]'"
NO_VENV = "sys.modules['ensurepip'] = None; sys.prefix = sys.base_prefix"


def filtered(number: int, answer: int) -> list[str]:
    """The beginning of a command that runs under a filter."""
    return [sys.executable, "-c", FILTERED, str(number), str(answer)]


MASKS: dict[str, tuple[list[str], str, list[str]]] = {
    # What is masked: the words before the command, a change of Python, and the sentence's words.
    "an old kernel": (["setarch", "--uname-2.6"], "", ["operating system", "Linux 2.6"]),
    "another processor": (["setarch", "i686"], "", ["processor", "i686", "x86_64"]),
    "no Landlock": (filtered(444, 38), "", ["Landlock", "ABI 6", "lsm="]),
    "no seccomp": (filtered(317, 38), "", ["seccomp", "CONFIG_SECCOMP_FILTER"]),
    "no user namespaces": (filtered(272, 1), "", ["user namespaces", "Operation not permitted"]),
    "no mounts": (filtered(165, 13), "", ["user namespaces", "mount: Permission denied"]),
    "an old Python": ([], OLDER, ["Python", "3.10.14", "3.11, 3.12 or 3.13"]),
    "no venv module": ([], NO_VENV, ["venv", "no ensurepip", "python3-venv"]),
    "no Python at all": ([], "none", ["Python: found none", "install one of these"]),
}


@pytest.mark.parametrize("script", ["quickstart", "test", "start-broker"])
@pytest.mark.parametrize("mask", MASKS)
def test_a_machine_that_cannot_gets_one_sentence(bare: Copy, mask: str, script: str) -> None:
    """Feature, finding and remedy in one line, exit code 5, and nothing was installed or made."""
    before, change, words = MASKS[mask]
    more = {"PYTHONPATH": str(ROOT)} if before else {}
    if change:
        more["PYTHON"] = "/nowhere/python" if change == "none" else wrapper(bare, change)
    else:
        more["PYTHON"] = getattr(sys, "_base_executable", sys.executable)
    files = sorted(bare.folder.rglob("*"))
    done = bare.run(*before, "/bin/bash", bare.command(script), **more)
    assert done.returncode == 5, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert [word for word in words if word not in done.stderr] == [], done.stderr
    assert [path for path in bare.folder.rglob("*")
            if path not in files and "__pycache__" not in path.parts] == []


def test_the_two_processes_start_in_the_foreground(prepared: Copy) -> None:
    """`start-broker` serves until SIGTERM and ends with 0; `start-worker` refuses with 5."""
    runtime = {"XDG_RUNTIME_DIR": str(prepared.folder), "OMEGA_GATEWAY_HOME": str(
        prepared.folder / "home")}
    gateway = str(prepared.project / ".venv" / "bin" / "omega-gateway")
    assert prepared.run(gateway, "init", "--domain", "development", **runtime).returncode == 0
    process = subprocess.Popen(
        [prepared.command("start-broker")], cwd="/", env=prepared.environment(**runtime),
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for("the broker", lambda: prepared.run(gateway, "status", **runtime).returncode == 0)
        refused = prepared.run(prepared.command("start-worker"), "text-statistics", **runtime)
        assert refused.returncode == 5
        assert "$.workers.external" in refused.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()


def test_an_environment_that_others_could_have_made_is_not_run(copy: Copy) -> None:
    """Outside of the project only folders of this user count, and no link does."""
    own, link, foreign = copy.folder / "a" / "own", copy.folder / "a" / "link", Path("/usr/lib")
    own.mkdir(parents=True)
    link.symlink_to(own)
    source = f"source {copy.command('environment.bash')}; is_trusted"
    for place, trusted in (
        (own, True), (link, False), (copy.project / ".venv", True),
        (foreign, os.geteuid() == 0),
    ):
        done = copy.run("bash", "-c", f'{source} "{place}"')
        assert (done.returncode == 0) is trusted, place


def test_integration_runs_the_readmes_command() -> None:
    """`.ci/run` calls `scripts/test`, which the README names, and nothing else."""
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    commands = [line for line in lines if line and not line.startswith("#")]
    assert len(commands) == 1
    assert commands[0].endswith("&& exec scripts/test")
    assert "\nscripts/test\n" in (ROOT / "README.md").read_text()
