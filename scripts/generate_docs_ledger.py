"""Write the generated parts of docs/LEDGER.md from `schemas`, or check that they are fresh.

`python -m scripts.generate_docs_ledger --rewrite` writes; alone it compares and exits 1 on a
difference. The parts stand between `<!-- generated: NAME -->` and `<!-- end -->`: the page of all
events, the shapes of their fields, an example that a reader can recompute, and what the audit asks.
The rest of the page is written by people.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Final

import msgspec
import nacl.signing
from msgspec import inspect

from broker.evidence.audit import INVARIANTS
from broker.evidence.prove import encode_bundle, encode_tlog_proof
from schemas.events import EVENT_TYPES, GENESIS_HASH, EventFields, LedgerClose, encode_event
from schemas.proof import Checkpoint, ProofBundle, ProofItem, VerifierKey, sign_note
from scripts.wire_types import bounds_of, description, plain_type, shape_key, shapes

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "LEDGER.md"
LOG_ID: Final = "omega-gateway/development/0123456789abcdef"
_SHAPES: Final = shapes()


def _type_name(kind: inspect.Type, used: dict[str, inspect.Type]) -> str:
    """Name a field's type as the page does, and remember the shapes it needs."""
    named, plain = _SHAPES.get(shape_key(kind)), plain_type(kind)
    if named:
        used[named] = kind
        return f"`{named}`"
    if isinstance(plain, inspect.UnionType):
        kinds = [one for one in plain.types if not isinstance(one, inspect.NoneType)]
        return " or ".join(_type_name(one, used) for one in kinds)
    if isinstance(plain, inspect.LiteralType):
        return ", ".join(f"`{value}`" for value in plain.values)
    if isinstance(plain, inspect.EnumType):
        return f"`{plain.cls.__name__}`"
    if isinstance(plain, inspect.VarTupleType):
        return f"list of {_type_name(plain.item_type, used)}, at most {plain.max_length}"
    if isinstance(plain, inspect.DictType):
        key, value = _type_name(plain.key_type, used), _type_name(plain.value_type, used)
        return f"object, at most {plain.max_length}, of {key} to {value}"
    if isinstance(plain, inspect.BoolType):
        return "true or false"
    return bounds_of(kind).replace("|", "\\|")


def _default(field: inspect.Field) -> str:
    """Say what an absent member means."""
    if field.required:
        return "always there"
    value = field.default if field.default is not msgspec.NODEFAULT else ()
    return "" if value is None else f"absent means {json.dumps(value)}"


def _event_lines(kind: type[EventFields], used: dict[str, inspect.Type]) -> list[str]:
    described = inspect.type_info(kind)
    assert isinstance(described, inspect.StructType)
    summary = re.sub(r"\s+", " ", kind.__doc__ or "").strip()
    lines = [f"### {kind.EVENT_TYPE}", "", summary, ""]
    lines += ["| member of `f` | holds | |", "|---|---|---|"]
    for field in sorted(described.fields, key=lambda one: one.encode_name):
        holds = _type_name(field.type, used)
        lines.append(f"| `{field.encode_name}` | {holds} | {_default(field)} |")
    return [*lines, ""]


def events() -> list[str]:
    """Describe every event type, then the shapes that their members use."""
    used: dict[str, inspect.Type] = {}
    lines: list[str] = []
    for kind in EVENT_TYPES.values():
        lines += _event_lines(kind, used)
    lines += ["### Shapes", "", "| shape | admits | means |", "|---|---|---|"]
    for name, shape in sorted(used.items()):
        admits = bounds_of(shape).replace("|", "\\|")
        lines.append(f"| `{name}` | {admits} | {description(shape)} |")
    lines += ["", "`RefusalCode` is one of the codes on the page of [refusals](REFUSALS.md)."]
    return lines


def _two_events() -> tuple[list[str], list[str], Checkpoint]:
    """Make the example's ledger: lines, event hashes, tree head."""
    lines, hashes, previous = [], [], GENESIS_HASH
    for seq in range(2):
        line, previous = encode_event(
            LedgerClose(reason="drained"), log_id=LOG_ID, seq=seq, prev_hash=previous,
            ts_us=1_790_000_000_000_000 + seq, mono_us=51 + seq,
        )
        lines.append(line.decode().rstrip("\n"))
        hashes.append(previous)
    root = hashlib.sha256(b"\x01" + bytes.fromhex("".join(hashes))).digest()
    return lines, hashes, Checkpoint(origin=LOG_ID, size=2, root=root)


def example() -> list[str]:
    """Show a ledger of two events byte for byte, its root, and the key hash of a verifier key."""
    lines, _, head = _two_events()
    key = VerifierKey(name=LOG_ID, public_key=bytes(range(32)))
    return [
        "```", *lines, "```", "",
        "The text of the checkpoint over both, and the verifier key of the key 00 01 02 … 1f:",
        "", "```", *str(head).splitlines(), "", str(key), "```",
    ]


def proof() -> list[str]:
    """Show a bundle and a tlog-proof over those events, signed by a key that anybody can make."""
    signing = nacl.signing.SigningKey(bytes(range(32)))
    key = VerifierKey(name=LOG_ID, public_key=bytes(signing.verify_key))
    lines, hashes, head = _two_events()
    note = sign_note(str(head), key, lambda text: signing.sign(text).signature)
    first = ProofItem(index=0, proof=(hashes[1],), line=lines[0])
    second = ProofItem(index=1, proof=(hashes[0],), event_hash=hashes[1])
    bundle = ProofBundle(
        format="omega-proof/v1", origin=LOG_ID, checkpoint=note, items=(first, second)
    )
    single = msgspec.structs.replace(bundle, items=(first,))
    return [
        "```", encode_bundle(bundle).decode().rstrip("\n"), "```", "",
        "```", *encode_tlog_proof(single).decode().splitlines(), "```", "",
        "The signing key's seed is 00 01 02 … 1f; so this is its verifier key:",
        "", "```", str(key), "```",
    ]


def audit() -> list[str]:
    """List the invariants that an audit asks about."""
    lines = ["| audit | invariant | what must hold |", "|---|---|---|"]
    return lines + [
        f"| {one.name} | {one.specification} | {one.sentence} |" for one in sorted(INVARIANTS)
    ]


def build() -> str:
    """Give the page with its generated parts as they must be."""
    text = PAGE.read_text("utf-8")
    for name, lines in (
        ("example", example()), ("proof", proof()), ("events", events()), ("audit", audit()),
    ):
        mark = f"<!-- generated: {name} -->\n"
        before, found, rest = text.partition(mark)
        _, end, after = rest.partition("<!-- end -->")
        if not found or not end or mark in after:
            sys.exit(f"{PAGE}: the part {name!r} must have exactly one place")
        text = before + mark + "\n".join(lines) + "\n" + end + after
    return text


def main(arguments: list[str]) -> int:
    """Rewrite or compare; the exit status says whether the page is fresh."""
    text = build()
    fresh = PAGE.read_text("utf-8") == text
    if not fresh and "--rewrite" in arguments:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if not fresh:
        print(f"stale: {PAGE.name}; python -m scripts.generate_docs_ledger --rewrite")
    return 0 if fresh else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
