"""What happens on machines that lack a part of the jail, or lie about it.

An outer seccomp filter plays the machine: one call answers with an errno, or says it succeeded and
does nothing. The start must end in `SandboxUnavailable` that names the part, and never in a worker.
"""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import pytest

from sandbox_worker import forker
from sandbox_worker.bundle import read_bundle
from sandbox_worker.jail import bpf, identity, linux, policy, seccomp
from schemas.launch import LaunchDocument
from tests.sandbox_worker.harness import LIMITS, make_bundle, text_to_json
from tests.sandbox_worker.jail.inside import inside

pytestmark = pytest.mark.jail

FAKE = 0
ROOT = os.getuid() == 0
SOURCE = "from sandbox_worker.sdk import method\n@method()\ndef main(ctx, text):\n    return 1\n"


class Fault(NamedTuple):
    """One call of this machine that does not work, for some arguments or all."""

    call: str
    answer: int
    feature: str
    checks: tuple[bpf.Check, ...] = ()


def _option(value: int) -> tuple[bpf.Check, ...]:
    return (bpf.Check(0, 32, one_of=(value,)),)


FAULTS = [
    Fault("unshare", errno.EPERM, "user namespaces"),
    Fault("unshare", errno.ENOSYS, "user namespaces"),
    Fault("unshare", FAKE, "user namespaces"),
    Fault("sethostname", FAKE, "uts namespace"),
    Fault("mount", errno.EPERM, "mount namespace"),
    Fault("mount", FAKE, "pivot_root"),
    Fault("pivot_root", errno.EPERM, "pivot_root"),
    Fault("pivot_root", FAKE, "empty root"),
    Fault("umount2", errno.EPERM, "pivot_root"),
    Fault("umount2", FAKE, "empty root"),
    Fault("capset", errno.EPERM, "capabilities"),
    Fault("capset", FAKE, "capabilities"),
    Fault("prctl", FAKE, "capabilities", _option(linux.PR_CAPBSET_DROP)),
    Fault("prctl", FAKE, "capabilities", _option(linux.PR_SET_SECUREBITS)),
    Fault("prctl", FAKE, "user namespaces" if ROOT else "non-dumpable",
          _option(linux.PR_SET_DUMPABLE)),
    Fault("prlimit64", errno.EPERM, "resource limits"),
    Fault("prlimit64", FAKE, "resource limits"),
    Fault("landlock_create_ruleset", errno.ENOSYS, "landlock"),
    Fault("landlock_create_ruleset", errno.EOPNOTSUPP, "landlock"),
    Fault("landlock_restrict_self", errno.EPERM, "landlock"),
    Fault("landlock_restrict_self", FAKE, "landlock"),
    Fault("seccomp", errno.ENOSYS, "seccomp"),
    Fault("seccomp", FAKE, "seccomp"),
    Fault("timer_create", errno.ENOSYS, "call process"),
    Fault("timer_settime", FAKE, "call process"),
    Fault("close_range", errno.ENOSYS, "close_range"),
    Fault("close_range", FAKE, "call process"),
]
AS_ROOT = [
    Fault("setresuid", FAKE, "identity"),
    Fault("setresgid", FAKE, "identity"),
    Fault("setgroups", FAKE, "identity"),
    Fault("prctl", FAKE, "no_new_privs", _option(linux.PR_SET_NO_NEW_PRIVS)),
]
if ROOT:
    FAULTS += AS_ROOT


def _start(folder: Path, fault: Fault | None) -> object:
    """Start a zygote on that machine: "started", or the feature that was missing."""
    bundle = make_bundle(folder, SOURCE, methods=text_to_json())
    launch = LaunchDocument(
        format="omega-launch/1", incarnation="0" * 32, plugin="plugin-under-test", version="1.0.0",
        plugin_digest=hashlib.sha256(bundle.read_bytes()).hexdigest(), bundle=str(bundle),
        endpoint="ipc:///nowhere", server_key="0" * 40, worker_secret_key="0" * 40, limits=LIMITS,
        grants=(), expires_at_us=0,
    )  # fmt: skip
    program = b""
    if fault is not None:
        rule = bpf.Rule(bpf.errno_action(fault.answer), fault.checks, bpf.ALLOW)
        program = bpf.assemble({policy.numbers()[fault.call]: rule}, bpf.ALLOW)

    def attempt() -> object:
        if program:
            if ROOT:
                os.setgroups([1])
            if fault not in AS_ROOT:
                identity.no_new_privileges()
            seccomp.install(program)
        try:
            forker.start(launch, read_bundle(launch)).close()
        except linux.SandboxUnavailable as error:
            return [error.feature, error.errno, error.hint]
        return "started"

    return inside(attempt)


def test_an_honest_machine_starts(tmp_path: Path) -> None:
    """The control: without a fault the same start succeeds."""
    assert _start(tmp_path, None) == "started"


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.call}-{fault.answer}")
def test_a_missing_or_faked_part_refuses_the_start(tmp_path: Path, fault: Fault) -> None:
    """The part is named, the kernel's errno is kept, and the hint says what to change."""
    outcome = _start(tmp_path, fault)

    assert isinstance(outcome, list), outcome
    feature, code, hint = outcome
    assert feature == fault.feature
    if fault.answer and fault.feature != "call process":
        assert code == fault.answer
    assert hint
