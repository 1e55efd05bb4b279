"""From a plugin's folder to an unsigned bundle, and from there to a signed one.

An unsigned bundle is the same archive as a signed one (`broker.trust.bundles`) with the manifest's
exact bytes in `manifest.json`. Signing puts those bytes into a DSSE envelope, `manifest.dsse.json`,
in its place. No gateway accepts an unsigned bundle. The domain is chosen when packing, because it
is part of the bytes that are signed.

Rules this file keeps: pure; same sources, same bytes; a bundle that the validator would refuse for
its own sake is neither written nor signed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from broker.authoring.source import Described, Folder, Side, SourceMethod, SourceRefused
from broker.trust.bundles import (
    UNSIGNED_MANIFEST_FILE,
    Bundle,
    read_archive,
    write_archive,
    write_bundle,
)
from broker.trust.errors import TrustRefused, printable
from broker.trust.manifests import problem, read_manifest
from broker.trust.signatures import (
    add_signatures,
    decode_base64,
    read_envelope,
    sign_envelope,
)
from broker.trust.validation import own_problems
from schemas.canonical import InvalidJson, canonical_bytes, struct_bytes
from schemas.manifest import (
    MANIFEST_FILE,
    PAYLOAD_TYPES,
    BundleFile,
    Limits,
    Method,
    PayloadSpec,
    PluginManifest,
)
from schemas.messages import Problem
from schemas.names import Domain
from schemas.payloads import MediaType
from schemas.refusals import RefusalCode


class Packed(NamedTuple):
    """A bundle's bytes and the manifest in it."""

    manifest: PluginManifest
    data: bytes


def pack(folder: Folder, domain: Domain, publisher: str | None = None) -> Packed:
    """Make an unsigned bundle.

    Args:
        folder: the plugin's folder, read.
        domain: the domain it may be registered in.
        publisher: stands in for the publisher of plugin.toml.

    Raises:
        SourceRefused: with everything that a gateway would refuse in it.
    """
    payload = struct_bytes(_manifest(folder, domain, publisher))
    manifest, problems = read_manifest(payload)
    if manifest is not None:
        problems = list(own_problems(manifest, Bundle("", b"", folder.files)))
    if manifest is None or problems:
        raise SourceRefused(problems)
    try:
        return Packed(manifest, write_archive({**folder.files, UNSIGNED_MANIFEST_FILE: payload}))
    except TrustRefused as refused:
        raise SourceRefused(
            [problem(refused.code, refused.where, refused.sentence, "", refused.hint)]
        ) from None


def sign(data: bytes, signing_keys: Sequence[bytes], domain: Domain | None = None) -> Packed:
    """Sign a bundle, or add signatures to one that is signed.

    Args:
        data: the bundle's bytes.
        signing_keys: Ed25519 seeds, 32 bytes each.
        domain: the domain that is meant; a bundle of another one is not signed.

    Raises:
        TrustRefused: the bytes are no bundle, or of another domain.
        SourceRefused: the manifest is not one a gateway would take.
    """
    files = read_archive(data)
    payload = files.pop(UNSIGNED_MANIFEST_FILE, None)
    envelope = files.pop(MANIFEST_FILE, None)
    if payload is None and envelope is None:
        raise TrustRefused(
            RefusalCode.BUNDLE_MALFORMED, f"the bundle holds no {UNSIGNED_MANIFEST_FILE}",
            hint="make it with omega-plugin pack",
        )
    if envelope is not None:
        payload = decode_base64(read_envelope(envelope).payload, "payload")
    assert payload is not None
    manifest, problems = read_manifest(payload)
    if manifest is not None:
        problems = list(own_problems(manifest, Bundle("", b"", files)))
    if manifest is None or problems:
        raise SourceRefused(problems)
    if domain not in (None, manifest.domain):
        raise TrustRefused(
            RefusalCode.DOMAIN_MISMATCH,
            f"the bundle was packed for the {manifest.domain} domain, not for {domain}",
            where="$.domain", hint=f"pack it again with --domain {domain}",
        )
    if envelope is None:
        signed = sign_envelope(payload, PAYLOAD_TYPES[manifest.domain], signing_keys)
    else:
        signed = add_signatures(envelope, signing_keys)
    return Packed(manifest, write_bundle(files, signed))


