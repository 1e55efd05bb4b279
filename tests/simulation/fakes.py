"""Stand-ins for the shell's parts, behind the same small interfaces as the real ones.

No file, socket, process or clock is touched. The ledger keeps what was appended and how much of it
is durable; the transport refuses, as a failed assertion, any frame whose `frame.out` event is not
durable yet.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Self

import msgspec

from broker.effects import Origin
from broker.launchers.orders import Exited, Report, Started, StartFailed, Tried
from broker.ledger.commit import Appended
from broker.ledger.errors import LedgerFailure, PositionUnknown, SizeUnsigned
from broker.orchestrator.calls import LoadedPlugin
from broker.reload import Settings
from broker.shell import Signalled
from broker.state import State
from broker.transport import SendOutcome, WorkerEndpoint
from broker.trust.roots import Root, load_first_root
from schemas import codec
from schemas.events import Event, EventFields, FrameOut, LedgerRoll, TrustChange
from schemas.launch import LaunchDocument
from schemas.messages import Reply, ToWorker

SEGMENT_EVENTS = 400
LAUNCHER_FD = 1001
SIGNALS_FD = 1002


class Broken(AssertionError):
    """An invariant does not hold."""


def require(condition: object, sentence: str) -> None:
    """Fail the run with a sentence when an invariant does not hold."""
    if not condition:
        raise Broken(sentence)


@dataclass
class FakeClock:
    """Two clocks that the world moves; the wall clock may jump, the monotonic one may not."""

    mono: int = 1_000_000
    wall: int = 1_790_000_000_000_000

    def tick(self) -> int:
        """Give the monotonic time."""
        return self.mono

    def wall_us(self) -> int:
        """Give the wall time."""
        return self.wall


class FakeSignals:
    """Requests to stop that the world makes, and settings to go on under."""

    fd = SIGNALS_FD

    def __init__(self) -> None:
        self.waiting = 0
        self.settings: Settings | None = None

    def take(self) -> Signalled:
        """Give what came."""
        signalled = Signalled(self.waiting, self.settings)
        self.waiting, self.settings = 0, None
        return signalled


@dataclass
class FakeLedger:
    """Events in memory, and how many of them are durable. `fail_at` makes one commit fail."""

    clock: FakeClock
    events: list[Event] = field(default_factory=list)
    durable: int = 0
    commits: int = 0
    fail_at: int | None = None
    failed: bool = False
    low: bool = False
    segment: int = 0
    log_id: str = "omega-gateway/development/0123456789abcdef"
    head: str = "head"
    verifier_key: str = "key"

    @property
    def pending(self) -> bool:
        """Whether there is something to commit."""
        return self.durable < len(self.events)

    @property
    def size(self) -> int:
        """How many events there are."""
        return len(self.events)

    @property
    def committed(self) -> int:
        """How many events are durable."""
        return self.durable

    @property
    def head_size(self) -> int:
        """The newest checkpoint covers what is durable."""
        return self.durable

    def append(self, fields: EventFields) -> Appended:
        """Take one event."""
        require(not self.failed, "an event was appended to a latched ledger")
        seq = len(self.events)
        event_hash = f"{seq:064x}"
        self.events.append(Event(
            seq=seq, ts_us=self.clock.wall, mono_us=self.clock.mono, log_id=self.log_id,
            prev_hash=f"{max(seq - 1, 0):064x}", event_hash=event_hash, fields=fields,
        ))
        return Appended(seq, event_hash)

    def commit(self) -> None:
        """Make everything durable, or fail for good."""
        self.commits += 1
        if self.failed or self.commits == self.fail_at:
            self.failed = True
            raise LedgerFailure("fdatasync", "the volume failed")
        self.durable = len(self.events)

    def space_low(self) -> bool:
        """Say what the world decided about the volume."""
        return self.low

    @property
    def roll_due(self) -> bool:
        """Segments are short here, so that most runs see several."""
        return len(self.events) - self.segment >= SEGMENT_EVENTS

    def roll(self) -> None:
        """End the segment and begin the next."""
        self.append(LedgerRoll(segment=len(self.events) + 1))
        self.commit()
        self.segment = len(self.events)

    def cut(self, kept: int) -> None:
        """Lose in a crash what comes after the first `kept` events."""
        del self.events[kept:]
        self.durable, self.segment = kept, min(self.segment, kept)
        self.failed, self.fail_at = False, None

    def checkpoint_due(self) -> bool:
        """Checkpoints are the ledger's own matter and not simulated."""
        return False

    def checkpoint(self) -> str:
        """Give the present head."""
        return self.head

    def note(self, size: int | None) -> str:
        """Sign every second size and the present one."""
        if size is not None and size != self.durable and (size > self.durable or size % 2):
            raise SizeUnsigned("of no checkpoint")
        return self.head

    def prove(self, seq: int, size: int | None = None) -> list[bytes]:
        """Prove nothing, but know the bounds."""
        self.note(size)
        if seq >= (self.durable if size is None else size):
            raise PositionUnknown("beyond the checkpoint")
        return []

    def prove_consistency(self, old_size: int, size: int | None = None) -> list[bytes]:
        """Prove nothing, but know the bounds."""
        self.note(size)
        if old_size > (self.durable if size is None else size):
            raise PositionUnknown("beyond the checkpoint")
        return []

    def line(self, seq: int) -> bytes:
        """Give a line that stands for the event."""
        return b"%d\n" % seq


