"""Types as words: the named shapes of the wire, and strict TypeScript from the message types.

Rules this file keeps: types only, no `any`, nothing that runs. A shape that `schemas.names` or
`schemas.messages` names keeps its name. `scripts/generate_docs.py` decides what is written where.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping

import msgspec
from msgspec import inspect

from schemas import messages, names, payloads
from schemas.refusals import REFUSALS

# --- Shapes with names
# ----------------------------------------------------------------------------


_NO_NEWLINE = "(?!\\n)"
"""What our patterns end in, because Python's `$` also matches before a last newline."""


def shapes() -> dict[tuple[object, ...], str]:
    """Give the name of every shape of `schemas.names`, by its type and bounds."""
    found: dict[tuple[object, ...], str] = {}
    for module in (names, messages):
        for name, alias in vars(module).items():
            if typing.get_origin(alias) is typing.Annotated and not name.startswith("_"):
                found.setdefault(shape_key(inspect.type_info(alias)), name)
    return found


def plain_type(kind: inspect.Type) -> inspect.Type:
    """Take a type's description off."""
    return kind.type if isinstance(kind, inspect.Metadata) else kind


def description(kind: inspect.Type) -> str:
    """Give what a shape says of itself, or nothing."""
    extra = kind.extra_json_schema if isinstance(kind, inspect.Metadata) else None
    return str((extra or {}).get("description", ""))


def shape_key(kind: inspect.Type) -> tuple[object, ...]:
    """Give what tells two shapes apart: the type, its bounds and what it says of itself."""
    plain = plain_type(kind)
    bounds = ("pattern", "ge", "le", "min_length", "max_length")
    values = tuple(getattr(plain, bound, None) for bound in bounds)
    return (type(plain).__name__, *values, description(kind))


def _bound(number: int) -> str:
    return "2^53 - 1" if number == names.INTEGER_MAX else f"{number:_}"


def bounds_of(kind: inspect.Type) -> str:
    """Say in words what a shape admits."""
    kind = plain_type(kind)
    pattern = getattr(kind, "pattern", None)
    if isinstance(kind, inspect.IntType):
        low, high = kind.ge, kind.le
        return "integer" + ("" if low is None else f", {_bound(low)} to {_bound(high or 0)}")
    length = ""
    low, high = getattr(kind, "min_length", None), getattr(kind, "max_length", None)
    if high is not None:
        unit = "bytes" if isinstance(kind, inspect.BytesType) else "characters"
        if isinstance(kind, inspect.VarTupleType | inspect.DictType):
            unit = "entries"
        length = f"{high:_} {unit}" if low == high else f"{low or 0} to {high:_} {unit}"
    shown = f"`{pattern.removesuffix(_NO_NEWLINE)}`" if pattern else ""
    return ", ".join(part for part in (shown, length) if part)


# --- TypeScript
# ------------------------------------------------------------------------------


class TypeScript:
    """Writes strict TypeScript types: no `any`, no class, nothing that runs."""

    def __init__(self) -> None:
        """Begin with nothing written."""
        self.names = shapes()
        self.used: dict[str, inspect.Type] = {}
        self.structs: dict[str, str] = {}
        self.classes: list[type[msgspec.Struct]] = []

    def type_of(self, kind: inspect.Type) -> str:
        """Write one type; structs it needs are written on the way."""
        named = self.names.get(shape_key(kind))
        plain = plain_type(kind)
        if named and isinstance(plain, inspect.StrType | inspect.IntType | inspect.BytesType):
            self.used[named] = kind
            return named
        simple = {
            inspect.StrType: "string", inspect.IntType: "number", inspect.BoolType: "boolean",
            inspect.BytesType: "Uint8Array", inspect.NoneType: "null",
        }.get(type(plain))
        if simple:
            return simple
        if isinstance(plain, inspect.LiteralType):
            return " | ".join(json.dumps(value) for value in plain.values)
        if isinstance(plain, inspect.EnumType):
            return plain.cls.__name__
        if isinstance(plain, inspect.VarTupleType):
            return f"ReadonlyArray<{self.type_of(plain.item_type)}>"
        if isinstance(plain, inspect.DictType):
            key, value = self.type_of(plain.key_type), self.type_of(plain.value_type)
            return f"Readonly<Partial<Record<{key}, {value}>>>"
        if isinstance(plain, inspect.UnionType):
            return self._union(plain)
        assert isinstance(plain, inspect.StructType), plain
        self._struct(plain)
        return plain.cls.__name__

    def _union(self, kind: inspect.UnionType) -> str:
        members = [self.type_of(member) for member in kind.types]
        payload = [cls.__name__ for cls in payloads.PAYLOAD_KINDS]
        if set(payload) <= set(members):
            members = ["Payload", *(m for m in members if m not in payload)]
        return " | ".join(members)

    def _struct(self, kind: inspect.StructType) -> None:
        name = kind.cls.__name__
        if name in self.structs:
            return
        self.structs[name] = ""
        self.classes.append(kind.cls)
        lines = [*_comment(kind.cls.__doc__ or "", ""), f"export interface {name} {{"]
        if kind.tag is not None:
            lines.append(f"  readonly {kind.tag_field}: {json.dumps(kind.tag)};")
        for field in kind.fields:
            mark = "" if field.required else "?"
            lines.append(f"  readonly {field.encode_name}{mark}: {self.type_of(field.type)};")
        self.structs[name] = "\n".join([*lines, "}"])


def _comment(text: str, indent: str) -> list[str]:
    lines = [" ".join(part.split()) for part in text.strip().split("\n\n")]
    if len(lines) == 1:
        return [f"{indent}/** {lines[0]} */"]
    return [f"{indent}/**", *(f"{indent} * {line}" for line in lines), f"{indent} */"]


def typescript(unions_by_name: Mapping[str, object]) -> str:
    """Write docs/wire.d.ts for the unions of all directions."""
    writer = TypeScript()
    unions = []
    for name, union in unions_by_name.items():
        members = writer.type_of(inspect.type_info(union)).split(" | ")
        unions.append("\n  | ".join([f"export type {name} =", *members]) + ";")
    codes = "\n  | ".join(["export type RefusalCode =", *(f'"{code}"' for code in REFUSALS)])
    aliases = []
    for name in sorted(writer.used):
        kind = writer.used[name]
        note = description(kind)
        words = " ".join(part for part in (note, bounds_of(kind)) if part).replace("*/", "* /")
        base = {inspect.StrType: "string", inspect.IntType: "number"}.get(
            type(plain_type(kind)), "Uint8Array"
        )
        aliases.append(f"/** {words} */\nexport type {name} = {base};")
    payload = "export type Payload =\n  | " + "\n  | ".join(
        cls.__name__ for cls in payloads.PAYLOAD_KINDS
    )
    head = (
        "// Generated from the message types; see docs/WIRE.md. Optional means: may be absent.\n"
        "// FromWorker and ToWorker are internal to the gateway and may change without notice.\n"
    )
    parts = [head, *aliases, codes + ";", payload + ";", *writer.structs.values(), *unions]
    return "\n\n".join(parts) + "\n"
