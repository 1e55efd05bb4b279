"""A picture of the state is the fold of the events before it, to the byte, whatever comes after.

The past is random and of every kind of event that a state remembers; a picture is written down only
when much more has come, a part at a time in between.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import msgspec
import pytest

from broker.answers import STORIES_MAX, STORY_EVENTS_MAX, Answers
from broker.core import Core
from broker.folded import BYTES_TOGETHER, Folded, Picture, picture
from broker.folded import Story as StoryKept
from broker.inventory import Inventory
from broker.lifecycle import VERSION, VersionEvent
from broker.orchestrator import windows
from broker.policy import policy_digest
from broker.state import Edge, State
from schemas.events import (
    Event,
    EventFields,
    FrameIn,
    GrantChange,
    InvokeAccept,
    InvokeEnd,
    KeyChange,
    PluginApprove,
    PluginDisable,
    PluginEnable,
    PluginQuarantine,
    PluginRegister,
    PolicyChange,
    Revoke,
    TrustChange,
    WorkerExit,
    WorkerProbe,
    WorkerStart,
)
from tests.ledger.conftest import LOG_ID, opening
from tests.simulation.settings import CONFIG, POLICY
from tests.support.bundles import trust_root
from tests.support.pasts import ACTOR, disable, enable, register, request_id

SEEDS = 12
EVENTS = 400
BEGAN_US = 1_790_000_000_000_000
FEW = msgspec.structs.replace(
    CONFIG, limits=msgspec.structs.replace(CONFIG.limits, request_window=20)
)
"""Windows that are full soon."""


class Past:
    """What a gateway remembers that takes in a ledger's events, without a ledger."""

    def __init__(self) -> None:
        """Remember nothing yet."""
        self.state = State(
            config=FEW, policy=POLICY, trust=trust_root(), trust_sha256="0" * 64,
            policy_sha256=policy_digest(POLICY), inventory=Inventory(), plugins={}, keys={},
            edge=Edge(new_incarnation=str, new_nonce=bytes, determinism_key=b"", log_id=LOG_ID),
        )
        self.state.inventory.history._entries_max = 2
        self.core = Core(self.state)
        self.answers = Answers(None, lambda: None)
        self.size = 0

    def take(self, fields: EventFields) -> None:
        """Take in the next event."""
        event = Event(seq=self.size, ts_us=BEGAN_US + self.size, mono_us=self.size, log_id=LOG_ID,
                      prev_hash="", event_hash="", fields=fields)
        self.core.restore(event)
        self.answers.remember(fields, event.seq)
        self.size += 1

    def picture(self) -> Picture:
        """Take a picture of what is remembered now."""
        return picture(self.state, self.answers.stories(), LOG_ID, self.size)

    def begin_with(self, folded: Folded) -> None:
        """Begin with what was written down."""
        self.core.take_up(folded)
        self.answers.take_up(folded)
        self.size = folded.seq


def read(parts: Iterator[bytes]) -> Folded:
    """Read what was written down."""
    return msgspec.json.decode(b"".join(parts), type=Folded)


