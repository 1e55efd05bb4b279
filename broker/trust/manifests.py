"""Reading a manifest strictly, and saying everything that is wrong with one at once.

Rules this file keeps: the bytes are the canonical spelling of a `PluginManifest`, its JSON Schemas
canonical each for itself; the happy path is one decode and one encode. Only when that fails is the
document taken apart field by field, so that the author sees all mistakes and not the first.

It leaves to `broker.trust.validation` what needs other knowledge. Source: specification section 6,
layer 2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final, get_type_hints

import msgspec

from broker.trust.errors import printable
from broker.trust.json_schemas import SCHEMA_BYTES_MAX
from schemas.canonical import InvalidJson, JsonValue, check_canonical, struct_bytes
from schemas.manifest import BundleFile, Limits, Method, PayloadSpec, PluginManifest
from schemas.messages import Problem
from schemas.names import SchemaId
from schemas.refusals import REFUSALS, RefusalCode

MANIFEST_BYTES_MAX: Final = 1536 * 1024
"""Largest manifest: what fits the envelope's payload as base64."""

_decoder: Final = msgspec.json.Decoder(PluginManifest)
_any_decoder: Final[msgspec.json.Decoder[JsonValue]] = msgspec.json.Decoder()
Mistake = tuple[str, str, str]
"""Path, what was found, what is expected."""


def problem(
    code: RefusalCode, where: str, found: str, expected: str, remedy: str = ""
) -> Problem:
    """Make one problem; without a remedy of its own it takes the one of its code's page."""
    return Problem(
        code=code,
        where=printable(where, 200),
        found=printable(found, 400),
        expected=printable(expected, 400),
        remedy=printable(remedy or REFUSALS[code].remedy, 400),
    )


def read_manifest(payload: bytes) -> tuple[PluginManifest | None, list[Problem]]:
    """Parse the signed bytes of a manifest.

    Args:
        payload: the exact bytes that were signed.

    Returns:
        The manifest and no problem, or None and every problem found.
    """
    if len(payload) > MANIFEST_BYTES_MAX:
        return None, [_invalid("$", f"{len(payload)} bytes", f"at most {MANIFEST_BYTES_MAX} bytes")]
    try:
        manifest = _decoder.decode(payload)
    except msgspec.ValidationError as error:
        return None, _all_mistakes(payload) or [_invalid(*_split(error, "$"))]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return None, [_invalid("$", str(error), "one JSON object")]
    problems = list(_schema_spellings(manifest))
    if not problems and struct_bytes(manifest) != payload:
        # Duplicate keys, spaces, other number spellings, and defaults that are written out.
        problems = [_invalid("$", "another spelling of this manifest", "its RFC 8785 form")]
    return (None, problems) if problems else (manifest, [])


def _schema_spellings(manifest: PluginManifest) -> Iterator[Problem]:
    for name, raw in manifest.schemas.items():
        where = f"$.schemas.{name}"
        try:
            check_canonical(
                bytes(raw), bytes_max=SCHEMA_BYTES_MAX, slow_bytes_max=SCHEMA_BYTES_MAX
            )
        except InvalidJson as error:
            yield _invalid(where, str(error), "a schema in its RFC 8785 form")
            continue
        digest = "sha256:" + hashlib.sha256(bytes(raw)).hexdigest()
        if digest != name:
            yield _invalid(where, "another content id", digest)


def _invalid(where: str, found: str, expected: str) -> Problem:
    return problem(RefusalCode.MANIFEST_INVALID, where, found, expected)


def _split(error: msgspec.ValidationError, where: str) -> Mistake:
    what, _, place = str(error).partition(" - at ")
    expected, _, found = what.partition(", got ")
    return where + place.strip("`").removeprefix("$"), found.strip("`") or "this value", expected


def _all_mistakes(payload: bytes) -> list[Problem]:
    """Take a document apart that did not decode as a manifest."""
    document = _any_decoder.decode(payload)
    return [_invalid(*mistake) for mistake in mistakes(document, PluginManifest, "$")]


def mistakes(value: JsonValue, kind: type, where: str) -> Iterator[Mistake]:
    """Find every field that does not fit its type, as deep as our own structs go.

    Args:
        value: a decoded JSON or TOML document.
        kind: the struct it should be.
        where: the path of `value`.
    """
    if not isinstance(value, dict):
        yield where, _shown(value), "an object"
        return
    hints = get_type_hints(kind, include_extras=True)
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    for name in value.keys() - fields.keys():
        yield f"{where}.{name}", "an unknown field", f"one of {', '.join(sorted(fields))}"
    for name, field in fields.items():
        place = f"{where}.{name}"
        if name not in value:
            if field.required:
                yield place, "nothing", "this field"
            continue
        part = value[name]
        hint = hints[name]
        if name == "schemas" and isinstance(part, dict):
            # Schemas are checked as bytes, elsewhere; here only their names are of interest.
            part, hint = dict.fromkeys(part), dict[SchemaId, None]
        try:
            msgspec.convert(part, hint)
        except msgspec.ValidationError as error:
            deeper = list(_deeper(name, part, place))
            yield from deeper or [_found(_split(error, place), part)]


def _deeper(name: str, value: JsonValue, where: str) -> Iterator[Mistake]:
    """Go on inside a field that holds structs of ours."""
    if name == "limits":
        yield from mistakes(value, Limits, where)
    elif name in {"input", "output"}:
        yield from mistakes(value, PayloadSpec, where)
    elif name == "methods" and isinstance(value, dict):
        for key, part in value.items():
            yield from mistakes(part, Method, f"{where}.{key}")
    elif name == "files" and isinstance(value, list):
        for number, part in enumerate(value):
            yield from mistakes(part, BundleFile, f"{where}[{number}]")


def _found(mistake: Mistake, value: JsonValue) -> Mistake:
    where, found, expected = mistake
    scalar = value is None or isinstance(value, (str, int, float))
    return where, _shown(value) if scalar else found, expected


def _shown(value: JsonValue) -> str:
    return msgspec.json.encode(value).decode()
