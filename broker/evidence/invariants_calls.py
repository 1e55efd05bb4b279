"""The invariants about the ledger's course, who asks, and what becomes of an invocation.

Rules this file keeps: those of `broker.evidence.invariants`. It leaves workers, versions and
capabilities to `broker.evidence.invariants_workers`.
"""

from __future__ import annotations

from typing import Final

from broker.evidence.history import (
    CLOSED,
    LATE_US,
    Call,
    History,
    answers_drop,
    output_key,
)
from broker.evidence.invariants import (
    Finding,
    frame_words,
    invariant,
    key_words,
    words,
    worker_words,
)
from schemas.events import (
    EVENT_TYPES,
    BreakerChange,
    Event,
    EventFields,
    FrameDrop,
    FrameIn,
    FrameOut,
    GrantChange,
    InvokeAccept,
    InvokeEnd,
    InvokeRefuse,
    KeyChange,
    LedgerClose,
    LedgerOpen,
    LedgerRecovery,
    LedgerRoll,
    PluginApprove,
    PluginDisable,
    PluginEnable,
    PluginRegister,
    PluginReject,
    PolicyChange,
    QuotaRefuse,
    Revoke,
    StateSnapshot,
    TrustChange,
    WorkerProbe,
    WorkerStart,
)


@invariant(
    "AUD-01", "INV-PNP-07",
    "Each run of the process begins with ledger.open, after ledger.recovery where the one before "
    "was not closed, and its time does not go back",
    *EVENT_TYPES.values(),
)
def _course(history: History, event: Event) -> Finding | None:
    fields, last = event.fields, history.last
    found = fields.EVENT_TYPE
    begins = isinstance(fields, LedgerRecovery | LedgerOpen)
    if isinstance(fields, LedgerOpen) and fields.domain != event.log_id.split("/")[1]:
        return f"the domain of {event.log_id}", fields.domain
    if last is None or isinstance(last, LedgerClose):
        return None if begins else ("ledger.open", found)
    if isinstance(last, LedgerRecovery):
        return None if begins else ("ledger.open after ledger.recovery", found)
    if isinstance(fields, LedgerOpen):
        return "ledger.recovery, because the run before was not closed", found
    if isinstance(last, LedgerRoll) and not isinstance(fields, StateSnapshot | LedgerRecovery):
        return "state.snapshot at the begin of a segment", found
    if isinstance(fields, LedgerRoll) and fields.segment != event.seq + 1:
        return f"a segment that begins with event {event.seq + 1}", f"one with {fields.segment}"
    if event.mono_us < history.mono_us and not begins:
        return f"a monotonic time from {history.mono_us} us on", f"{event.mono_us} us"
    return None


@invariant(
    "AUD-02", "INV-PNP-07", "A snapshot says what the events before it say", StateSnapshot
)
def _snapshot(history: History, event: Event) -> Finding | None:
    fields = event.fields
    assert isinstance(fields, StateSnapshot)
    calls = tuple(sorted(history.calls)[:1024])
    for what, expected, found in (
        ("open invocations", calls, fields.open_invocations),
        ("trust root", history.trust[1], fields.trust_sha256),
        ("policy", history.policy, fields.policy_sha256),
    ):
        if expected != found:
            return f"{what}: {words(expected)}", words(found)
    return None


_READS: Final = {
    "list_plugins", "get_plugin", "status", "ledger_head", "prove", "prove_consistency",
    "show_request",
}
_MAY_ASK: Final = {
    "omega": {"invoke", "invoke_pipeline", "cancel"} | _READS,
    "operator": _READS | {
        "register_plugin", "validate_bundle", "enable_plugin", "disable_plugin", "approve", "grant",
        "revoke", "set_trust",
    },
    "auditor": _READS,
}
_ASKED_BY: Final[dict[type[EventFields], tuple[str, ...]]] = {
    PluginRegister: ("register_plugin",), PluginReject: ("register_plugin",),
    PluginEnable: ("enable_plugin",), PluginDisable: ("disable_plugin",),
    PluginApprove: ("approve",), GrantChange: ("grant", "revoke"), Revoke: ("revoke",),
    TrustChange: ("set_trust",), PolicyChange: ("grant",), KeyChange: ("revoke",),
}
_OF_THE_HOME: Final = (TrustChange, PolicyChange, KeyChange)
_CARRIED: Final = (PluginRegister, Revoke)
"""What a restored ledger takes over, before its first snapshot."""