class Story:
    """Makes up events that may follow on each other."""

    def __init__(self, seed: int) -> None:
        """Begin with nothing; the seed decides what comes."""
        self.random = random.Random(seed)
        self.inventory = Inventory()
        self.number = 0

    def events(self, count: int) -> Iterator[EventFields]:
        """Give some more events."""
        kinds = [self.version, self.version, self.plugin, self.key, self.frame, self.call,
                 self.worker, self.single]
        for _ in range(count):
            for fields in self.random.choice(kinds)():
                self.number += 1
                self.inventory.apply(fields, self.number)
                yield fields

    def name(self) -> str:
        """Give one of a few plugins."""
        return self.random.choice(["alpha", "beta", "gamma"])

    def version(self) -> Iterator[EventFields]:
        """Register a version, or change one in any way that the table allows."""
        self.number += 1
        plugin = self.name()
        record = self.inventory.plugins.get(plugin)
        if record is None or not record.versions or self.random.random() < 0.3:
            yield register(plugin, f"1.{self.number}.0")
            return
        entry = self.random.choice([*record.versions.values()])
        ways: list[VersionEvent] = [way for state, way in VERSION if state == entry.state]
        way = self.random.choice([*ways, None])
        if way == "enable":
            yield enable(plugin, entry.version, record.enabled)
        elif way == "disable":
            yield disable(plugin, entry.version)
        elif way == "quarantine" and self.random.random() < 0.2:
            yield PluginQuarantine(plugin=plugin, version=entry.version, reason="bundle_damaged")
        elif way == "revoke" and self.random.random() < 0.2:
            yield Revoke(kind="plugin_version", id=f"{plugin}@{entry.version}", reason="bad",
                         actor=ACTOR)

    def plugin(self) -> Iterator[EventFields]:
        """Grant, take back or approve something."""
        plugin = self.name()
        capability = self.random.choice(["clock.read", "random.read", "artifact.read"])
        if plugin not in self.inventory.plugins or self.random.random() < 0.5:
            yield GrantChange(action=self.random.choice(["granted", "granted", "revoked"]),
                              plugin=plugin, capability=capability, actor=ACTOR)
        elif self.random.random() < 0.5:
            yield Revoke(kind="grant", id=f"{plugin} {capability}", reason="bad", actor=ACTOR)
        else:
            yield PluginApprove(plugin=plugin, version=f"1.{self.random.randrange(3)}.0",
                                diff_sha256=f"{self.random.randrange(3):064x}",
                                actor=self.key_id())

    def key_id(self) -> str:
        """Give one of some keys."""
        return f"{self.random.randrange(12):016x}"

    def key(self) -> Iterator[EventFields]:
        """Change a key."""
        action = self.random.choice(["added", "rotated", "removed", "revoked"])
        role = self.random.choice(["omega", "operator", "auditor", "server", "ledger"])
        yield KeyChange(action=action, role=role, key_id=self.key_id(), actor="home")

    def frame(self) -> Iterator[EventFields]:
        """A request comes; some ids come twice."""
        self.number += 1
        number = self.number if self.random.random() < 0.8 else self.random.randrange(self.number)
        yield FrameIn(plane="front.omega", peer=self.random.choice(["a" * 16, "b" * 16]),
                      type="status", bytes=1, request_id=request_id(number))

    def call(self) -> Iterator[EventFields]:
        """A call is accepted, or one that was ends."""
        self.number += 1
        still = [*self.inventory.open_invocations]
        if len(still) > 5:
            yield InvokeEnd(
                request_id=self.random.choice(still), outcome="result", reached="answered",
                output_fingerprint=f"{self.number:064x}",
                replica=self.random.choice([None, "agreed"]),
            )
            return
        name, peer = request_id(self.number), self.random.choice(["a" * 16, "b" * 16])
        yield FrameIn(plane="front.omega", peer=peer, type="invoke", bytes=1, request_id=name)
        yield InvokeAccept(
            request_id=name, peer=peer, plugin=self.name(), version="1.0.0",
            bundle_sha256="3" * 64, method="work", input_kind="text", input_bytes=1,
            input_commitment="0" * 64, timeout_ms=1000,
            input_fingerprint=f"{self.random.randrange(30) * 2**250:064x}",
        )

    def worker(self) -> Iterator[EventFields]:
        """A worker begins, ends or is seen to escape."""
        self.number += 1
        if self.inventory.workers and self.random.random() < 0.6:
            incarnation = self.random.choice([*self.inventory.workers])
            if self.random.random() < 0.5:
                yield WorkerExit(incarnation=incarnation, reason="killed")
            else:
                yield WorkerProbe(incarnation=incarnation, probe=1, passed=False,
                                  outcomes={"open_file": "allowed"}, failed=("open_file",))
            return
        yield WorkerStart(incarnation=f"{self.number:032x}", plugin=self.name(),
                          version=f"1.{self.random.randrange(9)}.0", bundle_sha256="3" * 64,
                          launcher="local")

    def single(self) -> Iterator[EventFields]:
        """Something of which there is one."""
        self.number += 1
        digest = f"{self.number:064x}"
        yield self.random.choice([
            TrustChange(version=self.number, sha256=digest, actor="home"),
            PolicyChange(sha256=digest, actor="home"),
            Revoke(kind="client_key", id=self.key_id(), reason="lost", actor=ACTOR),
            Revoke(kind="publisher_key", id=self.key_id(), reason="lost", actor=ACTOR),
            msgspec.structs.replace(opening(), archived_before=self.number, archived_to=digest),
        ])


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of few ids, so that many are begun and left."""
    monkeypatch.setattr(windows, "PIECE_IDS", 8)


def test_no_later_event_changes_a_picture(small: None) -> None:
    """Of several pictures, each written down bit by bit while other events come: each is what a
    gateway remembers that took in the events up to it and no other; every member did change."""
    unchanged = set(Folded.__struct_fields__) - {"format", "log_id"}
    for seed in range(SEEDS):
        story, past = Story(seed), Past()
        expected: list[Folded] = []
        begun: list[Iterator[bytes]] = []
        made: list[list[bytes]] = []
        for fields in story.events(EVENTS):
            past.take(fields)
            if story.random.random() < 0.02:
                expected.append(read(past.picture().written()))
                begun.append(past.picture().written())
                made.append([])
            if begun and story.random.random() < 0.1:
                which = story.random.randrange(len(begun))
                made[which] += [part for part in [next(begun[which], b"")] if part]
        now = read(past.picture().written())
        for then, first, rest in zip(expected, made, begun, strict=True):
            found = read(iter([*first, *rest]))
            for name in Folded.__struct_fields__:
                assert getattr(found, name) == getattr(then, name), f"seed {seed}: {name}"
                if getattr(found, name) != getattr(now, name):
                    unchanged.discard(name)
    assert not unchanged, unchanged


def test_what_was_written_of_plugins_before_is_never_out_of_date() -> None:
    """After every single event: what is kept in writing of each plugin is what would be written
    now, in a state and in the digest of a snapshot, for each kind of event that changes a plugin.
    """
    changing = set()
    for seed in range(SEEDS):
        past = Past()
        plugins = past.state.inventory.plugins
        for fields in Story(seed).events(EVENTS // 2):
            before = past.picture().plugins
            past.take(fields)
            found, digest = past.picture().plugins, past.state.inventory.digest()
            for record in plugins.values():
                record.written = record.spelled = None
            assert found == past.picture().plugins, type(fields)
            assert digest == past.state.inventory.digest(), type(fields)
            if found != before:
                changing.add((type(fields), getattr(fields, "kind", None)))
    assert changing == {
        (PluginRegister, None), (PluginEnable, None), (PluginDisable, None),
        (PluginQuarantine, None), (PluginApprove, None), (GrantChange, None),
        (Revoke, "grant"), (Revoke, "plugin_version"),
    }


def test_a_start_that_folds_from_a_picture_knows_what_a_full_fold_knows(small: None) -> None:
    """Whatever comes between the picture and the end: state and later events together are the fold
    of all events, request ids and the bound on their number included."""
    for seed in range(SEEDS):
        past = Past()
        fields_of = [*Story(seed).events(EVENTS)]
        cut = random.Random(seed).randrange(len(fields_of))
        taken = Past()
        for place, fields in enumerate(fields_of):
            if place == cut:
                taken.begin_with(read(past.picture().written()))
            past.take(fields)
            if place >= cut:
                taken.take(fields)
        whole, other = (read(one.picture().written()) for one in (past, taken))
        for name in Folded.__struct_fields__:
            assert getattr(other, name) == getattr(whole, name), f"seed {seed}: {name}"


def test_the_longest_stories_are_written_a_little_at_a_time() -> None:
    """20,000 requests with 64 events each are 12 MB, which nobody writes in one go: neither the
    other thread, which waits for the interpreter, nor an end, which waits for what is written."""
    stories = [StoryKept(request_id(number), (number, number), (10**7,) * STORY_EVENTS_MAX)
               for number in range(STORIES_MAX)]
    past = Past()
    parts = [*picture(past.state, stories, LOG_ID, 0).written()]

    assert max(map(len, parts)) <= BYTES_TOGETHER < sum(map(len, parts)) // 20
    assert read(iter(parts)).stories == stories


def test_a_call_that_ended_long_ago_is_no_more_than_that() -> None:
    """Open in the state, ended in the events behind it, and all of that before the window: of the
    call nothing is kept, whoever's it was."""
    story, past, now = Story(0), Past(), Past()
    for fields in story.events(EVENTS):
        past.take(fields)
    assert past.state.inventory.open_invocations
    now.state.wall_us = BEGAN_US + 2 * CONFIG.limits.request_window_ms * 1000
    now.begin_with(read(past.picture().written()))
    for name in [*past.state.inventory.open_invocations]:
        now.take(InvokeEnd(request_id=name, outcome="abandoned", reached="queued"))

    assert now.core._invocations._key_of_end == {}
    assert read(now.picture().written()).requests == {}
