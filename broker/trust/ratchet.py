"""The ratchet: what a version may more than the one before it, as a document with one digest.

Rules this file keeps:
- The difference is a pure function of two signed manifests. Its document is canonical JSON and
  names both by their SHA-256, so that its digest is for exactly these two and nothing else.
- Every change is told. `wider` and `changed` (which cannot be ordered) wait for approval;
  `narrower` and `other` do not.

It leaves who may approve, and what waits for it, to `broker.orchestrator.upgrades`.
Source: specification section 6, layer 2; INV-PNP-06; docs/decisions/0027.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Collection, Iterator, Mapping
from typing import Final, Literal

import msgspec

from broker.trust.schema_order import SchemaOrder
from schemas.canonical import canonical_bytes
from schemas.manifest import Limits, Method, PayloadSpec, PluginManifest

FORMAT: Final = "omega-difference/1"

Kind = Literal["wider", "narrower", "changed", "other"]
Told = str | int | bool | None
"""A value as the document tells it; None where there is none."""

_manifests: Final = msgspec.json.Decoder(PluginManifest)


class Change(msgspec.Struct, frozen=True):
    """One change: where in the manifest, which way it goes, and from what to what.

    `at` is the place inside a schema where it shows first.
    """

    where: str
    change: Kind
    before: Told
    after: Told
    at: str = ""


class Named(msgspec.Struct, frozen=True):
    """One version and the SHA-256 of its signed manifest."""

    version: str
    manifest_sha256: str


class Difference(msgspec.Struct, frozen=True):
    """All changes from one version to another; without `before` everything is new."""

    format: Literal["omega-difference/1"]
    plugin: str
    before: Named | None
    after: Named
    widens: bool
    changes: tuple[Change, ...]

    def document(self) -> bytes:
        """Give the canonical JSON whose digest is approved."""
        return canonical_bytes(msgspec.to_builtins(self))

    def digest(self) -> str:
        """Give the SHA-256 of the document, in hex."""
        return hashlib.sha256(self.document()).hexdigest()


@functools.lru_cache(maxsize=64)
def difference(before: bytes | None, after: bytes) -> Difference:
    """Say everything in which a version differs from the one before it.

    Args:
        before: the signed manifest bytes of the earlier version; None when they cannot be read
            any more, and then whatever the later one asks for is new.
        after: those of the later version.

    Raises:
        msgspec.MsgspecError: the bytes are no manifest, which registration excludes.
    """
    new = _manifests.decode(after)
    old = None if before is None else _manifests.decode(before)
    changes = tuple(_changes(old, new))
    return Difference(
        format=FORMAT,
        plugin=new.id,
        before=None if old is None or before is None else _named(old, before),
        after=_named(new, after),
        widens=any(one.change in ("wider", "changed") for one in changes),
        changes=changes,
    )


def read_difference(document: bytes) -> Difference:
    """Read a document again.

    Raises:
        msgspec.MsgspecError: it is none.
    """
    return msgspec.json.decode(document, type=Difference)


def _named(manifest: PluginManifest, data: bytes) -> Named:
    return Named(manifest.version, hashlib.sha256(data).hexdigest())


def _changes(old: PluginManifest | None, new: PluginManifest) -> Iterator[Change]:
    for field in ("publisher", "api_version", "description"):
        before = None if old is None else getattr(old, field)
        if before != getattr(new, field):
            yield Change(f"$.{field}", "other", before, getattr(new, field))
    yield from _set("$.capabilities", old.capabilities if old else (), new.capabilities)
    for name in Limits.__struct_fields__:
        before = None if old is None else getattr(old.limits, name)
        yield from _number(f"$.limits.{name}", before, getattr(new.limits, name))
    yield from _set("$.modules", old.modules if old else (), new.modules)
    for change in _set("$.resources", old.resources if old else (), new.resources):
        # Files of the bundle itself: signed like the source that could hold the same bytes.
        yield msgspec.structs.replace(change, change="other")
    yield from _methods(old, new)


def _set(where: str, old: Collection[str], new: Collection[str]) -> Iterator[Change]:
    for name in sorted({*old, *new}):
        if name not in old:
            yield Change(where, "wider", None, name)
        elif name not in new:
            yield Change(where, "narrower", name, None)


def _number(where: str, old: int | None, new: int) -> Iterator[Change]:
    if old != new:
        yield Change(where, "wider" if old is None or new > old else "narrower", old, new)


def _flag(where: str, old: bool, new: bool, *, widens: bool) -> Iterator[Change]:
    """A promise: `widens` is the value that lets more happen."""
    if old != new:
        yield Change(where, "wider" if new == widens else "narrower", old, new)


def _methods(old: PluginManifest | None, new: PluginManifest) -> Iterator[Change]:
    before: Mapping[str, Method] = {} if old is None else old.methods
    order = SchemaOrder()
    for name in sorted({*before, *new.methods}):
        where = f"$.methods.{name}"
        earlier, later = before.get(name), new.methods.get(name)
        if old is None or earlier is None:
            yield Change(where, "wider", None, "added")
        elif later is None:
            yield Change(where, "narrower", "there", None)
        else:
            yield from _method(where, earlier, later)
            for side in ("input", "output"):
                yield from _payload(
                    f"{where}.{side}", (getattr(earlier, side), old),
                    (getattr(later, side), new), order,
                )


def _method(where: str, old: Method, new: Method) -> Iterator[Change]:
    yield from _number(f"{where}.timeout_ms", old.timeout_ms, new.timeout_ms)
    # Without the promise nothing holds two answers against each other any more; with the other
    # one a call may be run a second time.
    yield from _flag(f"{where}.deterministic", old.deterministic, new.deterministic, widens=False)
    yield from _flag(f"{where}.idempotent", old.idempotent, new.idempotent, widens=True)
    for name in sorted({*old.files, *new.files}):
        before, after = old.files.get(name), new.files.get(name)
        if before != after:
            kind: Kind = "narrower" if after is None else "wider"
            yield Change(f"{where}.files.{name}", kind, before, after)


def _payload(
    where: str, old: tuple[PayloadSpec, PluginManifest], new: tuple[PayloadSpec, PluginManifest],
    order: SchemaOrder,
) -> Iterator[Change]:
    (before, old_manifest), (after, new_manifest) = old, new
    if before.kind != after.kind:
        yield Change(f"{where}.kind", "changed", before.kind, after.kind)
        return
    if before.schema is not None and after.schema is not None and before.schema != after.schema:
        found = order.compare(
            bytes(old_manifest.schemas[before.schema]), bytes(new_manifest.schemas[after.schema])
        )
        kind: Kind = "other" if found.order == "same" else found.order
        yield Change(f"{where}.schema", kind, before.schema, after.schema, found.at)
    yield from _media_types(f"{where}.media_types", before.media_types, after.media_types)


def _media_types(where: str, old: Collection[str], new: Collection[str]) -> Iterator[Change]:
    """None named means every one there is."""
    if set(old) == set(new):
        return
    narrower = not old or (bool(new) and set(new) <= set(old))
    yield Change(where, "narrower" if narrower else "wider",
                 ", ".join(sorted(old)) or "any", ", ".join(sorted(new)) or "any")