@invariant(
    "AUD-03", "INV-PNP-01",
    "Only OMEGA starts anything: every invocation that was accepted or refused had been asked for "
    "by its key",
    InvokeAccept, InvokeRefuse,
)
def _asked(history: History, event: Event) -> Finding | None:
    fields = event.fields
    assert isinstance(fields, InvokeAccept | InvokeRefuse)
    if isinstance(fields, InvokeAccept) and not history.holds_role(fields.peer, "omega"):
        return "a key of OMEGA's that was not revoked", key_words(history, fields.peer)
    if fields.pipeline is not None:
        whole = history.pending.get((fields.peer, fields.pipeline))
        if whole is not None and whole.type == "invoke_pipeline":
            return None
        return f"an invoke_pipeline {fields.pipeline} that waits", frame_words(whole)
    kinds: tuple[str, ...] = ("invoke",)
    heard = history.heard.get(fields.peer)
    if isinstance(fields, InvokeRefuse):
        # A pipeline that ends without a result is refused when that turns out.
        heard = history.pending.get((fields.peer, fields.request_id))
        kinds = ("invoke", "invoke_pipeline")
    if heard is None or heard.type not in kinds or heard.request_id != fields.request_id:
        return f"{' or '.join(kinds)} {fields.request_id} of {fields.peer}", frame_words(heard)
    return None


@invariant(
    "AUD-04", "INV-PNP-10",
    "Who may not ask for something is refused, and every change was asked for by who may",
    FrameIn, FrameOut, *_ASKED_BY,
)
def _roles(history: History, event: Event) -> Finding | None:
    fields = event.fields
    if isinstance(fields, FrameIn):
        known = fields.peer in history.roles and fields.peer not in history.revoked_keys
        if fields.plane == "worker" or known:
            return None
        return "a key that was added and not revoked", key_words(history, fields.peer)
    if isinstance(fields, FrameOut):
        return _refused_by_role(history, fields)
    actor = str(getattr(fields, "actor", ""))
    if isinstance(fields, _OF_THE_HOME) and actor in ("home", "gateway"):
        return None
    if isinstance(fields, _CARRIED) and actor == "gateway" and history.carrying:
        return None
    # What waited for the trial of its schemas may be refused because its key is gone by now.
    parting = isinstance(fields, PluginReject) and fields.code == "key_revoked"
    if not parting and not history.holds_role(actor, "operator"):
        return "a key of an operator that was not revoked", key_words(history, actor)
    heard, wanted = history.heard.get(actor), _ASKED_BY[type(fields)]
    if isinstance(fields, PluginEnable | PluginRegister | PluginReject):
        # These wait for a witness or a prober; who asked may have asked more since.
        heard = next((frame for (peer, _), frame in history.pending.items()
                      if peer == actor and frame.type in wanted), heard)
    if heard is None or heard.type not in wanted:
        return f"{' or '.join(wanted)} of {actor}", frame_words(heard)
    return None


def _refused_by_role(history: History, fields: FrameOut) -> Finding | None:
    heard = history.heard.get(fields.peer)
    if fields.plane == "worker" or heard is None or heard.request_id != fields.request_id:
        return None
    if answers_drop(fields, history.dropped.get(fields.peer)):
        return None
    role = history.roles.get(fields.peer, "")
    fits = (role == "omega") == (heard.plane == "front.omega")
    if (fits and heard.type in _MAY_ASK.get(role, ())) or fields.code == "role_not_allowed":
        return None
    return f"role_not_allowed for {heard.type} of {role or 'nobody'}", fields.code or fields.type


@invariant(
    "AUD-05", "INV-PNP-10",
    "One request id is accepted once within the window that its run pins, every accepted "
    "invocation ends exactly once, and after a restart as abandoned before anything else happens",
    InvokeAccept, InvokeEnd, LedgerClose, FrameIn, FrameOut, FrameDrop, WorkerStart,
)
def _ends(history: History, event: Event) -> Finding | None:
    fields = event.fields
    if isinstance(fields, InvokeEnd):
        if fields.request_id not in history.calls:
            return f"an open invocation {fields.request_id}", "an end of one that is not open"
        if fields.request_id in history.inherited and fields.outcome != "abandoned":
            return "abandoned, because its process is gone", fields.outcome
        return None
    if history.inherited:
        first = min(history.inherited)
        return f"invoke.end of {first}, which an earlier run left open", fields.EVENT_TYPE
    if isinstance(fields, InvokeAccept):
        is_open = fields.request_id in history.calls
        if is_open or history.accepted.remembers(fields.request_id, event):
            return "a request id that was not accepted before", fields.request_id
    if isinstance(fields, LedgerClose) and history.calls and fields.reason != "failed":
        return "no open invocation at the close", f"{min(history.calls)} is open"
    return None


