"""What the conformance suite does beside a call: cancels it, kills its worker, runs another one.

Rules this file keeps: what is cut short may end in any way that the gateway has for it; what is
judged is the call after it, and that no call shows what another was given. A worker is killed by
the pid that the gateway itself tells.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from typing import Final

from broker.authoring.conform_cases import MARK, Case
from broker.authoring.conform_suite import Seen, Suite, seen_of
from broker.authoring.local import PATIENCE_S
from broker.client import Call, OmegaClient, Refused, Result
from broker.client_session import new_request_id
from schemas.payloads import preimage
from schemas.refusals import RefusalCode

_BESIDE: Final = 4
"""How many pairs run side by side."""
_CUT: Final = 12
"""How many calls are in flight when their worker is killed."""
_MOMENTS_S: Final = (0.0, 0.002, 0.02)
"""How long after the gateway knows a call it is cancelled."""


def cancelled(suite: Suite, method: str) -> None:
    """Cancel calls at several moments, and call as before after each."""
    for before in suite.answered(method)[:1]:
        request_ids = [new_request_id() for _ in _MOMENTS_S]
        thread = threading.Thread(target=_invoke, args=(suite, before, request_ids))
        thread.start()
        for request_id, moment_s in zip(request_ids, _MOMENTS_S, strict=True):
            _cancel(suite, thread, request_id, moment_s)
            now = suite.send(method, before.case._replace(name=f"after a cancel, {moment_s} s"))
            suite.book.judge("CON-18", now, held=suite.as_before(before, now))
        thread.join()


def killed(suite: Suite, methods: tuple[str, ...]) -> None:
    """Kill the workers under calls of all methods, and then call each as before."""
    known = [seen for method in methods for seen in suite.answered(method)[:2]]
    if not known:
        return
    _kill(suite, known)
    for before in known:
        now = suite.send(before.method, before.case._replace(name="after its worker was killed"))
        suite.book.judge("CON-18", now, held=suite.as_before(before, now))


def side_by_side(suite: Suite, method: str) -> None:
    """Call with a marked input and with another one, after each other and at once."""
    payload = suite.inputs.marked(method)
    plain = next((
        seen for seen in suite.answered(method) if MARK.encode() not in preimage(seen.case.payload)
    ), None)
    if payload is None or plain is None:
        return
    marked = Case("CON-02", "with a mark", payload)
    suite.send(method, marked)
    after = suite.send(method, plain.case._replace(name="after a marked input"))
    suite.book.judge("CON-19", after, held=_is_clean(suite, plain, after))
    calls = [
        Call(suite.manifest.id, method, case.payload, suite.manifest.version,
             suite.timeout_s(method))
        for case in (marked, plain.case) for _ in range(_BESIDE)
    ]
    calls = calls[::2] + calls[1::2]
    for index, outcome in suite.gateway.omega.invoke_many(calls, in_flight=2 * _BESIDE):
        if calls[index].payload == plain.case.payload:
            seen = _seen(method, plain.case._replace(name="beside a marked input"), outcome)
            if seen is not None and seen.reached:
                suite.judge(seen)
                suite.book.judge("CON-19", seen, held=_is_clean(suite, plain, seen))


def _is_clean(suite: Suite, before: Seen, now: Seen) -> bool:
    """Say whether nothing of the marked input shows."""
    said = [now.message, *(note.note for note in now.notes)]
    shown = MARK.encode() in now.output or any(MARK in text for text in said)
    return not shown and suite.as_before(before, now)


def _seen(method: str, case: Case, outcome: object) -> Seen | None:
    """Make a record of one of many; None for what the gateway had no room for."""
    if isinstance(outcome, Result):
        return Seen(method, case, outcome.request_id, None, outcome, outcome.usage)
    return seen_of(method, case, outcome, []) if isinstance(outcome, Refused) else None


def _invoke(suite: Suite, before: Seen, request_ids: list[str]) -> None:
    """Send an input again and again, in a thread and from a client of its own."""
    manifest = suite.manifest
    with OmegaClient(suite.gateway.profile) as omega:
        for request_id in request_ids:
            # However it ends: that it ends once is the gateway's own rule.
            with contextlib.suppress(Refused):
                omega.invoke(
                    manifest.id, before.method, before.case.payload, version=manifest.version,
                    timeout=suite.timeout_s(before.method), request_id=request_id,
                )


def _cancel(suite: Suite, thread: threading.Thread, request_id: str, moment_s: float) -> None:
    """Cancel a call as soon as the gateway knows it, or a moment later."""
    end = time.monotonic() + PATIENCE_S
    while thread.is_alive() and time.monotonic() < end:
        try:
            select.select([], [], [], moment_s)
            suite.gateway.omega.cancel(request_id)
            return
        except Refused as refused:
            if refused.code is not RefusalCode.REQUEST_UNKNOWN:
                raise


def _kill(suite: Suite, known: list[Seen]) -> None:
    """Kill the plugin's workers while calls are in flight."""
    manifest = suite.manifest
    calls = [
        Call(manifest.id, before.method, before.case.payload, manifest.version,
             suite.timeout_s(before.method))
        for before in known[:_CUT]
    ]
    calls = (calls * 2 * _CUT)[: 2 * _CUT]
    done = False
    for _ in suite.gateway.omega.invoke_many(calls, in_flight=_CUT, ordered=False):
        if not done:
            done = True
            for worker in suite.gateway.operator.status().workers:
                if worker.plugin == manifest.id and worker.pid:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(worker.pid, signal.SIGKILL)
