"""A sealed gateway ends segments while it serves: states are written beside the loop."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from schemas.events import LedgerRoll, StateSnapshot
from tests.support import gateway as support
from tests.support.gateway import RunningGateway, running_gateway, wait_for

pytestmark = [pytest.mark.system, pytest.mark.once]

SHORT = "from broker.ledger import commit; commit.SEGMENT_BYTES_MAX = 10_000\n"
"""A segment of a few requests."""


def states(gateway: RunningGateway) -> list[Path]:
    """Whatever lies where states lie, finished or not."""
    return [one for one in (gateway.home / "registry").iterdir() if one.name.startswith("state-")]


def vouched(gateway: RunningGateway) -> int:
    """How many snapshots vouch for a state; each start writes one before it serves."""
    return sum(isinstance(event.fields, StateSnapshot) and event.fields.state_sha256 is not None
               for event in gateway.events())


def test_a_sealed_gateway_writes_states_while_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each segment's state is written by a thread under the broker's seal and vouched for later;
    after kill -9 the next start goes on, and an orderly end leaves nothing unfinished."""
    monkeypatch.setattr(support, "SERVE", SHORT + support.SERVE)
    with running_gateway() as gateway:
        operator, starts = gateway.operator(), vouched(gateway)

        def rolled() -> bool:
            operator.status()
            return vouched(gateway) > starts + 3

        wait_for("states to be vouched for later", rolled)
        events = gateway.events()
        assert any(isinstance(event.fields, LedgerRoll) for event in events)
        (gateway.home / "registry" / "state-7.json.part").write_bytes(b"{")
        os.kill(gateway.pid, signal.SIGKILL)
        gateway.stop()
        gateway.start()
        assert gateway.operator().status().ledger_size > len(events)
        assert not [one for one in states(gateway) if one.suffix == ".part"]
        assert gateway.stop() == 0
        assert len(states(gateway)) <= 3
