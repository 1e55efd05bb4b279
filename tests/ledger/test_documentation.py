"""docs/LEDGER.md says what the code does: its events, its example, its verdicts and refusals."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

from broker.evidence.opening import LABELS
from broker.evidence.verify import ProblemKind
from broker.ledger.errors import LedgerRefused
from broker.ledger.merkle import node_hash
from schemas.events import EVENT_TYPES, GENESIS_HASH, decode_event
from schemas.proof import parse_checkpoint, parse_verifier_key
from tests.evidence.conftest import load_script

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "LEDGER.md"


def section(number: int) -> str:
    return re.split(r"^## \d+\. .*$", PAGE.read_text(), flags=re.MULTILINE)[number]


def test_the_generated_parts_are_fresh():
    """The page's events are those of `schemas.events`, field by field."""
    done = subprocess.run(
        [sys.executable, "-m", "scripts.generate_docs_ledger"], cwd=ROOT, capture_output=True,
        text=True, check=False, timeout=60,
    )
    assert done.returncode == 0, done.stdout


def test_the_example_is_a_ledger():
    """Its lines decode and are chained, and its checkpoint has their root."""
    lines = re.findall(r"^\{.*\}$", section(2), re.MULTILINE)
    events = [decode_event(line.encode()) for line in lines]
    assert [event.prev_hash for event in events] == [GENESIS_HASH, events[0].event_hash]
    body = b"\x00{" + lines[0].encode()[81:]
    assert hashlib.sha256(body).hexdigest() == json.loads(lines[0])["event_hash"]
    text, key = section(2).rpartition("```\n")[0].rpartition("```\n")[2].strip().split("\n\n")
    checkpoint = parse_checkpoint(text + "\n")
    leaves = [bytes.fromhex(event.event_hash) for event in events]
    assert (checkpoint.size, checkpoint.root) == (2, node_hash(*leaves))
    assert parse_verifier_key(key).public_key == bytes(range(32))


def test_every_verdict_and_refusal_is_defined():
    """The tables list exactly the verdicts and refusals that the code knows."""
    verdicts = re.findall(r"^\| `([a-z_]+)` \|", section(8), re.MULTILINE)
    assert sorted(verdicts) == sorted(get_args(ProblemKind))
    refusals = set(re.findall(r"^\| `([a-z_]+)` \|", section(7), re.MULTILINE))
    assert refusals == {kind.code.value for kind in LedgerRefused.__subclasses__()}


def test_the_worked_proofs_hold():
    """The bundle and the tlog-proof of the page are accepted with the page's key, byte for byte."""
    script = load_script("verify_proof")
    part = section(10).partition("<!-- generated: proof -->")[2].partition("<!-- end -->")[0]
    blocks = re.findall(r"```\n(.*?)```", part, re.DOTALL)
    seen = []
    for block in blocks[:2]:
        proof = script.Proof(script.parse_key(blocks[2].strip()))
        proof.read(block.encode())
        seen.append([
            (event["index"], event.get("event_type")) for event in proof.report()["events"]
        ])
    assert seen == [[(0, "ledger.close"), (1, None)], [(0, "ledger.close")]]


def test_every_commitment_is_on_the_page():
    """The table of commitments has exactly the members and labels that can be opened."""
    rows = re.findall(r"^\| `([a-z.]+)` \| `([a-z_]+)` \| `([a-z]+)` \|", section(11), re.MULTILINE)
    assert {member: label for _, member, label in rows} == LABELS
    for event_type, member, _ in rows:
        assert member in EVENT_TYPES[event_type].__struct_fields__
    committing = {
        member for kind in EVENT_TYPES.values() for member in kind.__struct_fields__
        if member.endswith("_commitment")
    }
    assert committing == set(LABELS)
