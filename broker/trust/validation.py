"""The validator: may this bundle be registered here and now, and if not, what are all the reasons.

Rules this file keeps:
- The order is fixed: size and archive; signatures over the exact bytes; a strict parse of those
  same bytes; then every rule of meaning, each on its own, so that all problems come at once.
- What does not verify is not interpreted further. The one thing read before is the publisher's
  name, to know whose keys to try; it decides nothing and is compared afterwards.
- The file set must be the manifest's, in path, size and SHA-256. Nothing is ever unpacked.
- Pure: no file, no clock; the time and everything known come in.

It leaves the decision about upgrades that widen to `broker.inventory` and the events to
`broker.core`. Source: specification section 6, layer 2; INV-PNP-04, 06, 09, 10.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Collection, Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple, get_args

import msgspec

from broker.policy import Denied, denied_limits, denied_modules, effective
from broker.trust.bundles import Bundle, read_bundle
from broker.trust.conformance import WHERE, Conformed, check_report, is_required
from broker.trust.errors import TrustRefused
from broker.trust.json_schemas import SCHEMAS_BYTES_MAX, admit
from broker.trust.manifests import PROBLEMS_MAX, problem, read_manifest
from broker.trust.roots import check_publisher, publisher, publisher_keys
from broker.trust.signatures import (
    Verified,
    decode_base64,
    key_id,
    read_envelope,
    verify_envelope,
)
from broker.trust.versions import api_compatible, is_higher, parse
from schemas.manifest import PAYLOAD_TYPES, SOURCE_BYTES_MAX, PayloadSpec, PluginManifest
from schemas.messages import Problem
from schemas.names import API_VERSION, Domain
from schemas.payloads import TextMediaType
from schemas.policy import Policy
from schemas.refusals import RefusalCode
from schemas.trust import TrustRoot

_TEXT_MEDIA_TYPES: Final = frozenset(get_args(TextMediaType))
_UNSTEADY: Final = frozenset({"clock.read", "random.read"})
"""What a deterministic method cannot hold (INV-PNP-03)."""


@dataclass(frozen=True, slots=True)
class ValidationContext:
    """All that is known when a bundle comes: nothing here is read from the bundle.

    `granted` maps a plugin to the capabilities granted by request, `highest_version` gives the
    highest version a plugin ever had, `known_bundles` holds the SHA-256 of every bundle that was
    ever registered, `now_s` is in seconds since 1970. `revoked_keys` are ids of keys taken back by
    request, beyond those that the trust root revokes. `admit` refuses a schema; where building one
    must not be waited for, it is `weigh`, and whoever asks has the schemas tried elsewhere.
    """

    domain: Domain
    trust: TrustRoot
    policy: Policy
    granted: Mapping[str, Collection[str]]
    highest_version: Callable[[str], str | None]
    known_bundles: Container[str]
    now_s: int
    api_version: str = API_VERSION
    revoked_keys: Container[str] = frozenset()
    admit: Callable[[bytes], None] = admit


class Validated(NamedTuple):
    """What came of a validation. Without problems, everything else is set.

    With problems, `manifest` is set as soon as the signed bytes could be parsed. `manifest_sha256`
    is over the signed bytes, `signing_keys` are key ids.
    """

    problems: tuple[Problem, ...]
    manifest: PluginManifest | None
    manifest_sha256: str
    bundle_sha256: str
    signing_keys: tuple[str, ...]
    bundle: Bundle | None
    conformed: Conformed | None = None


class Registered(NamedTuple):
    """A bundle that was registered before and is still what it was."""

    manifest: PluginManifest
    bundle: Bundle


class _PublisherHint(msgspec.Struct):
    """The one field looked at before the signature."""

    publisher: str = ""


class _Description(msgspec.Struct):
    """The one field that a list shows."""

    description: str


_description_decoder: Final = msgspec.json.Decoder(_Description)
_hint_decoder: Final = msgspec.json.Decoder(_PublisherHint)


def validate_bundle(
    data: bytes, context: ValidationContext, conformance: bytes | None = None
) -> Validated:
    """Say everything that hinders a registration of this bundle.

    Args:
        data: the bundle's bytes, from anyone.
        context: what is known here and now.
        conformance: the envelope of a conformance report; one that does not count is a problem,
            asked for or not.

    Returns:
        The problems in the order of the checks, and what could be established.
    """
    digest = hashlib.sha256(data).hexdigest()
    try:
        bundle = read_bundle(data)
        verified = _verify(bundle.envelope, context)
    except TrustRefused as refused:
        return Validated((_as_problem(refused),), None, "", digest, (), None)
    payload = verified.payload
    manifest, problems = read_manifest(payload)
    if manifest is not None:
        problems = list(itertools.islice(_meaning(manifest, bundle, context), PROBLEMS_MAX))
    conformed = None
    try:
        if manifest is not None:
            conformed = _conformed(manifest.id, digest, context, conformance)
    except TrustRefused as refused:
        problems.append(_as_problem(refused))
    manifest_digest = hashlib.sha256(payload).hexdigest()
    return Validated(
        tuple(problems), manifest, manifest_digest, digest, verified.key_ids, bundle, conformed
    )


def _conformed(
    plugin: str, digest: str, context: ValidationContext, conformance: bytes | None
) -> Conformed | None:
    """Check the report that came along; none is right where policy wants none."""
    if conformance is not None:
        return check_report(conformance, digest, context.trust, context.revoked_keys)
    if is_required(plugin, context.policy):
        raise TrustRefused(
            RefusalCode.CONFORMANCE_REQUIRED, "policy.toml wants a signed conformance report",
            where=WHERE, hint="Run omega-plugin conform BUNDLE --sign-key FILE -o REPORT and "
            "register with --conformance REPORT.",
        )
    return None


def load_registered(
    data: bytes, manifest_sha256: str, bundle_sha256: str, domain: Domain
) -> Registered:
    """Read a bundle that the ledger vouches for, at start: digests, strict parse, file set.

    Neither policy nor signature is asked again: the ledger holds that they were, at that position.

    Args:
        data: the stored bytes.
        manifest_sha256: digest of the signed bytes, as registered.
        bundle_sha256: digest of the bundle, as registered.
        domain: the domain of this home.

    Raises:
        TrustRefused: the bytes are not what was registered.
    """
    if hashlib.sha256(data).hexdigest() != bundle_sha256:
        raise TrustRefused(
            RefusalCode.BUNDLE_MALFORMED, "the stored bundle is not the one that was registered"
        )
    bundle = read_bundle(data)
    envelope = read_envelope(bundle.envelope)
    payload = decode_base64(envelope.payload, "payload")
    if hashlib.sha256(payload).hexdigest() != manifest_sha256:
        raise TrustRefused(
            RefusalCode.SIGNATURE_INVALID, "the manifest is not the one that was registered"
        )
    manifest, problems = read_manifest(payload)
    if manifest is not None:
        problems = list(_files(manifest, bundle))
    if manifest is None or problems:
        raise TrustRefused(
            problems[0].code, f"{problems[0].found}, expected {problems[0].expected}",
            where=problems[0].where,
        )
    if manifest.domain != domain or envelope.payloadType != PAYLOAD_TYPES[domain]:
        raise TrustRefused(
            RefusalCode.DOMAIN_MISMATCH, f"the bundle is of the {manifest.domain} domain"
        )
    return Registered(manifest, bundle)


def registered_description(data: bytes, bundle_sha256: str) -> str:
    """Read the description alone, out of the very bytes that were registered; empty for others.

    Args:
        data: the stored bytes.
        bundle_sha256: digest of the bundle, as registered.
    """
    if hashlib.sha256(data).hexdigest() != bundle_sha256:
        return ""
    payload = decode_base64(read_envelope(read_bundle(data).envelope).payload, "payload")
    return _description_decoder.decode(payload).description


def _verify(envelope: bytes, context: ValidationContext) -> Verified:
    """Verify the envelope with the keys of the publisher it names."""
    try:
        unverified = decode_base64(read_envelope(envelope).payload, "payload")
        name = _hint_decoder.decode(unverified).publisher
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise TrustRefused(
            RefusalCode.MANIFEST_INVALID, "the signed bytes are not a manifest", where="$"
        ) from None
    keys = publisher_keys(context.trust, name)
    return verify_envelope(
        envelope,
        payload_type=PAYLOAD_TYPES[context.domain],
        keys=[key for key in keys if key_id(key) not in context.revoked_keys],
        threshold=publisher(context.trust, name).threshold,
    )


def _as_problem(refused: TrustRefused) -> Problem:
    return problem(refused.code, refused.where, refused.sentence, "", refused.hint)


def _meaning(
    manifest: PluginManifest, bundle: Bundle, context: ValidationContext
) -> Iterator[Problem]:
    """Every rule about a manifest that was parsed, each for itself."""
    yield from _identity(manifest, bundle, context)
    yield from own_problems(manifest, bundle, context.admit)
    yield from _wishes(manifest, context)


def own_problems(
    manifest: PluginManifest, bundle: Bundle, admit: Callable[[bytes], None] = admit
) -> Iterator[Problem]:
    """Every rule that needs no other knowledge than the bundle itself; packing asks these too."""
    for field in ("version", "api_version"):
        text = getattr(manifest, field)
        if parse(text) is None:
            yield problem(
                RefusalCode.MANIFEST_INVALID, f"$.{field}", text,
                "a semantic version such as 1.2.3, without build metadata",
            )
    for field in ("capabilities", "modules", "resources"):
        names = getattr(manifest, field)
        if len(set(names)) != len(names):
            yield problem(
                RefusalCode.MANIFEST_INVALID, f"$.{field}", "a name twice", "each name once"
            )
    yield from _files(manifest, bundle)
    yield from _methods(manifest)
    yield from _schemas(manifest, admit)


def _identity(
    manifest: PluginManifest, bundle: Bundle, context: ValidationContext
) -> Iterator[Problem]:
    if manifest.domain != context.domain:
        yield problem(
            RefusalCode.DOMAIN_MISMATCH, "$.domain", manifest.domain, context.domain
        )
    try:
        check_publisher(context.trust, manifest.publisher, manifest.id, context.now_s)
    except TrustRefused as refused:
        yield _as_problem(refused)
    hint = api_compatible(manifest.api_version, context.api_version)
    if hint is not None and parse(manifest.api_version) is not None:
        yield problem(
            RefusalCode.API_VERSION_INCOMPATIBLE, "$.api_version", manifest.api_version,
            f"compatible with {context.api_version}", hint,
        )
    highest = context.highest_version(manifest.id)
    if bundle.sha256 in context.known_bundles:
        yield problem(
            RefusalCode.ALREADY_REGISTERED, "$.version", manifest.version, "a new bundle"
        )
    elif highest is not None and not is_higher(manifest.version, highest):
        known = parse(highest)
        yield problem(
            RefusalCode.VERSION_NOT_RAISED, "$.version", manifest.version, f"higher than {highest}",
            f'Raise `version` in plugin.toml: version = "{known.bump_patch()}"; then pack and sign '
            "again." if known is not None else "",
        )


def _files(manifest: PluginManifest, bundle: Bundle) -> Iterator[Problem]:
    """The file set is exactly the manifest's."""
    listed = {entry.path: entry for entry in manifest.files}
    if len(listed) != len(manifest.files):
        yield problem(
            RefusalCode.MANIFEST_INVALID, "$.files", "a path twice", "each path once"
        )
    for path in sorted(bundle.files.keys() - listed.keys()):
        yield _mismatch(path, "a file that is not listed", "only files of $.files")
    for path, entry in sorted(listed.items()):
        content = bundle.files.get(path)
        if content is None:
            yield _mismatch(path, "no such file", f"{entry.size} bytes")
        elif len(content) != entry.size:
            yield _mismatch(path, f"{len(content)} bytes", f"{entry.size} bytes")
        elif hashlib.sha256(content).hexdigest() != entry.sha256:
            yield _mismatch(path, "another SHA-256", entry.sha256)
    yield from _entry_and_resources(manifest, bundle, listed)


