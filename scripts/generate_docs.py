"""Write the parts of the documentation that the code already says, or check that they are fresh.

`python -m scripts.generate_docs --rewrite` writes; alone it compares and exits 1 on a difference.
Whole files: docs/wire.schema.json, docs/manifest.schema.json, docs/conformance.schema.json,
docs/wire.d.ts, docs/REFUSALS.md. Parts of pages stand between `<!-- generated: NAME -->` and
`<!-- end -->`: tables and worked examples of docs/WIRE.md, state diagrams of docs/ARCHITECTURE.md,
rules of docs/how-to/conformance.md. What people must judge is written by people.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
from msgspec import inspect

from broker.lifecycle import MAY_SEND, TRANSITIONS
from schemas import messages, payloads
from schemas.codec import MAGIC, encode
from schemas.conformance import RULES, ConformanceReport
from schemas.denials import DENIALS
from schemas.events import GENESIS_HASH, FrameIn, encode_event
from schemas.manifest import PluginManifest
from schemas.refusals import REFUSALS
from scripts.wire_types import (
    TypeScript,
    bounds_of,
    description,
    plain_type,
    shape_key,
    shapes,
    typescript,
)

ROOT: Final = Path(__file__).resolve().parent.parent
UNIONS: Final[dict[str, object]] = {
    "FromOmega": messages.FromOmega,
    "FromAdmin": messages.FromAdmin,
    "ToOmega": messages.ToOmega,
    "ToAdmin": messages.ToAdmin,
    "FromWorker": messages.FromWorker,
    "ToWorker": messages.ToWorker,
}
ANSWERS: Final[dict[str, str]] = {
    "invoke": "`progress` any number of times, then `result` or `refusal`",
    "invoke_pipeline": "`progress` any number of times, then `pipeline_result` or `refusal`",
    "cancel": "`cancelled` or `refusal`",
    "list_plugins": "`plugins`",
    "get_plugin": "`plugin`",
    "status": "`status_report`",
    "ledger_head": "`head`",
    "prove": "`proof`",
    "prove_consistency": "`consistency`",
    "show_request": "`request_story`",
    "register_plugin": "`registered`",
    "validate_bundle": "`validation`",
    "enable_plugin": "`enabled`",
    "disable_plugin": "`disabled`",
    "approve": "`approved`",
    "grant": "`granted`",
    "revoke": "`revoked`",
    "set_trust": "`trust`",
}


def json_schema() -> str:
    """Write docs/wire.schema.json: JSON Schema 2020-12 of every message."""
    unions = list(UNIONS.values())
    roots, components = msgspec.json.schema_components(unions, ref_template="#/$defs/{name}")
    for component in components.values():
        # Docstrings keep their indentation up to Python 3.12 and lose it from 3.13 on.
        component["description"] = " ".join(component.get("description", "").split())
    document: dict[str, object] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:omega-gateway:wire:1",
        "title": "OMEGA Plugin Gateway, wire format OPG1",
        "description": "Generated from the message types. Byte fields are msgpack binaries on the "
        "wire; where a message is shown as JSON they are base64. Clients must ignore unknown "
        "fields and unknown reply types although a reply is described here without them.",
        "$defs": dict(sorted(components.items())) | dict(zip(UNIONS, roots, strict=True)),
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def manifest_schema() -> str:
    """Write docs/manifest.schema.json: JSON Schema 2020-12 of a plugin's manifest."""
    return _document_schema(
        PluginManifest, "manifest:1", "Plugin manifest omega-manifest/1",
        "Generated from schemas/manifest.py. The signed bytes are the RFC 8785 form "
        "of such a document, with defaults left out. What needs other knowledge (signatures, the "
        "trust root, policy, versions, the files) `omega-gateway plugins validate` tells.",
    )


def conformance_schema() -> str:
    """Write docs/conformance.schema.json: JSON Schema 2020-12 of a conformance report."""
    return _document_schema(
        ConformanceReport, "conformance:1", "Conformance report omega-conformance/v1",
        "Generated from schemas/conformance.py. The signed bytes are the RFC 8785 form of such a "
        "document, with defaults left out.",
    )


def _document_schema(
    kind: type[msgspec.Struct], identifier: str, title: str, description: str
) -> str:
    document = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:omega-gateway:{identifier}",
        "title": title,
        "description": description,
    }
    (root,), components = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    for component in components.values():
        component["description"] = " ".join(component.get("description", "").split())
    whole = document | root | {"$defs": dict(sorted(components.items()))}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


