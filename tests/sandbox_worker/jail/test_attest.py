"""Attestation from outside: one process that is wholly jailed, and one for each thing it lacks."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import threading
from collections.abc import Iterator

import pytest

from sandbox_worker.jail import attest, identity, linux, namespaces, policy, seccomp
from schemas import remedies

pytestmark = pytest.mark.jail

ROOT = os.getuid() == 0
UID = identity.SANDBOX_ID if ROOT else os.getuid()
BASE = policy.base_filter()
FILTERS = 2
PID_BYTES = 8
CLONE_NEWUSER, CLONE_NEWPID = 0x10000000, 0x20000000


@contextlib.contextmanager
def jailed(*, without: str) -> Iterator[int]:
    """The pid, outside, of a process that took every step that attestation sees but one."""
    reader, writer = os.pipe()
    stub = os.fork()
    if stub == 0:
        try:
            _become_jailed(writer, without)
        finally:
            os._exit(1)
    os.close(writer)
    try:
        with os.fdopen(reader, "rb") as told:
            inner = told.read(PID_BYTES)
        assert inner, "the process ended before it was jailed"
        yield int(inner)
    finally:
        # The other dies with it.
        os.kill(stub, signal.SIGKILL)
        os.waitpid(stub, 0)


def _become_jailed(writer: int, without: str) -> None:
    """Be the stub of such a process, and in a fork of it the process itself."""
    if without == "Groups":
        os.setgroups([1])
        os.setresgid(UID, UID, UID)
        os.setresuid(UID, UID, UID)
    elif without != "Uid":
        identity.become_sandbox_user()
    if without in ("NSpid", "Uid", "Groups"):
        kinds = CLONE_NEWUSER if without == "NSpid" else CLONE_NEWUSER | CLONE_NEWPID
        linux.call(linux.UNSHARE, kinds)
    else:
        namespaces.unshare_all()
    ready, done = os.pipe()
    inner = os.fork()
    if inner:
        os.close(done)
        if os.read(ready, 1):
            # The stub is outside of the new namespace and knows its child by the outer number.
            os.write(writer, str(inner).ljust(PID_BYTES).encode())
            signal.pause()
        return
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    if without == "Threads":
        threading.Thread(target=signal.pause, daemon=True).start()
    # Installing a filter takes no_new_privs or a capability.
    if without not in ("CapPrm", "NoNewPrivs"):
        identity.drop_capabilities()
    if without != "NoNewPrivs":
        identity.no_new_privileges()
    for _ in range({"Seccomp": 0, "Seccomp_filters": 1}.get(without, FILTERS)):
        seccomp.install(BASE)
    os.write(done, b"x")
    select.poll().poll()


def test_a_jailed_process_passes() -> None:
    """The control: with every step taken nothing is found, and the fields come back."""
    with jailed(without="") as pid:
        found = attest.attest(pid, uid=UID, filters=FILTERS)

    assert found["CapBnd"] == "0" * 16


@pytest.mark.parametrize(
    "without",
    ["NoNewPrivs", "Seccomp", "Seccomp_filters", "Threads", "CapPrm", "NSpid",
     *(["Uid", "Groups"] if ROOT else [])],
)  # fmt: skip
def test_each_missing_step_is_named(without: str) -> None:
    """The kernel's word for what is missing is in the refusal, and its remedy."""
    with jailed(without=without) as pid, pytest.raises(linux.SandboxUnavailable) as refused:
        attest.attest(pid, uid=UID, filters=FILTERS)

    assert refused.value.feature == f"attestation of {without}"
    assert refused.value.hint == remedies.OUTER


def test_a_process_that_is_gone_is_refused() -> None:
    """What cannot be read is not taken for good."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    with pytest.raises(linux.SandboxUnavailable) as refused:
        attest.attest(pid, uid=UID, filters=FILTERS)

    assert (refused.value.feature, refused.value.errno) == ("attestation", errno.ENOENT)
