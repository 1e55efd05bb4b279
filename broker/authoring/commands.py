"""What the commands of `omega-plugin` do: files in, files out, one sentence a line.

Rules this file keeps: data goes to stdout, problems to stderr; a file is replaced whole or not at
all; exit codes are those of the design (0 ok, 2 usage, 5 invalid manifest, 6 signature or trust).

It leaves every rule to `broker.trust` and `broker.authoring.pack`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, NoReturn

import click

from broker.authoring.telling import say, tell_hazards, tell_problems

if TYPE_CHECKING:
    from broker.trust.errors import TrustRefused
    from schemas.messages import Problem
    from schemas.names import Domain
    from schemas.trust import TrustRoot

EXIT_FAILURE, EXIT_INVALID = 1, 5
TOP_LEVEL_US_MAX = 10_000
"""What a plugin's top level may take of every call before an author hears of it."""

TOP_LEVEL = "write what it computes into a file that `resources` names, or into the method"

_DOMAIN = click.Choice(["development", "production"])
_FILE = click.Path(exists=True, dir_okay=False)
_FOLDER = click.Path(exists=True, file_okay=False)


@click.command()
@click.argument("directory", type=_FOLDER, default=".")
@click.option("-o", "--output", metavar="FILE", help="Where to write; else NAME-VERSION beside it.")
@click.option("--domain", type=_DOMAIN, default="development", show_default=True,
              help="The domain it may be registered in; part of the signed bytes.")
@click.option("--publisher", metavar="NAME", help="Stands in for the publisher of plugin.toml.")
def pack(directory: str, output: str | None, domain: Domain, publisher: str | None) -> None:
    """Pack a plugin's folder into an unsigned bundle; same sources, same bytes.

    The source is imported on this machine to read its methods. Without -o the bundle is written to
    the present folder as ID-VERSION.omegaplugin.
    """
    from broker.authoring.pack import pack as make
    from broker.authoring.source import SourceRefused, read_folder
    from schemas.manifest import BUNDLE_SUFFIX

    try:
        packed = make(read_folder(directory), domain, publisher)
    except SourceRefused as refused:
        _end_with(refused.problems)
    path = output or f"{packed.manifest.id}-{packed.manifest.version}{BUNDLE_SUFFIX}"
    write(path, packed.data)
    click.echo(f"{path}: {packed.manifest.id} {packed.manifest.version}, {domain}, "
               f"{len(packed.data)} bytes, unsigned")


@click.command()
@click.argument("file", type=_FILE)
@click.option("--key", "keys", type=click.Path(), multiple=True, required=True, metavar="FILE",
              help="A file of mode 0600 with an Ed25519 seed in hex; may be given several times.")
@click.option("--domain", type=_DOMAIN, help="Sign only if the bundle is of this domain.")
@click.option("-o", "--output", metavar="FILE", help="Where to write; else FILE is replaced.")
def sign(file: str, keys: tuple[str, ...], domain: Domain | None, output: str | None) -> None:
    """Add a signature to a bundle."""
    from broker.authoring.pack import sign as add
    from broker.authoring.source import SourceRefused
    from broker.keys import KeyFileRefused, key_id, read_secret, signing_pair
    from broker.trust.errors import TrustRefused

    try:
        pairs = [signing_pair(read_secret(path)) for path in keys]
    except KeyFileRefused as refused:
        _end(EXIT_INVALID, str(refused))
    except ValueError as error:
        _end(EXIT_INVALID, f"{' or '.join(keys)}: {error}")
    try:
        packed = add(_read(file), [bytes.fromhex(pair.secret) for pair in pairs], domain)
    except TrustRefused as refused:
        _end_refused(refused)
    except SourceRefused as refused:
        _end_with(refused.problems)
    write(output or file, packed.data)
    names = ", ".join(key_id(bytes.fromhex(pair.public)) for pair in pairs)
    click.echo(f"{output or file}: {packed.manifest.id} {packed.manifest.version}, "
               f"{packed.manifest.domain}, signed by {names}")


@click.command()
@click.argument("file", type=_FILE)
@click.option("--trust-root", type=_FILE, help="A trust root; else that of the home.")
@click.option("--public-key", metavar="HEX", multiple=True,
              help="Ask only whether this key signed; may be given several times.")
@click.option("--home", type=click.Path(), envvar="OMEGA_GATEWAY_HOME",
              default=os.path.join("~", ".omega-gateway"), show_default=True)