# --- docs/REFUSALS.md
# ------------------------------------------------------------------------


def refusals() -> str:
    """Write docs/REFUSALS.md: one section for each code."""
    lines = [
        "# Refusal codes",
        "",
        "Generated from `schemas/refusal_pages.py`; `omega-gateway explain CODE` prints the same.",
        "A code never changes its meaning. *Retry* says whether the same request may succeed later "
        "without anybody changing anything; *fault* is whose it is.",
    ]
    for code, info in REFUSALS.items():
        lines += [
            "", f"## {code}", "", f"**{info.title}.** {info.reason}", "", f"{info.remedy}", "",
            f"Retry: {'yes' if info.retryable else 'no'}. Fault: {info.blame}.",
        ]
    lines += [
        "", "## What the sandbox denied", "",
        "Where a plugin failed, the refusal's `hint` may name the class of the last operation that "
        "was denied to it.",
        "That is the word of its process: a hint from hostile code; it never holds an argument.",
        "`omega-plugin explain CLASS` prints the same.", "",
        "| class | what was tried | what would cover it | line of plugin.toml |",
        "|---|---|---|---|",
        *(
            f"| {name} | {page.tried} | {page.cover} | {f'`{page.line}`' if page.line else ''} |"
            for name, page in DENIALS.items()
        ),
    ]
    return "\n".join(lines) + "\n"


# --- docs/WIRE.md
# ----------------------------------------------------------------------------


def _type_words(kind: inspect.Type, known: dict[tuple[object, ...], str]) -> str:
    plain = plain_type(kind)
    named = known.get(shape_key(kind))
    if named and isinstance(plain, inspect.StrType | inspect.IntType | inspect.BytesType):
        return named
    if isinstance(plain, inspect.LiteralType):
        return " or ".join(f"`{value}`" for value in plain.values)
    if isinstance(plain, inspect.EnumType):
        return "a code of [REFUSALS.md](REFUSALS.md)"
    if isinstance(plain, inspect.VarTupleType):
        bounds = bounds_of(plain)
        item = _type_words(plain.item_type, known)
        return f"array of {item}" + (f", {bounds}" if bounds else "")
    if isinstance(plain, inspect.DictType):
        return f"map of {_type_words(plain.key_type, known)} to " + _type_words(
            plain.value_type, known
        )
    if isinstance(plain, inspect.UnionType):
        members = [m for m in plain.types if not isinstance(m, inspect.NoneType)]
        structs = [m.cls for m in members if isinstance(m, inspect.StructType)]
        words = [] if set(payloads.PAYLOAD_KINDS) - set(structs) else ["Payload"]
        words += [
            _type_words(m, known)
            for m in members
            if not (words and getattr(m, "cls", None) in payloads.PAYLOAD_KINDS)
        ]
        if len(members) < len(plain.types):
            words.append("nil")
        return " or ".join(words)
    if isinstance(plain, inspect.StructType):
        return plain.cls.__name__
    if isinstance(plain, inspect.IntType):
        return bounds_of(plain)
    word = {
        inspect.StrType: "text", inspect.BoolType: "boolean", inspect.BytesType: "binary",
    }[type(plain)]
    return ", ".join(part for part in (word, bounds_of(plain)) if part)


def _default(field: inspect.Field) -> str:
    if field.required:
        return "yes"
    if field.default in (None, (), ""):
        return "no"
    return f"no, then `{field.default}`"


def _struct_table(cls: type[msgspec.Struct], known: dict[tuple[object, ...], str]) -> list[str]:
    kind = inspect.type_info(cls)
    assert isinstance(kind, inspect.StructType)
    title = f"`{kind.tag}`" if kind.tag is not None else cls.__name__
    lines = [f"#### {title}", "", " ".join((cls.__doc__ or "").split()), ""]
    skipped = {"request_id", "traceparent", "known_size", "receipt"}
    shared = skipped if kind.tag and "request_id" in cls.__struct_fields__ else set()
    fields = [field for field in kind.fields if field.name not in shared]
    if not fields:
        return [*lines, "No fields of its own.", ""]
    lines += ["| field | type | required |", "|---|---|---|"]
    for field in fields:
        words = _type_words(field.type, known).replace("|", "\\|")
        lines.append(f"| `{field.encode_name}` | {words} | {_default(field)} |")
    return [*lines, ""]