def _entry_and_resources(
    manifest: PluginManifest, bundle: Bundle, listed: Container[str]
) -> Iterator[Problem]:
    if manifest.entry not in listed:
        yield _mismatch(manifest.entry, "no such file", "the plugin's source")
    source_bytes = len(bundle.files.get(manifest.entry, b""))
    if source_bytes > SOURCE_BYTES_MAX:
        yield problem(
            RefusalCode.BUNDLE_TOO_LARGE, manifest.entry, f"{source_bytes} bytes",
            f"at most {SOURCE_BYTES_MAX} bytes of source",
        )
    for number, path in enumerate(manifest.resources):
        if path not in listed or path == manifest.entry:
            yield problem(
                RefusalCode.MANIFEST_INVALID, f"$.resources[{number}]", path,
                "a file of $.files other than the source",
            )


def _mismatch(path: str, found: str, expected: str) -> Problem:
    return problem(RefusalCode.BUNDLE_FILES_MISMATCH, path, found, expected)


def _methods(manifest: PluginManifest) -> Iterator[Problem]:
    unsteady = sorted(_UNSTEADY.intersection(manifest.capabilities))
    for name, method in manifest.methods.items():
        for side, spec in (("input", method.input), ("output", method.output)):
            yield from _payload(spec, f"$.methods.{name}.{side}", manifest)
        for file, path in method.files.items():
            needed = f"fs.read:{path.partition('/')[0]}"
            if needed not in manifest.capabilities:
                yield problem(
                    RefusalCode.MANIFEST_INVALID, f"$.methods.{name}.files.{file}", path,
                    f"a file of a root that the plugin asks for with {needed}",
                    f'Add "{needed}" to the capabilities.',
                )
        if method.deterministic and unsteady:
            yield problem(
                RefusalCode.MANIFEST_INVALID, f"$.methods.{name}.deterministic", "true",
                f"a deterministic method's plugin asks for neither of {', '.join(unsteady)}",
                "Drop the capability, or do not promise determinism.",
            )


