"""`bench trust`: a registry of ten thousand versions: starting, listing, registering, calling.

The home is filled by `benchmarks.versions`. Times of a start are from the process's begin to its
first answer; with `vouched` it finds a folded state that its ledger vouches for, with `full` none.
Calls go to 1, 10 and 100 enabled plugins in turn, each with a worker that waits for it; the ratio
of these rows is p99 over that of the one.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import zmq

from benchmarks.bus import Result
from benchmarks.gateway import CONNECT_S, InvokeTraffic
from benchmarks.measure import BenchFailed, Row, Sample, closed_loop, median_of, percentiles
from benchmarks.plain import client_socket
from benchmarks.processes import Child, cpu_us, tree_of
from benchmarks.versions import SCHEMAS, VERSIONS_EACH, Press, fill
from broker.client import AdminClient, GatewayError
from broker.client_profile import read_profile
from broker.home import Home, create_home, load_home

VERSIONS: Final = 10_000
PAGE: Final = 200
REGISTERED: Final = 100
"""Versions that one round registers through the gateway."""
ENABLED: Final = (1, 10, 100)
NAMES: Final = ("start_vouched", "start_full", "list_page", "show", "register",
                *(f"invoke_{count}" for count in ENABLED))
_SETTINGS: Final = """
[limits]
workers_max = 128
warm_processes_max = 256

[times]
idle_worker_ms = 3600000
"""


class _InTurn:
    """Invocations of several plugins, one after the other; one is in flight at a time."""

    def __init__(self, plugins: Sequence[str]) -> None:
        self._each = [InvokeTraffic(plugin=plugin) for plugin in plugins]
        self._sent = 0

    def request(self) -> tuple[int, bytes]:
        """Give the next plugin's request."""
        self._sent += 1
        return self._each[self._sent % len(self._each)].request()

    def accept(self, reply: bytes) -> int:
        """Take the reply of the plugin that was asked last."""
        return self._each[self._sent % len(self._each)].accept(reply)


