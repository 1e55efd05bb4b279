"""One invocation: what it is, whether its input and output are what the manifest declares.

Rules this file keeps: JSON is checked and never repaired; an input is validated before a plugin
sees it and an output before OMEGA does; an output may only name references that its input held; the
commitment key lives here and goes when the call ends.

It leaves states to `broker.lifecycle` and ends to `broker.core`.
Source: specification INV-PNP-03, INV-PNP-04; docs/WIRE.md, section "Commitments".
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, runtime_checkable

from broker.effects import Origin
from broker.lifecycle import CallState
from broker.orchestrator.keyed import Keyed, keyed_sha256
from broker.orchestrator.quotas import NOTHING_COUNTED, Counted
from schemas.canonical import InvalidJson, JsonValue, check_canonical
from schemas.manifest import Method, PayloadSpec, PluginManifest
from schemas.messages import CallProgress, FromWorker, Usage
from schemas.names import TEXT_BYTES_MAX
from schemas.payloads import (
    PAYLOAD_KINDS,
    BinaryRefPayload,
    DatasetSlicePayload,
    JSONPayload,
    Payload,
    TextPayload,
)
from schemas.refusals import RefusalCode

if TYPE_CHECKING:
    from broker.orchestrator.fleet import Pool


class Validator(Protocol):
    """A compiled JSON Schema."""

    def problem(self, value: JsonValue, *, size: int = 0) -> str | None:
        """Give the place of the first misfit, None when all fits; `size` is of the JSON."""
        ...


@dataclass(frozen=True, slots=True)
class LoadedPlugin:
    """A registered version, ready to be called: its manifest and its compiled schemas."""

    manifest: PluginManifest
    manifest_bytes: bytes = field(repr=False)
    bundle_sha256: str
    validators: Mapping[str, Validator]


@runtime_checkable
class Shelf(Protocol):
    """Versions at hand that can tell of one without holding it, and let one go."""

    def description(self, key: tuple[str, str]) -> str:
        """Give a version's description, or nothing."""
        ...

    def manifest_bytes(self, key: tuple[str, str]) -> bytes | None:
        """Give a version's manifest, also of one that may never serve again, or nothing."""
        ...

    def release(self, key: tuple[str, str]) -> None:
        """Hold a version no longer that serves no more."""
        ...


class Misfit(NamedTuple):
    """Why a payload is refused."""

    code: RefusalCode
    sentence: str
    where: str = ""
    hint: str = ""
    used: int | None = None
    allowed: int | None = None
    retry_after_ms: int | None = None


class StepOf(NamedTuple):
    """Of which pipeline a call is a step, and what is left for it of the pipeline's budget."""

    pipeline: str
    name: str
    cpu_ms_max: int
    output_bytes_max: int


class Answer(NamedTuple):
    """What a worker gave for a call and the manifest allows; `plain` is the payload's preimage."""

    payload: Payload
    plain: bytes
    usage: Usage
    output_fingerprint: str | None


Verdict = Literal["agreed", "differed", "unverified"]


@dataclass(slots=True, eq=False)
class Replica:
    """A call's second run, and the answer that waits for it until `until_us` at the latest.

    `terms` are those of the worker that gave the answer; `incarnation` is None while it waits.
    """

    number: int
    answer: Answer
    held_us: int
    until_us: int
    terms: str
    incarnation: str | None = None
    usage: Usage | None = None
    verdict: Verdict = "unverified"


@dataclass(slots=True, eq=False)
class Call:
    """One accepted invocation, from its acceptance to its end. Times are monotonic, in us."""

    number: int
    request_id: str
    origin: Origin
    known_size: int | None
    plugin: str
    version: str
    method: str
    loaded: LoadedPlugin
    pool: Pool
    payload: Payload
    commitment_key: bytes = field(repr=False)
    arrived_us: int
    deadline_us: int
    input_fingerprint: str | None = None
    state: CallState = "queued"
    incarnation: str | None = None
    step: StepOf | None = None
    counted: Counted = NOTHING_COUNTED
    trying: bool = False
    retried: bool = False
    replicate: bool = False
    replica: Replica | None = None
    dispatched_us: int = 0
    told_us: int | None = None
    client_gone_us: int | None = None

    @property
    def declared(self) -> Method:
        """What the manifest says about the method."""
        return self.loaded.manifest.methods[self.method]

    @property
    def reached(self) -> Literal["queued", "dispatched", "running", "answered"]:
        """How far the call has got, as its end event says."""
        return "answered" if self.state == "ended" else self.state


