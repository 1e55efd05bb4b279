"""`trust`: what the trust root says, and the way from one root to the next.

Rules this file keeps: a home holds no root secret but a development one, so a change is signed with
key files that the operator names, or is written out, signed elsewhere and taken back; what no
gateway would take is refused here with the same words, before anything is sent. Only `add`,
`rotate` and `revoke` speak with a gateway.

It leaves what a change means to `broker.trust.drafts` and who must sign to `broker.trust.roots`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import click

from broker.cli.connect import admin_client
from broker.cli.ends import TRUST, USAGE, CommandError
from broker.cli.options import home_option, output_option, read_options, session
from broker.cli.output import Table, show

if TYPE_CHECKING:
    from broker.trust.roots import Root
    from schemas.names import Domain
    from schemas.trust import TrustRoot

FunctionT = TypeVar("FunctionT", bound=Callable[..., object])
_FILE = click.Path(exists=True, dir_okay=False)
_OUT = click.Path(dir_okay=False)
_root_keys = click.option(
    "--root-key", "key_files", type=_FILE, multiple=True, metavar="FILE",
    help="A root key that signs; give as many as must sign.",
)


def _changes(function: FunctionT) -> FunctionT:
    """Add what every change of the trust root takes."""
    for option in (
        click.option("--envelope", type=_FILE, metavar="FILE",
                     help="The change, signed elsewhere; nothing else is named then."),
        click.option("--unsigned", type=_OUT, metavar="FILE",
                     help="Write the document to be signed elsewhere, and send nothing."),
        _root_keys,
    ):
        function = option(function)
    return read_options(function)


@click.group()
def trust() -> None:
    """Show, sign and change the trust root."""


@trust.command("show")
@home_option
@output_option
@click.argument("file", type=_FILE, required=False)
def show_root(file: str | None) -> None:
    """Show who may publish what, and what was revoked: of the home, or of a FILE to be signed."""
    from broker.cli.trust_views import show_document, show_home

    if file is None:
        show_home(session().home_path())
    else:
        show_document(_read_document(_read(file)))


@trust.command("key")
@output_option
@click.argument("file", type=_OUT)
def key(file: str) -> None:
    """Make a signing key: FILE is the secret and stays where it is, FILE.pub is for others."""
    from broker.durable import replace_file
    from broker.keys import key_id, new_signing_pair, write_secret

    pair = new_signing_pair()
    write_secret(file, pair.secret)
    replace_file(f"{file}.pub", f"{pair.public}\n".encode())
    facts = {"secret": os.path.abspath(file), "public": os.path.abspath(f"{file}.pub"),
             "key_id": key_id(bytes.fromhex(pair.public)), "public_key": pair.public}
    show("omega.signing_key/1", facts, Table([*facts.items()]))


@trust.command("new")
@output_option
@click.option("--domain", type=click.Choice(["production", "development"]), required=True,
              help="The home's domain; part of every signature.")
@click.option("--root", "roots", multiple=True, required=True, metavar="PUB",
              help="The public key of a root key, in hex or as a file; give every one.")
@click.option("--threshold", type=click.IntRange(1, 16), default=1, show_default=True,
              help="How many root keys must sign the next root.")
@click.option("--unsigned", type=_OUT, required=True, metavar="FILE", help="Where to write it.")
def new(domain: Domain, roots: tuple[str, ...], threshold: int, unsigned: str) -> None:
    """Draft the first trust root of a home; `trust sign` signs it, `init --trust-root` takes it."""
    from broker.trust.drafts import first_root

    _write_draft(first_root(domain, [_named(root) for root in roots], threshold), unsigned)


@trust.command("sign")
@output_option
@click.argument("file", type=_FILE)
@_root_keys
@click.option("--out", type=_OUT, required=True, metavar="FILE", help="The envelope to write.")
def sign(file: str, key_files: tuple[str, ...], out: str) -> None:
    """Sign a draft, or add signatures to an envelope; look at it with `trust show FILE` first."""
    from broker.durable import replace_file
    from broker.keys import key_id
    from broker.trust.roots import sign_root
    from broker.trust.signatures import add_signatures

    data = _read(file)
    document = _read_document(data)
    seeds = _seeds(key_files)
    if not seeds:
        raise CommandError(USAGE, "nothing signs", "name root keys with --root-key FILE")
    envelope = add_signatures(data, seeds) if _is_envelope(data) else sign_root(document, seeds)
    replace_file(out, envelope)
    facts = {
        "envelope": os.path.abspath(out), "domain": document.domain, "version": document.version,
        "signed_by": [key_id(_public(seed)) for seed in seeds],
    }
    show("omega.trust_envelope/1", facts, Table([*facts.items()]))


@trust.command("add")
@_changes
@click.argument("publisher", required=False)
@click.option("--key", "keys", multiple=True, metavar="PUB",
              help="A public key of the publisher, in hex or as a file.")
@click.option("--plugins", multiple=True, metavar="GLOB",
              help="Plugin ids that it may publish, in place of those it has.")
@click.option("--threshold", type=click.IntRange(1, 16), help="How many of its keys must sign.")
@click.option("--valid-from", metavar="TIME", help="YYYY-MM-DD in UTC, or seconds since 1970.")
@click.option("--valid-until", metavar="TIME", help="The same; from then on it is not valid.")
@click.option("--conformance-key", "conformance", multiple=True, metavar="PUB",
              help="A key that may sign conformance reports.")
def add(
    publisher: str | None, keys: tuple[str, ...], plugins: tuple[str, ...], threshold: int | None,
    valid_from: str | None, valid_until: str | None, conformance: tuple[str, ...],
    **how: object,
) -> None:
    """Add a publisher, or keys and bounds to one there is, or a conformance key."""
    from broker.trust.drafts import add_conformance_keys, add_publisher

    def drafted(root: TrustRoot) -> TrustRoot:
        if conformance:
            return add_conformance_keys(root, [_named(one) for one in conformance])
        assert publisher is not None
        return add_publisher(
            root, publisher, keys=[_named(one) for one in keys], plugins=plugins,
            threshold=threshold, valid_from_s=_seconds(valid_from),
            valid_until_s=_seconds(valid_until),
        )

    _change(bool(publisher) != bool(conformance), "a PUBLISHER or --conformance-key", drafted, how)


@trust.command("rotate")
@_changes
@click.argument("old", required=False)
@click.argument("new_key", metavar="NEW", required=False)
def rotate(old: str | None, new_key: str | None, **how: object) -> None:
    """Let the public key NEW stand wherever OLD stood; a new root key must sign too.

    What a publisher's OLD key signed is not trusted any more. For a time in which both count, use
    `trust add PUBLISHER --key NEW`, and `trust revoke OLD` when everything is signed anew.
    """
    from broker.trust.drafts import rotate_key

    _change(bool(old and new_key), "OLD and NEW", lambda root: rotate_key(
        root, _named(old or ""), _named(new_key or "")), how)


@trust.command("revoke")
@_changes
@click.argument("subjects", metavar="KEY|PUBLISHER", nargs=-1)
@click.option("--at-once", is_flag=True,
              help="Have the gateway revoke one publisher's key without a new root.")
@click.option("--reason", help="Why; it stands in the ledger. Only with --at-once.")
def revoke(
    subjects: tuple[str, ...], *, at_once: bool, reason: str | None, **how: object
) -> None:
    """Trust keys or publishers no more; what runs under them ends at once.

    An operator alone may do that with --at-once: for good, and for this gateway only.
    """
    from broker.trust.drafts import revoke as draft

    if at_once:
        if len(subjects) != 1 or not reason or any(how.values()):
            raise CommandError(USAGE, "--at-once takes one KEY and --reason, and nothing else")
        with admin_client() as client:
            answer = client.revoke("publisher_key", _key_id(_named(subjects[0])), reason)
        facts = {"key_id": answer.id, "ended_calls": answer.ended}
        show("omega.key_revocation/1", facts, Table([*facts.items()]))
        return
    _change(bool(subjects), "a KEY or PUBLISHER", lambda root: draft(
        root, [_named(one) for one in subjects]), how)


def _change(
    named: bool, needed: str, drafted: Callable[[TrustRoot], TrustRoot], how: dict[str, object]
) -> None:
    """Draft a change and write it out, or sign and send it; or send what was signed elsewhere."""
    from broker.trust.roots import sign_root

    envelope_file, unsigned, key_files = how["envelope"], how["unsigned"], how["key_files"]
    assert isinstance(key_files, tuple)
    if envelope_file is not None:
        if named or unsigned or key_files:
            raise CommandError(USAGE, "--envelope is the whole change: name nothing else")
        _send(_read(str(envelope_file)), _home_root())
        return
    if not named:
        raise CommandError(USAGE, f"name {needed}, or --envelope FILE")
    current = _home_root()
    document = drafted(current.trust)
    if unsigned is not None:
        _write_draft(document, str(unsigned))
        return
    own = _own_root_key()
    seeds = _seeds(key_files or ((own,) if own else ()))
    if not seeds:
        raise CommandError(
            TRUST, "this home holds no root key, and none was named",
            "sign with --root-key FILE, or write the draft with --unsigned FILE and sign it where "
            "the keys are: `omega-gateway trust sign`",
        )
    _send(sign_root(document, seeds), current)


def _send(envelope: bytes, current: Root) -> None:
    """Have the gateway take a signed root, unless it is plain that it will not."""
    from broker.trust.errors import TrustRefused
    from broker.trust.roots import load_next_root

    try:
        load_next_root(envelope, current.trust)
    except TrustRefused as refused:
        refused.hint = refused.hint or (
            f"version {current.trust.version} is in force, {current.trust.root_threshold} of its "
            f"{len(current.trust.roots)} root keys must sign, and enough of the new root's own"
        )
        raise
    with admin_client() as client:
        answer = client.set_trust(envelope)
    facts: dict[str, object] = {
        "version": answer.version, "sha256": answer.sha256, "publishers": answer.publishers,
    }
    if answer.receipt is not None:
        facts["receipt"] = f"event {answer.receipt.seq} of {answer.receipt.log_id}"
    show("omega.trust_change/1", facts, Table([*facts.items()]))


def _write_draft(document: TrustRoot, path: str) -> None:
    from broker.durable import replace_file
    from schemas.canonical import struct_bytes

    replace_file(path, struct_bytes(document))
    facts = {"unsigned": os.path.abspath(path), "domain": document.domain,
             "version": document.version}
    show("omega.trust_draft/1", facts, Table([*facts.items()]))
    click.echo(f"sign it where the root keys are: omega-gateway trust sign {path} --root-key FILE "
               "--out ENVELOPE", err=True)


def _home_root() -> Root:
    """Read the root that lies in the home, which is the one in force while a gateway runs."""
    from broker.home import load_home

    return load_home(session().home_path()).trust


def _own_root_key() -> str | None:
    """Find the root key that a development home made for itself."""
    from broker.home import ROOT_KEY

    path = os.path.join(session().home_path(), ROOT_KEY)
    return path if os.path.lexists(path) else None


def _seeds(paths: tuple[str, ...]) -> list[bytes]:
    from broker.keys import KeyFileRefused, read_secret, signing_pair

    seeds = []
    for path in paths:
        if path.endswith(".pub"):
            raise KeyFileRefused(path, "is a public key's file; what signs is the one without .pub")
        try:
            seeds.append(bytes.fromhex(signing_pair(read_secret(path)).secret))
        except ValueError as error:
            raise KeyFileRefused(path, str(error)) from None
    return seeds


def _public(seed: bytes) -> bytes:
    from nacl.signing import SigningKey

    return bytes(SigningKey(seed).verify_key)


def _named(text: str) -> str:
    """Give the public key that a file holds, or the words as they are if there is no such file."""
    if not os.path.isfile(text):
        return text
    with open(text, encoding="ascii", errors="replace") as file:
        line = file.read(65).removesuffix("\n")
    # A secret looks like a public key; whoever confuses the files must not publish one.
    if len(line) != 64 or not text.endswith(".pub"):
        raise CommandError(USAGE, f"{text}: holds no public key",
                           "name the file that ends with .pub, which `trust key` writes")
    return line


def _key_id(text: str) -> str:
    """Give the id of a key that is named by its id or by its public key."""
    from broker.keys import key_id

    return key_id(bytes.fromhex(text)) if len(text) == 64 else text


def _seconds(text: str | None) -> int | None:
    """Read a time: seconds since 1970, or a date or time of ISO 8601, in UTC if it does not say."""
    from datetime import UTC, datetime

    if text is None or text.isdecimal():
        return None if text is None else int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise CommandError(
            USAGE, f"{text!r} is no time: expected YYYY-MM-DD or seconds since 1970"
        ) from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def _is_envelope(data: bytes) -> bool:
    return data.startswith(b'{"payload":')


def _read_document(data: bytes) -> TrustRoot:
    """Read a draft, or what an envelope holds; whether enough keys signed is not asked."""
    from broker.trust.roots import parse_root
    from broker.trust.signatures import decode_base64, read_envelope

    if _is_envelope(data):
        return parse_root(decode_base64(read_envelope(data).payload, "payload"))
    return parse_root(data)


def _read(path: str) -> bytes:
    from broker.trust_folder import ENVELOPE_BYTES_MAX

    with open(path, "rb") as file:
        return file.read(ENVELOPE_BYTES_MAX)