def _manifest(folder: Folder, domain: Domain, publisher: str | None) -> PluginManifest:
    """Bring what plugin.toml and plugin.py say together; nothing is checked here."""
    source = folder.source
    schemas: dict[str, msgspec.Raw] = {}
    problems: list[Problem] = []
    methods = {
        name: _method(name, described, folder, schemas, problems)
        for name, described in folder.description.methods.items()
    }
    if problems:
        raise SourceRefused(problems)
    limits = {name: getattr(source.limits, name) for name in Limits.__struct_fields__}
    return PluginManifest(
        format="omega-manifest/1",
        id=source.id,
        version=source.version,
        api_version=source.api_version,
        domain=domain,
        publisher=publisher or source.publisher,
        description=source.description,
        entry="plugin.py",
        methods=methods,
        schemas=schemas,
        capabilities=source.capabilities,
        limits=Limits(**limits),
        modules=source.modules,
        resources=source.resources,
        files=tuple(
            BundleFile(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest())
            for path, data in sorted(folder.files.items())
        ),
    )


def _method(
    name: str,
    described: Described,
    folder: Folder,
    schemas: dict[str, msgspec.Raw],
    problems: list[Problem],
) -> Method:
    """Make one method; plugin.toml wins where plugin.py says nothing."""
    more = folder.source.methods.get(name, SourceMethod())

    def spec(key: str, side: Side, file: str | None, media: tuple[MediaType, ...]) -> PayloadSpec:
        where = f"plugin.toml.methods.{name}.{key}_schema"
        schema = _schema(side, folder.schemas.get(file or ""), where, problems)
        if schema is None:
            return PayloadSpec(kind=side.kind, media_types=media)
        identifier = "sha256:" + hashlib.sha256(schema).hexdigest()
        schemas[identifier] = msgspec.Raw(schema)
        return PayloadSpec(kind=side.kind, schema=identifier, media_types=media)

    default = Method(PayloadSpec("text"), PayloadSpec("text"))
    return Method(
        input=spec("input", described.input, more.input_schema, more.input_media_types),
        output=spec("output", described.output, more.output_schema, more.output_media_types),
        deterministic=described.deterministic,
        timeout_ms=described.timeout_ms or more.timeout_ms or default.timeout_ms,
        idempotent=described.idempotent or more.idempotent,
        files=more.files,
    )


def _schema(
    side: Side, file: bytes | None, where: str, problems: list[Problem]
) -> bytes | None:
    """Give the canonical bytes of a side's JSON Schema; None when it takes or gives no JSON.

    A file that plugin.toml names is compared with what the type in plugin.py gives.
    """
    try:
        made = None if side.schema is None else canonical_bytes(side.schema)
        named = None if file is None else canonical_bytes(msgspec.json.decode(file))
    except (msgspec.MsgspecError, InvalidJson, UnicodeDecodeError, RecursionError) as error:
        problems.append(problem(RefusalCode.SCHEMA_NOT_ADMITTED, where, str(error), "JSON"))
        return None
    if side.kind != "json":
        if file is not None:
            problems.append(problem(
                RefusalCode.MANIFEST_INVALID, where, "a JSON Schema file",
                f"no schema for {side.kind}", "Take the line out.",
            ))
    elif made is None and named is None:
        problems.append(problem(
            RefusalCode.MANIFEST_INVALID, where, "nothing", "a JSON Schema file",
            "Name one, or give the parameter or result a msgspec.Struct as its type.",
        ))
    elif made is not None and named not in (None, made):
        problems.append(problem(
            RefusalCode.MANIFEST_INVALID, where, "another schema than plugin.py's type gives",
            printable(made.decode(), 300),
            "Take the line out, or write JSONPayload as the type in plugin.py.",
        ))
    return made or named
