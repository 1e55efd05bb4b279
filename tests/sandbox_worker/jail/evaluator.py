"""Runs a classic BPF seccomp program in user space, instruction by instruction.

Written from seccomp(2) and the kernel's instruction meanings, not from the assembler: it is what
the assembler is compared with.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence

X86_64 = 0xC000003E


@functools.cache
def _instructions(program: bytes) -> list[tuple[int, int, int, int]]:
    return list(struct.iter_unpack("=HBBI", program))


def evaluate(
    program: bytes, number: int, arguments: tuple[int, ...] = (), arch: int = X86_64
) -> int:
    """The action a program returns for one system call with 64-bit argument registers."""
    padded = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
    data = struct.pack("=IIQ6Q", number & 0xFFFFFFFF, arch, 0, *padded)
    code = _instructions(program)
    at, accumulator = 0, 0
    for _ in range(len(code)):
        operation, true, false, constant = code[at]
        at += 1
        match operation:
            case 0x20:
                (accumulator,) = struct.unpack_from("=I", data, constant)
            case 0x54:
                accumulator &= constant
            case 0x05:
                at += constant
            case 0x15:
                at += true if accumulator == constant else false
            case 0x25:
                at += true if accumulator > constant else false
            case 0x35:
                at += true if accumulator >= constant else false
            case 0x45:
                at += true if accumulator & constant else false
            case 0x06:
                return constant
            case _:
                raise AssertionError(f"the kernel would refuse operation {operation:#x}")
    raise AssertionError("the program did not end")


def stacked(
    programs: Sequence[bytes], number: int, arguments: tuple[int, ...] = (), arch: int = X86_64
) -> int:
    """What the kernel does under several filters: the most severe answer, of equals the newest's.

    Args:
        programs: in the order in which they were installed.
        number: of the system call.
        arguments: the 64-bit registers.
        arch: the audit architecture.
    """
    answers = [evaluate(program, number, arguments, arch) for program in reversed(programs)]
    return min(answers, key=severity)


def severity(action: int) -> int:
    """Smaller is more severe, as in include/uapi/linux/seccomp.h: the action as a signed number."""
    kind = action & 0xFFFF0000
    return kind - (1 << 32) if kind & 0x80000000 else kind
