"""Reading a manifest strictly, and saying everything that is wrong with one at once.

Rules this file keeps: the bytes are the canonical spelling of a `PluginManifest`, its JSON Schemas
canonical each for itself; the happy path is one decode and one encode. Only when that fails is the
document taken apart field by field, so that the author sees all mistakes and not the first.

It leaves to `broker.trust.validation` what needs other knowledge. Source: specification section 6,
layer 2.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from typing import Final

import msgspec

from broker.trust.errors import printable
from broker.trust.json_schemas import SCHEMA_BYTES_MAX
from broker.trust.mistakes import mistakes, split_place
from schemas.canonical import InvalidJson, check_canonical, struct_bytes
from schemas.manifest import PluginManifest
from schemas.messages import Problem
from schemas.refusals import REFUSALS, RefusalCode

MANIFEST_BYTES_MAX: Final = 1536 * 1024
"""Largest manifest: what fits the envelope's payload as base64."""

PROBLEMS_MAX: Final = 256
"""How many problems of one bundle are told; a person mends a few and asks again."""

_decoder: Final = msgspec.json.Decoder(PluginManifest)


def problem(
    code: RefusalCode, where: str, found: str, expected: str, remedy: str = ""
) -> Problem:
    """Make one problem; an empty expectation or remedy is the one of its code's page."""
    return Problem(
        code=code,
        where=printable(where, 200),
        found=printable(found, 400),
        expected=printable(expected or REFUSALS[code].reason, 400),
        remedy=printable(remedy or REFUSALS[code].remedy, 400),
    )


def contrast(found: str, expected: str) -> str:
    """Say what is there and what should be; the sentence of a code's page stands by itself."""
    if expected.endswith("."):
        return f"found {found}. {expected}"
    return f"found {found}, expected {expected}"


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
        return None, _all_mistakes(payload) or [_invalid(*split_place(error))]
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


def _all_mistakes(payload: bytes) -> list[Problem]:
    """Take a document apart that did not decode as a manifest."""
    try:
        document = msgspec.json.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        # A wrong field may stand before the place where the document stops being JSON.
        return [_invalid("$", str(error), "one JSON object")]
    found = itertools.islice(mistakes(document, PluginManifest, "$"), PROBLEMS_MAX)
    return [_invalid(*mistake) for mistake in found]
