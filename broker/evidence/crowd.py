"""Many segments walked at once, one process for each core; told in the order of the segments.

Rules this file keeps: processes are begun anew, not forked, so they share nothing with whoever
asks; what they found comes back in order; when the asker has enough, the rest is not begun.

It leaves the walk to `broker.evidence.walk` and what it means to `broker.evidence.verify`.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.sharedctypes
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Final

from broker.evidence.walk import SegmentTask, Walked, walk_segment

TELL_S: Final = 0.1
"""How often it is told how far all are, in seconds."""

_Counter = multiprocessing.sharedctypes.Synchronized
_shared: list[_Counter[int]] = []


def walk_all(
    tasks: Sequence[SegmentTask], processes: int, tell: Callable[[int], None]
) -> Generator[Walked, None, None]:
    """Walk segments, in this process or in several.

    Args:
        tasks: the segments, in order.
        processes: how many processes at most; with 1 it is this one.
        tell: told how many more bytes are done, now and then.

    Raises:
        OSError: a file could not be read, or a process was ended from outside.
    """
    if processes == 1 or len(tasks) < 2:
        for task in tasks:
            yield walk_segment(task, tell)
        return
    context = multiprocessing.get_context("spawn")
    done, told = context.Value("Q", 0), 0
    with ProcessPoolExecutor(
        min(processes, len(tasks)), mp_context=context, initializer=_share,
        initargs=(done,),
    ) as pool:
        try:
            for future in [pool.submit(_walk, task) for task in tasks]:
                while not wait([future], timeout=TELL_S).done:
                    tell(done.value - told)
                    told = done.value
                yield future.result()
            tell(done.value - told)
        except BrokenProcessPool as error:
            raise ChildProcessError("a process that verified a segment was ended") from error
        finally:
            pool.shutdown(cancel_futures=True)


def _share(counter: _Counter[int]) -> None:
    _shared.append(counter)


def _walk(task: SegmentTask) -> Walked:
    return walk_segment(task, _count)


def _count(length: int) -> None:
    counter = _shared[0]
    with counter.get_lock():
        counter.value += length
