"""A small assembler: from rules per system call number to a classic BPF seccomp program.

The program kills other architectures and x32 numbers, then finds the number by binary search over
ranges of equal rules, so the longest path grows with the logarithm of the table. Every block ends
in a return, so blocks may simply be laid one after the other.

Rules: argument checks know the width the kernel uses. For a 32-bit argument only the low word is
looked at, since the kernel ignores the rest; for a 64-bit one the high word must be zero. Equal
input gives equal bytes. See seccomp(2), linux/filter.h.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ALLOW = 0x7FFF0000
KILL = 0x80000000
AUDIT_ARCH_X86_64 = 0xC000003E
X32_BIT = 0x40000000

_LOAD, _JUMP, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x05, 0x15, 0x35, 0x45, 0x54, 0x06
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16
_REACH = 255
"""Instructions a conditional jump can skip: its two distances are bytes."""

Instruction = tuple[int, int, int, int]
"""Code, distance if true, distance if false, constant: a `struct sock_filter`."""


def errno_action(errno: int) -> int:
    """The action that makes a call return `-errno` without running (0: return zero)."""
    return 0x00050000 | errno


@dataclass(frozen=True)
class Check:
    """A condition on one argument.

    Args:
        argument: position, 0 to 5.
        bits: 32 for int-like parameters, 64 for long and pointers.
        one_of: the argument must be one of these values; or, when empty,
        subset: it may have only these bits, and
        contains: it must have all of these bits.
    """

    argument: int
    bits: int
    one_of: tuple[int, ...] = ()
    subset: int = 0xFFFFFFFF
    contains: int = 0

    def holds(self, value: int) -> bool:
        """Whether a 64-bit register value passes, by definition rather than by program."""
        word = value & (1 << self.bits) - 1
        if self.one_of:
            return word in self.one_of
        return not word & ~self.subset and word & self.contains == self.contains


@dataclass(frozen=True)
class Rule:
    """What happens to a call: `action` if all checks hold, else `otherwise`."""

    action: int
    checks: tuple[Check, ...] = ()
    otherwise: int = KILL


def assemble(rules: Mapping[int, Rule], default: int) -> bytes:
    """The program for `rules` by number; every other number gets `default`.

    Returns:
        Whole 8-byte instructions, ready for `struct sock_fprog`.
    """
    last = Rule(default)
    starts: list[tuple[int, Rule]] = [(0, rules.get(0, last))]
    edges = sorted({edge for number in rules for edge in (number, number + 1)})
    for number in edges:
        rule = rules.get(number, last)
        if rule != starts[-1][1]:
            starts.append((number, rule))
    code: list[Instruction] = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, AUDIT_ARCH_X86_64),
        (_RETURN, 0, 0, KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, X32_BIT),
        (_RETURN, 0, 0, KILL),
        *_search([(number, _block(rule)) for number, rule in starts]),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _search(blocks: Sequence[tuple[int, list[Instruction]]]) -> list[Instruction]:
    """Binary search: the block of the last start that is not above the number."""
    if len(blocks) == 1:
        return blocks[0][1]
    middle = len(blocks) // 2
    left, right = _search(blocks[:middle]), _search(blocks[middle:])
    pivot = blocks[middle][0]
    if len(left) <= _REACH:
        return [(_AT_LEAST, len(left), 0, pivot), *left, *right]
    return [(_AT_LEAST, 0, 1, pivot), (_JUMP, 0, 0, len(left)), *left, *right]


def _block(rule: Rule) -> list[Instruction]:
    """The checks of one rule, each leaving to the second of two returns when it fails."""
    code: list[Instruction] = [(_RETURN, 0, 0, rule.action)]
    if not rule.checks:
        return code
    code.append((_RETURN, 0, 0, rule.otherwise))
    for check in reversed(rule.checks):
        # Built from the end: the failing return is always the last instruction.
        code = [*_check(check, len(code) - 1), *code]
    return code


def _check(check: Check, to_failure: int) -> list[Instruction]:
    """One check; falls through when it holds, else jumps to the failing return.

    Args:
        check: the condition.
        to_failure: how many instructions lie between the end of this check and that return.
    """
    low = _ARGUMENTS + 8 * check.argument
    code: list[Instruction] = []
    if check.one_of:
        *others, final = check.one_of
        code += [(_EQUAL, len(others) - index, 0, value) for index, value in enumerate(others)]
        code.append((_EQUAL, 0, to_failure, final))
    else:
        if check.contains:
            # Masking spoils the accumulator, so this test comes last.
            code += [(_AND, 0, 0, check.contains), (_EQUAL, 0, to_failure, check.contains)]
        if forbidden := ~check.subset & 0xFFFFFFFF:
            code.insert(0, (_ANY_BIT, to_failure + len(code), 0, forbidden))
    code.insert(0, (_LOAD, 0, 0, low))
    if check.bits == 64:
        fail = to_failure + len(code)
        code = [(_LOAD, 0, 0, low + 4), (_EQUAL, 0, fail, 0), *code]
    return code


def disassemble(program: bytes) -> list[Instruction]:
    """The instructions of a program, for listings and for the evaluator of the tests."""
    return list(struct.iter_unpack("=HBBI", program))