def verify(file: str, trust_root: str | None, public_key: tuple[str, ...], home: str) -> None:
    """Verify a bundle's signatures, files and manifest.

    Policy is not asked: what a home allows, `omega-gateway plugins validate` tells.
    """
    from broker.authoring.verify import verify_bundle
    from broker.trust.errors import TrustRefused
    from broker.trust.roots import TRUST_FILE

    path = trust_root or os.path.join(os.path.expanduser(home), TRUST_FILE)
    try:
        trust = None if public_key else _trust_root(path)
        validated = verify_bundle(_read(file), trust, public_key, int(time.time()))
    except TrustRefused as refused:
        _end_refused(refused)
    if validated.problems or validated.manifest is None:
        _end_with(validated.problems)
    manifest = validated.manifest
    click.echo(f"{file}: {manifest.id} {manifest.version}, {manifest.domain}, publisher "
               f"{manifest.publisher}, signed by {', '.join(validated.signing_keys)}")


@click.command()
@click.argument("directory", type=_FOLDER, default=".")
def check(directory: str) -> None:
    """Say everything that is wrong with a plugin, and change nothing.

    The source is imported on this machine to read its methods. What the sandbox will deny is a
    note with its line, and does not make the plugin wrong.
    """
    from broker.authoring.pack import pack as make
    from broker.authoring.source import ENTRY_FILE, SourceRefused, read_folder

    try:
        folder = read_folder(directory)
        packed = make(folder, "development")
    except SourceRefused as refused:
        _end_with(refused.problems)
    tell_hazards(folder.files[ENTRY_FILE].decode("utf-8-sig"), folder.source.capabilities)
    took_us, manifest = folder.description.top_level_us, packed.manifest
    if took_us > TOP_LEVEL_US_MAX:
        say(f"note top_level at {ENTRY_FILE}: its top level takes {took_us / 1000:.1f} ms of "
            f"processor in every call, of {manifest.limits.cpu_ms} allowed")
        say(f"  {TOP_LEVEL}")
    click.echo(f"{manifest.id} {manifest.version}: {len(manifest.methods)} methods "
               f"({', '.join(sorted(manifest.methods))}), {len(packed.data)} bytes, "
               f"{took_us / 1000:.1f} ms of top level a call, nothing to mend")


@click.command()
@click.argument("code")
def explain(code: str) -> None:
    """Explain a refusal code, a note of check, or a rule of conform."""
    from broker.authoring.hazards import INSTEAD
    from schemas.conformance import RULES
    from schemas.denials import DENIALS, explanation
    from schemas.refusals import REFUSALS, RefusalCode

    others = {**INSTEAD, "top_level": TOP_LEVEL, **RULES}
    if code in DENIALS:
        click.echo(explanation(code))
        return
    if code in others:
        click.echo(f"{code}: {others[code]}")
        return
    try:
        page = REFUSALS[RefusalCode(code)]
    except ValueError:
        import difflib

        near = difflib.get_close_matches(code, [*RefusalCode, *DENIALS, *others], n=3)
        _end(2, f"{code!r} is no refusal code" + (f"; near: {', '.join(near)}" if near else ""))
    again = "the same request may succeed later" if page.retryable else "change something first"
    click.echo(f"{code}: {page.title}.\n\n{page.reason}\n\nRemedy: {page.remedy}\n"
               f"Retry: {again}. Who can mend it: {page.blame}.")


def _trust_root(path: str) -> TrustRoot:
    from broker.trust.errors import TrustRefused
    from broker.trust.roots import load_first_root
    from broker.trust.signatures import read_envelope
    from schemas.refusals import RefusalCode
    from schemas.trust import TRUST_PAYLOAD_TYPES

    if not os.path.isfile(path):
        raise TrustRefused(
            RefusalCode.TRUST_INVALID, "there is no trust root", where=path,
            hint="name one with --trust-root FILE, or a key with --public-key HEX",
        )
    envelope = _read(path)
    kind = read_envelope(envelope).payloadType
    domain: Domain = "development" if kind == TRUST_PAYLOAD_TYPES["development"] else "production"
    return load_first_root(envelope, domain).trust


def _read(path: str) -> bytes:
    from schemas.names import FRAME_BYTES_MAX_ADMIN

    try:
        with open(path, "rb") as file:
            return file.read(FRAME_BYTES_MAX_ADMIN)
    except OSError as error:
        _end(EXIT_FAILURE, f"{path}: {error.strerror}")


def write(path: str, data: bytes) -> None:
    """Replace a file whole or not at all."""
    temporary = f"{path}.{os.getpid()}.part"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        _end(EXIT_FAILURE, f"{path}: {error.strerror}")


def _end_with(problems: Iterable[Problem]) -> NoReturn:
    """Print every problem and end: 6 when it is about signatures or trust, else 5."""
    raise SystemExit(tell_problems(problems))


def _end_refused(refused: TrustRefused) -> NoReturn:
    from broker.trust.manifests import problem

    _end_with([problem(refused.code, refused.where, refused.sentence, "", refused.hint)])


def _end(code: int, sentence: str) -> NoReturn:
    click.echo(sentence, err=True)
    raise SystemExit(code)
