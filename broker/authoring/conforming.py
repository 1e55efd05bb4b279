"""`conform`: the conformance suite against a plugin, and its report, signed where a key is named.

Rules this file keeps: the table goes to stdout, all else to stderr; the report is written whatever
was found, and names the bundle that was driven; exit 0 says that no rule was broken.

It leaves driving and judging to `broker.authoring.conform`, and whether a report counts to the
gateway that is asked to register.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Final

import click

from broker.authoring.telling import say, status_of

if TYPE_CHECKING:
    from broker.authoring.local import LocalGateway
    from schemas.conformance import ConformanceReport
    from schemas.manifest import PluginManifest

_FILE: Final = click.Path(exists=True, dir_okay=False)
SAMPLES: Final = "samples"
"""The folder beside plugin.py with inputs of an author's own."""


@click.command()
@click.argument("plugin", type=click.Path(exists=True), default=".")
@click.option("--trust-root", type=_FILE, metavar="FILE",
              help="The trust root that a bundle is registered under; else that of the home.")
@click.option("--home", type=click.Path(), envvar="OMEGA_GATEWAY_HOME", metavar="DIR",
              default=os.path.join("~", ".omega-gateway"), show_default=True)
@click.option("--policy", type=_FILE, metavar="FILE",
              help="What it may have meanwhile; else the policy.toml of its folder.")
@click.option("--samples", type=click.Path(exists=True, file_okay=False), metavar="DIR",
              help="Inputs METHOD.EXT and METHOD-NAME.EXT; else samples/ of its folder.")
@click.option("--sign-key", "sign_keys", type=click.Path(), multiple=True, metavar="FILE",
              help="A file of mode 0600 with an Ed25519 seed in hex; may be given several times.")
@click.option("-o", "--output", metavar="FILE",
              help="Where to write; else ID-VERSION.conformance.json in the present folder.")
def conform(
    plugin: str, trust_root: str | None, home: str, policy: str | None, samples: str | None,
    sign_keys: tuple[str, ...], output: str | None,
) -> None:
    """Drive hostile and boundary inputs at a plugin, and write what it did as a report.

    PLUGIN is a folder, or a signed bundle: only a report about the very bundle that is registered
    counts, and only when a key signed it that the trust root lists for conformance.
    """
    from broker.authoring.commands import write

    # Also when it is told to stop, the gateway ends and its folder goes.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = plugin if os.path.isdir(plugin) else None
    if folder is not None:
        policy = policy or _existing(folder, "policy.toml")
        samples = samples or _existing(folder, SAMPLES)
    try:
        seeds = _seeds(sign_keys)
        root = None if folder else _trust_root(trust_root, home)
        report = _run(plugin, root, policy, samples)
    except Exception as error:
        status = status_of(error)
        if status is None:
            raise
        raise SystemExit(status) from None
    path = output or f"{report.plugin}-{report.version}.conformance.json"
    write(path, _written(report, seeds))
    _show(report)
    say(f"{path}: {'signed' if seeds else 'unsigned, so that it counts for no admission'}")
    raise SystemExit(1 if report.broken() else 0)


def _run(
    plugin: str, root: bytes | None, policy: str | None, samples: str | None
) -> ConformanceReport:
    """Start a gateway, install the plugin and drive it."""
    from broker.authoring.conform import CONFIG, drive
    from broker.authoring.conform_cases import Inputs
    from broker.authoring.conform_suite import Suite
    from broker.authoring.local import LocalGateway
    from broker.cli.progress import bar

    if policy is not None:
        _check_policy(policy)
    with LocalGateway(config=CONFIG, trust_root=root) as gateway:
        manifest, bundle_sha256 = install(gateway, plugin, policy)
        inputs = Inputs(manifest, os.path.join(gateway.home, "artifacts"), samples)
        with bar(f"{manifest.id} {manifest.version}") as tell:
            return drive(Suite(gateway, manifest, inputs), bundle_sha256, tell)


