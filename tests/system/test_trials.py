"""A schema that is slow by construction, sent to a running gateway whose weights were taken away.

No schema is known that passes the static subset and is slow, so the broker of this test runs with
the subset's weights out of reach: what then holds is the trial alone.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from broker.client import Refused
from broker.keys import read_secret
from schemas.events import FrameIn, FrameOut, PluginReject
from tests.support import gateway as support
from tests.support.bundles import signed_bundle
from tests.support.gateway import ECHO, running_gateway
from tests.trust.test_json_schemas import reference_bomb

WITHOUT_WEIGHTS = (
    "from broker.trust import json_schemas; "
    "json_schemas.WEIGHT_MAX = json_schemas.EXPANDED_MAX = 10**30; "
)
pytestmark = [pytest.mark.system, pytest.mark.jail]


def test_a_schema_that_is_slow_costs_a_refusal_and_nobody_else_anything(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the prober is busy until it is killed, calls and reads are answered; then comes the
    refusal with code, place and remedy, in the ledger too, and nothing of the bundle is kept."""
    monkeypatch.setattr(support, "SERVE", WITHOUT_WEIGHTS + support.SERVE)
    with running_gateway() as gateway, ThreadPoolExecutor(1) as aside:
        gateway.install(gateway.write_plugin("echo-plugin", ECHO))
        omega, operator = gateway.omega(), gateway.operator()
        assert omega.invoke("echo-plugin", "echo", "x").text == "x"
        seed = bytes.fromhex(read_secret(str(gateway.home / "keys" / "publisher.key_secret")))
        bundle = signed_bundle("slow-plugin", "1.0.0", seed=seed, publisher="development",
                               schema=reference_bomb(28, "anyOf"))

        refused = aside.submit(lambda: gateway.operator().register_plugin(bundle))
        gateway.wait_for_event("the request", lambda event: isinstance(event.fields, FrameIn)
                               and event.fields.type == "register_plugin"
                               and event.fields.bytes > len(bundle))
        assert omega.invoke("echo-plugin", "echo", "y").text == "y"
        operator.status()

        error = refused.exception()
        assert isinstance(error, Refused)
        assert (error.code, error.refusal.where) == ("schema_not_admitted", "$.schemas")
        assert "more than 2 s of processor time" in error.refusal.message
        assert error.refusal.hint
        events = gateway.events()
        rejected = next(e for e in events if isinstance(e.fields, PluginReject))
        assert error.refusal.receipt is not None
        assert rejected.seq == error.refusal.receipt.seq
        before = [event.fields.type for event in events[: rejected.seq]
                  if isinstance(event.fields, FrameOut)]
        assert before[-2:] == ["result", "status_report"]
        assert len(list((gateway.home / "registry" / "bundles").iterdir())) == 1
