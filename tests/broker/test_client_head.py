"""A client accepts one history only: forks, cuts and foreign checkpoints are exceptions."""

from __future__ import annotations

import os
import stat

import msgspec
import pytest
from nacl.signing import SigningKey

from broker.client import GatewayError, LedgerForked, OmegaClient
from schemas import messages
from schemas.proof import VerifierKey
from tests.broker.scripted_gateway import (
    LOG_ID,
    VERIFIER,
    Request,
    ScriptedGateway,
    SmallLedger,
    echo,
    receipt,
    scripted_gateway,
)

OTHER_SEED = b"\x09" * 32
OTHER_KEY = VerifierKey(LOG_ID, bytes(SigningKey(OTHER_SEED).verify_key))


class Honest:
    """Answers as the gateway does: a checkpoint and its proof when the client lacks it."""

    def __init__(self, ledger: SmallLedger, size: int) -> None:
        """Serve `ledger`, whose newest checkpoint is of `size`."""
        self.ledger = ledger
        self.size = size
        self.position = 0
        self.changes: dict[str, object] = {}
        self.head_changes: dict[str, object] = {}
        self.proof_changes: dict[str, object] = {}

    def __call__(self, request: Request) -> list[msgspec.Struct]:
        """Answer one request; `changes` falsify the receipt, the head or the proof."""
        ask = request.request_id
        note = self.ledger.note(self.size)
        evidence = receipt(**(self.receipt_fields(request) | self.changes))
        if isinstance(request, messages.LedgerHead):
            head = messages.Head(
                request_id=ask, checkpoint=note, verifier_key=str(VERIFIER), receipt=evidence
            )
            return [msgspec.structs.replace(head, **self.head_changes)]
        if isinstance(request, messages.Prove):
            proof = messages.Proof(
                request_id=ask, seq=request.seq, checkpoint=note, receipt=evidence,
                line=self.ledger.lines[request.seq].decode(),
                hashes=self.ledger.inclusion(request.seq, self.size),
            )
            return [msgspec.structs.replace(proof, **self.proof_changes)]
        if isinstance(request, messages.ProveConsistency):
            hashes = self.ledger.consistency(request.old_size, self.size)
            return [messages.Consistency(
                request_id=ask, old_size=request.old_size, checkpoint=note, hashes=hashes,
                receipt=evidence,
            )]
        if isinstance(request, messages.ListPlugins):
            return [messages.Plugins(request_id=ask, plugins=(), receipt=evidence)]
        return [echo(request, receipt=evidence)]

    def receipt_fields(self, request: Request) -> dict[str, object]:
        """Give the position of the request's event, and the checkpoint that the client lacks."""
        known, note = request.known_size, self.ledger.note(self.size)
        assert known is not None
        self.position = max(self.position + 1, self.size)
        if known == self.size:
            return {"seq": self.position}
        consistency = self.ledger.consistency(known, self.size) if known < self.size else ()
        return {"seq": self.position, "checkpoint": note, "consistency": consistency}


def known_sizes(gateway: ScriptedGateway) -> list[int | None]:
    """Give the log sizes that requests named."""
    return [request.known_size for request in gateway.requests]


def invoke(client: OmegaClient) -> None:
    """Make one call."""
    client.invoke("a-plugin", "m", "x")


def test_a_growing_ledger_is_followed_and_kept():
    """Each request names what is known, each newer checkpoint is accepted, the last one kept."""
    honest = Honest(SmallLedger(20), 3)
    with scripted_gateway(honest) as gateway:
        with OmegaClient(gateway.path()) as client:
            for size in (3, 4, 4, 9, 16, 20):
                honest.size = size
                invoke(client)
        path = f"{gateway.path()}/head.note"
        with open(path, encoding="utf-8") as file:
            assert file.read() == honest.ledger.note(20)
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert sorted(os.listdir(gateway.path())) == [
            "client.key_secret", "head.note", "profile.toml"
        ]
        with OmegaClient(gateway.path()) as client:
            invoke(client)

        assert known_sizes(gateway) == [0, 3, 4, 4, 9, 16, 20]