@invariant(
    "AUD-06", "INV-PNP-01",
    "Plugin code runs for one open invocation only, once as primary, a second time if its worker "
    "ended without an answer, and after an answer at most once as replica, each on a worker of its "
    "version that runs nothing else; every probe belongs to a witness",
    FrameOut, WorkerProbe,
)
def _runs(history: History, event: Event) -> Finding | None:
    fields = event.fields
    if isinstance(fields, WorkerProbe):
        worker = history.workers.get(fields.incarnation)
        if worker is None or worker.asked < 1 or worker.reports < 1:
            return "a probe that was asked for and reported", "neither or only one of both"
        return None
    assert isinstance(fields, FrameOut)
    if fields.plane != "worker" or fields.type not in ("run", "probe"):
        return None
    worker = history.workers.get(fields.peer)
    if fields.type == "probe":
        if worker is None or not worker.attested:
            return "a worker whose attestation was accepted", f"a probe for {fields.peer}"
        return None
    call = history.calls.get(fields.request_id or "")
    if call is None:
        return "an open invocation", f"a run of {fields.request_id}"
    purposes = [one.purpose for one in call.runs]
    again = len(call.runs) == 1 and fields.purpose == "primary" and (
        call.runs[0].peer not in history.workers and not call.results
    )
    if fields.purpose not in ("primary", "replica") or (fields.purpose in purposes and not again):
        return "one primary and at most one replica", f"{[*purposes, fields.purpose]}"
    if fields.purpose == "replica" and (not call.results or not call.accept.input_fingerprint):
        return "an answer of a deterministic method before a replica", "none"
    own = call.accept.plugin, call.accept.version
    if worker is None or (worker.start.plugin, worker.start.version) != own:
        return f"a worker of {'@'.join(own)}", worker_words(worker)
    if worker.purpose not in ("", fields.purpose):
        return f"a worker that runs as {fields.purpose} only", f"it ran as {worker.purpose}"
    return None


@invariant(
    "AUD-10", "INV-PNP-10",
    "Every result is the answer of the worker that had the call, every end has its reason, and "
    "whoever asked is told exactly that",
    InvokeEnd, FrameIn, FrameOut, FrameDrop, LedgerClose,
)
def _results(history: History, event: Event) -> Finding | None:
    fields = event.fields
    if isinstance(fields, InvokeEnd):
        call = history.calls.get(fields.request_id)
        return _reason_fault(history, call, fields) if call is not None else None
    if isinstance(fields, FrameOut):
        told = history.untold.get(fields.request_id or "")
        if fields.type == "result" and (not isinstance(told, InvokeEnd) or told.code is not None):
            return "an invocation that ended with a result and was not answered", "a result"
        return None
    for request_id, told in history.untold.items():
        return f"the reply about {request_id} ({told.code or 'result'})", fields.EVENT_TYPE
    return None


def _reason_fault(history: History, call: Call, end: InvokeEnd) -> Finding | None:
    if (end.outcome == "result") != (end.code is None):
        return "a code exactly where there is no result", f"{end.outcome} with {end.code}"
    if end.request_id in history.inherited:
        return None
    run_by = [run.peer for run in call.runs if run.purpose == "primary"]
    if end.outcome == "result" and (end.incarnation not in call.results or run_by[-1:] !=
                                    [end.incarnation]):
        return f"a call_result of {(*run_by, 'nobody')[-1]}", f"an answer of {end.incarnation}"
    held = bool(call.runs) and (
        call.runs[-1].peer in history.workers or end.incarnation is not None
    )
    if (end.reached == "queued") == held or (
        (end.reached == "answered") != (end.outcome == "result")
    ):
        return f"what {len(call.runs)} runs and {end.outcome} reach", end.reached
    if end.outcome == "lost" and end.incarnation in history.workers:
        return "a worker that ended", f"{end.incarnation} lives"
    heard = history.heard.get(call.accept.peer)
    unasked = call.accept.pipeline is not None or call.client_gone
    if end.outcome == "cancelled" and not unasked and (heard is None or heard.type != "cancel"):
        return f"a cancel of {call.accept.peer}", frame_words(heard)
    return None


