"""What happens on machines that lack a part of the jail, or lie about it.

An outer seccomp filter plays the machine: one call answers with an errno, or says it succeeded and
does nothing. The start must end in `SandboxUnavailable` that names the part, and never in a worker.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from broker import machine
from sandbox_worker import forker, seal
from sandbox_worker.bundle import read_bundle
from sandbox_worker.jail import bpf, identity, linux, policy, seccomp
from schemas import remedies
from schemas.launch import LaunchDocument
from tests.sandbox_worker.harness import LIMITS, make_bundle, text_to_json
from tests.sandbox_worker.jail.inside import inside

pytestmark = pytest.mark.jail

FAKE = 0
CLONE_NEWUSER = 0x10000000
ROOT = os.getuid() == 0
SOURCE = "from sandbox_worker.sdk import method\n@method()\ndef main(ctx, text):\n    return 1\n"


class Fault(NamedTuple):
    """One call of this machine that does not work, for some arguments or all.

    `remedy` is a word of the hint: what an administrator has to look for. A fake success is seen by
    its missing effect, or as the errno (`code`) of the step that needed it.
    """

    call: str
    answer: int
    feature: str
    remedy: str
    checks: tuple[bpf.Check, ...] = ()
    code: int = 0

    def __str__(self) -> str:
        answer = errno.errorcode[self.answer] if self.answer else "fake"
        return "-".join([self.call, answer, *(str(check.one_of) for check in self.checks)])


def _is(argument: int, *values: int, bits: int = 32) -> tuple[bpf.Check, ...]:
    return (bpf.Check(argument, bits, one_of=values),)


def _option(value: int) -> tuple[bpf.Check, ...]:
    return _is(0, value)


USERNS, LSM, SECCOMP = "apparmor_restrict_unprivileged_userns", "lsm=", "CONFIG_SECCOMP_FILTER"
OUTER, ULIMIT, FORK, TIME = "SystemCallFilter=", "ulimit -n", "TasksMax=", "supports"
REMOUNT = (bpf.Check(3, 64, contains=0x20),)
HIDE = (bpf.Check(2, 64, one_of=(1,)), bpf.Check(3, 64, one_of=(0x32,)))
WRITING_A_MAP = _is(2, os.O_WRONLY | os.O_CLOEXEC)

FAULTS = [
    Fault("unshare", errno.EPERM, "user namespaces", USERNS),
    Fault("unshare", errno.ENOSYS, "user namespaces", USERNS),
    Fault("unshare", errno.ENOSPC, "user namespaces", USERNS),
    Fault("unshare", FAKE, "user namespaces", USERNS),
    # Ubuntu lets unshare succeed and then refuses what it was for.
    Fault("openat", errno.EPERM, "user namespaces", USERNS, WRITING_A_MAP),
    Fault("openat", errno.EACCES, "user namespaces", USERNS, WRITING_A_MAP),
    Fault("sethostname", errno.EPERM, "uts namespace", USERNS),
    Fault("sethostname", FAKE, "uts namespace", USERNS),
    Fault("mount", errno.EPERM, "mount namespace", USERNS),
    Fault("mount", errno.EACCES, "mount namespace", USERNS),
    Fault("mount", FAKE, "pivot_root", USERNS, code=errno.EINVAL),
    Fault("mount", errno.EPERM, "read-only root", USERNS, REMOUNT),
    Fault("mount", FAKE, "read-only root", USERNS, REMOUNT),
    Fault("pivot_root", errno.EPERM, "pivot_root", USERNS),
    Fault("pivot_root", FAKE, "empty root", USERNS),
    Fault("umount2", errno.EPERM, "pivot_root", USERNS),
    Fault("umount2", FAKE, "empty root", USERNS),
    Fault("capset", errno.EPERM, "capabilities", OUTER),
    Fault("capset", FAKE, "capabilities", OUTER),
    Fault("prctl", errno.EPERM, "capabilities", OUTER, _option(linux.PR_CAPBSET_DROP)),
    Fault("prctl", FAKE, "capabilities", OUTER, _option(linux.PR_CAPBSET_DROP)),
    Fault("prctl", errno.EPERM, "capabilities", OUTER, _option(linux.PR_SET_SECUREBITS)),
    Fault("prctl", FAKE, "capabilities", OUTER, _option(linux.PR_SET_SECUREBITS)),
    Fault("prctl", errno.EINVAL, "capabilities", OUTER, _option(linux.PR_CAP_AMBIENT)),
    Fault("prctl", errno.EINVAL, "parent death signal", OUTER, _option(linux.PR_SET_PDEATHSIG)),
    Fault("prctl", FAKE, "parent death signal", OUTER, _option(linux.PR_SET_PDEATHSIG)),
    Fault("prctl", errno.EINVAL, "dumpable", OUTER, _option(linux.PR_SET_DUMPABLE)),
    Fault("prctl", FAKE, "dumpable" if ROOT else "non-dumpable", OUTER,
          _option(linux.PR_SET_DUMPABLE)),
    Fault("prlimit64", errno.EPERM, "resource limits", ULIMIT),
    Fault("prlimit64", FAKE, "resource limits", OUTER),
    Fault("landlock_create_ruleset", errno.ENOSYS, "landlock", LSM),
    Fault("landlock_create_ruleset", errno.EOPNOTSUPP, "landlock", LSM),
    Fault("landlock_create_ruleset", FAKE, "landlock ABI 6", LSM),
    Fault("landlock_restrict_self", errno.EPERM, "landlock", LSM),
    Fault("landlock_restrict_self", errno.E2BIG, "landlock", LSM),
    Fault("landlock_restrict_self", FAKE, "landlock", LSM),
    Fault("mmap", errno.ENOMEM, "time pages", TIME, HIDE),
    Fault("mmap", FAKE, "time pages", TIME, HIDE),
    Fault("seccomp", errno.ENOSYS, "seccomp", SECCOMP),
    Fault("seccomp", errno.EINVAL, "seccomp", SECCOMP),
    Fault("seccomp", FAKE, "seccomp", SECCOMP),
    Fault("close_range", errno.ENOSYS, "close_range", OUTER),
    Fault("close_range", FAKE, "close_range", OUTER),
    Fault("clone", errno.EAGAIN, "zygote", FORK, _is(0, 0x01200011, bits=64)),
    Fault("execve", errno.EACCES, "zygote", OUTER),
    Fault("signalfd4", errno.ENOSYS, "zygote", OUTER),
]
"""Of the zygote's own jail."""

