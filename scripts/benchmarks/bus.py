"""`bench bus`: what one governed call costs, beside the same hops without governance.

All contestants run at once and idle while another is measured; rounds are interleaved, so that what
else the machine does falls on all rows alike. A figure is the median over the rounds. `ratio` is
calls a second over `relay` of the same depth; for `whole_path` and the forks over `fork_zygote`;
for the paced rows the p50 over that of `relay_paced`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple

import zmq

from benchmarks.forks import forks
from benchmarks.gateway import InvokeTraffic, Worker, gateway
from benchmarks.measure import Row, Sample, Traffic, closed_loop, median_of, paced
from benchmarks.plain import DocumentTraffic, floor
from benchmarks.processes import cpu_us, tree_of
from schemas.names import Durability

DEPTHS: Final = (1, 32)
PACE_S: Final = 0.02
WARM_S: Final = 0.3
NAMES: Final = (
    "c_proxy", "relay", "relay_bare", "broker_power", "broker_process", "whole_path", "relay_paced",
    "whole_path_paced", "fork_zygote", "fork_bare",
)
_GATEWAYS: Final[tuple[tuple[Worker, Durability, list[str]], ...]] = (
    ("stub", "power", ["broker_power"]),
    ("stub", "process", ["broker_process"]),
    ("sandbox", "power", ["whole_path", "whole_path_paced"]),
)
"""Gateways by worker and ledger mode, and the rows each of them gives."""

Measure = Callable[[int, float], Sample]


class Result(NamedTuple):
    """The rows, what the load generator itself used for each in us a call, and other counts."""

    rows: list[Row]
    load_us: dict[str, float]
    counts: Mapping[str, object] = {}


@dataclass
class _Line:
    """One row in the making."""

    name: str
    in_flight: int
    measure: Measure
    samples: list[Sample] = field(default_factory=list)


def run(
    root: str, folder: str, *, rounds: int, seconds: float, only: frozenset[str],
    tell: Callable[[str], None],
) -> Result:
    """Measure everything.

    Args:
        root: the project's folder.
        folder: an existing folder for homes and sockets.
        rounds: how often each row is measured.
        seconds: how long each time.
        only: the names wanted.
        tell: takes a word on what is being done.

    Raises:
        BenchFailed: a contestant does not work.
    """
    with contextlib.ExitStack() as stack:
        lines: list[_Line] = []
        for name, measure in _contestants(stack, root, folder, only, tell):
            depths = (1,) if name.endswith("_paced") else DEPTHS
            measure(depths[-1], min(WARM_S, seconds))
            lines += [_Line(name, depth, measure) for depth in depths]
        for number in range(rounds):
            tell(f"round {number + 1} of {rounds}")
            for line in lines:
                line.samples.append(line.measure(line.in_flight, seconds))
    return _result(lines)


def _contestants(
    stack: contextlib.ExitStack, root: str, folder: str, only: frozenset[str],
    tell: Callable[[str], None],
) -> Iterator[tuple[str, Measure]]:
    """Start what is wanted, each when its turn comes, and give how it is measured."""
    for role, names in (
        ("proxy", ["c_proxy"]), ("relay", ["relay", "relay_paced"]), ("relay_bare", ["relay_bare"]),
    ):
        if only & set(names):
            tell(f"starting {role}")
            client, pids = stack.enter_context(floor(root, role, folder))
            yield from _bus_rows(names, only, client, DocumentTraffic(), partial(list, pids))
    for worker, durability, names in _GATEWAYS:
        if only & set(names):
            tell(f"starting a gateway with a {worker} worker, ledger mode {durability}")
            client, pid = stack.enter_context(
                gateway(root, folder, durability=durability, worker=worker)
            )
            of = partial(tree_of, pid) if worker == "sandbox" else partial(list, [pid])
            yield from _bus_rows(names, only, client, InvokeTraffic(), of)
    for name in sorted(only & {"fork_zygote", "fork_bare"}, reverse=True):
        tell(f"starting {name}")
        yield name, stack.enter_context(forks(root, name.removeprefix("fork_"))).measure


def _bus_rows(
    names: list[str], only: frozenset[str], client: zmq.Socket[bytes], traffic: Traffic,
    processes: Callable[[], list[int]],
) -> Iterator[tuple[str, Measure]]:
    def used() -> float:
        return cpu_us(processes())

    def loop(in_flight: int, seconds: float) -> Sample:
        return closed_loop(client, traffic, in_flight, seconds, used)

    def pace(_in_flight: int, seconds: float) -> Sample:
        return paced(client, traffic, PACE_S, seconds, used)

    for name in names:
        if name in only:
            yield name, pace if name.endswith("_paced") else loop


def _result(lines: list[_Line]) -> Result:
    medians = {(line.name, line.in_flight): median_of(line.samples) for line in lines}
    rows = [
        Row(name, depth, *one[:4], _ratio(name, depth, medians))
        for (name, depth), one in medians.items()
    ]
    load = {f"{name}@{depth}": one.load_us for (name, depth), one in medians.items()
            if not name.startswith("fork")}  # fmt: skip
    return Result(rows, load)


def _ratio(name: str, depth: int, medians: Mapping[tuple[str, int], Sample]) -> float | None:
    """Compare a row with its floor; None when the floor was not measured."""
    if name.endswith("_paced"):
        base = medians.get(("relay_paced", depth))
        return base and medians[name, depth].p50_us / base.p50_us
    isolated = name == "whole_path" or name.startswith("fork")
    base = medians.get(("fork_zygote" if isolated else "relay", depth))
    return base and medians[name, depth].per_s / base.per_s