@dataclass
class FakeTransport:
    """Keeps what left; a frame may leave only when its event is durable, and only once."""

    ledger: FakeLedger
    replies: list[tuple[Origin, Reply]] = field(default_factory=list)
    orders: list[tuple[str, ToWorker]] = field(default_factory=list)
    open: set[str] = field(default_factory=set)
    gone: set[bytes] = field(default_factory=set)
    keys: dict[str, dict[str, str]] = field(default_factory=dict)
    checked: int = 0
    waiting: deque[FrameOut] = field(default_factory=deque)

    def watch(self, fd: int) -> None:
        """Nothing is watched here."""

    def _must_be_ledgered(self, plane: str, peer: str, kind: str, size: int) -> None:
        """Match a frame with the next durable `frame.out`, in order."""
        for event in self.ledger.events[self.checked : self.ledger.durable]:
            if isinstance(event.fields, FrameOut):
                self.waiting.append(event.fields)
        self.checked = max(self.checked, self.ledger.durable)
        require(self.waiting, f"a {kind} frame left before it was durable")
        fields = self.waiting.popleft()
        require(
            (fields.plane, fields.peer, fields.type, fields.bytes) == (plane, peer, kind, size),
            f"a {kind} frame left that is not the one in the ledger ({fields})",
        )

    def send(self, to: Origin, frame: bytes) -> SendOutcome:
        """Let a reply out."""
        reply = codec.decode_reply(frame)
        assert reply is not None
        self._must_be_ledgered(to.front, to.key_id, str(reply.__struct_config__.tag), len(frame))
        if to.route in self.gone:
            return "gone"
        self.replies.append((to, reply))
        return "sent"

    def send_worker(self, incarnation: str, frame: bytes) -> SendOutcome:
        """Let an order out."""
        message = codec.to_worker.decode(frame)
        self._must_be_ledgered(
            "worker", incarnation, str(message.__struct_config__.tag), len(frame)
        )
        if incarnation not in self.open:
            return "gone"
        self.orders.append((incarnation, message))
        return "sent"

    def holds(self, incarnation: str) -> bool:
        """Nothing a worker sent waits here: its end is told after it."""
        return False

    def open_worker(self, incarnation: str) -> WorkerEndpoint:
        """Open a socket for one incarnation."""
        require(incarnation not in self.open, "an incarnation was opened twice")
        self.open.add(incarnation)
        return WorkerEndpoint("ipc:///run/fake", "s" * 40, "w" * 40)

    def admit_worker(self, incarnation: str, pid: int | None, uid: int) -> None:
        """Admit a worker's process."""

    def close_worker(self, incarnation: str) -> None:
        """Close a worker's socket."""
        self.open.discard(incarnation)

    def set_keys(
        self, front: str, keys: dict[str, str], *, disconnect: str = ""
    ) -> None:
        """Change whom a front admits, and perhaps end one key's connections."""
        self.keys[front] = keys

    def keep_old(self, until_us: dict[str, int]) -> None:
        """Serve old endpoints until these times; there are none."""


class FakeLauncher:
    """Starts nothing; the world decides what becomes of each start."""

    fd = LAUNCHER_FD

    def __init__(self) -> None:
        self.launched: list[str] = []
        self.documents: dict[str, LaunchDocument] = {}
        self.killed: set[str] = set()
        self.trials: list[str] = []
        self.reports: list[Report] = []

    def launch(self, incarnation: str, document: bytes) -> None:
        """Take an order to start."""
        self.launched.append(incarnation)
        self.documents[incarnation] = msgspec.json.decode(document, type=LaunchDocument)

    def try_schemas(self, trial: str, schemas: dict[str, bytes]) -> None:
        """Take an order to try schemas; a trial waits until those before it have ended."""
        require(schemas, "a trial of nothing was asked for")
        self.trials.append(trial)

    def tried(self, said: bytes = b'{"fits":true}', status: int = 0, signal: int = 0) -> None:
        """Let the trial that runs come to this end."""
        self.reports.append(Tried(self.trials.pop(0), status, signal, said))

    def kill(self, incarnation: str) -> None:
        """Take an order to kill; a prober's end is reported, as the world does for a worker's."""
        if incarnation in self.trials:
            self.trials.remove(incarnation)
            self.reports.append(Tried(incarnation, 0, 9, b""))
            return
        self.killed.add(incarnation)

    def runs(self, incarnation: str) -> bool:
        """Nothing is known of a process here; a connection's end is a worker's."""
        return False

    def receive(self) -> list[Report]:
        """Give what the world says happened."""
        reports, self.reports = self.reports, []
        return reports


