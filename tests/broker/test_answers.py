"""What the ledger says to those who ask, read from a real ledger whose files somebody touches."""

from __future__ import annotations

import msgspec
import pytest

from broker.answers import STORY_EVENTS_MAX, Answers
from broker.effects import Evidence, Origin
from broker.ledger.commit import Appended
from schemas.events import InvokeAccept, InvokeEnd, decode_event
from schemas.messages import Consistency, Head, Proof, Refusal, RequestStory
from schemas.proof import parse_checkpoint, parse_note
from schemas.refusals import RefusalCode
from tests.ledger.conftest import REQUEST_ID, Place, frame

ASKER = Origin("front.admin", "a" * 16, b"route")
ACCEPT = InvokeAccept(
    request_id=REQUEST_ID, peer="5e" * 8, plugin="echo-plugin", version="1.0.0", method="echo",
    bundle_sha256="0" * 64, input_kind="text", input_bytes=1, input_commitment="0" * 64,
    timeout_ms=1000,
)
END = InvokeEnd(request_id=REQUEST_ID, outcome="lost", reached="running")


@pytest.fixture
def place(tmp_path):
    """Give a place for a ledger."""
    place = Place(tmp_path)
    yield place
    for ledger in place.opened:
        ledger._stack.close()


def ask(query, **more):
    return Evidence(ASKER, REQUEST_ID, query, **more)


def asked(place, events=300):
    """Give a ledger, its answers, and the list to which each failed read adds."""
    ledger = place.fill(events)
    ledger.checkpoint()
    failed = []
    return ledger, Answers(ledger, lambda: failed.append(1)), failed


def test_a_story_is_told_as_far_as_it_is_committed(place):
    """Events count from their commit on, not from the next checkpoint, and never before it."""
    ledger, answers, _ = asked(place)
    for fields in (frame(1), frame(2)):
        answers.remember(fields, ledger.append(fields).seq)
    assert answers.evidence(ask("show_request", target=REQUEST_ID)).lines == ()

    ledger.commit()

    story = answers.evidence(ask("show_request", target=REQUEST_ID))
    assert isinstance(story, RequestStory)
    assert [decode_event(f"{line}\n".encode()).seq for line in story.lines] == [300, 301]


def test_a_long_story_keeps_its_begin_and_its_end(place):
    """However much lies between, accept and end are told, in order, and the middle is bounded."""
    ledger, answers, _ = asked(place)
    for fields in (frame(0), ACCEPT, *(frame(number) for number in range(500)), END, frame(1)):
        answers.remember(fields, ledger.append(fields).seq)
    ledger.commit()

    lines = answers.evidence(ask("show_request", target=REQUEST_ID)).lines

    told = [decode_event(f"{line}\n".encode()) for line in lines]
    assert [event.seq for event in told] == sorted(event.seq for event in told)
    assert [event.event_type for event in told[:2]] == ["frame.in", "invoke.accept"]
    assert [event.event_type for event in told[-2:]] == ["invoke.end", "frame.in"]
    assert len(told) == STORY_EVENTS_MAX + 2


def test_a_pipelines_story_names_its_steps(place):
    """The steps' accepts and refusals are told under the pipeline's id as under their own."""
    ledger, answers, _ = asked(place)
    pipeline = "11111111-1111-4111-8111-111111111111"
    for fields in (
        msgspec.structs.replace(frame(0), request_id=pipeline),
        msgspec.structs.replace(ACCEPT, pipeline=pipeline, step="s"), END, frame(1),
    ):
        answers.remember(fields, ledger.append(fields).seq)
    ledger.commit()

    for target, seqs in ((pipeline, [300, 301]), (REQUEST_ID, [301, 302, 303])):
        lines = answers.evidence(ask("show_request", target=target)).lines
        assert [decode_event(line.encode()).seq for line in lines] == seqs


def test_what_is_asked_for_is_signed_at_once(place):
    """The head covers all that is committed, a proof reaches the newest event; not what is not."""
    ledger, answers, _ = asked(place)
    appended = [ledger.append(frame(number)).seq for number in (1, 2)]
    ledger.commit()
    ledger.append(frame(3))

    proof = answers.evidence(ask("prove", number=appended[0]))
    assert isinstance(proof, Proof)
    assert parse_checkpoint(parse_note(proof.checkpoint).text).size == 302
    assert answers.evidence(ask("prove", number=302)).code is RefusalCode.SEQ_UNKNOWN
    ledger.commit()
    assert ledger.head_size == 302
    head = answers.evidence(ask("head"))
    assert parse_checkpoint(parse_note(head.checkpoint).text).size == ledger.head_size == 303


@pytest.mark.parametrize("known", [0, 200, 300, 301, 5000])
def test_a_receipt_tells_whoever_knows_another_size(place, known):
    """Smaller: checkpoint and proof. Equal: neither. Larger: the checkpoint alone, which cannot
    continue what the client knows."""
    ledger, answers, failed = asked(place)
    receipt = answers.receipt(Appended(7, "0" * 64), known)

    assert receipt.checkpoint == (None if known == 300 else ledger.head)
    assert bool(receipt.consistency) == (known == 200)
    assert failed == []


def test_damaged_tiles_cost_proofs_and_nothing_else(place):
    """A read that fails is refused and reported; receipts come without what cannot be proven."""
    _, answers, failed = asked(place, 600)
    assert isinstance(answers.evidence(ask("prove", number=7)), Proof)
    assert isinstance(answers.evidence(ask("prove_consistency", number=7)), Consistency)
    for level in (place.ledger / "tiles").iterdir():
        level.write_bytes(bytes(len(level.read_bytes())))

    for question in (ask("prove", number=7), ask("prove_consistency", number=7)):
        refused = answers.evidence(question)
        assert isinstance(refused, Refusal)
        assert refused.code is RefusalCode.LEDGER_DAMAGED
    receipt = answers.receipt(Appended(7, "0" * 64), 300)

    assert (receipt.seq, receipt.checkpoint, receipt.consistency) == (7, None, None)
    assert len(failed) == 3
    assert isinstance(answers.evidence(ask("head")), Head)
    assert answers.evidence(ask("head", known_size=300)).code is RefusalCode.LEDGER_DAMAGED


def test_a_segment_that_is_cut_or_gone_costs_the_reader_a_refusal(place):
    """Neither a missing older segment nor bytes that are no lines end more than this read."""
    ledger, answers, failed = asked(place)
    answers.remember(frame(), 7)
    ledger.roll()
    place.segment(0).rename(place.ledger / "elsewhere")

    for question in (ask("prove", number=7), ask("show_request", target=REQUEST_ID)):
        assert answers.evidence(question).code is RefusalCode.LEDGER_DAMAGED
    (place.ledger / "segments" / "000000000000.ndjson").write_bytes(b"\xff" * 5000)
    assert answers.evidence(ask("prove", number=7)).code is RefusalCode.LEDGER_DAMAGED
    assert len(failed) == 3


@pytest.mark.parametrize(
    ("query", "number", "code"),
    [("prove", 5000, "seq_unknown"), ("prove_consistency", 5000, "size_unknown")],
)
def test_what_the_checkpoint_does_not_cover_is_unknown_and_no_damage(place, query, number, code):
    """A position beyond the head is refused as such, and nothing is reported."""
    _, answers, failed = asked(place)
    assert answers.evidence(ask(query, number=number)).code == code
    assert failed == []
