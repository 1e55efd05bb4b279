"""What workers answer in a run: mostly well, and often enough what no worker may."""

from __future__ import annotations

from random import Random

from schemas.messages import CallFailure, CallResult, Run
from schemas.payloads import DatasetSlicePayload, JSONPayload, Payload, TextPayload
from tests.simulation.settings import USAGE


def answer(chance: Random, run: Run) -> CallResult | CallFailure:
    """Answer one call, mostly well."""
    roll = chance.random()
    if roll < 0.1:
        return CallFailure(call=run.call, code="plugin_error", plugin_message="no", usage=USAGE)
    if roll < 0.13:
        return CallFailure(call=run.call, code="cpu_limit_exceeded", used=9, allowed=5)
    if roll < 0.16:
        return CallFailure(call=run.call, code="deadline_exceeded")
    fault = chance.choice((None,) * 30 + (7, 11, 31))
    if roll < 0.17 or (fault and roll < 0.5):
        return CallFailure(call=run.call, code=chance.choice((
            "system_call_forbidden", "plugin_crashed", "cancelled")), fault=fault or 11)
    # Some requests have both runs say what others with the same input do not.
    other = roll > 0.995 or run.request_id.endswith("7")
    payload: Payload = JSONPayload(b'{"value":8}' if other else b'{"value":7}')
    if run.purpose == "replica" and roll > 0.9:
        payload = JSONPayload(b'{"value":9}')
    if run.method == "pick":
        payload = run.payload
    if roll < 0.22:
        payload = chance.choice((
            TextPayload("wrong kind"), JSONPayload(b'{"value":7.0}'), JSONPayload(b"{}"),
            DatasetSlicePayload("set", ("stolen",)), JSONPayload(b"[" * 99),
        ))
    return CallResult(call=run.call, payload=payload, usage=USAGE, fault=fault)
