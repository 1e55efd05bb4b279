"""What is held while nothing moves: a fast plugin's share beside a sleeping one, and memory.

`fair_alone` and `fair_beside` take turns on one gateway with two real workers: eight calls of a
fast plugin in flight, alone and while a plugin that sleeps has all its places taken and a queue
behind them; `ratio` is the goodput that is left. Memory is private (RssAnon) kB: the broker's for
each enabled plugin that nobody calls and for each accepted call that waits, and that of all
processes of an idle worker. Source: proc_pid_status(5).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

import zmq

from benchmarks.gateway import PLUGIN, InvokeTraffic, gateway, install
from benchmarks.measure import BenchFailed, Row, Sample, closed_loop, median_of
from benchmarks.processes import cpu_us, tree_of
from benchmarks.versions import Press
from broker.client import AdminClient
from broker.client_session import new_request_id
from broker.home import load_home
from schemas import codec
from schemas.messages import Invoke
from schemas.payloads import TextPayload

NAMES: Final = ("fair_alone", "fair_beside", "memory")
IN_FLIGHT: Final = 8
SLOW_AT_ONCE: Final = 16
"""Four times what the sleeping plugin's worker takes."""
SLEEP_MS: Final = 100
PLUGINS: Final = 30
CALLS: Final = 150
_WARM: Final = 20
_WAIT_S: Final = 20.0
_GRANT: Final = '\n[grants."bench-slow"]\ncapabilities = ["clock.read"]\n'
_EXTERNAL: Final = f'\n[workers]\nexternal = ["{PLUGIN}"]\n[times]\ndrain_ms = 100\n'
"""Nobody answers the calls that wait, so an end need not wait for them either."""


# --- beside one that sleeps ---


class _Beside:
    """A socket for the fast plugin's calls that keeps the sleeping one full on the way."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        """Fill the sleeping plugin's places and queue."""
        self._socket = socket
        self.waiting: set[str] = set()
        for _ in range(SLOW_AT_ONCE):
            self._ask()

    def _ask(self) -> None:
        request_id = new_request_id()
        self.waiting.add(request_id)
        self._socket.send(codec.encode(Invoke(
            request_id=request_id, plugin="bench-slow", method="rest",
            payload=TextPayload(str(SLEEP_MS)), timeout_ms=10_000, commitment_key=os.urandom(32),
        )))

    def send(self, data: bytes) -> None:
        """Send a call of the fast plugin."""
        self._socket.send(data)

    def recv(self) -> bytes:
        """Give the next answer of the fast plugin; ask again for each of the sleeping one."""
        while True:
            data = self._socket.recv()
            if not self._slow(data):
                return data
            self._ask()

    def _slow(self, data: bytes) -> bool:
        reply = codec.decode_reply(data)
        request_id = (reply.request_id if reply else None) or ""
        if request_id not in self.waiting:
            return False
        self.waiting.discard(request_id)
        if type(reply).__name__ != "Result":
            raise BenchFailed(f"the sleeping plugin's call ended as {type(reply).__name__}")
        return True

    def drain(self) -> None:
        """Wait for the answers that are still to come."""
        while self.waiting:
            self._slow(self._socket.recv())


def fairness(
    root: str, folder: str, rounds: int, seconds: float, load: dict[str, float],
    tell: Callable[[str], None],
) -> list[Row]:
    """Measure the fast plugin alone and beside the sleeping one, in turns; see `bus.run`."""
    samples: dict[str, list[Sample]] = {"fair_alone": [], "fair_beside": []}
    with gateway(root, folder, durability="power", worker="sandbox", policy=_GRANT) as (
        socket, broker,
    ):
        install(root, os.path.join(folder, "home-sandbox-power"), "plugin_slow")
        traffic = InvokeTraffic()
        warm = _Beside(socket)
        warm.drain()
        closed_loop(socket, traffic, IN_FLIGHT, min(0.3, seconds), lambda: 0.0)
        for number in range(rounds):
            tell(f"round {number + 1} of {rounds}, beside a plugin that sleeps")
            for name, found in samples.items():
                beside = _Beside(socket) if name == "fair_beside" else None
                found.append(closed_loop(
                    beside or socket, traffic, IN_FLIGHT, seconds, lambda: cpu_us([broker])
                ))
                if beside:
                    beside.drain()
    figures = {name: median_of(found) for name, found in samples.items()}
    load.update({name: figure.load_us for name, figure in figures.items()})
    alone = figures["fair_alone"].per_s
    return [
        Row(name, IN_FLIGHT, *figure[:4], figure.per_s / alone) for name, figure in figures.items()
    ]


# --- memory ---


def memory(root: str, folder: str, tell: Callable[[str], None]) -> dict[str, object]:
    """Measure what a gateway holds for each enabled plugin, waiting call and idle worker, in kB."""
    tell(f"enabling {PLUGINS} plugins, then letting {CALLS} calls wait")
    waiting = os.path.join(folder, "waiting")
    os.mkdir(waiting)
    # Nobody starts the worker of an external plugin here, so that every accepted call waits.
    with gateway(root, waiting, durability="process", worker="sandbox", settings=_EXTERNAL) as (
        socket, broker,
    ):
        home = os.path.join(waiting, "home-sandbox-process")
        with AdminClient(os.path.join(home, "profiles", "operator")) as operator:
            press, before = Press(root, load_home(home, overrides={})), 0
            for number in range(_WARM + PLUGINS):
                if number == _WARM:
                    before = private_kb([broker])
                one = press.version(f"bench-{number:05d}", "1.0.0", number)
                operator.register_plugin(one.bundle)
                operator.enable_plugin(one.plugin, one.version)
            enabled = private_kb([broker]) - before
            traffic = InvokeTraffic(timeout_ms=60_000)
            for number in range(_WARM + CALLS):
                if number == _WARM:
                    _until_open(operator, number)
                    before = private_kb([broker])
                socket.send(traffic.request()[1])
            _until_open(operator, _WARM + CALLS)
            calls = private_kb([broker]) - before
    idle = os.path.join(folder, "idle")
    os.mkdir(idle)
    with gateway(root, idle, durability="process", worker="sandbox") as (socket, broker):
        launcher = tree_of(broker)[:2]
        traffic = InvokeTraffic()
        socket.send(traffic.request()[1])
        traffic.accept(socket.recv())
        worker = [pid for pid in tree_of(broker) if pid not in launcher]
        held = private_kb(worker)
    return {"memory_kb": {
        "broker_per_enabled_plugin": enabled / PLUGINS, "broker_per_waiting_call": calls / CALLS,
        "idle_worker": float(held),
    }}


def _until_open(operator: AdminClient, count: int) -> None:
    until = time.monotonic() + _WAIT_S
    while (found := operator.status().in_flight) != count:
        if time.monotonic() > until:
            raise BenchFailed(f"{found} of {count} calls were accepted within {_WAIT_S:.0f} s")


def private_kb(pids: list[int]) -> int:
    """Add up the private memory of processes, in kB; one that is gone has none."""
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
                total += sum(int(line.split()[1]) for line in file if line.startswith("RssAnon:"))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total
