"""Versions that served and serve no more leave next to nothing; what may be needed is kept."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path

import pytest

from broker import library
from broker.bundles import BundleFolder
from broker.library import Library
from broker.trust import ratchet
from schemas.messages import RegisterPlugin
from tests.scenarios.stage import Stage
from tests.support.bundles import signed_bundle

BYTES_MAX = 9_000
"""What one more version may leave in Python's own memory: its record, the request ids and answers
of its five requests, timers that are not due yet, and what a stage remembers: 6.9 kB on CPython
3.11, and 12.8 kB when nothing was let go."""


class NoStates:
    """Writes no folded state down: those of a stage stay in memory."""

    def write(self, seq: int, data: bytes) -> None:
        """Write nothing."""


class Many(Stage):
    """A stage with real bundles in a folder and the real library, which forgets its past."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        state = self.core.state
        bundles = BundleFolder(str(folder))
        self.gateway._bundles, self.gateway._states = bundles, NoStates()
        self.library = Library(lambda: state.inventory, bundles, "development")
        state.plugins = self.library
        self.seen = 0

    def worker(self) -> str:
        """Name the worker that was started last."""
        return f"w{len(self.workers)}"

    def serve(self, number: int, *, goes: bool = True) -> None:
        """Register a version, have it enabled in place of the one before, and call it; the worker
        before goes."""
        version, before = f"1.0.{number}", self.worker()
        self.turn([self.from_operator(RegisterPlugin(
            request_id=self.uuid(), bundle=signed_bundle("alpha", version)))])
        self.play(f"enable alpha {version}")
        if number == 0:
            self.play("invoke first alpha")
        self.play(f"ready {self.worker()}")
        self.play(f"ready {self.worker()}")
        name = f"r{number}" if number else "first"
        if number:
            self.play(f"invoke {name} alpha")
        self.play(f"answer {self.worker()} {name}")
        if number and goes:
            self.play(f"bye {before}")
        self.tidy()

    def tidy(self) -> None:
        """Let go of what only a stage remembers."""
        self.inbox.clear()
        self.launcher.documents.clear()
        self.launcher.launched.clear()
        self.names = {key: name for key, name in self.names.items()
                      if len(key) == 16 or name == self.worker()}
        done = min(self.ledger.durable, self.transport.checked)
        self.ledger.events[self.seen : done] = [None] * (done - self.seen)
        self.seen = done


def held() -> int:
    """Give Python's own memory, in bytes, without what a bounded number of comparisons keeps."""
    ratchet.difference.cache_clear()
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Many:
    """A gateway with room for two versions that do not serve."""
    monkeypatch.setattr(library, "RECENT_MAX", 2)
    return Many(tmp_path)


def test_a_superseded_version_leaves_next_to_nothing(many: Many) -> None:
    """After dozens of versions that each served, two have pools, four are at hand, and memory
    grew by less than each had while it served."""
    for number in range(12):
        many.serve(number)
    tracemalloc.start()
    try:
        before = held()
        for number in range(12, 42):
            many.serve(number)
        grown = (held() - before) / 30
    finally:
        tracemalloc.stop()

    assert {pool.version for pool in many.core.state.fleet.pools.values()} <= {"1.0.40", "1.0.41"}
    assert len(many.library) <= 4
    assert grown < BYTES_MAX


def test_a_version_that_was_forgotten_serves_again_when_it_is_enabled(many: Many) -> None:
    """Its bundle is read again, and what it had answered is still what it must answer."""
    for number in range(6):
        many.serve(number)
    assert ("alpha", "1.0.0") not in set(many.library)

    many.play("enable alpha 1.0.0")
    for _ in range(2):
        many.play(f"ready {many.worker()}")
    many.play("invoke again alpha")
    told = many.play(f"answer {many.worker()} again")
    many.play("invoke other alpha")
    differs = many.play(f"answer {many.worker()} other 8")

    assert any("result again" in line for line in told), told
    assert any("nondeterministic_output" in line for line in differs), differs


