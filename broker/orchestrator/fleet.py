"""The fleet: which incarnations there are, what each is doing, and when a start may be tried again.

Rules this file keeps: a worker serves one version of one plugin for its whole life; a call waits in
the queue of its version and nowhere else; failed starts back off exponentially and stop at a cap;
times are in us.

It leaves effects and events to `broker.core`. Source: docs/ARCHITECTURE.md, section "Workers".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from broker.config import LimitsConfig, TimesConfig, WorkersConfig
from broker.lifecycle import WORKER, WorkerEvent, WorkerState
from broker.orchestrator.calls import Call
from schemas.names import Purpose

RecycleReason = Literal["calls", "minutes", "killed", "upgrade", "operator"]


@dataclass(slots=True)
class Worker:
    """One incarnation. `calls` are in flight; `aborted` wait for the worker's last word.

    `outgrown`: its plugin was granted more since it began. `struck`: its plugin's code brought a
    call process down, and may have learnt the zygote's layout by it.
    `role` is what it runs calls as; `terms` tells apart what it was handed at its start.
    `nonce` is that of a probe that is not answered yet, else empty; `witness_us` is when its report
    is late, or when the next probe is due.
    """

    incarnation: str
    plugin: str
    version: str
    grants: tuple[str, ...]
    concurrency: int
    pool_size: int
    started_us: int
    role: Purpose = "primary"
    terms: str = ""
    state: WorkerState = "starting"
    pid: int | None = None
    calls: dict[int, Call] = field(default_factory=dict)
    aborted: dict[int, int] = field(default_factory=dict)
    served: int = 0
    heard_us: int = 0
    called_us: int = 0
    pinged: bytes | None = None
    pinged_us: int = 0
    probe: int = 0
    nonce: bytes = b""
    outgrown: bool = False
    struck: bool = False
    renew_after_us: int = 0
    witness_us: int = 0
    recycle: RecycleReason | None = None
    successor: str | None = None
    drain_until_us: int | None = None
    exit_detail: str = ""

    @property
    def room(self) -> int:
        """How many more calls it may be given now."""
        if self.state != "ready":
            return 0
        return self.concurrency - len(self.calls) - len(self.aborted)

    def step(self, event: WorkerEvent) -> bool:
        """Take the table's transition; False when there is none, and then nothing changed."""
        after = WORKER.get((self.state, event))
        if after is None:
            return False
        self.state = after
        return True


@dataclass(slots=True)
class Pool:
    """One version's workers in one role, what waits for them, and the luck with starting them.

    `retiring`: the version takes no new call; what waits is still served, then its workers drain.
    `calm_us`: no worker is replaced because it was struck before this time. `service_us` is the
    moving time from dispatch to answer.
    """

    plugin: str
    version: str
    role: Purpose = "primary"
    workers: dict[str, Worker] = field(default_factory=dict)
    queue: deque[Call] = field(default_factory=deque)
    failures: int = 0
    not_before_us: int = 0
    service_us: int = 0
    retiring: bool = False
    calm_us: int = 0

    def best(self) -> Worker | None:
        """Give the ready worker with the most room, or None."""
        best, most = None, 0
        for worker in self.workers.values():
            room = worker.room
            if room > most:
                best, most = worker, room
        return best

    @property
    def name(self) -> str:
        """What a timer knows it by."""
        return f"{self.plugin}@{self.version}@{self.role}"

    @property
    def expecting(self) -> bool:
        """Whether a worker is on its way or serving, so that no other need be started."""
        return any(
            worker.state in ("starting", "probing", "ready") for worker in self.workers.values()
        )