def commitment(key: bytes, label: Literal["input", "output", "progress"], preimage: bytes) -> str:
    """Commit to a payload under the call's key.

    Args:
        key: the 32 bytes that OMEGA made for this call.
        label: what is committed to, so that one value cannot stand for another.
        preimage: `schemas.payloads.preimage` of the payload.

    Returns:
        HMAC-SHA256(key, label ‖ 0x00 ‖ preimage) in hex. Source: RFC 2104; docs/WIRE.md.
    """
    return keyed_sha256(key, label.encode() + b"\x00", preimage)


def note_commitment(message: FromWorker, call: Call | None) -> str | None:
    """Commit to what a plugin says about its progress: its words are evidence too."""
    if call is None or not isinstance(message, CallProgress):
        return None
    return commitment(call.commitment_key, "progress", message.note.encode())


def fingerprint(key: bytes, plugin: str, version: str, method: str, preimage: bytes) -> str:
    """Give a deterministic method's fingerprint: equal inputs show as equal within one method.

    Args:
        key: the home's determinism key; without it nobody can search for a payload.
        plugin, version, method: whose surface it is.
        preimage: `schemas.payloads.preimage` of the payload.
    """
    return _surface(key, plugin, version, method).sha256(preimage)


@functools.lru_cache(maxsize=4096)
def _surface(key: bytes, plugin: str, version: str, method: str) -> Keyed:
    return Keyed(
        key, b"%b\x00%b\x00%b\x00" % (plugin.encode(), version.encode(), method.encode())
    )


def payload_bytes(payload: Payload) -> int:
    """Say how large a payload is: the bytes of its text, document, reference or keys."""
    if isinstance(payload, TextPayload):
        return len(payload.text.encode())
    if isinstance(payload, JSONPayload):
        return len(payload.data)
    if isinstance(payload, BinaryRefPayload):
        return len(payload.artifact_id)
    return sum(len(key.encode()) for key in payload.keys)


def output_digest(preimage: bytes) -> str:
    """Give the SHA-256 that a result carries, in hex."""
    return hashlib.sha256(preimage).hexdigest()


def input_misfit(payload: Payload, method: Method, loaded: LoadedPlugin) -> Misfit | None:
    """Say why an input is refused, or None.

    Args:
        payload: what OMEGA sent.
        method: what the manifest declares.
        loaded: the plugin with its compiled schemas.
    """
    kind = PAYLOAD_KINDS[type(payload)]
    if kind != method.input.kind:
        return Misfit(
            RefusalCode.PAYLOAD_KIND_NOT_ACCEPTED,
            f"the method takes {method.input.kind}, found {kind}",
            "$.payload.type",
            f"send a {method.input.kind} payload",
        )
    if isinstance(payload, JSONPayload):
        problem = _json_misfit(payload.data, method.input, loaded)
        if problem is None:
            return None
        if problem.code is RefusalCode.INPUT_SCHEMA_VIOLATION:
            return problem._replace(where=f"$.payload.data{problem.where}")
        return problem._replace(where="$.payload.data")
    if isinstance(payload, TextPayload):
        return _text_misfit(payload, method.input)
    return None


def _text_misfit(payload: TextPayload, declared: PayloadSpec) -> Misfit | None:
    length = len(payload.text) if payload.text.isascii() else len(payload.text.encode())
    if length > TEXT_BYTES_MAX:
        return Misfit(
            RefusalCode.TEXT_TOO_LARGE,
            f"the text has {length} bytes, allowed are {TEXT_BYTES_MAX}",
            "$.payload.text",
        )
    if declared.media_types and payload.media_type not in declared.media_types:
        return Misfit(
            RefusalCode.PAYLOAD_KIND_NOT_ACCEPTED,
            f"the method takes {', '.join(declared.media_types)}, found {payload.media_type}",
            "$.payload.media_type",
        )
    return None


def _json_misfit(data: bytes, declared: PayloadSpec, loaded: LoadedPlugin) -> Misfit | None:
    try:
        value = check_canonical(data)
    except InvalidJson as error:
        return Misfit(RefusalCode(error.problem), str(error))
    validator = loaded.validators.get(declared.schema or "")
    if validator is None:
        return Misfit(RefusalCode.INTERNAL_ERROR, "the method's JSON Schema is not loaded")
    place = validator.problem(value, size=len(data))
    if place is None:
        return None
    sentence = f"the document does not fit its schema at {place}"
    return Misfit(RefusalCode.INPUT_SCHEMA_VIOLATION, sentence, place)


