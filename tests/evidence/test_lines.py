"""Admitting lines by the batch says exactly what reading them one by one says."""

from __future__ import annotations

import hashlib
import random
import re

import pytest

from broker.evidence.lines import admit
from schemas.events import (
    EVENT_TYPES,
    GENESIS_HASH,
    InvalidEvent,
    LedgerOpen,
    decode_event,
    encode_event,
)
from tests.schemas.samples import EVENTS, LOG_ID, without_optional_fields

SAMPLES = [*EVENTS, *map(without_optional_fields, EVENTS)]


def chained(log_id: str = LOG_ID) -> list[bytes]:
    """Every sample, in a chain."""
    lines, previous = [], GENESIS_HASH
    for seq, fields in enumerate(SAMPLES):
        line, previous = encode_event(
            fields, log_id=log_id, seq=seq, ts_us=1_790_000_000_000_000 + seq, mono_us=seq,
            prev_hash=previous,
        )
        lines.append(line)
    return lines


def hashed(line: bytes) -> bytes:
    """Give a line its right hash again."""
    digest = hashlib.sha256(b"\x00{" + line[81:].removesuffix(b"\n")).hexdigest()
    return b'{"event_hash":"%b",' % digest.encode() + line[81:]


def test_every_type_is_admitted_with_what_the_tree_needs():
    """A batch of all types gives their hashes, how many they are, the last type and the key."""
    lines = chained()
    assert {type(fields) for fields in SAMPLES} == set(EVENT_TYPES.values())
    batch = admit(b"".join(lines), 0, GENESIS_HASH, LOG_ID)
    assert batch is not None
    assert batch.hashes.hex() == "".join(decode_event(line).event_hash for line in lines)
    assert (batch.events, batch.last) == (len(lines), type(SAMPLES[-1]))
    opened = next(fields for fields in SAMPLES if isinstance(fields, LedgerOpen))
    assert batch.claimed_key == opened.verifier_key


def test_what_does_not_follow_is_not_admitted():
    """Another position, link or ledger, a missing or repeated line: none is the next event."""
    lines = chained()
    first = decode_event(lines[0]).event_hash
    assert admit(lines[1], 1, first, LOG_ID) is not None
    for wrong in (
        (lines[1], 2, first, LOG_ID), (lines[1], 1, GENESIS_HASH, LOG_ID),
        (lines[1], 1, first, LOG_ID.replace("0", "1")), (lines[1] * 2, 1, first, LOG_ID),
        (lines[1] + lines[3], 1, first, LOG_ID), (lines[1] + b"\n", 1, first, LOG_ID),
        (b"\n", 1, first, LOG_ID),
    ):
        assert admit(*wrong) is None


def spoiled(line: bytes, chance: random.Random) -> bytes:
    """Change one thing in the members of an event, mostly so that JSON stays JSON."""
    begin, end = line.index(b'"f":{') + 5, line.rindex(b',"log_id"')
    values = list(re.finditer(rb'"([^"\\]*)"(?=[,}\]])|\b[0-9]+\b|true|false', line[begin:end]))
    found = chance.choice(values)
    old = found[0]
    new = chance.choice((
        old[:-1] + b'x"', old[:-1] + b'\n"', old[:-1] + b'\\u0041"', old[:-1] + b'0"', b'"' + old,
        old.upper(), b"0" + old, b"-" + old, old + b".0", old + b"e1", b"null", b'""', b" " + old,
        b"9007199254740992", b"9007199254740991", b"0", b"1", b"[]", b"{}", b"true", b"false",
        old[:2] + "é".encode() + old[2:], old[:1] + old[2:], old * 2,
    ))
    return hashed(line[: begin + found.start()] + new + line[begin + found.end() :])


@pytest.mark.parametrize("seed", range(4))
def test_it_admits_exactly_what_is_an_event(seed):
    """For thousands of spoiled lines with a right hash, both ways say the same."""
    chance = random.Random(seed)
    lines = chained()
    admitted = 0
    for _ in range(1500):
        seq = chance.randrange(len(lines))
        line = spoiled(lines[seq], chance)
        previous = re.search(rb'"prev_hash":"([0-9a-f]{64})"', lines[seq])
        assert previous is not None
        try:
            decode_event(line)
            valid = line.count(b"\n") == 1
        except InvalidEvent:
            valid = False
        assert (admit(line, seq, previous[1].decode(), LOG_ID) is not None) == valid, line
        admitted += valid
    assert admitted > 20
