"""The look at the machine, with each feature masked by real means around the process."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from broker.machine import examine

ROOT = Path(__file__).parents[2]
MACHINE = str(ROOT / "broker" / "machine.py")

FILTERED = """
import os, sys
from broker import seal
number, answer = int(sys.argv[1]), int(sys.argv[2])
seal._no_new_privileges()
seal._install_filter(seal._assemble([(0x15, 0, 1, number), (6, 0, 0, 0x50000 | answer)]))
os.execv(sys.executable, [sys.executable, sys.argv[3]])
"""
"""Become the examined program under a filter that answers one system call with an errno."""

NO_NAMESPACES = """
import os, sys
from broker import machine, seal
if os.getuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    seal.call(157, 4, 1, 0, 0, 0)
user, group = os.getuid(), os.getgid()
seal.call(272, 0x10000000)
for name, text in (("setgroups", "deny"), ("gid_map", f"9 {group} 1"), ("uid_map", f"9 {user} 1")):
    with open(f"/proc/self/{name}", "w") as file:
        file.write(text)
with open("/proc/sys/user/max_user_namespaces", "w") as file:
    file.write("0")
sys.exit(machine.main())
"""
"""Examine from within a user namespace that may hold no further one."""

WRAPPED = """
import runpy, sys
{change}
sys.argv = [sys.argv[1]]
sys.path[0] = "broker"
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Run the examined program in an interpreter that was changed first."""

OLDER = "sys.version_info = (3, 10, 14, 'final', 0); sys.version = '3.10.14 (main) [GCC 12]'"
NO_VENV = "sys.modules['ensurepip'] = None; sys.prefix = sys.base_prefix"


def program(text: str, *arguments: str) -> list[str]:
    """The command line of a program text."""
    return [sys.executable, "-c", text, *arguments]


MASKS: dict[str, tuple[list[str], list[str]]] = {
    # What is masked: how, and the words that its sentence must hold.
    "an old kernel": (
        ["setarch", "--uname-2.6", sys.executable, MACHINE],
        ["operating system", "found Linux 2.6", "Linux 6.12 or later", "Debian 13"],
    ),
    "another processor": (
        ["setarch", "i686", sys.executable, MACHINE],
        ["processor", "found i686", "required is x86_64"],
    ),
    "an old Python": (
        program(WRAPPED.format(change=OLDER), MACHINE),
        ["Python", "found CPython 3.", "required is CPython 3.11, 3.12 or 3.13", "install"],
    ),
    "no venv module": (
        program(WRAPPED.format(change=NO_VENV), MACHINE),
        ["venv", "found no ensurepip", "python3-venv"],
    ),
    "no Landlock in the kernel": (
        program(FILTERED, "444", "38", MACHINE),
        ["Landlock", "found no Landlock (Function not implemented)", "ABI 6", "lsm="],
    ),
    "Landlock that is switched off": (
        program(FILTERED, "444", "95", MACHINE),
        ["Landlock", "Operation not supported", "CONFIG_SECURITY_LANDLOCK"],
    ),
    "Landlock that does nothing": (
        program(FILTERED, "446", "0", MACHINE),
        ["Landlock", "no effect", "lsm="],
    ),
    "no seccomp": (
        program(FILTERED, "317", "38", MACHINE),
        ["seccomp", "Function not implemented", "CONFIG_SECCOMP_FILTER"],
    ),
    "no user namespaces left": (
        program(NO_NAMESPACES),
        ["user namespaces", "unshare: No space left", "user.max_user_namespaces"],
    ),
    "unshare that is forbidden": (
        program(FILTERED, "272", "1", MACHINE),
        ["user namespaces", "unshare: Operation not permitted", "container"],
    ),
    "namespaces without mounts": (
        program(FILTERED, "165", "13", MACHINE),
        ["user namespaces", "mount: Permission denied", "AppArmor"],
    ),
}


def look(command: list[str], folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run the examination in a bare environment."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    if MACHINE in command[1:2]:
        del environment["PYTHONPATH"]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=30,
        check=False,
    )  # fmt: skip


@pytest.mark.jail
def test_this_machine_can_build_the_sandbox(tmp_path: Path) -> None:
    """Run as a file, from any folder, with nothing installed, it says nothing and ends with 0."""
    done = look([sys.executable, "-S", MACHINE], tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [finding.feature for finding in examine() if not finding.ok] == []
    assert len(examine()) == 7


@pytest.mark.jail
@pytest.mark.parametrize("mask", MASKS)
def test_masked_feature_gets_one_sentence(mask: str) -> None:
    """Feature, finding and remedy stand in one line, the exit code is 5, nothing else is said."""
    command, words = MASKS[mask]
    done = look(command)
    assert done.returncode == 5, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith(".\n")
    assert [word for word in words if word not in done.stderr] == [], done.stderr


def test_examination_reads_in_old_pythons() -> None:
    """The file's grammar is that of Python 3.6, so an old interpreter reaches the sentence."""
    import ast

    ast.parse(Path(MACHINE).read_text("utf-8"), feature_version=(3, 6))
    assert "from __future__" not in Path(MACHINE).read_text("utf-8")


@pytest.mark.jail
def test_examining_leaves_no_trace() -> None:
    """Every trial runs in a child: this process keeps its rights, namespaces and children."""
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children")
    others = set(children.read_text().split())
    before = Path("/proc/self/status").read_text(), os.listdir("/proc/self/fd")
    spaces = {name: os.readlink(f"/proc/self/ns/{name}") for name in os.listdir("/proc/self/ns")}
    examine()
    after = Path("/proc/self/status").read_text(), os.listdir("/proc/self/fd")
    for name in ("Seccomp:", "NoNewPrivs:", "CapEff:", "Uid:"):
        lines = [
            next(line for line in text.splitlines() if line.startswith(name))
            for text in (before[0], after[0])
        ]
        assert lines[0] == lines[1]
    assert len(before[1]) == len(after[1])
    assert spaces == {
        name: os.readlink(f"/proc/self/ns/{name}") for name in os.listdir("/proc/self/ns")
    }
    # What another test left is none of its own.
    assert set(children.read_text().split()) <= others
