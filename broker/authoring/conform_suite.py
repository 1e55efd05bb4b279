"""One run of the conformance suite: sends calls over the wire and keeps what each rule saw.

Rules this file keeps: everything goes over the wire as OMEGA's own calls; a rule is judged from how
calls ended, by our codes and by bytes, never from what a plugin says of itself; what the gateway
had no room for is asked again, so that no plugin is blamed for the machine.

It leaves which calls are sent, and in which order, to `broker.authoring.conform`.
"""

from __future__ import annotations

import select
from dataclasses import dataclass, field
from typing import Final

from broker.authoring.conform_cases import Case, Inputs
from broker.authoring.local import LocalGateway
from broker.cli.ends import FAILURE, CommandError
from broker.client import Refused, Result, TimedOut
from schemas.conformance import EVIDENCE_MAX, RULES, Evidence, RuleResult, Verdict
from schemas.manifest import PluginManifest
from schemas.messages import Progress, Usage
from schemas.payloads import preimage
from schemas.refusals import REFUSALS, RefusalCode

OWN_WORDS: Final = frozenset({RefusalCode.INVALID_INPUT, RefusalCode.CANNOT_ANSWER})
BLAMED: Final[dict[RefusalCode, str]] = {
    RefusalCode.CPU_LIMIT_EXCEEDED: "CON-11",
    RefusalCode.WALL_LIMIT_EXCEEDED: "CON-12",
    RefusalCode.DEADLINE_EXCEEDED: "CON-12",
    RefusalCode.MEMORY_LIMIT_EXCEEDED: "CON-13",
    RefusalCode.OUTPUT_LIMIT_EXCEEDED: "CON-14",
    RefusalCode.OUTPUT_SCHEMA_VIOLATION: "CON-15",
    RefusalCode.OUTPUT_KIND_MISMATCH: "CON-15",
    RefusalCode.OUTPUT_NOT_CANONICAL: "CON-15",
    RefusalCode.OUTPUT_REFERENCE_UNKNOWN: "CON-15",
    RefusalCode.OUTPUT_INVALID: "CON-15",
    RefusalCode.PLUGIN_CRASHED: "CON-16",
    RefusalCode.SYSTEM_CALL_FORBIDDEN: "CON-16",
    RefusalCode.WORKER_PROTOCOL_VIOLATION: "CON-16",
    RefusalCode.NONDETERMINISTIC_OUTPUT: "CON-17",
}
"""The rule that a call broke whose plugin ended it so."""
_FAILED: Final = frozenset({RefusalCode.PLUGIN_ERROR, RefusalCode.PLUGIN_LOAD_FAILED})
"""Breaks the rule of the input."""
_EXCLUDED: Final = frozenset({
    RefusalCode.INPUT_SCHEMA_VIOLATION, RefusalCode.PAYLOAD_KIND_NOT_ACCEPTED,
})
"""The gateway turned the input away; the plugin never saw it."""
_EVERY_CALL: Final = ("CON-11", "CON-12", "CON-13", "CON-14", "CON-15", "CON-16")
_AGAIN_MAX: Final = 20
_REPEATED: Final = 4


@dataclass
class Seen:
    """One call and how it ended: `code` is None where it was answered."""

    method: str
    case: Case
    request_id: str
    code: RefusalCode | None
    result: Result | None = None
    usage: Usage | None = None
    message: str = ""
    notes: list[Progress] = field(default_factory=list)

    @property
    def reached(self) -> bool:
        """Whether the plugin was given it."""
        return self.code is None or self.code in OWN_WORDS | BLAMED.keys() | _FAILED

    @property
    def output(self) -> bytes:
        """The answer's bytes; empty where there is none."""
        return b"" if self.result is None else preimage(self.result.payload)


class Book:
    """What was judged: calls by rule, and those that broke it."""

    def __init__(self) -> None:
        """Begin with nothing judged."""
        self._calls = dict.fromkeys(RULES, 0)
        self._broken = dict.fromkeys(RULES, 0)
        self._shown: dict[str, list[tuple[bool, Evidence]]] = {rule: [] for rule in RULES}

    def judge(self, rule: str, seen: Seen, *, held: bool) -> None:
        """Count one call for a rule."""
        self._calls[rule] += 1
        self._broken[rule] += not held
        self._shown[rule].append((held, Evidence(
            method=seen.method, request_id=seen.request_id, case=seen.case.name, code=seen.code,
        )))

    def results(self) -> tuple[RuleResult, ...]:
        """Give every rule's result; of a broken one the calls that broke it, else one that held."""
        return tuple(self._result(rule) for rule in RULES)

    def _result(self, rule: str) -> RuleResult:
        calls, broken = self._calls[rule], self._broken[rule]
        verdict: Verdict = "broken" if broken else "held" if calls else "not_applicable"
        found = [one for held, one in self._shown[rule] if held == (not broken)]
        # One of each method comes first, so that none hides behind another.
        first = {one.method: one for one in reversed(found)}
        shown = sorted(found, key=lambda one: first[one.method] is not one)
        return RuleResult(
            rule=rule, verdict=verdict, calls=calls, broken=broken,
            evidence=tuple(shown[: EVIDENCE_MAX if broken else 1]),
        )


