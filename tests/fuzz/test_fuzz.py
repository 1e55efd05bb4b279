"""Every target takes its seeds, what fuzzing kept, and some thousands of inputs made from them.

`scripts/fuzz` searches further, guided by coverage, and adds what it finds to corpus/.
"""

from __future__ import annotations

import random

import msgspec
import pytest

from broker.core import Core
from schemas import codec
from tests.fuzz import targets
from tests.fuzz.corpus import read
from tests.fuzz.targets import TARGETS, VERIFY_PROOF, proofs
from tests.ledger.conftest import VERIFIER_KEY
from tests.simulation.fakes import Broken
from tests.trust.builders import accepted

MADE = {"core": 60, "core-frames": 60, "bundle": 400, "trust": 600, "verify-proof": 300}
"""How many inputs are made for a target; the rest take 1,500."""


def changed(chance: random.Random, inputs: list[bytes]) -> bytes:
    """Change an input as a careless or hostile peer would, or put two together."""
    data = bytearray(chance.choice(inputs))
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(6):
            case 0 if data:
                data[at % len(data)] ^= 1 << chance.randrange(8)
            case 1 if data:
                data[at % len(data)] = chance.choice((0, 1, 0x7F, 0x80, 0xC1, 0xDF, 0xFF))
            case 2:
                del data[at : at + chance.choice((1, 2, 4, 64))]
            case 3:
                data[at:at] = chance.randbytes(chance.choice((1, 4, 16)))
            case 4:
                data[at:at] = data[: chance.choice((1, 8, 64))]
            case _:
                other = chance.choice(inputs)
                data[at:] = other[chance.randrange(len(other) + 1) :]
    return bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_are_answered_or_refused(name: str):
    """No input, kept or made, ends in an exception that the target does not promise."""
    target, chance = TARGETS[name], random.Random(name)
    inputs = [*target.seeds(), *read(name)]
    for data in (b"", *inputs):
        target.run(data)
    for _ in range(MADE.get(name, 1500)):
        data = changed(chance, inputs)
        try:
            target.run(data)
        except Exception as error:
            error.add_note(f"input: {data.hex()}")
            raise


@pytest.mark.parametrize(("name", "decoder"), [
    ("wire-from-omega", codec.from_omega), ("wire-from-admin", codec.from_admin),
    ("wire-from-worker", codec.from_worker), ("wire-to-worker", codec.to_worker),
])
def test_seeds_of_the_wire_are_messages(name: str, decoder: codec.Decoder):
    """Inputs made from them come past the first check."""
    assert all(decoder.decode(frame) for frame in TARGETS[name].seeds())


def test_seeds_that_are_signed_hold():
    """Proofs are proven and bundles accepted, and a target finds it out when others are."""
    for data in proofs():
        proof = VERIFY_PROOF.Proof(VERIFY_PROOF.parse_key(VERIFIER_KEY))
        proof.read(data)
        assert proof.report()["size"] == 10
    assert all(accepted(data) for data in TARGETS["bundle"].seeds())


def test_a_target_fails_when_two_spellings_are_read(monkeypatch: pytest.MonkeyPatch):
    """A decoder that lets a second spelling through is a finding."""
    monkeypatch.setattr(targets, "check_canonical", msgspec.json.decode)
    with pytest.raises(Broken):
        TARGETS["canonical-json"].run(b'{"b":1,"a":2}')


def test_a_target_fails_when_the_core_raises(monkeypatch: pytest.MonkeyPatch):
    """What leaves the core is a finding, however a peer brought it about."""
    def broken(*_: object) -> None:
        raise KeyError("planted")

    monkeypatch.setattr(Core, "from_worker", broken)
    with pytest.raises(KeyError, match="planted"):
        TARGETS["core"].run(TARGETS["core"].seeds()[-1])
