"""`bench sandbox`: what a call costs in the worker alone, layer by layer and process by process.

A real worker without a gateway, beside the floors of isolation; rounds are interleaved, and a
figure is the median over them. `ratio` is calls a second over `fork_zygote` at the same depth; for
the rows of layers p50 over that of `jail_full`; for `reply_paced` p50 over the 300 us that it is
held to. Counts that no load changes stand with the machine.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import zmq

from benchmarks.bus import Result
from benchmarks.document import DOCUMENT
from benchmarks.forks import forks, jails
from benchmarks.jail_loop import VARIANTS
from benchmarks.measure import BenchFailed, Row, Sample, closed_loop, median_of, paced, percentiles
from benchmarks.replies import replies
from benchmarks.worker import Counts, Plan, RunningWorker, RunTraffic, worker
from broker.store import lock_packages
from schemas.payloads import BinaryRefPayload, JSONPayload

DEPTHS: Final = (1, 32)
PACE_S: Final = 0.02
REPLY_US_MAX: Final = 300.0
POOLS: Final = (1, 4, 8, 16)
NAMES: Final = (
    "worker", "worker_paced", "reply_paced", *(f"pool_{size}" for size in POOLS), "zygotes_2",
    "handed", "numpy", "bubblewrap", *(f"jail_{variant}" for variant in VARIANTS), "fork_zygote",
    "fork_bare",
)
_ARTIFACT: Final = b"artifact" * 8192
_MATRIX: Final = b"[[1,2,3],[4,5,6],[7,8,9]]"
_SQUARE: Final = b"[[30,36,42],[66,81,96],[102,126,150]]"
_BUBBLEWRAP: Final = (
    "bwrap", "--unshare-all", "--as-pid-1", "--die-with-parent", "--ro-bind", "/", "/",
    "--proc", "/proc", "--dev", "/dev", sys.executable, "-I", "-S", "-c",
    "import json, sys; json.dump(json.load(sys.stdin), sys.stdout)",
)  # fmt: skip

Measure = Callable[[float], Sample]


@dataclass
class _Line:
    """One row in the making."""

    name: str
    in_flight: int
    measure: Measure
    samples: list[Sample] = field(default_factory=list)


@dataclass
class _Facts:
    """What is counted beside the rows."""

    used: dict[str, list[Counts]] = field(default_factory=dict)
    idle_kb: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def run(
    root: str, folder: str, *, rounds: int, seconds: float, only: frozenset[str],
    tell: Callable[[str], None],
) -> Result:
    """Measure everything; see `benchmarks.bus.run`.

    Raises:
        BenchFailed: a contestant does not work.
    """
    facts = _Facts()
    with contextlib.ExitStack() as stack:
        lines: list[_Line] = []
        for line in _contestants(stack, root, folder, only, facts, tell):
            line.measure(min(0.2, seconds))
            lines.append(line)
        # The first samples warmed up.
        facts.used.clear()
        for number in range(rounds):
            tell(f"round {number + 1} of {rounds}")
            for line in lines:
                line.samples.append(line.measure(seconds))
    return Result(_rows(lines), {}, _told(facts))


def _contestants(
    stack: contextlib.ExitStack, root: str, folder: str, only: frozenset[str], facts: _Facts,
    tell: Callable[[str], None],
) -> Iterator[_Line]:
    """Start what is wanted and give how it is measured."""
    for name, plan in _plans(folder, only, facts).items():
        tell(f"starting a worker for {name}")
        running = stack.enter_context(worker(root, folder, plan))
        depths = (32,) if name.startswith("pool_") else DEPTHS
        traffic = RunTraffic(plan)
        if name != "worker" or "worker" in only:
            for depth in depths:
                loop = functools.partial(_loop, name, running, traffic, depth, facts)
                yield _Line(name, depth, loop)
        if name == "worker":
            if "worker_paced" in only:
                pace = functools.partial(_pace, running, traffic, facts)
                yield _Line("worker_paced", 1, pace)
            facts.idle_kb = _idle_kb(running)
    if "zygotes_2" in only:
        tell("starting two workers")
        two = [stack.enter_context(worker(root, folder, Plan())) for _ in range(2)]
        yield _Line("zygotes_2", 32, functools.partial(_both, two, RunTraffic(Plan())))
    if "reply_paced" in only:
        tell("starting a zygote")
        measure = stack.enter_context(replies(root, folder, Plan()))
        yield _Line("reply_paced", 1, functools.partial(measure, PACE_S))
    if "bubblewrap" in only:
        if shutil.which("bwrap"):
            yield _Line("bubblewrap", 1, _bubblewrap)
        else:
            facts.missing["bubblewrap"] = "bwrap is not installed"
    yield from _floors(stack, root, only, tell)


def _plans(folder: str, only: frozenset[str], facts: _Facts) -> dict[str, Plan]:
    """The workers to start, by the name of their rows."""
    plans: dict[str, Plan] = {}
    if only & {"worker", "worker_paced"}:
        plans["worker"] = Plan()
    plans |= {f"pool_{size}": Plan(pool_size=size) for size in POOLS if f"pool_{size}" in only}
    if "handed" in only:
        store = os.path.join(folder, "artifacts")
        os.mkdir(store)
        with open(os.path.join(store, "artifact"), "wb") as file:
            file.write(_ARTIFACT)
        digest = hashlib.sha256(_ARTIFACT).hexdigest()
        plans["handed"] = Plan(
            plugin="plugin_handed", method="count", answer=b"%d" % len(_ARTIFACT),
            payload=BinaryRefPayload(
                "artifact", digest, len(_ARTIFACT), "application/octet-stream"
            ),
            grants={"artifact.read": store},
        )  # fmt: skip
    if "numpy" in only:
        found = importlib.util.find_spec("numpy")
        if found is None or found.origin is None:
            facts.missing["numpy"] = "numpy is not installed beside the gateway"
        else:
            approved = lock_packages(_packages(folder, os.path.dirname(found.origin)))
            plans["numpy"] = Plan(
                plugin="plugin_numpy", method="square", payload=JSONPayload(_MATRIX),
                answer=_SQUARE, packages=(approved[0], ("numpy",)),
            )  # fmt: skip
    return plans


def _packages(folder: str, installed: str) -> str:
    """A folder with numpy in it, which every user may read."""
    target = os.path.join(folder, "packages")
    os.chmod(folder, 0o755)
    for name in ("numpy", "numpy.libs"):
        shutil.copytree(
            os.path.join(os.path.dirname(installed), name), os.path.join(target, name),
            ignore=shutil.ignore_patterns("tests", "*.pyi", "f2py", "include", "__pycache__"),
        )
    return target


# --- how each is measured ---


def _loop(
    name: str, running: RunningWorker, traffic: RunTraffic, depth: int, facts: _Facts,
    seconds: float,
) -> Sample:
    before, sent = running.counts(), traffic.sent
    sample = closed_loop(running.socket, traffic, depth, seconds, running.cpu_us)
    used = running.counts().since(before, traffic.sent - sent)
    facts.used.setdefault(f"{name}@{depth}", []).append(used)
    return sample


def _pace(running: RunningWorker, traffic: RunTraffic, facts: _Facts, seconds: float) -> Sample:
    before, sent = running.counts(), traffic.sent
    sample = paced(running.socket, traffic, PACE_S, seconds, running.cpu_us)
    used = running.counts().since(before, traffic.sent - sent)
    facts.used.setdefault("worker_paced@1", []).append(used)
    return sample


class _Two:
    """Two sockets as one: requests go to both in turn, replies are taken from whoever has one."""

    def __init__(self, sockets: list[zmq.Socket[bytes]]) -> None:
        self._sockets = sockets
        self._poller = zmq.Poller()
        for socket in sockets:
            self._poller.register(socket, zmq.POLLIN)

    def send(self, data: bytes) -> None:
        self._sockets.append(self._sockets.pop(0))
        self._sockets[0].send(data)

    def recv(self) -> bytes:
        ready = dict(self._poller.poll(15_000))
        for socket in self._sockets:
            if socket in ready:
                return socket.recv()
        raise zmq.Again


def _both(two: list[RunningWorker], traffic: RunTraffic, seconds: float) -> Sample:
    sockets = _Two([running.socket for running in two])
    return closed_loop(
        sockets, traffic, 32, seconds, lambda: sum(running.cpu_us() for running in two)
    )


def _bubblewrap(seconds: float) -> Sample:
    """A new interpreter in a new sandbox for each call, as many projects do it."""
    times: list[float] = []
    before, start = os.times(), time.perf_counter()
    while time.perf_counter() - start < seconds or not times:
        began = time.perf_counter()
        done = subprocess.run(_BUBBLEWRAP, input=DOCUMENT, capture_output=True, check=False)
        if done.returncode:
            raise BenchFailed(f"bwrap: {done.stderr.decode(errors='replace')[:200]}")
        times.append((time.perf_counter() - began) * 1e6)
    elapsed, after = time.perf_counter() - start, os.times()
    used = (after[2] + after[3] - before[2] - before[3]) * 1e6 / len(times)
    return Sample(*percentiles(times), len(times) / elapsed, used)


def _floors(
    stack: contextlib.ExitStack, root: str, only: frozenset[str], tell: Callable[[str], None]
) -> Iterator[_Line]:
    wanted = [variant for variant in VARIANTS if f"jail_{variant}" in only]
    if wanted:
        tell("starting a process that jails its children")
        layers = stack.enter_context(jails(root))
        for variant in wanted:
            yield _Line(f"jail_{variant}", 1, functools.partial(layers.measure, variant))
    for name in ("fork_zygote", "fork_bare"):
        if name in only:
            tell(f"starting {name}")
            floor = stack.enter_context(forks(root, name.removeprefix("fork_")))
            for depth in DEPTHS:
                yield _Line(name, depth, functools.partial(floor.measure, depth))


def _idle_kb(running: RunningWorker) -> dict[str, float]:
    """Memory of one waiting call process, in kB, as far as this user may see it."""
    found = {}
    with open(f"/proc/{running.zygote}/task/{running.zygote}/children", encoding="ascii") as file:
        child = file.read().split()[0]
    for name, path in (("RssAnon", "status"), ("Private_Dirty", "smaps_rollup"),
                       ("Pss", "smaps_rollup")):  # fmt: skip
        with contextlib.suppress(OSError), open(f"/proc/{child}/{path}", encoding="ascii") as file:
            match = re.search(rf"^{name}:\s+(\d+) kB", file.read(), re.MULTILINE)
            if match:
                found[name] = float(match[1])
    return found


# --- what is told ---


def _rows(lines: list[_Line]) -> list[Row]:
    medians = {(line.name, line.in_flight): median_of(line.samples) for line in lines}
    return [
        Row(name, depth, *one[:4], _ratio(name, depth, medians))
        for (name, depth), one in medians.items()
    ]


def _ratio(name: str, depth: int, medians: Mapping[tuple[str, int], Sample]) -> float | None:
    """Compare a row with its floor; None when the floor was not measured."""
    one = medians[name, depth]
    if name == "reply_paced":
        return one.p50_us / REPLY_US_MAX
    if name.startswith("jail_"):
        base = medians.get(("jail_full", depth))
        return base and one.p50_us / base.p50_us
    base = medians.get(("fork_zygote", depth))
    return None if base is None or name == "worker_paced" else one.per_s / base.per_s


def _told(facts: _Facts) -> dict[str, object]:
    """Counts for each call by process, medians over the rounds."""
    cpu: dict[str, float] = {}
    faults: dict[str, float] = {}
    for name, rounds in facts.used.items():
        middle = [sorted(column)[len(column) // 2] for column in zip(*rounds, strict=True)]
        for process, value in zip(("supervisor", "zygote", "call"), middle[:3], strict=True):
            cpu[f"{name} {process}"] = value
        for process, value in zip(("zygote", "call"), middle[3:], strict=True):
            faults[f"{name} {process}"] = value
    return {
        "cpu_us_by_process": cpu, "page_faults_by_process": faults,
        "idle_call_process_kb": facts.idle_kb, "missing": facts.missing,
    }  # fmt: skip