class Suite:
    """One run against one plugin that is installed in a gateway of the suite's own."""

    def __init__(self, gateway: LocalGateway, manifest: PluginManifest, inputs: Inputs) -> None:
        """Send nothing yet."""
        self.gateway = gateway
        self.manifest = manifest
        self.inputs = inputs
        self.book = Book()
        self.all: list[Seen] = []

    def send(self, method: str, case: Case) -> Seen:
        """Send one input, again where the gateway had no room, and judge how it ended."""
        for _ in range(_AGAIN_MAX):
            seen, wait_s = self._sent(method, case)
            if seen.reached or seen.code in _EXCLUDED:
                self.judge(seen)
                return seen
            if seen.code is None or not REFUSALS[seen.code].retryable:
                break
            select.select([], [], [], wait_s)
        raise CommandError(
            FAILURE, f"the gateway did not run {method} with {case.name}: {seen.code}",
            f"omega-plugin explain {seen.code}",
        )

    def judge(self, seen: Seen) -> None:
        """Judge one call by the rule of its input and by those that every call has."""
        self.all.append(seen)
        self.book.judge(seen.case.rule, seen, held=seen.code not in _FAILED)
        if not seen.reached:
            return
        blamed = BLAMED.get(seen.code) if seen.code is not None else None
        for rule in _EVERY_CALL:
            self.book.judge(rule, seen, held=rule != blamed)
        if blamed == "CON-17":
            self.book.judge(blamed, seen, held=False)
        told = [note.permille for note in seen.notes]
        if told:
            self.book.judge("CON-20", seen, held=told == sorted(told))

    def answered(self, method: str) -> list[Seen]:
        """Give the calls of a method that were answered, each input once, the first first."""
        found: dict[bytes, Seen] = {}
        for seen in self.all:
            if seen.method == method and seen.code is None:
                found.setdefault(preimage(seen.case.payload), seen)
        return list(found.values())

    def as_before(self, before: Seen, now: Seen) -> bool:
        """Say whether an input was answered as it was, where that is promised; else at all."""
        if self.manifest.methods[before.method].deterministic:
            return now.code is None and now.output == before.output
        return now.code is None or now.code in OWN_WORDS

    def timeout_s(self, method: str) -> float:
        """Give how long a call may take before the suite takes it for ended, in seconds."""
        return self.manifest.methods[method].timeout_ms / 1000 + 5

    def slow_calls(self, method: str) -> int:
        """Say how often a method reached a limit of time."""
        slow = ("CON-11", "CON-12")
        return sum(
            seen.method == method and seen.code is not None and BLAMED.get(seen.code) in slow
            for seen in self.all
        )

    def repeat(self, method: str) -> None:
        """Send inputs again that were answered, where the same answer is promised."""
        if not self.manifest.methods[method].deterministic:
            return
        for before in self.answered(method)[:_REPEATED]:
            for _ in range(2):
                now = self.send(method, before.case)
                self.book.judge("CON-17", now, held=self.as_before(before, now))

    def _sent(self, method: str, case: Case) -> tuple[Seen, float]:
        notes: list[Progress] = []
        manifest = self.manifest
        try:
            result = self.gateway.omega.invoke(
                manifest.id, method, case.payload, version=manifest.version,
                timeout=self.timeout_s(method), on_progress=notes.append,
            )
        except Refused as refused:
            return seen_of(method, case, refused, notes), _wait_s(refused)
        except TimedOut as late:
            code = RefusalCode.DEADLINE_EXCEEDED
            return Seen(method, case, late.request_id, code, notes=notes), 0
        return Seen(method, case, result.request_id, None, result, result.usage, notes=notes), 0


def seen_of(method: str, case: Case, refused: Refused, notes: list[Progress]) -> Seen:
    """Make a record of a call that was refused or failed."""
    refusal = refused.refusal
    assert refusal.request_id is not None
    return Seen(
        method, case, refusal.request_id, refusal.code, usage=refusal.usage,
        message=refusal.plugin_message or "", notes=notes,
    )


def _wait_s(refused: Refused) -> float:
    return min(1.0, (refused.refusal.retry_after_ms or 50) / 1000)
