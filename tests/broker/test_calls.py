"""One call's payloads: an input before a plugin sees it, an output before OMEGA does."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace

import msgspec
import pytest

from broker.effects import Origin
from broker.orchestrator.calls import (
    Call,
    LoadedPlugin,
    checked_output,
    commitment,
    fingerprint,
    input_misfit,
    output_digest,
)
from broker.orchestrator.fleet import Pool
from broker.trust.json_schemas import compile_schema
from schemas.canonical import canonical_bytes
from schemas.manifest import PluginManifest
from schemas.names import TEXT_BYTES_MAX
from schemas.payloads import (
    BinaryRefPayload,
    DatasetSlicePayload,
    JSONPayload,
    Payload,
    TextPayload,
    preimage,
)
from schemas.refusals import RefusalCode
from tests.schemas import samples
from tests.schemas.test_documents import MANIFEST

_SCHEMA = canonical_bytes(
    {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"],
     "additionalProperties": False}
)
_SCHEMA_ID = "sha256:" + hashlib.sha256(_SCHEMA).hexdigest()
_IMAGE = BinaryRefPayload("scan-17", samples.DIGEST_A, 4096, "image/png")
_KEYS = DatasetSlicePayload("telemetry", ("k1", "k2"))


def _spec(kind: str) -> dict[str, object]:
    return {"kind": kind, "schema": _SCHEMA_ID} if kind == "json" else {"kind": kind}


def _loaded(takes: str, gives: str) -> LoadedPlugin:
    document = MANIFEST | {
        "methods": {"count": {"input": _spec(takes), "output": _spec(gives)}},
        "schemas": {_SCHEMA_ID: msgspec.json.decode(_SCHEMA)},
    }
    data = canonical_bytes(document)
    manifest = msgspec.json.decode(data, type=PluginManifest)
    return LoadedPlugin(
        manifest=manifest, manifest_bytes=data, bundle_sha256=samples.DIGEST_A,
        validators={_SCHEMA_ID: compile_schema(_SCHEMA)},
    )


def _call(given: Payload, loaded: LoadedPlugin) -> Call:
    return Call(
        number=1, request_id=samples.REQUEST, origin=Origin("front.omega", samples.KEY_ID, b""),
        known_size=None, plugin="word-count", version="1.2.0", method="count", loaded=loaded,
        pool=Pool("word-count", "1.2.0"), payload=given, commitment_key=samples.COMMITMENT_KEY,
        arrived_us=0, deadline_us=1,
    )


_WRONG_INPUTS: dict[str, tuple[str, Payload, RefusalCode, str]] = {
    "another kind": ("text", _KEYS, RefusalCode.PAYLOAD_KIND_NOT_ACCEPTED, "$.payload.type"),
    "a text too large": (
        "text", TextPayload("é" * (TEXT_BYTES_MAX // 2 + 1)), RefusalCode.TEXT_TOO_LARGE,
        "$.payload.text",
    ),
    "another spelling": (
        "json", JSONPayload(b'{"n": 1}'), RefusalCode.JSON_NOT_CANONICAL, "$.payload.data",
    ),
    "a key twice": (
        "json", JSONPayload(b'{"n":1,"n":1}'), RefusalCode.JSON_NOT_CANONICAL, "$.payload.data",
    ),
    "nested too deeply": (
        "json", JSONPayload(b"[" * 40 + b"]" * 40), RefusalCode.JSON_TOO_DEEP, "$.payload.data",
    ),
    "a document that does not fit": (
        "json", JSONPayload(b'{"n":"x"}'), RefusalCode.INPUT_SCHEMA_VIOLATION, "$.payload.data",
    ),
}


@pytest.mark.parametrize("name", sorted(_WRONG_INPUTS))
def test_a_wrong_input_is_refused_with_its_place(name: str) -> None:
    """No plugin sees an input that is not what its manifest declares."""
    takes, given, code, where = _WRONG_INPUTS[name]
    loaded = _loaded(takes, "text")
    misfit = input_misfit(given, loaded.manifest.methods["count"], loaded)

    assert misfit is not None
    assert misfit.code is code
    assert misfit.where.startswith(where)


@pytest.mark.parametrize(
    ("takes", "given"),
    [("text", samples.TEXT), ("json", JSONPayload(b'{"n":1}')), ("binary_ref", _IMAGE),
     ("dataset_slice", _KEYS)],
)
def test_a_right_input_is_let_through(takes: str, given: Payload) -> None:
    """An input that is what the manifest declares is not refused."""
    loaded = _loaded(takes, "text")

    assert input_misfit(given, loaded.manifest.methods["count"], loaded) is None


_WRONG_OUTPUTS: dict[str, tuple[str, Payload, Payload, RefusalCode]] = {
    "another kind": ("json", samples.TEXT, samples.TEXT, RefusalCode.OUTPUT_KIND_MISMATCH),
    "too large": (
        "text", samples.TEXT, TextPayload("x" * 65_537), RefusalCode.OUTPUT_LIMIT_EXCEEDED,
    ),
    "another spelling": (
        "json", samples.TEXT, JSONPayload(b'{"n":1 }'), RefusalCode.OUTPUT_NOT_CANONICAL,
    ),
    "a document that does not fit": (
        "json", samples.TEXT, JSONPayload(b'{"m":1}'), RefusalCode.OUTPUT_SCHEMA_VIOLATION,
    ),
    "a reference out of nothing": (
        "binary_ref", samples.TEXT, _IMAGE, RefusalCode.OUTPUT_REFERENCE_UNKNOWN,
    ),
    "a reference with another digest": (
        "binary_ref", _IMAGE, BinaryRefPayload("scan-17", samples.DIGEST_B, 4096, "image/png"),
        RefusalCode.OUTPUT_REFERENCE_UNKNOWN,
    ),
    "another key of the dataset": (
        "dataset_slice", _KEYS, DatasetSlicePayload("telemetry", ("k1", "k3")),
        RefusalCode.OUTPUT_REFERENCE_UNKNOWN,
    ),
    "a key of another dataset": (
        "dataset_slice", _KEYS, DatasetSlicePayload("payroll", ("k1",)),
        RefusalCode.OUTPUT_REFERENCE_UNKNOWN,
    ),
}


@pytest.mark.parametrize("name", sorted(_WRONG_OUTPUTS))
def test_a_wrong_output_never_reaches_omega(name: str) -> None:
    """An output is held against kind, size, spelling, schema and the references of the input."""
    gives, given, output, code = _WRONG_OUTPUTS[name]
    loaded = _loaded(
        {"TextPayload": "text", "BinaryRefPayload": "binary_ref"}.get(
            type(given).__name__, "dataset_slice"
        ),
        gives,
    )
    _, misfit = checked_output(_call(given, loaded), output)

    assert misfit is not None
    assert misfit.code is code


@pytest.mark.parametrize(
    ("gives", "given", "output"),
    [("text", samples.TEXT, samples.TEXT), ("binary_ref", _IMAGE, _IMAGE),
     ("dataset_slice", _KEYS, DatasetSlicePayload("telemetry", ("k2",)))],
)
def test_a_right_output_is_passed_on_as_it_is(gives: str, given: Payload, output: Payload) -> None:
    """An output that is what was declared is given to OMEGA unchanged."""
    takes = {"text": "text", "binary_ref": "binary_ref", "dataset_slice": "dataset_slice"}[gives]

    assert checked_output(_call(given, _loaded(takes, gives)), output) == (output, None)


def test_a_json_output_names_the_schema_it_was_held_against() -> None:
    """OMEGA learns from the payload itself which schema its bytes fit, whatever a worker claims."""
    loaded = _loaded("text", "json")
    claimed = JSONPayload(b'{"n":1}', "sha256:" + samples.DIGEST_C)
    payload, misfit = checked_output(_call(samples.TEXT, loaded), claimed)

    assert misfit is None
    assert payload == JSONPayload(b'{"n":1}', _SCHEMA_ID)


def test_a_commitment_is_the_one_of_the_wire() -> None:
    """The core's commitment is HMAC-SHA256 over label, zero byte and preimage."""
    plain = preimage(samples.TEXT)
    wanted = hmac.new(samples.COMMITMENT_KEY, b"input\x00" + plain, hashlib.sha256).hexdigest()

    assert commitment(samples.COMMITMENT_KEY, "input", plain) == wanted
    assert commitment(samples.COMMITMENT_KEY, "output", plain) != wanted
    assert output_digest(plain) == hashlib.sha256(plain).hexdigest()


def test_fingerprints_show_equality_within_one_method_only() -> None:
    """Equal payloads of one method are equal; another method, version or key shows nothing."""
    plain, key = preimage(samples.TEXT), bytes(32)
    shown = fingerprint(key, "word-count", "1.2.0", "count", plain)

    assert shown == fingerprint(key, "word-count", "1.2.0", "count", plain)
    others = {
        fingerprint(key, "word-count", "1.2.0", "list", plain),
        fingerprint(key, "word-count", "1.3.0", "count", plain),
        fingerprint(key, "other", "1.2.0", "count", plain),
        fingerprint(bytes(31) + b"\x01", "word-count", "1.2.0", "count", plain),
    }
    assert len(others) == 4
    assert shown not in others


def test_secrets_do_not_show_in_a_calls_words() -> None:
    """A call that ends up in a message or a log shows neither its key nor its payload's key."""
    call = _call(samples.TEXT, _loaded("text", "text"))
    shown = repr(replace(call, number=2))

    assert repr(samples.COMMITMENT_KEY) not in shown