def _members(*unions: object) -> list[type[msgspec.Struct]]:
    return list(dict.fromkeys(cls for union in unions for cls in typing.get_args(union)))


def _inner(outer: list[type[msgspec.Struct]]) -> Iterator[type[msgspec.Struct]]:
    """Give the structs inside messages, each once, in the order in which they are met."""
    writer = TypeScript()
    for cls in outer:
        writer.type_of(inspect.type_info(cls))
    yield from (cls for cls in writer.classes if cls not in outer)


def wire_requests() -> list[str]:
    """Write who may send what, and what answers it."""
    lines = ["| request | front.omega | front.admin | roles | answered by |",
             "|---|---|---|---|---|"]
    omega, admin = _members(messages.FromOmega), _members(messages.FromAdmin)
    for cls in _members(messages.FromOmega, messages.FromAdmin):
        tag = str(cls.__struct_config__.tag)
        roles = ", ".join(r for r in ("omega", "operator", "auditor") if (r, tag) in MAY_SEND)
        row = ("yes" if cls in omega else "", "yes" if cls in admin else "",
               roles or "none yet: `role_not_allowed`", ANSWERS[tag])
        lines.append(f"| `{tag}` | " + " | ".join(row) + " |")
    return lines


def wire_messages() -> list[str]:
    """Write the field tables of all client messages and of what lies inside them."""
    known = shapes()
    requests = _members(messages.FromOmega, messages.FromAdmin)
    replies = _members(messages.Reply)
    lines = ["### Requests", ""]
    for cls in requests:
        lines += _struct_table(cls, known)
    lines += ["### Replies", ""]
    for cls in replies:
        lines += _struct_table(cls, known)
    lines += ["### Parts", ""]
    for cls in _inner([*requests, *replies]):
        lines += _struct_table(cls, known)
    return lines[:-1]


def wire_shapes() -> list[str]:
    """Write the named shapes that the tables use."""
    writer = TypeScript()
    for cls in _members(messages.FromOmega, messages.FromAdmin, messages.Reply):
        writer.type_of(inspect.type_info(cls))
    lines = ["| name | what it is | bounds |", "|---|---|---|"]
    for name in sorted(writer.used):
        kind = writer.used[name]
        bounds = bounds_of(kind).replace("|", "\\|")
        lines.append(f"| {name} | {description(kind)} | {bounds} |")
    return lines


_REQUEST = "6f1c2d3e-4b5a-4c7d-8e9f-0a1b2c3d4e5f"
_KEY = bytes(range(32))
_TEXT = payloads.TextPayload("Δx = 3")


def wire_example() -> list[str]:
    """Write one request byte by byte."""
    request = messages.Invoke(
        request_id=_REQUEST, plugin="word-count", method="count", payload=_TEXT, timeout_ms=2000,
        commitment_key=_KEY,
    )
    pack = msgspec.msgpack.encode
    members = msgspec.to_builtins(request, builtin_types=(bytes,))
    lines = ["```", f"{MAGIC.hex()}  the four bytes {MAGIC.decode()}",
             f"{0x80 | len(members):02x}  a map of {len(members)} members"]
    for key, value in members.items():
        shown = f"{len(value)} bytes" if isinstance(value, bytes) else json.dumps(
            value, ensure_ascii=False
        )
        lines.append(f"{pack(key).hex()} {pack(value).hex()}  {key}: {shown}")
    joined = "".join(re.sub(r"  .*", "", line).replace(" ", "") for line in lines[1:])
    assert bytes.fromhex(joined) == encode(request)
    return [*lines, "```"]


def wire_commitment() -> list[str]:
    """Write one commitment with its preimage, field by field."""
    fields = (b"text", _TEXT.text.encode(), _TEXT.media_type.encode())
    plain = b"".join(len(field).to_bytes(8, "big") + field for field in fields)
    assert plain == payloads.preimage(_TEXT)
    lines = ["```", f"key         {_KEY.hex()}", "label       input"]
    for field in fields:
        length = len(field).to_bytes(8, "big").hex()
        lines.append(f"preimage    {length} {field.hex()}  {field.decode()}")
    value = hmac.digest(_KEY, b"input\x00" + plain, "sha256").hex()
    digest = hashlib.sha256(plain).hexdigest()
    return [*lines, f"commitment  {value}", f"sha256      {digest}", "```"]