def _payload(spec: PayloadSpec, where: str, manifest: PluginManifest) -> Iterator[Problem]:
    invalid = RefusalCode.MANIFEST_INVALID
    if spec.kind == "json" and spec.schema is None:
        yield problem(invalid, f"{where}.schema", "nothing", "the content id of a JSON Schema")
    elif spec.kind != "json" and spec.schema is not None:
        yield problem(invalid, f"{where}.schema", spec.schema, f"no schema for {spec.kind}")
    elif spec.schema is not None and spec.schema not in manifest.schemas:
        yield problem(invalid, f"{where}.schema", spec.schema, "a content id of $.schemas")
    allowed = {"text": _TEXT_MEDIA_TYPES, "binary_ref": None}.get(spec.kind, frozenset[str]())
    for number, media_type in enumerate(spec.media_types):
        if allowed is not None and media_type not in allowed:
            yield problem(
                invalid, f"{where}.media_types[{number}]", media_type,
                f"a media type that {spec.kind} can have",
            )


def _schemas(manifest: PluginManifest, admit: Callable[[bytes], None]) -> Iterator[Problem]:
    used = {
        spec.schema
        for method in manifest.methods.values()
        for spec in (method.input, method.output)
    }
    together = sum(len(bytes(raw)) for raw in manifest.schemas.values())
    if together > SCHEMAS_BYTES_MAX:
        yield problem(
            RefusalCode.SCHEMA_NOT_ADMITTED, "$.schemas", f"{together} bytes of schemas",
            f"at most {SCHEMAS_BYTES_MAX} bytes together",
        )
        return
    for name, raw in manifest.schemas.items():
        if name not in used:
            yield problem(
                RefusalCode.MANIFEST_INVALID, f"$.schemas.{name}", "a schema that no method uses",
                "only schemas of methods",
            )
        try:
            admit(bytes(raw))
        except TrustRefused as refused:
            where = f"$.schemas.{name}" + refused.where.removeprefix("$")
            yield problem(
                refused.code, where, refused.sentence, "a schema of the admitted subset"
            )


def _wishes(manifest: PluginManifest, context: ValidationContext) -> Iterator[Problem]:
    """What the plugin asks for against what policy allows."""
    policy, plugin = context.policy, manifest.id
    decision = effective(plugin, manifest.capabilities, policy, context.granted.get(plugin, ()))
    places = {name: f"$.capabilities[{n}]" for n, name in enumerate(manifest.capabilities)}
    denied = [(places[refused.asked], refused) for refused in decision.refused]
    denied += denied_limits(manifest.limits, manifest.methods, policy)
    denied += denied_modules(plugin, manifest.modules, policy)
    for where, refused in denied:
        yield _denied(where, refused)


def _denied(where: str, denied: Denied) -> Problem:
    remedy = f"Add to policy.toml: {denied.line}" if denied.line else ""
    return problem(denied.code, where, denied.asked, denied.sentence, remedy)
