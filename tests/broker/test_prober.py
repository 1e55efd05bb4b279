"""The prober, started by a real launcher: bombs end within their limits, and it can do nothing."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.launchers import orders
from broker.launchers.local import LocalLauncher, StartFailed, Tried
from broker.trust.trials import trial_problem
from schemas.canonical import canonical_bytes
from tests.broker.launched import Launched, alive, descendants, wait_for
from tests.trust.test_json_schemas import reference_bomb

pytestmark = pytest.mark.jail

BOMB = canonical_bytes(reference_bomb(28, "anyOf"))
SLOW = {
    "references that double 28 times": BOMB,
    "a pattern that is slow on one long text": canonical_bytes(
        {"properties": {"text": {"pattern": "(a|b)*a(a|b){110}c"}}}
    ),
}
"""None of them passes the static subset; here they stand for what it does not know."""


@pytest.fixture
def launched() -> Iterator[Launched]:
    """A launcher that is closed afterwards, and with it every prober."""
    one = Launched()
    yield one
    pids = descendants(one.launcher.pid) | {one.launcher.pid}
    one.launcher.close()
    wait_for(lambda: not any(map(alive, pids)))


def tried(launched: Launched, *schemas: bytes) -> Tried:
    """Have schemas tried and give the report."""
    name = secrets.token_hex(16)
    launched.launcher.try_schemas(name, {f"s{n}": data for n, data in enumerate(schemas)})
    report = launched.wait(Tried, name)
    assert isinstance(report, Tried)
    return report


@pytest.mark.parametrize("name", SLOW)
def test_a_schema_that_is_slow_by_construction_is_refused_within_its_limit(
    launched: Launched, name: str
) -> None:
    """The kernel or the prober ends it, with a refusal; an honest one passes after it."""
    report = tried(launched, SLOW[name])
    problem = trial_problem(report.status, report.signal, report.said)
    assert problem is not None
    assert problem.code == "schema_not_admitted"
    assert "processor time" in problem.found
    after = tried(launched, b'{"type":"string"}')
    assert trial_problem(after.status, after.signal, after.said) is None


def test_an_honest_schema_passes_its_trial(launched: Launched) -> None:
    """What a plugin needs is compiled and tried within the bounds."""
    report = tried(launched, canonical_bytes({
        "type": "object", "required": ["name"], "additionalProperties": False,
        "properties": {
            "name": {"type": "string", "pattern": "^[a-z]{1,64}$"},
            "rows": {"type": "array", "items": {"type": "object", "properties": {
                "id": {"type": "integer", "minimum": 0}, "tag": {"enum": ["a", "b"]}}}},
        },
    }))
    assert trial_problem(report.status, report.signal, report.said) is None


def test_a_prober_is_sealed_before_it_reads(launched: Launched) -> None:
    """While a bomb runs, its process has no capability, no new privilege and a filter, and limits.

    It holds the schemas, its answer and the standard descriptors, and nothing of the launcher's.
    """
    name = secrets.token_hex(16)
    launched.launcher.try_schemas(name, {"s": BOMB})
    pid = 0

    def at_work() -> bool:
        nonlocal pid
        pid = next(iter(descendants(launched.launcher.pid)), 0)
        return pid != 0 and "Seccomp:\t2" in Path(f"/proc/{pid}/status").read_text()

    wait_for(at_work)
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
    assert (status["NoNewPrivs"], status["CapEff"], status["Threads"]) == ("1", "0" * 16, "1")
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert [line.split()[3:5] for line in limits.splitlines() if "cpu time" in line] == [["2", "3"]]
    launched.launcher.kill(name)
    assert launched.wait(Tried, name)


def test_trials_run_one_after_the_other_and_can_be_taken_back(launched: Launched) -> None:
    """A second waits for the first; one that waits is dropped at once, one that runs is killed."""
    first, second, third = (secrets.token_hex(16) for _ in range(3))
    for name in (first, second, third):
        launched.launcher.try_schemas(name, {"s": BOMB if name == first else b"{}"})
    launched.launcher.kill(second)
    dropped = launched.wait(Tried, second)
    assert isinstance(dropped, Tried)
    assert (dropped.signal, dropped.said) == (signal.SIGKILL, b"")
    assert len(descendants(launched.launcher.pid)) <= 1
    launched.launcher.kill(first)
    killed = launched.wait(Tried, first)
    assert isinstance(killed, Tried)
    assert killed.signal == signal.SIGKILL
    last = launched.wait(Tried, third)
    assert isinstance(last, Tried)
    assert trial_problem(last.status, last.signal, last.said) is None


def test_an_order_without_schemas_starts_nothing(launched: Launched) -> None:
    """The launcher says that it got nothing to try, and goes on."""
    name = secrets.token_hex(16)
    launched.launcher._channel.send(orders.encode(orders.Try(name)))
    failed = launched.wait(StartFailed, name)
    assert isinstance(failed, StartFailed)
    assert "Bad file descriptor" in failed.reason
    assert trial_problem(0, 0, tried(launched, b"{}").said) is None


def test_probers_leave_no_descriptor_and_no_zombie(launched: Launched) -> None:
    """After many trials launcher and broker hold what they held before."""
    tried(launched, b"{}")
    folders = (f"/proc/{launched.launcher.pid}/fd", "/proc/self/fd")
    before = [len(os.listdir(folder)) for folder in folders]
    for _ in range(5):
        tried(launched, b"{}")
    assert [len(os.listdir(folder)) for folder in folders] == before
    assert descendants(launched.launcher.pid) == set()


def test_a_prober_ends_with_its_launcher() -> None:
    """When the broker's side goes, a prober in the middle of a bomb goes too."""
    launcher = LocalLauncher.start(worker_stderr=True)
    launcher.try_schemas(secrets.token_hex(16), {"s": BOMB})
    wait_for(lambda: bool(descendants(launcher.pid)))
    pids = descendants(launcher.pid)
    launcher.close()
    wait_for(lambda: not any(map(alive, pids)))