def checked_output(call: Call, payload: Payload) -> tuple[Payload, Misfit | None]:
    """Hold an output against what the manifest declares.

    Args:
        call: the invocation it answers.
        payload: what the worker sent.

    Returns:
        The payload as OMEGA may see it, naming the schema it was held against, and None; or the
        payload and why it is refused.
    """
    declared = call.declared.output
    kind = PAYLOAD_KINDS[type(payload)]
    if kind != declared.kind:
        return payload, Misfit(
            RefusalCode.OUTPUT_KIND_MISMATCH, f"declared {declared.kind}, found {kind}"
        )
    used, allowed = payload_bytes(payload), call.loaded.manifest.limits.output_bytes
    if call.step is not None:
        allowed = min(allowed, call.step.output_bytes_max)
    if used > allowed:
        return payload, Misfit(
            RefusalCode.OUTPUT_LIMIT_EXCEEDED,
            f"the output has {used} bytes, allowed are {allowed}",
            used=used,
            allowed=allowed,
        )
    if isinstance(payload, JSONPayload):
        problem = _json_misfit(payload.data, declared, call.loaded)
        if problem is None:
            return JSONPayload(payload.data, declared.schema), None
        if problem.code is RefusalCode.INPUT_SCHEMA_VIOLATION:
            return payload, problem._replace(code=RefusalCode.OUTPUT_SCHEMA_VIOLATION)
        # The sentence about an input quotes it; a plugin's bytes reach OMEGA in no sentence.
        return payload, Misfit(
            RefusalCode.OUTPUT_NOT_CANONICAL, "the output is not JSON in its RFC 8785 form"
        )
    if isinstance(payload, TextPayload):
        problem = _text_misfit(payload, declared)
        if problem is not None:
            problem = problem._replace(code=RefusalCode.OUTPUT_KIND_MISMATCH)
        return payload, problem
    return payload, _reference_misfit(call.payload, payload)


def _reference_misfit(given: Payload, payload: Payload) -> Misfit | None:
    """Refuse a reference that the input did not hold: a plugin must not be a confused deputy."""
    if isinstance(payload, BinaryRefPayload):
        known = payload == given
    else:
        known = (
            isinstance(given, DatasetSlicePayload)
            and isinstance(payload, DatasetSlicePayload)
            and payload.dataset_id == given.dataset_id
            and set(payload.keys) <= set(given.keys)
        )
    if known:
        return None
    return Misfit(
        RefusalCode.OUTPUT_REFERENCE_UNKNOWN, "the output names a reference the input did not hold"
    )


def of_budget(step: StepOf, call: Call, code: RefusalCode) -> RefusalCode:
    """Say whether it was the pipeline's budget that was used up, and not the plugin's own limit."""
    limits = call.loaded.manifest.limits
    if (code is RefusalCode.CPU_LIMIT_EXCEEDED and step.cpu_ms_max < limits.cpu_ms) or (
        code is RefusalCode.OUTPUT_LIMIT_EXCEEDED and step.output_bytes_max < limits.output_bytes
    ):
        return RefusalCode.BUDGET_EXCEEDED
    return code


_FIGURES = {
    RefusalCode.ARTIFACT_MISMATCH: "found {used} bytes, the reference says {allowed}",
    RefusalCode.ARTIFACT_UNAVAILABLE: "the reference says {used} bytes, allowed are {allowed}",
}
_UNITS = {
    RefusalCode.CPU_LIMIT_EXCEEDED: " ms of processor time",
    RefusalCode.WALL_LIMIT_EXCEEDED: " ms",
    RefusalCode.DEADLINE_EXCEEDED: " ms",
    RefusalCode.MEMORY_LIMIT_EXCEEDED:
        " MiB of address space; what it asked for next did not fit",
    RefusalCode.OUTPUT_LIMIT_EXCEEDED: " bytes",
}


def failure_words(
    code: RefusalCode, used: int | None, allowed: int | None
) -> tuple[str, str]:
    """Word a worker's failure: the sentence with its figures, if it has any, and the place.

    Args:
        code: what the call ends with.
        used, allowed: in the unit of the limit, or of the size, that the code is about.
    """
    where = "$.payload" if code in _FIGURES else ""
    if used is None or allowed is None:
        return "", where
    words = _FIGURES.get(code, "used {used}, allowed {allowed}" + _UNITS.get(code, ""))
    return words.format(used=used, allowed=allowed), where