FAULTS += [
    Fault("close_range", errno.EINVAL, "close_range", OUTER, _is(1, 2)),
    Fault("close_range", FAKE, "close_range", OUTER, _is(1, 2)),
    Fault("close_range", FAKE, "close_range", OUTER, _is(0, 4)),
    Fault("prlimit64", errno.EPERM, "resource limits", ULIMIT, _is(1, resource.RLIMIT_CPU)),
    Fault("prlimit64", FAKE, "resource limits", ULIMIT, _is(1, resource.RLIMIT_CPU)),
    Fault("timer_create", errno.ENOSYS, "processor timer", OUTER),
    Fault("timer_create", errno.EAGAIN, "processor timer", OUTER),
    Fault("timer_create", FAKE, "processor timer", OUTER, code=errno.EINVAL),
    Fault("timer_settime", errno.ENOSYS, "processor timer", OUTER),
    Fault("timer_settime", FAKE, "processor timer", OUTER),
]
"""Of a call process, as its rehearsal finds them: no other process makes these calls."""

AS_ROOT = [
    Fault("setresuid", errno.EPERM, "identity", OUTER),
    Fault("setresuid", FAKE, "identity", OUTER),
    Fault("setresgid", errno.EPERM, "identity", OUTER),
    Fault("setresgid", FAKE, "identity", OUTER),
    Fault("setgroups", errno.EPERM, "identity", OUTER),
    Fault("setgroups", FAKE, "identity", OUTER),
    Fault("prctl", errno.EINVAL, "no_new_privs", OUTER, _option(linux.PR_SET_NO_NEW_PRIVS)),
    Fault("prctl", FAKE, "no_new_privs", OUTER, _option(linux.PR_SET_NO_NEW_PRIVS)),
]
"""Only root makes these calls, or can install a filter without no_new_privs."""
if ROOT:
    FAULTS += AS_ROOT


def _start(folder: Path, machine: Callable[[], object]) -> object:
    """Start a zygote on that machine: "started", or feature, errno and hint of the refusal."""
    bundle = make_bundle(folder, SOURCE, methods=text_to_json())
    launch = LaunchDocument(
        format="omega-launch/1", incarnation="0" * 32, plugin="plugin-under-test", version="1.0.0",
        plugin_digest=hashlib.sha256(bundle.read_bytes()).hexdigest(), bundle=str(bundle),
        endpoint="ipc:///nowhere", server_key="0" * 40, worker_secret_key="0" * 40, limits=LIMITS,
        grants=(), expires_at_us=0,
    )  # fmt: skip

    def attempt() -> object:
        machine()
        try:
            forker.start(launch, read_bundle(launch)).close()
        except linux.SandboxUnavailable as error:
            return [error.feature, error.errno, error.hint]
        return "started"

    return inside(attempt)


def _machine_with(fault: Fault) -> Callable[[], object]:
    """What makes this process and its children live on a machine with that fault."""
    rule = bpf.Rule(bpf.errno_action(fault.answer), fault.checks, bpf.ALLOW)
    program = bpf.assemble({policy.numbers()[fault.call]: rule}, bpf.ALLOW)

    def become() -> None:
        if ROOT:
            os.setgroups([1])
        if fault not in AS_ROOT:
            identity.no_new_privileges()
        seccomp.install(program)

    return become