@invariant(
    "AUD-11", "INV-PNP-03",
    "A deterministic method gives the same output for the same input, or none, and what is said of "
    "a second run is what came of it",
    InvokeAccept, InvokeEnd,
)
def _deterministic(history: History, event: Event) -> Finding | None:
    fields = event.fields
    if isinstance(fields, InvokeAccept):
        register = history.versions.get((fields.plugin, fields.version))
        if register is None:
            return None
        declared = fields.method in register.deterministic
        if declared != (fields.input_fingerprint is not None):
            return f"{'a' if declared else 'no'} fingerprint for {fields.method}", "the contrary"
        return None
    assert isinstance(fields, InvokeEnd)
    call = history.calls.get(fields.request_id)
    if call is None or fields.request_id in history.inherited:
        return None
    expected = _verdict(call)
    if fields.replica not in expected:
        return f"one of {[one or 'nothing' for one in expected]} of a second run", (
            fields.replica or "nothing"
        )
    if fields.outcome != "result":
        return None
    if (call.accept.input_fingerprint is None) != (fields.output_fingerprint is None):
        return "fingerprints of input and output or of neither", "one of both"
    if call.mismatched:
        return "no result, because two outputs differed", "a result"
    before = history.outputs.get(output_key(call.accept))
    if before is not None and before[0] != fields.output_fingerprint:
        return f"the output {before[0]} of event {before[1]}", fields.output_fingerprint or "none"
    return None


def _verdict(call: Call) -> tuple[str | None, ...]:
    """Say what an end may say of a call's second run; without one it may have been wanted."""
    if call.mismatched == "replica":
        return ("differed",)
    if call.replica_said == "call_result":
        return ("agreed",)
    if any(run.purpose == "replica" for run in call.runs):
        return ("unverified",)
    return ("unverified", None) if call.results and call.accept.input_fingerprint else (None,)


@invariant(
    "AUD-16", "INV-PNP-10",
    "Limits hold: no call is given out or left open after its deadline, none is accepted while a "
    "breaker is open, and a quota refuses only at its bound",
    FrameIn, FrameOut, InvokeAccept, BreakerChange, QuotaRefuse,
)
def _limits(history: History, event: Event) -> Finding | None:
    fields = event.fields
    overdue = history.overdue(event.mono_us - LATE_US)
    if overdue is not None:
        return f"an end of {overdue} within {LATE_US} us of its deadline", "it is open"
    if isinstance(fields, FrameOut) and fields.type == "run":
        call = history.calls.get(fields.request_id or "")
        if call is not None and event.mono_us >= call.deadline_us:
            return f"a run before {call.deadline_us} us", f"{event.mono_us} us"
    elif isinstance(fields, InvokeAccept):
        breaker = history.breakers.get((fields.plugin, fields.method), CLOSED)
        if breaker.state == "open" and event.mono_us < breaker.rest_until_us:
            return "a refusal, because the breaker is open", "it was accepted"
    elif isinstance(fields, BreakerChange):
        before = history.breakers.get((fields.plugin, fields.method), CLOSED).state
        if fields.before != before or fields.after == before:
            return f"a change from {before}", f"{fields.before} to {fields.after}"
    elif isinstance(fields, QuotaRefuse) and fields.used < fields.allowed:
        return f"{fields.allowed} used", f"{fields.used}"
    return None


@invariant(
    "AUD-17", "INV-PNP-04",
    "Every result names kind, size and commitment of its payload, and nothing else has one",
    InvokeEnd,
)
def _typed(history: History, event: Event) -> Finding | None:
    del history
    fields = event.fields
    assert isinstance(fields, InvokeEnd)
    named = {
        "kind": fields.output_kind, "size": fields.output_bytes,
        "commitment": fields.output_commitment,
    }
    for what, value in named.items():
        if (value is None) == (fields.outcome == "result"):
            return f"{'a' if value is None else 'no'} {what} of an output", f"{fields.outcome}"
    return None
