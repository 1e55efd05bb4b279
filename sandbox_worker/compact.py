"""Memory prepared so that a fork copies little of it and a call process asks for few pages.

Two costs are met here. A call process writes wherever it allocates, and the interpreter allocates
where there is a hole: holes lie strewn over all that was ever loaded, and each page written to is
copied. And the kernel does not copy the page tables of program code, so that every process has
them filled in again, a fault for each group of pages.

Rules: nothing here changes what a process may do. Where an interpreter's allocator or a kernel
works otherwise, calls cost more and nothing else happens. Source: Objects/obmalloc.c of CPython
3.10 to 3.13; madvise(2); docs/decisions/0021-what-a-fork-copies.md.
"""

from __future__ import annotations

from sandbox_worker.jail import linux
from schemas.remedies import OUTER

TYPE_CHECKING = False
if TYPE_CHECKING:
    # Never true when running: the zygote stays lean.
    from sandbox_worker.jail.linux import Prepared

_POOL_BYTES = 1 << 14
"""What CPython's allocator divides into blocks of one size; it begins with a header."""
_FIRST_BLOCK = 48
_BLOCK_BYTES_MAX, _BLOCK_STEP = 208, 16
"""Larger blocks are rare in a call, and a page for each size would cost more than it saves."""

_BYTES_OVERHEAD = 33
"""What an object of type bytes takes beside its content."""
_BLOCKS_MAX = 20_000
"""Of one size; more would mean that pools are not laid out as this file believes."""

_PAGE_BYTES = 4096
_PRESENT_BIT = 63
_DONT_NEED, _GUARD_INSTALL, _GUARD_REMOVE = 4, 102, 103
_READ_WRITE, _PRIVATE_ANONYMOUS = 3, 0x22
_ROUNDS = 64
_code: list[tuple[int, int]] = []
"""Start and size in bytes of each mapping of program code."""


def fill_holes() -> list[object]:
    """Take every free block, so that what is allocated next lies on pages of its own.

    Returns:
        What fills the holes, to be kept as long as the process lives.
    """
    kept: list[object] = []
    for size in range(_BLOCK_STEP * 2, _BLOCK_BYTES_MAX + 1, _BLOCK_STEP):
        for number in range(_BLOCKS_MAX):
            # The smallest blocks that any object fits into are those of floats.
            block = bytes(size - _BYTES_OVERHEAD) if size > _BYTES_OVERHEAD else float(number)
            kept.append(block)
            if id(block) % _POOL_BYTES == _FIRST_BLOCK:
                # A new pool was begun, so all others of this size are full.
                break
    return kept


def share_code() -> None:
    """Have forks copy the page tables of program code.

    The kernel copies those of a file's mapping only where the process may have pages of its own in
    it. A guard put on one page and taken away again makes it assume so, and changes nothing else.
    Kernels before 6.15 refuse it.
    """
    with open("/proc/self/maps", encoding="utf-8") as file:
        mappings = [line.split() for line in file]
    # What runs while the guard stands must not lie behind it. So it runs before, often enough to
    # be rewritten by the interpreter, on a page of nobody's; only then is a page of code chosen.
    rehearsed = linux.call(linux.MMAP, 0, _PAGE_BYTES, _READ_WRITE, _PRIVATE_ANONYMOUS, -1, 0)
    steps = _steps(rehearsed)
    for _ in range(_ROUNDS):
        _pass_guard(*steps)
    for span, rights, *_, name in mappings:
        if rights != "r-xp" or not name.startswith("/"):
            continue
        start, end = (int(word, 16) for word in span.split("-"))
        _code.append((start, end - start))
        page = _untouched(start, end)
        if page:
            steps = _steps(page)
            linux.expect("program code", _pass_guard(*steps), OUTER)


def forget_code() -> None:
    """Forget which pages of code were in use: forks copy what is used from now on."""
    for start, size in _code:
        linux.quick(*linux.prepared(linux.MADVISE, start, size, _DONT_NEED))


def _steps(page: int) -> tuple[Prepared, Prepared]:
    """To put a guard on a page, and to take it away."""
    install, remove = (
        linux.prepared(linux.MADVISE, page, _PAGE_BYTES, advice)
        for advice in (_GUARD_INSTALL, _GUARD_REMOVE)
    )
    return install, remove


def _pass_guard(install: Prepared, remove: Prepared) -> bool:
    """Whether the guard is gone, also where the kernel knows none."""
    return linux.quick(*install) < 0 or linux.quick(*remove) == 0


def _untouched(start: int, end: int) -> int:
    """A page of a mapping that this process never needed, so that nothing runs on it; 0 if none."""
    with open("/proc/self/pagemap", "rb", buffering=0) as file:
        file.seek(start // _PAGE_BYTES * 8)
        entries = file.read((end - start) // _PAGE_BYTES * 8)
    for at, entry in enumerate(memoryview(entries).cast("Q")):
        if not entry >> _PRESENT_BIT:
            return start + at * _PAGE_BYTES
    return 0