def test_an_honest_machine_starts(tmp_path: Path) -> None:
    """The control: without a fault the same start succeeds."""
    assert _start(tmp_path, lambda: None) == "started"


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_missing_or_faked_part_refuses_the_start(tmp_path: Path, fault: Fault) -> None:
    """The part is named, the kernel's errno is kept, and the hint says what to change."""
    outcome = _start(tmp_path, _machine_with(fault))

    assert isinstance(outcome, list), outcome
    feature, code, hint = outcome
    assert (feature, code) == (fault.feature, fault.answer or fault.code)
    assert fault.remedy in hint


def _few_descriptors() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


def _no_more_namespaces() -> None:
    """A machine whose administrator set user.max_user_namespaces to 0: that of a namespace."""
    this, count = os.getpid(), 65535 if ROOT else 1
    ids = {"gid_map": os.getgid(), "uid_map": os.getuid()}
    reader, writer = os.pipe()
    mapper = os.fork()
    if mapper == 0:
        # More than one id can only be mapped from outside of the new namespace.
        os.close(writer)
        os.read(reader, 1)
        if not ROOT:
            Path(f"/proc/{this}/setgroups").write_text("deny", "utf-8")
        for name, first in ids.items():
            Path(f"/proc/{this}/{name}").write_text(f"{first} {first} {count}", "utf-8")
        os._exit(0)
    linux.call(linux.UNSHARE, CLONE_NEWUSER)
    os.close(writer)
    assert os.waitpid(mapper, 0)[1] == 0
    Path("/proc/sys/user/max_user_namespaces").write_text("0", "utf-8")


@pytest.mark.parametrize(
    ("setting", "feature", "code", "remedy"),
    [
        (_few_descriptors, "resource limits", errno.EPERM, "raise `ulimit -n` to 128"),
        (_no_more_namespaces, "user namespaces", errno.ENOSPC,
         "as root: sysctl -w user.max_user_namespaces="),
    ],
)  # fmt: skip
def test_real_settings_refuse_the_start(
    tmp_path: Path, setting: Callable[[], object], feature: str, code: int, remedy: str
) -> None:
    """Without any filter: the hint names the very setting that was made."""
    outcome = _start(tmp_path, setting)

    assert isinstance(outcome, list), outcome
    assert outcome[:2] == [feature, code]
    assert remedy in outcome[2]


def test_the_doctor_gives_the_hint_of_the_worker(tmp_path: Path) -> None:
    """On one machine both name the same setting in the same words."""

    def examine() -> object:
        _no_more_namespaces()
        found = next(one for one in machine.examine() if one.feature == "user namespaces")
        return [found.ok, found.remedy]

    outcome = _start(tmp_path, _no_more_namespaces)
    assert isinstance(outcome, list)

    assert inside(examine) == [False, outcome[2]]


def test_the_doctor_finds_what_only_a_whole_jail_shows() -> None:
    """Where each feature alone looks well, it still makes a jail, and gives the worker's hint."""
    fault = Fault("timer_create", errno.ENOSYS, "processor timer", OUTER)

    def ask() -> object:
        _machine_with(fault)()
        done = subprocess.run(
            [sys.executable, "-m", "broker.cli.main", "doctor", "--output", "json"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return [done.returncode, done.stderr, json.loads(done.stdout)["findings"]]

    code, sentence, findings = inside(ask)

    assert code == 5
    assert [one["feature"] for one in findings if not one["ok"]] == ["sandbox"]
    assert sentence == (
        "sandbox: found refused: processor timer, Function not implemented, required is made, "
        f"attested and rehearsed; {remedies.OUTER}.\n"
    )


@pytest.mark.parametrize(
    ("fault", "step"),
    [
        (Fault("landlock_restrict_self", FAKE, "landlock", LSM), seal.close_outside),
        (Fault("landlock_restrict_self", errno.EPERM, "landlock", LSM), seal.close_outside),
        (Fault("landlock_restrict_self", FAKE, "landlock", LSM), seal.close_files),
        (Fault("landlock_add_rule", errno.EINVAL, "landlock", LSM), seal.close_files),
        (Fault("seccomp", FAKE, "seccomp", SECCOMP), seal.close_files),
        (Fault("seccomp", errno.EINVAL, "seccomp", SECCOMP), seal.close_files),
        # An ordinary user's supervisor has no capabilities to give up.
        *([(Fault("capset", FAKE, "capabilities", OUTER), seal.close_files)] if ROOT else []),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_supervisor_that_cannot_seal_itself_refuses(
    fault: Fault, step: Callable[[], None]
) -> None:
    """Both layers of the supervisor are tried after they were put on."""

    def attempt() -> object:
        _machine_with(fault)()
        try:
            step()
        except linux.SandboxUnavailable as error:
            return [error.feature, error.errno, fault.remedy in error.hint]
        return "sealed"

    assert inside(attempt) == [fault.feature, fault.answer, True]
