"""The same table built by somebody else: filters of the system's libseccomp.

libseccomp shares no code with our assembler and reads the table's rules in its own terms, so two
programs that agree everywhere are both right, or wrong in the same way by chance. It is a library
of the system, reached through ctypes; the gateway itself never loads it. A filter of libseccomp
has one action for calls whose arguments do not match: it says whether a call passes, and what
happens otherwise is compared with the table. See seccomp_rule_add(3), seccomp_export_bpf(3).
"""

from __future__ import annotations

import ctypes
import itertools
import os

import pytest

from sandbox_worker.jail.bpf import KILL, Check, Rule

_MASKED_EQUAL = 7
_BAD_ARCH_ACTION = 2
_MISSING = (
    "libseccomp.so.2: not found, required by the tests as an independent reader of the table of "
    "system calls; install the package libseccomp2 (Debian, Ubuntu) or libseccomp (others)"
)


class _Comparison(ctypes.Structure):
    """`struct scmp_arg_cmp`."""

    _fields_ = (
        ("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    )  # fmt: skip


def library() -> ctypes.CDLL:
    """The system's libseccomp; the test fails with a sentence where there is none."""
    try:
        loaded = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    except OSError:
        pytest.fail(_MISSING)
    loaded.seccomp_init.restype = ctypes.c_void_p
    loaded.seccomp_init.argtypes = [ctypes.c_uint32]
    return loaded


def number_of(name: str) -> int:
    """The number that libseccomp knows a call by; negative when it is older than the call."""
    known: int = library().seccomp_syscall_resolve_name(name.encode())
    return known


def build(rules: dict[int, Rule]) -> bytes:
    """libseccomp's program for rules by number; what is not among them is killed.

    A rule with checks gives its action where they hold and KILL elsewhere.
    """
    lib = library()
    context = ctypes.c_void_p(lib.seccomp_init(KILL))
    assert context
    assert lib.seccomp_attr_set(context, _BAD_ARCH_ACTION, ctypes.c_uint32(KILL)) == 0
    for number, rule in rules.items():
        for comparisons in itertools.product(*map(_alternatives, rule.checks)):
            array = (_Comparison * len(comparisons))(*comparisons)
            result = lib.seccomp_rule_add_array(
                context, ctypes.c_uint32(rule.action), number, len(comparisons), array
            )
            assert result == 0, (number, rule, os.strerror(-result))
    file = os.memfd_create("program")
    assert lib.seccomp_export_bpf(context, file) == 0
    lib.seccomp_release(context)
    with os.fdopen(file, "rb") as program:
        program.seek(0)
        return program.read()


def _alternatives(check: Check) -> list[_Comparison]:
    """Comparisons of which one must hold."""
    word = (1 << check.bits) - 1
    if check.one_of:
        return [_Comparison(check.argument, _MASKED_EQUAL, word, one) for one in check.one_of]
    mask = word & ~check.subset | check.contains
    return [_Comparison(check.argument, _MASKED_EQUAL, mask, check.contains)]
