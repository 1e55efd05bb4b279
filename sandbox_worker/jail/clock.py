"""Time without a system call: zero pages over the kernel's time data.

The vDSO reads the clock from pages named [vvar*] without entering the kernel, where no filter can
see it. A call process without `clock.read` maps zero pages over them: the vDSO then finds no usable
clock source and falls back to system calls, which the filter refuses. See vdso(7).
"""

from __future__ import annotations

from sandbox_worker.jail import linux
from sandbox_worker.jail.linux import Prepared, expect

_PROT_READ = 0x1
_PRIVATE_FIXED_ANONYMOUS = 0x02 | 0x10 | 0x20
_HINT = "This kernel maps its time pages under other names; use a kernel this release supports."


def time_pages() -> list[tuple[int, int]]:
    """Start and size in bytes of each mapping of time data in this process."""
    pages = []
    with open("/proc/self/maps", encoding="ascii") as maps:
        for line in maps:
            if line.rstrip().endswith("]") and "[vvar" in line:
                start, end = (int(word, 16) for word in line.split()[0].split("-"))
                pages.append((start, end - start))
    expect("time pages", bool(pages), _HINT)
    return pages


def hide_time(pages: list[tuple[int, int]]) -> list[Prepared]:
    """The calls that put zero pages there, prepared for a call process."""
    return [
        Prepared(linux.MMAP, start, size, _PROT_READ, _PRIVATE_FIXED_ANONYMOUS, -1, 0)
        for start, size in pages
    ]
