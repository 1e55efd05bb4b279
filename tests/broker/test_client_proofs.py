"""Proofs against a checkpoint that was named, asked of a real ledger that grows with every request.

Sockets, keys, ledger and answers are real; only what a core would decide is played.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from nacl.signing import SigningKey

from broker.answers import Answers
from broker.client import AdminClient, AsyncOmegaClient, LedgerForked, OmegaClient, Refused
from broker.effects import Evidence, Origin
from broker.evidence.bundles import verify_bundle
from broker.evidence.prove import bundle_over_wire, encode_bundle
from broker.ledger.commit import Ledger
from schemas import messages
from schemas.proof import ProofError, parse_checkpoint, parse_note
from schemas.refusals import RefusalCode
from tests.broker.scripted_gateway import (
    LOG_ID,
    SEED,
    VERIFIER,
    Request,
    ScriptedGateway,
    SmallLedger,
    scripted_gateway,
)
from tests.ledger.conftest import Place, frame, opening

EVENTS = 300
ASKER = Origin("front.admin", "a" * 16, b"route")


class Signing:
    """Answers from a ledger in which each request is an event and every few a checkpoint."""

    def __init__(self, folder: Path, every: int) -> None:
        """Begin a ledger of some events, signed over all of them."""
        self.ledger = Ledger.open(
            str(folder / "ledger"), str(folder / "anchor"), log_id=LOG_ID,
            signing_key=SigningKey(SEED), durability="process", now=Place(folder).now,
        )
        self.answers = Answers(self.ledger, lambda: None)
        self.every, self.asked = every, 0
        for number in range(EVENTS):
            self.ledger.append(frame(number) if number else opening())
        self.ledger.commit()
        self.ledger.checkpoint()
        self.changes: dict[str, object] = {}

    def __call__(self, request: Request) -> Sequence[msgspec.Struct]:
        """Answer a read; `changes` falsify what an answer against a named size shows."""
        appended = self.ledger.append(frame(self.asked))
        self.ledger.commit()
        self.asked += 1
        if self.asked % self.every == 0:
            self.ledger.checkpoint()
        query, number, size = "head", 0, None
        if isinstance(request, messages.Prove):
            query, number, size = "prove", request.seq, request.size
        elif isinstance(request, messages.ProveConsistency):
            query, number, size = "prove_consistency", request.old_size, request.size
        reply = self.answers.evidence(Evidence(
            ASKER, request.request_id, query, number=number, size=size,
            known_size=request.known_size,
        ))
        receipt = self.answers.receipt(appended, request.known_size)
        changes = self.changes if size is not None else {}
        return [msgspec.structs.replace(reply, receipt=receipt, **changes)]


@contextmanager
def signing_gateway(folder: Path, every: int = 1) -> Iterator[tuple[ScriptedGateway, Signing]]:
    """Run one."""
    signing = Signing(folder, every)
    try:
        with scripted_gateway(signing) as gateway:
            yield gateway, signing
    finally:
        signing.ledger.close()


def size_of(note: str) -> int:
    """Say over how many events a checkpoint is."""
    return parse_checkpoint(parse_note(note).text).size


def test_hundreds_of_events_are_proven_while_checkpoints_come_and_go(tmp_path):
    """However often the gateway signs meanwhile, each event is asked for once, all are proven
    against one checkpoint, and older notes are shown to lie in its past."""
    with signing_gateway(tmp_path, every=4) as (gateway, signing):
        old = signing.ledger.head
        with AdminClient(gateway.path("auditor")) as auditor:
            bundle = bundle_over_wire(auditor, range(EVENTS + 1), [old])
        assert size_of(signing.ledger.head) - size_of(bundle.checkpoint) >= EVENTS - 8

        # One more tells that the newest checkpoint continues the bundle's.
        assert len(gateway.requests) == EVENTS + 1 + 1 + 1
        verified = verify_bundle(encode_bundle(bundle), VERIFIER)
        assert list(verified.events) == list(range(EVENTS + 1))
        assert verified.continues == (EVENTS,)


def test_a_bundle_of_nothing_is_refused(tmp_path):
    """What holds no event proves nothing, and nobody is asked."""
    with signing_gateway(tmp_path) as (gateway, _), AdminClient(gateway.path("auditor")) as auditor:
        with pytest.raises(ProofError, match="at least one event"):
            bundle_over_wire(auditor, [])
        assert gateway.requests == []


def test_an_older_checkpoint_is_shown_to_lie_in_the_past_once(tmp_path):
    """The first answer against a size costs one question more, those that follow none."""
    with signing_gateway(tmp_path) as (gateway, _), OmegaClient(gateway.path()) as omega:
        assert size_of(omega.prove(3, size=EVENTS).checkpoint) == EVENTS
        assert size_of(omega.prove(4, size=EVENTS).checkpoint) == EVENTS
        assert omega.prove_consistency(7, size=EVENTS).old_size == 7
        kinds = [(type(one).__name__, one.size) for one in gateway.requests]
        assert kinds == [
            ("Prove", EVENTS), ("ProveConsistency", None), ("Prove", EVENTS),
            ("ProveConsistency", EVENTS),
        ]
        # The empty tree is in the past of all.
        assert omega.prove_consistency(0, size=0).hashes == ()


def test_the_client_for_asyncio_asks_and_checks_the_same(tmp_path):
    """It proves against a named size, and has the newest checkpoint shown to continue it."""

    async def ask(path: str) -> None:
        async with AsyncOmegaClient(path) as omega:
            assert size_of((await omega.prove(3, size=EVENTS)).checkpoint) == EVENTS
            step = await omega.prove_consistency(7, size=EVENTS)
            assert size_of(step.checkpoint) == EVENTS
            with pytest.raises(Refused, match="size_unknown"):
                await omega.prove(3, size=EVENTS - 1)

    with signing_gateway(tmp_path) as (gateway, signing):
        asyncio.run(ask(gateway.path()))
        signing.changes = {"checkpoint": other_history(EVENTS)}
        with pytest.raises(LedgerForked):
            asyncio.run(ask(gateway.path()))


def other_history(size: int) -> str:
    """Sign, with the right key, what this ledger never was."""
    return SmallLedger(size, salt="f").note(size)


@pytest.mark.parametrize("changes", [
    {"checkpoint": other_history(EVENTS)},
    {"checkpoint": other_history(EVENTS - 1)},
    {"checkpoint": SmallLedger(EVENTS).note(EVENTS, seed=b"\x09" * 32)},
    {"checkpoint": "nonsense"},
], ids=["other history", "other size", "other key", "no checkpoint"])
def test_a_checkpoint_that_is_none_of_this_ledger_is_a_fork(tmp_path, changes):
    """A note over the size that was asked for is believed when the newest one continues it."""
    with signing_gateway(tmp_path) as (gateway, signing), OmegaClient(gateway.path()) as omega:
        omega.prove_consistency(7, size=EVENTS)
        signing.changes = changes
        with pytest.raises(LedgerForked):
            omega.prove_consistency(7, size=EVENTS)


def test_another_checkpoint_of_this_ledger_is_not_the_one_that_was_named(tmp_path):
    """A note that is true, and over another size than asked for, is a fork too."""
    with signing_gateway(tmp_path) as (gateway, signing), OmegaClient(gateway.path()) as omega:
        signing.changes = {"checkpoint": signing.ledger.head}
        omega.ledger_head()
        with pytest.raises(LedgerForked, match=f"over {EVENTS} events, asked was {EVENTS + 1}"):
            omega.prove_consistency(7, size=EVENTS + 1)


@pytest.mark.parametrize(("seq", "size", "code", "told"), [
    (3, EVENTS - 1, "size_unknown", f"exactly {EVENTS - 1} events; the newest is over"),
    (3, 10**6, "size_unknown", "exactly 1000000 events"),
    (3, 2**53 - 1, "size_unknown", "exactly 9007199254740991 events"),
    (3, 0, "seq_unknown", "over 0 events lacks event 3"),
    (EVENTS, EVENTS, "seq_unknown", f"over {EVENTS} events lacks event {EVENTS}"),
])
def test_what_cannot_be_proven_against_a_size_is_refused(tmp_path, seq, size, code, told):
    """A size that was never signed, one above the newest, one that does not cover the event."""
    with (
        signing_gateway(tmp_path) as (gateway, _), OmegaClient(gateway.path()) as omega,
        pytest.raises(Refused) as refused,
    ):
        omega.prove(seq, size=size)
    assert refused.value.code is RefusalCode(code)
    assert told in refused.value.refusal.message