FORGERIES = {
    "another ledger's receipt": {"log_id": "omega-gateway/development/ffffffffffffffff"},
    "a new event before old ones": {"seq": 7, "checkpoint": None, "consistency": None},
    "an unsigned checkpoint": {"checkpoint": "x\n"},
    "no proof": {"consistency": ()},
    "a proof too long": {"consistency": ("ab" * 32,) * 9},
    "another key's checkpoint":
        {"checkpoint": SmallLedger(20).note(12, key=OTHER_KEY, seed=OTHER_SEED)},
    "a wrong signature": {"checkpoint": SmallLedger(20).note(12, seed=OTHER_SEED)},
    "another origin":
        {"checkpoint": SmallLedger(20).note(12, origin="omega-gateway/development/" + "f" * 16)},
    "another history": {
        "checkpoint": SmallLedger(20, salt="f").note(12),
        "consistency": SmallLedger(20, salt="f").consistency(8, 12),
    },
    "a smaller checkpoint": {"checkpoint": SmallLedger(20).note(7), "consistency": ()},
    "another root of the same size":
        {"checkpoint": SmallLedger(20, salt="f").note(8), "consistency": ()},
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_evidence_of_another_history_is_a_fork(forgery):
    """Whatever does not continue what was accepted is raised, and the kept checkpoint stays."""
    honest = Honest(SmallLedger(20), 8)
    with scripted_gateway(honest) as gateway, OmegaClient(gateway.path()) as client:
        invoke(client)
        honest.size, honest.changes = 12, FORGERIES[forgery]

        with pytest.raises(LedgerForked):
            invoke(client)
        with open(f"{gateway.path()}/head.note", encoding="utf-8") as file:
            assert file.read() == honest.ledger.note(8)


def test_a_ledger_that_was_cut_is_noticed_without_any_checkpoint():
    """A gateway restored from an old copy gives positions that were taken before."""
    honest = Honest(SmallLedger(20), 20)
    with scripted_gateway(honest) as gateway, OmegaClient(gateway.path()) as client:
        invoke(client)
        honest.size, honest.position = 12, 0

        with pytest.raises(LedgerForked, match="position 12, but 21 events"):
            invoke(client)


def test_a_first_checkpoint_of_a_wrong_key_is_refused():
    """Trust on first use does not reach beyond the profile's key."""
    honest = Honest(SmallLedger(20), 8)
    honest.changes = {"checkpoint": honest.ledger.note(8, key=OTHER_KEY, seed=OTHER_SEED)}
    with scripted_gateway(honest) as gateway, OmegaClient(gateway.path()) as client:
        with pytest.raises(LedgerForked, match="no signature"):
            invoke(client)
        assert not os.path.exists(f"{gateway.path()}/head.note")


@pytest.mark.parametrize("damage", ["", "nonsense", "other"])
def test_a_damaged_kept_checkpoint_is_said_and_not_skipped(damage):
    """Forgetting what was seen is never done silently."""
    with scripted_gateway(start=False) as gateway:
        with open(f"{gateway.path()}/head.note", "w", encoding="utf-8") as file:
            file.write(SmallLedger(3).note(3, seed=OTHER_SEED) if damage == "other" else damage)

        with pytest.raises(GatewayError, match=r"head\.note: cannot be used"):
            OmegaClient(gateway.path())


def test_a_head_that_cannot_be_kept_is_an_error_of_the_client_s():
    """A full or lost volume of the profile ends the call with the file's name, and at once."""
    with scripted_gateway(Honest(SmallLedger(20), 5)) as gateway:
        path = f"{gateway.path()}/head.note"
        with OmegaClient(gateway.path()) as client:
            os.rename(gateway.path(), f"{gateway.path()}.moved")
            with pytest.raises(GatewayError, match=r"head\.note: cannot be kept: No such file"):
                invoke(client)
            os.rename(f"{gateway.path()}.moved", gateway.path())
        os.mkdir(path)
        with pytest.raises(GatewayError, match=r"head\.note: cannot be read: Is a directory"):
            OmegaClient(gateway.path())


def test_the_head_is_asked_for_and_accepted_with_its_proof():
    """`ledger_head` brings the client up to the newest checkpoint."""
    honest = Honest(SmallLedger(20), 5)
    with scripted_gateway(honest) as gateway, OmegaClient(gateway.path()) as client:
        assert client.ledger_head().checkpoint == honest.ledger.note(5)
        honest.size = 11
        assert client.ledger_head().checkpoint == honest.ledger.note(11)
        client.ledger_head()
        invoke(client)

        assert known_sizes(gateway)[-1] == 11


@pytest.mark.parametrize(
    ("size", "changes"),
    [
        (5, {}),
        (11, {"verifier_key": str(OTHER_KEY)}),
        (11, {"checkpoint": "nonsense"}),
        (11, {"checkpoint": SmallLedger(20).note(10)}),
        (11, {"receipt": None}),
        (8, {"checkpoint": SmallLedger(20, salt="f").note(8)}),
    ],
    ids=["older", "other key", "nonsense", "another than the receipt's", "unproven", "other root"],
)
def test_a_head_of_another_history_is_a_fork(size, changes):
    """An older head, another key or another root is raised, and one that nothing proves."""
    honest = Honest(SmallLedger(20), 8)
    with scripted_gateway(honest) as gateway, OmegaClient(gateway.path()) as client:
        invoke(client)
        honest.size, honest.head_changes = size, changes

        with pytest.raises(LedgerForked):
            client.ledger_head()


def test_a_proven_event_is_returned():
    """The line of an event comes back once its proof holds."""
    honest = Honest(SmallLedger(20), 13)
    with scripted_gateway(honest) as gateway, OmegaClient(gateway.path()) as client:
        for seq in (0, 7, 12):
            assert client.prove(seq).line == honest.ledger.lines[seq].decode()


@pytest.mark.parametrize(
    "changes",
    [
        {"seq": 6}, {"hashes": ()}, {"line": SmallLedger(20, salt="f").lines[7].decode()},
        {"checkpoint": SmallLedger(20, salt="f").note(13)}, {"checkpoint": "nonsense"},
    ],
    ids=["other place", "no proof", "other line", "other tree", "no checkpoint"],
)
def test_an_event_that_is_not_proven_is_a_fork(changes):
    """A line without its proof is never returned."""
    honest = Honest(SmallLedger(20), 13)
    honest.proof_changes = changes
    with (
        scripted_gateway(honest) as gateway,
        OmegaClient(gateway.path()) as client,
        pytest.raises(LedgerForked),
    ):
        client.prove(7)


def test_any_request_tells_of_a_cut_ledger():
    """A gateway whose newest checkpoint is older than what was accepted is caught by a read."""
    honest = Honest(SmallLedger(20), 20)
    with scripted_gateway(honest) as gateway:
        with OmegaClient(gateway.path()) as client:
            client.list_plugins()
        honest.size, honest.position = 12, 40
        with OmegaClient(gateway.path()) as client, pytest.raises(LedgerForked, match="continue"):
            client.list_plugins()


def test_two_clients_of_one_profile_share_what_they_know():
    """An older checkpoint never replaces a newer one, and another root of its size is a fork."""
    honest = Honest(SmallLedger(20), 3)
    with scripted_gateway(honest) as gateway:
        path = f"{gateway.path()}/head.note"
        with OmegaClient(gateway.path()) as first, OmegaClient(gateway.path()) as second:
            invoke(first)
            honest.size = 9
            invoke(second)
            honest.size = 7
            invoke(first)
            with open(path, encoding="utf-8") as file:
                assert file.read() == honest.ledger.note(9)

            honest.ledger = SmallLedger(7)
            for number in (7, 8):
                honest.ledger.append("f", number)
            honest.size = 9
            with pytest.raises(LedgerForked, match=r"head\.note has another root"):
                invoke(first)


def test_an_event_cannot_stand_where_another_was_seen():
    """A position that a receipt has taken is not free again, checkpoint or not."""
    honest = Honest(SmallLedger(20), 8)
    with scripted_gateway(honest) as gateway, OmegaClient(gateway.path()) as client:
        for _ in range(3):
            invoke(client)
        honest.position = 8

        with pytest.raises(LedgerForked, match="position 9, but 11 events"):
            invoke(client)
