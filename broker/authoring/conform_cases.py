"""What the conformance suite sends to one method, each input under the rule that judges it.

Rules this file keeps: deterministic and bounded; every kind of payload has its own bounds; an
author's samples count as valid inputs beside those that are made. Artifacts are files of the
suite's own gateway.

It leaves documents of a JSON Schema to `broker.authoring.conform_schemas`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final, NamedTuple, cast, get_args

import msgspec

from broker.authoring.conform_schemas import HOSTILE_TEXTS, Documents
from broker.cli.ends import INVALID, CommandError
from broker.store import artifact_reference
from schemas.canonical import document_bytes
from schemas.manifest import Method, PluginManifest
from schemas.names import TEXT_BYTES_MAX
from schemas.payloads import (
    DatasetSlicePayload,
    JSONPayload,
    MediaType,
    Payload,
    TextMediaType,
    TextPayload,
)

SAMPLES_MAX: Final = 16
SAMPLE_BYTES_MAX: Final = TEXT_BYTES_MAX
MARK: Final = "leak-7d1c0e"
"""Stands in one input of a pair and must not be seen from the other."""
_LARGE_ARTIFACT_BYTES: Final = 1 << 20
_CONTENTS: Final[dict[str, bytes]] = {
    "image/png": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",
    "application/zip": b"PK\x05\x06" + bytes(18),
    "application/x-elf": b"\x7fELF\x02\x01\x01" + bytes(57),
    "application/gzip": b"\x1f\x8b\x08",
    "application/pdf": b"%PDF-1.7\n", "application/json": b"{}", "image/gif": b"GIF89a",
    "image/jpeg": b"\xff\xd8\xff\xe0", "audio/wav": b"RIFF\x00\x00\x00\x00WAVE",
}  # fmt: skip
"""How a file of a media type begins; others hold a line of text."""


class Case(NamedTuple):
    """One input: the rule that judges it, what it is in our words, and the payload."""

    rule: str
    name: str
    payload: Payload


class Inputs:
    """The inputs of one plugin's methods."""

    def __init__(self, manifest: PluginManifest, artifacts: str, samples: str | None) -> None:
        """Read what there is to make inputs from.

        Args:
            manifest: of the plugin.
            artifacts: the folder of the gateway's artifact store.
            samples: a folder with files METHOD.EXT and METHOD-NAME.EXT, or None.

        Raises:
            CommandError: a file of it is no sample.
        """
        self._manifest = manifest
        self._artifacts = artifacts
        self._samples: dict[str, list[tuple[str, bytes]]] = {name: [] for name in manifest.methods}
        for name in sorted(os.listdir(samples)) if samples is not None else ():
            method = name.partition(".")[0].partition("-")[0]
            path = os.path.join(str(samples), name)
            if len(self._samples.get(method, [None] * SAMPLES_MAX)) >= SAMPLES_MAX:
                raise _no_sample(path, f"names no method, or is more than {SAMPLES_MAX} of one")
            try:
                with open(path, "rb") as file:
                    data = file.read(SAMPLE_BYTES_MAX + 1)
            except OSError as error:
                raise _no_sample(path, f"cannot be read ({error.strerror})") from None
            if len(data) > SAMPLE_BYTES_MAX:
                raise _no_sample(path, f"has more than {SAMPLE_BYTES_MAX} bytes")
            self._samples[method].append((path, data))

    def cases(self, name: str) -> list[Case]:
        """Give every input of one method, valid ones first."""
        method = self._manifest.methods[name]
        made = {
            "text": self._text, "json": self._json, "binary_ref": self._artifact,
            "dataset_slice": self._dataset,
        }[method.input.kind](method)
        return [*self._given(name, method), *made, *self._other_kinds(method)]

    def marked(self, name: str) -> Payload | None:
        """Give a valid input that holds `MARK`; None when the method takes none that can."""
        method = self._manifest.methods[name]
        if method.input.kind == "text":
            return TextPayload(f"{MARK} of one call", _text_types(method)[0])
        if method.input.kind == "dataset_slice":
            return DatasetSlicePayload("conformance", (MARK,))
        if method.input.kind == "binary_ref":
            return self._stored("marked", MARK.encode(), _types(method)[0])
        data = self._documents(method).marked(MARK)
        return None if data is None else JSONPayload(data)

    def _documents(self, method: Method) -> Documents:
        assert method.input.schema is not None
        return Documents(bytes(self._manifest.schemas[method.input.schema]))

    def _json(self, method: Method) -> Iterator[Case]:
        documents = self._documents(method)
        for rule, name, found in (
            ("CON-02", "at a bound", documents.bounds()),
            ("CON-03", "empty", documents.empty()),
            ("CON-04", "largest", documents.largest()),
            ("CON-05", "deepest", documents.deepest()),
            ("CON-06", "hostile text", documents.hostile()),
            ("CON-07", "wrong type", documents.wrong_types()),
            ("CON-08", "missing member", documents.without_members()),
            ("CON-09", "unknown member", documents.with_members()),
        ):
            for number, data in enumerate(found, 1):
                yield Case(rule, f"{name} {number}", JSONPayload(data))

    def _text(self, method: Method) -> Iterator[Case]:
        kind = _text_types(method)[0]
        texts: dict[tuple[str, str], tuple[str, ...]] = {
            ("CON-02", "ordinary"): ("a", "Some words, and a line.\nAnother line.\n", "1", "{}",
                                     "<a>b</a>"),
            ("CON-03", "empty"): ("", " ", "\n"),
            ("CON-04", "large"): ("word " * (TEXT_BYTES_MAX // 5), "a" * TEXT_BYTES_MAX,
                                  "\n" * TEXT_BYTES_MAX),
            ("CON-06", "hostile"): (*HOSTILE_TEXTS, "(" * 10_000),
        }
        for (rule, name), found in texts.items():
            for number, text in enumerate(found, 1):
                yield Case(rule, f"{name} text {number}", TextPayload(text, kind))
        for media_type in _text_types(method):
            yield Case("CON-10", media_type, TextPayload("some words", media_type))

    def _artifact(self, method: Method) -> Iterator[Case]:
        types = _types(method)
        for rule, name, data in (
            ("CON-02", "one byte", b"a"), ("CON-02", "text", b"some words\n"),
            ("CON-02", "every byte", bytes(range(256))), ("CON-03", "no byte", b""),
            ("CON-04", "a mebibyte", bytes(_LARGE_ARTIFACT_BYTES)),
        ):
            yield Case(rule, f"artifact of {name}", self._stored(name, data, types[0]))
        for number, media_type in enumerate(types):
            data = _CONTENTS.get(media_type, b"some words\n")
            yield Case("CON-10", media_type, self._stored(f"type{number}", data, media_type))

    def _dataset(self, _method: Method) -> Iterator[Case]:
        for rule, name, keys in (
            ("CON-02", "one key", ("a",)), ("CON-02", "two keys", ("a", "b")),
            ("CON-02", "a key twice", ("a", "a")), ("CON-02", "a long key", ("k" * 256,)),
            ("CON-03", "no key", ()),
            ("CON-04", "most keys", tuple(f"key-{number}" for number in range(10_000))),
            ("CON-06", "hostile keys", HOSTILE_TEXTS),
        ):
            yield Case(rule, name, DatasetSlicePayload("conformance", keys))

    def _other_kinds(self, method: Method) -> Iterator[Case]:
        """Payloads that the method does not take."""
        payloads: dict[str, Payload] = {
            "text": TextPayload("some words"), "json": JSONPayload(b"{}"),
            "binary_ref": self._stored("other", b"some words", "application/octet-stream"),
            "dataset_slice": DatasetSlicePayload("conformance", ("a",)),
        }
        for kind, payload in payloads.items():
            if kind != method.input.kind:
                yield Case("CON-07", f"a {kind} payload", payload)

    def _given(self, name: str, method: Method) -> Iterator[Case]:
        """The author's own inputs of one method, in order of their names."""
        for number, (path, data) in enumerate(self._samples[name]):
            try:
                payload = self._sample(method, data, f"{name}-{number}")
            except (ValueError, msgspec.MsgspecError, RecursionError) as error:
                raise _no_sample(path, f"is no {method.input.kind}: {error}") from None
            # A report holds printable ASCII, a file's name anything.
            shown = ascii(os.path.basename(path))[1:-1]
            yield Case("CON-02", f"sample {shown}"[:200], payload)

    def _sample(self, method: Method, data: bytes, name: str) -> Payload:
        if method.input.kind == "text":
            return TextPayload(data.decode(), _text_types(method)[0])
        if method.input.kind == "binary_ref":
            wanted = [one for one in _types(method) if _begins(data, one)]
            return self._stored(f"sample-{name}", data, (wanted or _types(method))[0])
        if method.input.kind == "dataset_slice":
            return DatasetSlicePayload("conformance", tuple(data.decode().split()))
        return JSONPayload(document_bytes(msgspec.json.decode(data)))

    def _stored(self, name: str, data: bytes, media_type: MediaType) -> Payload:
        """Put an artifact into the store and give its reference."""
        artifact = f"conformance-{name.replace(' ', '-')}"
        with open(os.path.join(self._artifacts, artifact), "wb") as file:
            file.write(data)
        return artifact_reference(self._artifacts, artifact, media_type)


def _no_sample(path: str, sentence: str) -> CommandError:
    return CommandError(INVALID, f"{path} {sentence}",
                        "a sample is METHOD.EXT or METHOD-NAME.EXT and holds one valid input")


def _begins(data: bytes, media_type: str) -> bool:
    magic = _CONTENTS.get(media_type, b"")[:4]
    return bool(magic) and data.startswith(magic[:2])


def _types(method: Method) -> tuple[MediaType, ...]:
    """The media types a method takes: those it lists, else all there are."""
    return method.input.media_types or get_args(MediaType)


def _text_types(method: Method) -> tuple[TextMediaType, ...]:
    return cast("tuple[TextMediaType, ...]", method.input.media_types) or get_args(TextMediaType)