class _Trust:
    """One home and what is measured on it."""

    def __init__(self, root: str, folder: str, versions: int) -> None:
        """Make a home, let a gateway begin its ledger, and fill it."""
        self._root, self._folder = root, folder
        self.home: Home = load_home(create_home(os.path.join(folder, "home"), "development",
                                                None).path, overrides={})
        with open(os.path.join(self.home.path, "gateway.toml"), "a", encoding="utf-8") as file:
            file.write(_SETTINGS)
        with self.serving():
            pass
        self.press = Press(root, self.home, min(SCHEMAS, max(1, versions // 10)))
        begin = time.perf_counter()
        fill(self.home, self.press, versions)
        self.fill_s = time.perf_counter() - begin
        self.plugins = -(-versions // VERSIONS_EACH)
        self.registered = 0

    @contextlib.contextmanager
    def serving(self) -> Iterator[tuple[AdminClient, int, float]]:
        """Serve the home; gives an operator, the broker's pid and how long the start took, in s."""
        begin = time.perf_counter()
        log = os.path.join(self._folder, "broker.log")
        broker = Child(self._root, "broker", {"home": self.home.path, "log": log}, wait=False)
        profile = os.path.join(self.home.path, "profiles", "operator")
        with broker:
            try:
                with AdminClient(profile, connect_timeout=CONNECT_S) as operator:
                    operator.status()
                    yield operator, broker.pid, time.perf_counter() - begin
            except GatewayError as error:
                raise BenchFailed(f"the gateway cannot be used: {error}") from None

    def start(self, *, vouched: bool) -> Sample:
        """Start and end a gateway, with the folded state that lies there or without any."""
        if not vouched:
            for path in glob.glob(os.path.join(self.home.states, "state-*.json")):
                os.unlink(path)
        with self.serving() as (_, pid, took_s):
            used = cpu_us([pid])
        return Sample(took_s * 1e6, took_s * 1e6, 1 / took_s, used)

    def pages(self, operator: AdminClient, pid: int) -> Sample:
        """List everything, page by page."""
        after: list[str | None] = [None]

        def page() -> None:
            after[0] = operator.list_plugins(after=after[0], limit=PAGE).next_after

        return _timed(page, lambda: after[0] is not None, pid)

    def show(self, operator: AdminClient, pid: int) -> Sample:
        """Show plugins from all over the registry."""
        numbers = iter(range(0, self.plugins, max(1, self.plugins // 50)))
        left = [next(numbers)]

        def one() -> None:
            operator.get_plugin(f"bench-{left[0]:05d}")
            left[0] = next(numbers, -1)

        return _timed(one, lambda: left[0] >= 0, pid)

    def register(self, operator: AdminClient, pid: int) -> Sample:
        """Register versions one after the other, with schemas that are known."""
        bundles = [
            self.press.version("bench-more", f"1.{self.registered + number}.0", number).bundle
            for number in range(REGISTERED)
        ]
        self.registered += REGISTERED
        # The first round of a process has each schema tried once, which is not what is measured.
        for bundle in bundles[: self.press.schemas]:
            operator.register_plugin(bundle)
        left = iter(bundles[self.press.schemas :])
        waiting = [next(left)]

        def one() -> None:
            operator.register_plugin(waiting[0])
            waiting[0] = next(left, b"")

        return _timed(one, lambda: bool(waiting[0]), pid)

    @contextlib.contextmanager
    def caller(self) -> Iterator[zmq.Socket[bytes]]:
        """Connect as OMEGA."""
        profile = read_profile(os.path.join(self.home.path, "profiles", "omega"))
        with zmq.Context() as context, client_socket(
            context, profile.settings.endpoint, profile.settings.server_key.encode(),
            (profile.pair.public.encode(), profile.pair.secret.encode()),
        ) as socket:
            yield socket


def _timed(one: Callable[[], None], more: Callable[[], bool], pid: int) -> Sample:
    times: list[float] = []
    used, start = cpu_us([pid]), time.perf_counter()
    while True:
        begin = time.perf_counter()
        one()
        times.append((time.perf_counter() - begin) * 1e6)
        if not more():
            break
    elapsed = time.perf_counter() - start
    return Sample(*percentiles(times), len(times) / elapsed, (cpu_us([pid]) - used) / len(times))


def _memory_mb(pid: int, field: str) -> float:
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        line = next(line for line in file if line.startswith(field))
    return int(line.split()[1]) / 1024


def run(
    root: str, folder: str, *, rounds: int, seconds: float, only: frozenset[str],
    tell: Callable[[str], None], versions: int = VERSIONS,
) -> Result:
    """Measure the rows; the arguments are those of every bench, `versions` the registry's size."""
    samples: dict[str, list[Sample]] = {name: [] for name in NAMES if name in only}
    counts: dict[str, object] = {"versions": versions}
    load_us: dict[str, float] = {}
    tell(f"registering {versions} versions")
    trust = _Trust(root, folder, versions)
    counts["schemas"] = trust.press.schemas
    counts["fill_versions_per_s"] = versions / trust.fill_s
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, trust.home.run_directory, ignore_errors=True)
        for number in range(rounds):
            tell(f"round {number + 1} of {rounds}")
            if "start_full" in samples:
                samples["start_full"].append(trust.start(vouched=False))
            if "start_vouched" in samples:
                samples["start_vouched"].append(trust.start(vouched=True))
        operator, pid, _ = stack.enter_context(trust.serving())
        counts["broker_memory_mb"] = {"start": _memory_mb(pid, "VmRSS")}
        for name, measure in (
            ("list_page", trust.pages), ("show", trust.show), ("register", trust.register),
        ):
            if name in samples:
                samples[name] += [measure(operator, pid) for _ in range(rounds)]
        counts["broker_memory_mb"] = {
            "start": counts["broker_memory_mb"]["start"], "used": _memory_mb(pid, "VmRSS"),
        }
        socket = stack.enter_context(trust.caller())
        wanted = [count for count in ENABLED if f"invoke_{count}" in samples]
        plugins = [f"bench-{number:05d}" for number in range(max(wanted, default=0))]
        for plugin in plugins:
            operator.enable_plugin(plugin, "1.0.0")
        if plugins:
            tell(f"starting {len(plugins)} workers")
            for traffic in (InvokeTraffic(plugin=plugin) for plugin in plugins):
                socket.send(traffic.request()[1])
                traffic.accept(socket.recv())
        for _ in range(rounds):
            for count in wanted:
                sample = closed_loop(socket, _InTurn(plugins[:count]), 1, seconds,
                                     lambda: cpu_us(tree_of(pid)))
                samples[f"invoke_{count}"].append(sample)
        counts["processes_below_broker"] = len(tree_of(pid)) - 1
        counts["broker_memory_mb"] = {**counts["broker_memory_mb"],
                                      "after_calls": _memory_mb(pid, "VmRSS")}
    return Result(_rows(samples), load_us, counts)


def _rows(samples: dict[str, list[Sample]]) -> list[Row]:
    figures = {name: median_of(found) for name, found in samples.items() if found}
    one = figures.get("invoke_1")
    return [
        Row(name, 1, *figure[:4],
            figure.p99_us / one.p99_us if one and name.startswith("invoke_") else None)
        for name, figure in figures.items()
    ]