def wire_event() -> list[str]:
    """Write one ledger line, as a proof or a request's story carries it."""
    line, event_hash = encode_event(
        FrameIn(plane="front.omega", peer="5e" * 8, type="invoke", bytes=212, request_id=_REQUEST),
        log_id="omega-gateway/development/0123456789abcdef", seq=0, ts_us=1_790_000_000_000_000,
        mono_us=51, prev_hash=GENESIS_HASH,
    )
    return ["```", line.decode().rstrip("\n"), "```", "",
            f"Its `event_hash` is `{event_hash}`."]


# --- docs/ARCHITECTURE.md
# --------------------------------------------------------------------


def state_diagrams() -> list[str]:
    """Draw the transition tables of `broker.lifecycle`."""
    lines: list[str] = []
    for name, table in TRANSITIONS.items():
        arrows: dict[tuple[str, str], list[str]] = {}
        for (state, event), after in table.items():
            arrows.setdefault((state, after), []).append(event)
        first = next(iter(table))[0]
        targets = {after for _, after in arrows}
        ends = sorted(targets - {state for state, _ in arrows})
        lines += [f"**{name}**", "", "```mermaid", "stateDiagram-v2", f"  [*] --> {first}"]
        lines += [f"  {a} --> {b}: {', '.join(events)}" for (a, b), events in arrows.items()]
        lines += [*(f"  {end} --> [*]" for end in ends), "```", ""]
    return lines[:-1]


def role_table() -> list[str]:
    """Write the role table of `broker.lifecycle`."""
    requests = [str(c.__struct_config__.tag)
                for c in _members(messages.FromOmega, messages.FromAdmin)]
    roles = ("omega", "operator", "auditor")
    lines = ["| request | omega | operator | auditor |", "|---|---|---|---|"]
    for tag in requests:
        cells = " | ".join("yes" if (role, tag) in MAY_SEND else "" for role in roles)
        lines.append(f"| `{tag}` | {cells} |")
    return lines


# --- Files
# ------------------------------------------------------------------------------------


def conformance_rules() -> list[str]:
    """The rules of the conformance suite."""
    rows = [f"| {number} | {sentence} |" for number, sentence in RULES.items()]
    return ["| rule | a plugin |", "|---|---|", *rows]


def _filled(path: Path, parts: dict[str, list[str]]) -> str:
    """Put generated parts between their marks; every part must have exactly one place."""
    text = path.read_text("utf-8")
    for name, lines in parts.items():
        mark = f"<!-- generated: {name} -->\n"
        before, found, rest = text.partition(mark)
        _, end, after = rest.partition("<!-- end -->")
        if not found or not end or mark in after:
            sys.exit(f"{path}: the part {name!r} must have exactly one place")
        text = before + mark + "\n".join(lines) + "\n" + end + after
    return text


def build() -> dict[Path, str]:
    """Give the wanted content of every file that is generated in whole or in part."""
    docs = ROOT / "docs"
    return {
        docs / "wire.schema.json": json_schema(),
        docs / "manifest.schema.json": manifest_schema(),
        docs / "conformance.schema.json": conformance_schema(),
        docs / "wire.d.ts": typescript(UNIONS),
        docs / "REFUSALS.md": refusals(),
        docs / "WIRE.md": _filled(docs / "WIRE.md", {
            "requests": wire_requests(), "messages": wire_messages(), "shapes": wire_shapes(),
            "example": wire_example(), "commitment": wire_commitment(), "event": wire_event(),
        }),
        docs / "how-to" / "conformance.md": _filled(docs / "how-to" / "conformance.md", {
            "conformance": conformance_rules(),
        }),
        docs / "ARCHITECTURE.md": _filled(docs / "ARCHITECTURE.md", {
            "states": state_diagrams(), "roles": role_table(),
        }),
    }


def main(arguments: list[str]) -> int:
    """Rewrite or compare; the exit status says whether all files are fresh."""
    stale = [
        (path, text) for path, text in build().items()
        if not path.exists() or path.read_text("utf-8") != text
    ]
    for path, text in stale:
        if "--rewrite" in arguments:
            path.write_text(text, encoding="utf-8")
        print(f"{'written' if '--rewrite' in arguments else 'stale'}: {path.relative_to(ROOT)}")
    return 0 if "--rewrite" in arguments or not stale else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