class Fleet:
    """Every pool and every incarnation."""

    def __init__(
        self, times: TimesConfig, workers: WorkersConfig, limits: LimitsConfig
    ) -> None:
        """Begin with no worker."""
        self._limits = limits
        self._times = times
        self._config = workers
        self.pools: dict[tuple[str, str, str], Pool] = {}
        self.by_incarnation: dict[str, Worker] = {}
        self._calm_us = 0

    def reconfigure(
        self, times: TimesConfig, workers: WorkersConfig, limits: LimitsConfig
    ) -> None:
        """Hold workers from now on to other times and bounds."""
        self._limits = limits
        self._times = times
        self._config = workers

    def pool(self, plugin: str, version: str, role: Purpose = "primary") -> Pool:
        """Give the pool of one version's workers in one role."""
        key = (plugin, version, role)
        pool = self.pools.get(key)
        if pool is None:
            pool = self.pools[key] = Pool(plugin, version, role)
        return pool

    def pool_of(self, worker: Worker) -> Pool:
        """Give the pool that a worker belongs to."""
        return self.pool(worker.plugin, worker.version, worker.role)

    def named(self, name: str) -> Pool:
        """Give the pool that a timer names, see `Pool.name`; an empty one if it was forgotten."""
        plugin, version, role = name.split("@")
        return self.pools.get((plugin, version, role)) or Pool(plugin, version)

    def pools_of(self, plugin: str, version: str | None = None) -> Iterator[Pool]:
        """Give every pool of one plugin, or of one version of it."""
        return (
            pool for pool in list(self.pools.values())
            if pool.plugin == plugin and version in (None, pool.version)
        )

    def forget(self, pool: Pool) -> None:
        """Keep a pool no longer that has no worker and no call."""
        del self.pools[pool.plugin, pool.version, pool.role]

    def add(self, worker: Worker) -> None:
        """Take a new incarnation in."""
        self.by_incarnation[worker.incarnation] = worker
        self.pool_of(worker).workers[worker.incarnation] = worker

    def remove(self, worker: Worker) -> None:
        """Forget an incarnation that is gone."""
        self.by_incarnation.pop(worker.incarnation, None)
        self.pool_of(worker).workers.pop(worker.incarnation, None)

    def pool_share(self, concurrency: int) -> int:
        """Say how many call processes a new worker may have waiting, of those the host may hold.

        Each worker that may still come finds one, as long as there are so many; what is more goes
        to whoever comes first. A worker gives its share back when it ends.
        """
        limits, live = self._limits, self.by_incarnation.values()
        left = limits.warm_processes_max - sum(worker.pool_size for worker in live)
        to_come = max(0, limits.workers_max - len(live))
        wanted = min(self._config.pool_size, concurrency)
        return max(0, min(1, left), min(wanted, left - to_come))

    def failed(self, pool: Pool, now_us: int) -> None:
        """Count a failure and set the time before which no start is tried."""
        pool.failures += 1
        wait_ms = min(
            self._times.backoff_ms_max, self._times.backoff_ms_min * 2 ** min(pool.failures - 1, 20)
        )
        if pool.failures >= self._config.crash_loop_max:
            wait_ms = self._times.backoff_ms_max
        pool.not_before_us = now_us + wait_ms * 1000

    def full(self, role: Purpose, *, above: int = 0) -> bool:
        """Say whether no further worker in a role may be started: of all, and of replicas.

        Args:
            role: what it would run calls as.
            above: how many may stand above the bound, 1 for a successor.
        """
        workers = self.by_incarnation.values()
        return len(workers) >= self._limits.workers_max + above or (
            role == "replica"
            and sum(one.role == role for one in workers) >= self._config.replicas_max + above
        )

    def longest_idle(self, role: Purpose) -> Worker | None:
        """Give the idle worker that makes room for one in a role, or None.

        A replica goes before any primary and makes room for whoever comes; among equals it is the
        one that has had nothing to do for longest.
        """
        idle = [
            worker for worker in self.by_incarnation.values()
            if worker.state == "ready" and not worker.calls and not worker.aborted
            and role in ("primary", worker.role)
        ]
        return min(idle, key=lambda one: (one.role == "primary", one.called_us), default=None)

    def in_crash_loop(self, pool: Pool, now_us: int) -> bool:
        """Say whether the cap is reached and the last back-off is not over."""
        return pool.failures >= self._config.crash_loop_max and now_us < pool.not_before_us

    def recycle_reason(self, worker: Worker, now_us: int) -> RecycleReason | None:
        """Say why a worker should be replaced by now, or None."""
        if worker.outgrown:
            return "operator"
        if worker.served >= self._config.calls_max:
            return "calls"
        if now_us - worker.started_us >= self._config.minutes_max * 60_000_000:
            return "minutes"
        if worker.struck and now_us >= self.calm_us(self.pool_of(worker)):
            return "killed"
        return None

    def calm_us(self, pool: Pool) -> int:
        """Say from when on a struck worker of a version may be replaced.

        A plugin can have itself struck in every call, and a start costs as much as hundreds of
        calls: so once per interval for one version, and with some space over the whole host.
        """
        return max(self.pool(pool.plugin, pool.version).calm_us, self._calm_us)

    def replaced_struck(self, pool: Pool, now_us: int) -> None:
        """Note that a struck worker is being replaced."""
        version = self.pool(pool.plugin, pool.version)
        version.calm_us = now_us + self._times.recycle_interval_ms * 1000
        self._calm_us = now_us + self._times.recycle_spacing_ms * 1000

