"""Make the golden files: the exact bytes of every message and every event.

A golden file is the contract with clients that other people wrote, and with ledgers that already
exist. `python -m tests.schemas.golden_files --rewrite` writes them anew; commit the difference only
when you mean to change what travels or what is kept, and say why in the changelog.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import msgspec

from schemas import codec, payloads
from schemas.events import GENESIS_HASH, encode_event
from schemas.payloads import preimage
from tests.schemas import samples

FOLDER = Path(__file__).parent / "golden"


def _shown(value: object) -> object:
    """Show a message as JSON for a reader; bytes as hex."""
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, dict):
        return {key: _shown(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(item) for item in value]
    return value


def _fields(message: msgspec.Struct) -> object:
    return _shown(msgspec.to_builtins(message, builtin_types=(bytes,)))


def _direction(name: str) -> object:
    rows = []
    for message in samples.DIRECTIONS[name]:
        meaning = " ".join((type(message).__doc__ or "").split())
        small = samples.without_optional_fields(message)
        rows.append(
            {
                "type": samples.tag_of(message),
                "meaning": meaning,
                "full": {"fields": _fields(message), "frame": codec.encode(message).hex()},
                "small": {"fields": _fields(small), "frame": codec.encode(small).hex()},
            }
        )
    return rows


def _events() -> object:
    rows, previous = [], GENESIS_HASH
    examples = [
        example
        for full in samples.EVENTS
        for example in (full, samples.without_optional_fields(full))
    ]
    for seq, fields in enumerate(examples):
        line, event_hash = encode_event(
            fields,
            log_id=samples.LOG_ID,
            seq=seq,
            ts_us=1_790_000_000_000_000 + seq,
            mono_us=51 + seq,
            prev_hash=previous,
        )
        meaning = " ".join((type(fields).__doc__ or "").split())
        rows.append(
            {
                "event_type": fields.EVENT_TYPE,
                "meaning": meaning,
                "line": line.decode().removesuffix("\n"),
                "event_hash": event_hash,
            }
        )
        previous = event_hash
    return rows


def _preimages() -> object:
    absent = payloads.JSONPayload(b"{}", None)
    return [
        {"fields": _fields(payload), "preimage": preimage(payload).hex()}
        for payload in (*samples.PAYLOADS, absent)
    ]


def build() -> dict[str, str]:
    """Give the wanted content of every golden file by its name."""
    documents: dict[str, object] = {f"{name}.json": _direction(name) for name in samples.DIRECTIONS}
    documents |= {"events.json": _events(), "preimages.json": _preimages()}
    return {
        name: json.dumps(document, indent=1, ensure_ascii=False) + "\n"
        for name, document in documents.items()
    }


if __name__ == "__main__":
    if sys.argv[1:] != ["--rewrite"]:
        sys.exit("usage: python -m tests.schemas.golden_files --rewrite")
    for file_name, content in build().items():
        (FOLDER / file_name).write_text(content, encoding="utf-8")