class FakeExternal:
    """Offers nothing; no operator of the world starts a worker."""

    def launch(self, incarnation: str, plugin: str, document: bytes) -> None:
        """Offer nothing."""

    def withdraw(self, incarnation: str) -> None:
        """Take back nothing."""


class FakeTrust:
    """A home's trust folder in memory; the world fills the volume at times."""

    def __init__(self, present: Root, ledger: FakeLedger) -> None:
        self.present = present
        self.ledger = ledger
        self.kept = {present.trust.version: present}
        self.unfinished: Root | None = None
        self.full = False

    def keep(self, envelope: bytes, version: int) -> None:
        """Keep a root beside the one in force, or have no room for it."""
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.unfinished = self.kept[version] = load_first_root(envelope, "development")

    def install(self) -> None:
        """Lay the root that was kept last in its place."""
        if self.unfinished is not None:
            durable = self.ledger.events[: self.ledger.durable]
            require(any(isinstance(event.fields, TrustChange)
                        and event.fields.sha256 == self.unfinished.sha256 for event in durable),
                    "a trust root was laid in place before the ledger pinned it")
            self.present, self.unfinished = self.unfinished, None

    def settle(self, state: State) -> None:
        """Put the root in force as a start does, once the ledger is folded."""
        version, sha256 = state.inventory.trust_version, state.inventory.trust_sha256
        if self.unfinished is not None and self.present.trust.version < version:
            self.present = self.kept[version]
        self.unfinished = None
        require((version, sha256) in ((0, ""), (self.present.trust.version, self.present.sha256)),
                "the home's trust root is not the one that the ledger pins")
        state.trust, state.trust_sha256 = self.present.trust, self.present.sha256


class FakeShelf(dict[tuple[str, str], LoadedPlugin]):
    """Versions at hand, as the library has them: what was released is read again when it is asked
    for, but what may never serve again is gone."""

    _files: dict[tuple[str, str], LoadedPlugin]
    _state: State | None = None

    def __new__(cls, *_arguments: object) -> Self:
        """Begin empty; a copy is filled before anything else of it is there."""
        shelf = super().__new__(cls)
        shelf._files = {}
        return shelf

    def __init__(self, state: State) -> None:
        super().__init__()
        self._state = state

    def __setitem__(self, key: tuple[str, str], loaded: LoadedPlugin) -> None:
        self._files[key] = loaded
        if self._readable(key):
            super().__setitem__(key, loaded)

    def _readable(self, key: tuple[str, str]) -> bool:
        record = self._state.inventory.record(*key) if self._state else None
        return record is None or record.state not in ("revoked", "quarantined")

    def __contains__(self, key: object) -> bool:
        return self.get(key) is not None

    def __getitem__(self, key: tuple[str, str]) -> LoadedPlugin:
        found = self.get(key)
        require(found is not None, f"{key} was forgotten and is needed")
        return found

    def get(self, key, default=None):
        """Give a version, or the default."""
        if key not in self.keys() and key in self._files and self._readable(key):
            super().__setitem__(key, self._files[key])
        return super().get(key, default)

    def description(self, key: tuple[str, str]) -> str:
        """Describe a version without holding it."""
        return self._files[key].manifest.description if key in self._files else ""

    def manifest_bytes(self, key: tuple[str, str]) -> bytes | None:
        """Give a version's manifest, whatever became of the version."""
        return self._files[key].manifest_bytes if key in self._files else None

    def release(self, key: tuple[str, str]) -> None:
        """Let go of a version, which no worker and no call may have."""
        state = self._state
        inventory, running = state.inventory, [*state.fleet.by_incarnation.values(),
                                               *state.calls.values()]
        require(all((one.plugin, one.version) != key for one in running),
                "a version was forgotten that still runs")
        require(key[1] != inventory.plugins[key[0]].enabled,
                "a version was forgotten that serves")
        self.pop(key, None)


class FakeBundles:
    """Bundles by digest, in memory."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}

    def store(self, bundle_sha256: str, data: bytes) -> None:
        """Keep a bundle."""
        self.data[bundle_sha256] = data

    def path(self, bundle_sha256: str) -> str:
        """Give a path for the launch document."""
        require(bundle_sha256 in self.data, "a worker was started from a bundle nobody stored")
        return f"/bundles/{bundle_sha256}"


def stand_ins(
    ledger: FakeLedger, transport: FakeTransport, launcher: FakeLauncher, trust: FakeTrust
) -> dict[str, Any]:
    """Give the loop's four large parts, and a folder, by the names of its arguments.

    They have the methods that the loop calls and nothing else of the real ones, which a type
    checker cannot know; that they do is what every run of the simulation shows.
    """
    return {"ledger": ledger, "transport": transport, "launcher": launcher, "trust": trust,
            "external": FakeExternal(), "artifacts": "/artifacts"}


__all__ = [
    "LAUNCHER_FD", "SIGNALS_FD", "Broken", "Exited", "FakeBundles", "FakeClock", "FakeLauncher",
    "FakeLedger", "FakeSignals", "FakeTransport", "FakeTrust", "StartFailed",
    "Started", "require", "stand_ins",
]
