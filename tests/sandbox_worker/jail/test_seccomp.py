"""The filters on the real kernel: every number there is, one process each."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal

import pytest

from sandbox_worker.jail import identity, linux, policy, seccomp
from sandbox_worker.jail.bpf import ALLOW, KILL
from tests.sandbox_worker.jail.evaluator import stacked
from tests.sandbox_worker.jail.inside import Killed, inside

pytestmark = pytest.mark.jail

BASE = policy.base_filter()
CALL = policy.call_filter(clock=False, random=False)
_NUMBERS = policy.numbers()
BAD = (2**32 - 7,) * 6
"""Arguments no call accepts, so that one that got through would say EINVAL, EBADF or EFAULT."""

UNFILTERED = {_NUMBERS["uretprobe"], _NUMBERS["uprobe"]}
"""Numbers that newer kernels answer before they ask any filter."""


def _outcome(programs: list[bytes], number: int, arguments: tuple[int, ...]) -> list[int] | int:
    """-1 and the errno of one call under a filter, or what it returned, or the signal."""

    def attempt() -> object:
        identity.no_new_privileges()
        for program in programs:
            seccomp.install(program)
        try:
            return [linux.call(number, *arguments), 0]
        except OSError as error:
            return [-1, error.errno]

    try:
        found: list[int] = inside(attempt)
        return found
    except Killed as killed:
        return killed.signal


def _wrong_outcomes(programs: list[bytes]) -> list[tuple[int, object, object]]:
    """Every refused number that ended otherwise: the number, what was found and expected."""
    wrong: list[tuple[int, object, object]] = []
    for number in range(480):
        action = stacked(programs, number, BAD)
        if action == ALLOW:
            continue
        code = action & 0xFFFF
        softly = [-1, code] if code else [0, 0]
        expected = signal.SIGSYS if action == KILL else softly
        found = _outcome(programs, number, BAD)
        if number in UNFILTERED:
            # They work only from trampolines that the kernel itself mapped.
            assert isinstance(found, int) or found[0] == -1
            continue
        if found != expected:
            wrong.append((number, found, expected))
    return wrong


@pytest.mark.parametrize("programs", [[BASE], [BASE, CALL]], ids=["zygote", "call"])
def test_the_kernel_refuses_every_number_as_the_program_says(programs: list[bytes]) -> None:
    """Each refused number gives its errno, its zero or its SIGSYS when really called."""
    # Hundreds of processes are forked: from one of its own, which has less to copy than pytest's.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_wrong_outcomes, (programs,)) == []


def test_stacked_filters_give_the_stricter_answer() -> None:
    """What base allows and strict refuses is refused with strict's errno, not killed."""

    def attempt() -> object:
        identity.no_new_privileges()
        seccomp.install(BASE)
        seccomp.install(CALL)
        seen = []
        for number, *arguments in (
            (_NUMBERS["recvmsg"], 0, 0, 0),
            (_NUMBERS["clone"], 0x01200011, 0, 0, 0, 0),
            (_NUMBERS["openat"], 0, 0, 0, 0),
            (_NUMBERS["close"], 99),
        ):
            with pytest.raises(OSError) as refused:
                linux.call(number, *arguments)
            seen.append(refused.value.errno)
        return seen

    assert inside(attempt) == [errno.EPERM, errno.EPERM, errno.EACCES, errno.EBADF]


def test_granted_descriptors_work_under_both_filters() -> None:
    """Read and lseek on 4 and 5 reach the kernel; what else there is to do with them does not."""
    program = policy.call_filter(clock=False, random=False, descriptors=2)

    def attempt() -> object:
        for number, text in ((4, b"four"), (5, b"five")):
            file = os.memfd_create("granted")
            os.write(file, text)
            os.lseek(file, 0, os.SEEK_SET)
            os.dup2(file, number)
        identity.no_new_privileges()
        seccomp.install(BASE)
        seccomp.install(program)
        seen: list[object] = [os.lseek(4, 0, os.SEEK_END), os.lseek(4, 1, os.SEEK_SET)]
        seen += [os.read(number, 10).decode() for number in (4, 5)]
        for refused in (
            lambda: os.write(4, b"x"),
            lambda: os.dup(4),
            lambda: os.read(6, 1),
            lambda: os.lseek(3, 0, 0),
            lambda: os.lseek(4, 0, os.SEEK_HOLE),
            lambda: os.pread(4, 1, 0),
            lambda: os.ftruncate(4, 0),
        ):
            with pytest.raises(OSError) as error:
                refused()
            seen.append(error.value.errno)
        return seen

    assert inside(attempt) == [4, 1, "our", "five", *[errno.EBADF] * 7]


def test_expect_installed_refuses_a_filter_that_is_not_there() -> None:
    """The staged probe sees the difference between a filter and none."""

    def without() -> object:
        try:
            seccomp.expect_installed()
        except linux.SandboxUnavailable as error:
            return error.feature
        return None

    def with_filter() -> object:
        identity.no_new_privileges()
        seccomp.install(BASE)
        seccomp.expect_installed()
        return "held"

    assert inside(without) == "seccomp"
    assert inside(with_filter) == "held"