def test_a_version_with_a_call_keeps_what_it_serves_with(many: Many) -> None:
    """However many others come meanwhile, the call is answered by the version that took it."""
    many.serve(0)
    many.play("invoke long alpha 1 60000")
    holder = many.worker()
    inbox = dict(many.inbox)
    names = dict(many.names)
    for number in range(1, 4):
        many.serve(number, goes=number > 1)
    assert ("alpha", "1.0.0", "primary") in many.core.state.fleet.pools
    assert ("alpha", "1.0.0") in set(many.library)
    many.inbox, many.names = inbox, {**many.names, **names}

    told = many.play(f"answer {holder} long")
    assert any("result long" in line for line in told), told
    many.play(f"bye {holder}")
    many.serve(4)
    assert ("alpha", "1.0.0", "primary") not in many.core.state.fleet.pools


def test_a_revoked_version_is_gone_once_another_was_enabled(many: Many) -> None:
    """The version enabled last stays to compare the next one with, also revoked; then it goes."""
    many.serve(0)
    many.play("revoke alpha@1.0.0")
    many.turn([many.from_operator(RegisterPlugin(
        request_id=many.uuid(), bundle=signed_bundle("alpha", "1.0.1")))])
    assert not many.core.state.fleet.pools
    assert ("alpha", "1.0.0") not in set(many.library)
    assert any("enabled" in line for line in many.play("enable alpha 1.0.1"))


@pytest.mark.parametrize(("wider", "word"), [(False, "enabled"), (True, "approval_required")])
@pytest.mark.parametrize("restarted", [False, True])
def test_a_revoked_version_is_the_measure_still(
    many: Many, *, restarted: bool, wider: bool, word: str
) -> None:
    """What follows is held against its manifest, which serves nothing, by every process alike."""
    many.serve(0)
    many.play("revoke alpha@1.0.0")
    many.turn([many.from_operator(RegisterPlugin(request_id=many.uuid(), bundle=signed_bundle(
        "alpha", "1.0.1", concurrency=5 if wider else 4)))])
    if restarted:
        state = many.core.state
        state.plugins = Library(lambda: state.inventory, many.gateway._bundles, "development")
    assert ("alpha", "1.0.0") not in many.core.state.plugins
    assert any(word in line for line in many.play("enable alpha 1.0.1"))


@pytest.mark.parametrize(("wider", "word"), [(False, "enabled"), (True, "approval_required")])
def test_a_disabled_version_is_the_measure_still(many: Many, *, wider: bool, word: str) -> None:
    """The version enabled last is not forgotten with its pools: what keeps within it is enabled at
    once, what widens waits."""
    many.serve(0)
    many.play("disable alpha")
    many.play(f"bye {many.worker()}")
    many.turn([many.from_operator(RegisterPlugin(request_id=many.uuid(), bundle=signed_bundle(
        "alpha", "1.0.1", concurrency=5 if wider else 4)))])
    assert any(word in line for line in many.play("enable alpha 1.0.1"))


def test_a_grant_is_taken_back_without_a_look_at_versions_that_do_not_serve(
    many: Many, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be thousands of them, and the loop waits for each bundle that is read."""
    for number in range(6):
        many.serve(number)
    many.play("grant alpha clock.read")
    read: list[str] = []
    monkeypatch.setattr(many.gateway._bundles, "read", lambda sha256, **_: read.append(sha256))
    assert any("revoked" in line for line in many.play("take-back alpha clock.read"))
    assert read == []


def test_a_worker_that_is_revoked_in_the_turn_of_its_start_needs_nothing_that_went(
    many: Many,
) -> None:
    """Started, revoked and forgotten by three requests of one turn: the process is begun after the
    turn's commit, and ended at once."""
    many.serve(0)
    many.turn([many.from_operator(RegisterPlugin(
        request_id=many.uuid(), bundle=signed_bundle("alpha", "1.0.1")))])
    told = many.play("together enable alpha 1.0.1 then revoke alpha@1.0.1 "
                     "then grant alpha clock.read")
    assert [line for line in told if line.startswith("worker.")] == [
        "worker.start incarnation=w2 plugin=alpha version=1.0.1",
        "worker.exit incarnation=w2 reason=revoked",
    ]
    assert ("alpha", "1.0.1") not in set(many.library)
    many.play("invoke still alpha")
    assert any("result still" in line for line in many.play("answer w1 still"))