def install(
    gateway: LocalGateway, plugin: str, policy: str | None
) -> tuple[PluginManifest, str]:
    """Install a folder, signed here, or a bundle as it is; gives manifest and bundle digest."""
    import msgspec

    from broker.authoring.pack import pack, sign
    from broker.authoring.source import read_folder
    from broker.home import DEVELOPMENT_PUBLISHER, PUBLISHER_KEY
    from broker.keys import read_secret
    from schemas.manifest import PluginManifest

    if os.path.isdir(plugin):
        seed = bytes.fromhex(read_secret(os.path.join(gateway.home, PUBLISHER_KEY)))
        packed = pack(read_folder(plugin), "development", DEVELOPMENT_PUBLISHER)
        bundle = sign(packed.data, [seed], "development").data
    else:
        with open(plugin, "rb") as file:
            bundle = file.read()
    registered = gateway.install_bundle(bundle, policy)
    found = gateway.operator.get_plugin(registered.plugin).manifest
    assert found is not None
    return msgspec.json.decode(found, type=PluginManifest), registered.bundle_sha256


def _check_policy(path: str) -> None:
    """Refuse a policy that wants the report which is about to be made."""
    from broker.cli.ends import INVALID, CommandError
    from broker.policy import load_policy

    with open(path, "rb") as file:
        policy = load_policy(file.read())
    if policy.conformance_required:
        raise CommandError(
            INVALID, f"{path} wants the report that this makes",
            "name a policy without conformance_required: --policy FILE",
        )


def _trust_root(path: str | None, home: str) -> bytes:
    from broker.cli.ends import TRUST, CommandError
    from broker.trust.roots import TRUST_FILE

    found = path or os.path.join(os.path.expanduser(home), TRUST_FILE)
    if not os.path.isfile(found):
        raise CommandError(TRUST, f"{found}: there is no trust root",
                           "name one with --trust-root FILE, or a home with --home DIR")
    with open(found, "rb") as file:
        return file.read()


def _seeds(paths: tuple[str, ...]) -> list[bytes]:
    from broker.cli.ends import INVALID, CommandError
    from broker.keys import read_secret, signing_pair

    seeds = []
    for path in paths:
        try:
            seeds.append(bytes.fromhex(signing_pair(read_secret(path)).secret))
        except ValueError as error:
            raise CommandError(INVALID, f"{path}: {error}", "name a file with a seed") from None
    return seeds


def _existing(folder: str, name: str) -> str | None:
    path = os.path.join(folder, name)
    return path if os.path.exists(path) else None


def _written(report: ConformanceReport, seeds: list[bytes]) -> bytes:
    """Give the report's canonical bytes, or the envelope around them."""
    from broker.trust.conformance import sign_report
    from schemas.canonical import struct_bytes

    return sign_report(report, seeds) if seeds else struct_bytes(report)


def _show(report: ConformanceReport) -> None:
    """Print what became of every rule, and where to look at what broke one."""
    from broker.cli.output import Table, show_tables
    from schemas.conformance import RULES

    rows = [
        (one.rule, one.verdict.replace("_", " "), one.calls, one.broken, RULES[one.rule])
        for one in report.rules
    ]
    counts = report.counts
    tables = [Table([
        ("plugin", f"{report.plugin} {report.version}"),
        ("bundle", report.bundle_sha256),
        ("suite", report.suite_sha256),
        ("gateway", report.gateway_version),
        ("calls", f"{counts.calls}, of them {counts.answered} answered"),
        ("at most", f"{counts.cpu_ms_max} ms of processor, {counts.wall_ms_max} ms, "
                    f"{counts.memory_kb_max // 1024} MiB, {counts.output_bytes_max} bytes out"),
    ]), Table(rows, ("rule", "verdict", "calls", "broke it", "what a plugin must do"))]
    evidence = [
        (one.rule, shown.method, shown.case, shown.code or "answered", shown.request_id)
        for one in report.rules if one.verdict == "broken" for shown in one.evidence
    ]
    if evidence:
        tables.append(Table(evidence, ("broken", "method", "input", "ended", "request")))
    show_tables(sys.stdout, *tables)
