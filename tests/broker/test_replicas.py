"""Which calls have a second run, and where their workers come from."""

from __future__ import annotations

import hmac

import msgspec
import pytest

from broker.config import DeterminismConfig, WorkersConfig
from broker.orchestrator.replicas import drawn
from schemas.events import WorkerStart
from tests.scenarios.stage import Stage
from tests.scenarios.test_scenarios import PREPARED

IDS = [f"00000000-0000-4000-a000-{number:012d}" for number in range(4000)]


@pytest.mark.parametrize("share_permille", [1, 5, 300, 1000])
def test_the_share_that_is_drawn_is_the_one_that_is_set(share_permille: int) -> None:
    """Of four thousand requests about so many are drawn, and the same ones each time."""
    count = sum(drawn(b"k" * 32, one, share_permille) for one in IDS)

    assert abs(count - 4 * share_permille) <= 8 + 0.2 * share_permille
    assert count == sum(drawn(b"k" * 32, one, share_permille) for one in IDS)


def test_another_home_draws_other_requests() -> None:
    """Who does not hold the key cannot tell which answers are compared."""
    ours, theirs = ({one for one in IDS if drawn(key * 32, one, 100)} for key in (b"k", b"l"))

    assert len(ours & theirs) < len(ours) / 2


def test_what_is_drawn_is_the_keyed_hash() -> None:
    """A draw is the first 64 bits of HMAC-SHA256 of the label and the request, a thousandth of it:
    whoever has the key can say afterwards which requests were drawn."""
    for number in range(200):
        key, request_id = bytes([number]) * 32, f"request-{number}"
        digest = hmac.digest(key, b"replica\x00" + request_id.encode(), "sha256")
        place = int.from_bytes(digest[:8], "big") % 1000
        assert drawn(key, request_id, place + 1)
        assert not drawn(key, request_id, place)


@pytest.mark.parametrize("external", [(), ("alpha",)])
def test_an_operator_starts_first_workers_and_never_replicas(external: tuple[str, ...]) -> None:
    """One waiting terminal starts one worker; the second run's comes from the gateway itself."""
    stage = Stage()
    stage.config = msgspec.structs.replace(
        stage.config, workers=WorkersConfig(external=external),
        determinism=DeterminismConfig(first_calls=1, share_permille=1),
    )
    stage.begin()
    for command in (*PREPARED, "invoke r1 alpha"):
        stage.play(command)

    starts = [event.fields.launcher for event in stage.ledger.events
              if isinstance(event.fields, WorkerStart)]
    assert starts == ["external" if external else "local", "local"]
