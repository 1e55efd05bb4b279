"""Time without a system call: zero pages over the kernel's time data.

The vDSO reads the clock from pages named [vvar*] without entering the kernel, where no filter can
see it. A zygote without `clock.read` maps zero pages over them, and all its call processes have
these: the vDSO then finds no usable clock source and falls back to system calls, which the filter
of a call process refuses. See vdso(7).
"""

from __future__ import annotations

import gc
import sys
import time

from sandbox_worker.jail import linux
from sandbox_worker.jail.linux import expect
from schemas.remedies import TIME_PAGES as _HINT

TYPE_CHECKING = False
if TYPE_CHECKING:
    # Never true when running: the zygote stays lean.
    from collections.abc import Callable

_PROT_READ = 0x1
_PRIVATE_FIXED_ANONYMOUS = 0x02 | 0x10 | 0x20
CLOCKS = (
    "clock_getres", "clock_gettime", "clock_gettime_ns", "monotonic", "monotonic_ns",
    "perf_counter", "perf_counter_ns", "process_time", "process_time_ns", "sleep", "thread_time",
    "thread_time_ns", "time", "time_ns",
)  # fmt: skip
"""Functions of `time` that ask the kernel, which refuses."""


def time_pages() -> list[tuple[int, int]]:
    """Start and size in bytes of each mapping of time data in this process."""
    pages = []
    # UTF-8 is built in; any other codec would be imported, from files this user may not read.
    with open("/proc/self/maps", encoding="utf-8") as maps:
        for line in maps:
            if line.rstrip().endswith("]") and "[vvar" in line:
                start, end = (int(word, 16) for word in line.split()[0].split("-"))
                pages.append((start, end - start))
    expect("time pages", bool(pages), _HINT)
    return pages


def hide_time(pages: list[tuple[int, int]]) -> None:
    """Put zero pages there, in this process and in all that it forks."""
    for start, size in pages:
        linux.require(
            "time pages", _HINT,
            linux.MMAP, start, size, _PROT_READ, _PRIVATE_FIXED_ANONYMOUS, -1, 0,
        )  # fmt: skip


def refuse_clocks(refuse: Callable[..., object]) -> None:
    """Put `refuse` in the place of every function that reads a clock; it raises PermissionError.

    The vDSO answers time(2) from the zero page without a system call, so `datetime.now()` and
    `time.localtime()` would silently give 1970. A convenience for honest code, not a wall.
    """
    for name in CLOCKS:
        setattr(time, name, refuse)
    for name, count in (("asctime", 1), ("ctime", 1), ("gmtime", 1), ("localtime", 1),
                        ("strftime", 2)):  # fmt: skip
        setattr(time, name, _needing(getattr(time, name), count, refuse))
    datetime = sys.modules.get("datetime")
    if datetime is None:
        return
    for kind, names in ((datetime.datetime, ("now", "utcnow")), (datetime.date, ("today",))):
        # The types refuse assignment; their dictionary is what the read-only view refers to.
        fields = gc.get_referents(kind.__dict__)[0]
        for name in names:
            fields[name] = classmethod(refuse)


def _needing(
    function: Callable[..., object], count: int, refuse: Callable[..., object]
) -> Callable[..., object]:
    """The function, refusing to fill in the present time for a missing last argument."""

    def checked(*arguments: object) -> object:
        if len(arguments) < count or arguments[-1] is None:
            refuse()
        return function(*arguments)

    return checked
