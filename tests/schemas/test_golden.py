"""The bytes that travel and the lines that are kept are the golden ones, to the last byte."""

from __future__ import annotations

import json

import msgspec
import pytest

from schemas import codec
from schemas.events import EVENT_TYPES, GENESIS_HASH, decode_event, line_hash
from tests.schemas import golden_files, samples

_HINT = "if you mean it: python -m tests.schemas.golden_files --rewrite, and say why"

_DECODERS = {
    "from_omega": codec.from_omega.decode,
    "from_admin": codec.from_admin.decode,
    "reply": codec.decode_reply,
    "to_worker": codec.to_worker.decode,
    "from_worker": codec.from_worker.decode,
}


def _without_meaning(text: str) -> object:
    """Drop the sentences: only bytes are the contract."""
    return [
        {key: value for key, value in row.items() if key != "meaning"} for row in json.loads(text)
    ]


def _rows(name: str) -> list[dict[str, dict[str, str]]]:
    rows: list[dict[str, dict[str, str]]] = json.loads(
        (golden_files.FOLDER / f"{name}.json").read_text("utf-8")
    )
    return rows


@pytest.mark.parametrize("name", sorted(golden_files.build()))
def test_golden_file_is_what_the_code_writes(name: str) -> None:
    """No byte of any message, event or preimage differs from the golden file."""
    kept = (golden_files.FOLDER / name).read_text("utf-8")

    assert _without_meaning(kept) == _without_meaning(golden_files.build()[name]), _HINT


def test_golden_folder_holds_nothing_else() -> None:
    """Every golden file is made by the code, so none can be forgotten behind."""
    kept = {path.name for path in golden_files.FOLDER.iterdir()}

    assert kept == set(golden_files.build())


@pytest.mark.parametrize("name", sorted(_DECODERS))
def test_golden_frames_decode_to_the_examples(name: str) -> None:
    """Every golden frame is accepted by its direction's decoder and means the example."""
    examples = samples.DIRECTIONS[name]
    rows = _rows(name)

    assert [row["type"] for row in rows] == [samples.tag_of(example) for example in examples]
    for row, example in zip(rows, examples, strict=True):
        full = _DECODERS[name](bytes.fromhex(row["full"]["frame"]))
        small = _DECODERS[name](bytes.fromhex(row["small"]["frame"]))
        assert full == example
        assert small == samples.without_optional_fields(example)


@pytest.mark.parametrize("name", sorted(_DECODERS))
def test_every_message_of_a_direction_has_an_example(name: str) -> None:
    """No message type can be added to a direction without golden bytes."""
    from schemas import messages

    union = {
        "from_omega": messages.FromOmega,
        "from_admin": messages.FromAdmin,
        "reply": messages.Reply,
        "to_worker": messages.ToWorker,
        "from_worker": messages.FromWorker,
    }[name]

    assert {type(example) for example in samples.DIRECTIONS[name]} == set(union.__args__)


def test_examples_set_every_field() -> None:
    """A full example leaves no optional field at its default, so each is in the golden bytes."""
    at_default = {
        f"{type(example).__name__}.{field.name}"
        for example in (*samples.EVENTS, *(m for d in samples.DIRECTIONS.values() for m in d))
        for field in msgspec.structs.fields(type(example))
        if not field.required and getattr(example, field.name) == field.default
    }

    assert at_default <= {
        "GatewayDegraded.degraded",
        "Run.purpose",
    }


def test_golden_events_are_one_ledger() -> None:
    """The golden lines form a chain: each names the hash of the one before."""
    previous = GENESIS_HASH
    rows: list[dict[str, str]] = json.loads((golden_files.FOLDER / "events.json").read_text())
    for seq, row in enumerate(rows):
        event = decode_event(row["line"].encode())
        assert event.seq == seq
        assert event.prev_hash == previous
        assert event.event_hash == line_hash(row["line"].encode()) == row["event_hash"]
        previous = event.event_hash

    assert {row["event_type"] for row in rows} == set(EVENT_TYPES)
