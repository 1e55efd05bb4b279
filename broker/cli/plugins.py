"""`plugins`: what an operator does with the inventory.

Rules this file keeps: every change is one request to the gateway, which decides and ledgers; a
change prints what the gateway answered and where its evidence lies. It leaves rules to the gateway.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from broker.cli.connect import admin_client, reading_client
from broker.cli.ends import FAILURE, INVALID, USAGE, CommandError
from broker.cli.options import output_option, read_options
from broker.cli.output import Table, show

if TYPE_CHECKING:
    import msgspec

    from schemas import messages

_FILE = click.Path(exists=True, dir_okay=False)


@click.group()
def plugins() -> None:
    """List, register, enable and revoke plugins."""


@plugins.command("list")
@read_options
def list_plugins() -> None:
    """List registered plugins."""
    import msgspec

    entries: list[messages.PluginEntry] = []
    with reading_client() as client:
        after: str | None = None
        while True:
            page = client.list_plugins(after=after)
            entries += page.plugins
            after = page.next_after
            if after is None:
                break
    rows = [
        (one.plugin, one.enabled_version, one.highest_version, one.versions, one.workers,
         one.description)
        for one in entries
    ]
    headers = ("plugin", "enabled", "highest", "versions", "workers", "description")
    show("omega.plugins/1", {"plugins": msgspec.to_builtins(entries)}, Table(rows, headers),
         each=("plugins", "omega.plugin_entry/1"))


@plugins.command("show")
@read_options
@click.argument("name", metavar="ID[@VERSION]")
@click.option("--diff", is_flag=True,
              help="Show what VERSION, or else the highest one, changes against the one enabled "
              "last.")
def show_plugin(name: str, *, diff: bool) -> None:
    """Show one plugin with its versions, methods and grants."""
    import msgspec

    from schemas.manifest import PluginManifest

    plugin, _, version = name.partition("@")
    with reading_client() as client:
        found = client.get_plugin(plugin, version=version or None)
    if diff:
        from broker.cli.differences import show_difference

        show_difference(found)
        return
    manifest = None if found.manifest is None else msgspec.json.decode(
        found.manifest, type=PluginManifest
    )
    document = {
        "plugin": found.plugin,
        "versions": msgspec.to_builtins(found.versions),
        "grants": found.grants,
        "manifest": None if found.manifest is None else msgspec.Raw(found.manifest),
        "pending": None if found.pending_diff_digest is None else {
            "digest": found.pending_diff_digest, "approved_by": found.pending_approvals,
            "required": found.approvals_required,
        },
    }
    versions = [(one.version, one.state, one.publisher, one.registered_seq, one.bundle_sha256)
                for one in found.versions]
    pending = [] if found.pending_diff_digest is None else [
        ("waits for approval", f"{found.pending_diff_digest}, {len(found.pending_approvals)} of "
         f"{found.approvals_required}: {', '.join(found.pending_approvals) or 'nobody yet'}"),
    ]
    tables = [Table(versions, ("version", "state", "publisher", "event", "bundle"))]
    if manifest is not None:
        methods = [
            (name, method.input.kind, method.output.kind, method.deterministic, method.timeout_ms)
            for name, method in manifest.methods.items()
        ]
        headers = (f"method of {manifest.version}", "takes", "gives", "deterministic", "at most ms")
        tables.insert(0, Table([
            ("plugin", found.plugin),
            ("description", manifest.description),
            ("capabilities", ", ".join(manifest.capabilities) or "none"),
            ("granted", ", ".join(found.grants) or "none"),
            *pending,
        ]))
        tables.append(Table(methods, headers))
        files = [(name, file, path) for name, method in manifest.methods.items()
                 for file, path in method.files.items()]  # fmt: skip
        if files:
            tables.append(Table(files, ("method", "is handed", "file of a root")))
    show("omega.plugin/1", document, *tables)


@plugins.command("register")
@read_options
@click.argument("file", type=_FILE)
@click.option("--conformance", type=_FILE, metavar="REPORT", help="A signed conformance report.")
def register(file: str, conformance: str | None) -> None:
    """Register the version that a signed bundle holds; it serves nothing before it is enabled."""
    with admin_client() as client:
        report = None if conformance is None else _read(conformance)
        _answer("omega.registered/1", client.register_plugin(_read(file), report))


@plugins.command("validate")
@read_options
@click.argument("file", type=_FILE)
@click.option("--conformance", type=_FILE, metavar="REPORT", help="A signed conformance report.")
def validate(file: str, conformance: str | None) -> int:
    """Say everything that would hinder a registration, and change nothing."""
    import msgspec

    from broker.cli.problems import EXIT_CODES

    with admin_client() as client:
        report = None if conformance is None else _read(conformance)
        answer = client.validate_bundle(_read(file), report)
    problems = answer.problems
    rows = [(one.code, one.where, one.found, one.expected, one.remedy) for one in problems]
    facts = [("plugin", answer.plugin), ("version", answer.version), ("problems", len(problems))]
    headers = ("code", "where", "found", "expected", "remedy")
    document = {
        "plugin": answer.plugin, "version": answer.version,
        "problems": msgspec.to_builtins(problems),
    }
    show("omega.validation/1", document, Table(facts), *([Table(rows, headers)] if rows else []),
         each=("problems", "omega.problem/1"))
    return max((EXIT_CODES[one.code] for one in problems), default=0)


@plugins.command("enable")
@read_options
@click.argument("name", metavar="ID[@VERSION]")
def enable(name: str) -> None:
    """Let a registered version serve calls; without VERSION the highest that may."""
    plugin, _, version = name.partition("@")
    with admin_client() as client:
        if not version:
            version = _highest(client.get_plugin(plugin))
        _answer("omega.enabled/1", client.enable_plugin(plugin, version))


@plugins.command("disable")
@read_options
@click.argument("plugin", metavar="ID")
def disable(plugin: str) -> None:
    """Let no version of a plugin serve new calls."""
    with admin_client() as client:
        _answer("omega.disabled/1", client.disable_plugin(plugin))


@plugins.command("approve")
@read_options
@click.argument("name", metavar="ID@VERSION")
@click.option("--digest", help="Approve only if the difference has this SHA-256.")
def approve(name: str, digest: str | None) -> None:
    """Show what a version may more than the one enabled last, and approve exactly that."""
    from broker.cli.differences import approve_difference

    plugin, _, version = name.partition("@")
    if not plugin or not version:
        raise CommandError(USAGE, f"{name!r} is not ID@VERSION")
    with admin_client() as client:
        approve_difference(client, plugin, version, digest)


@plugins.command("grant")
@read_options
@click.argument("plugin", metavar="ID")
@click.argument("capability")
def grant(plugin: str, capability: str) -> None:
    """Grant one capability to one plugin."""
    with admin_client() as client:
        _answer("omega.granted/1", client.grant(plugin, capability))


@plugins.command("revoke")
@read_options
@click.argument("name", metavar="ID@VERSION|ID")
@click.argument("capability", required=False)
@click.option("--reason", required=True, help="Why; it stands in the ledger.")
def revoke(name: str, capability: str | None, reason: str) -> None:
    """Take a version back for good, or with CAPABILITY a grant; calls that have it end at once."""
    plugin, _, version = name.partition("@")
    if not plugin or bool(version) == (capability is not None):
        raise CommandError(USAGE, f"{name!r} is not ID@VERSION, nor ID before a CAPABILITY")
    with admin_client() as client:
        if capability is None:
            answer = client.revoke("plugin_version", name, reason)
        else:
            answer = client.revoke("grant", f"{plugin} {capability}", reason)
        _answer("omega.revoked/1", answer)


@plugins.command("lock")
@output_option
@click.argument("plugin", metavar="ID")
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
def lock(plugin: str, folder: str) -> None:
    """Lock a folder of third-party modules, and print what approves it for a plugin.

    Writes FOLDER/packages.lock, one SHA-256 for each file, and prints the lines for policy.toml.
    A worker compares every file before it loads one: approve what you have looked at.
    """
    import json

    from broker.cli.options import session
    from broker.store import lock_packages

    try:
        approved, modules = lock_packages(folder)
    except (OSError, ValueError) as error:
        raise CommandError(INVALID, f"{folder}: {error}") from None
    document = {"plugin": plugin, "folder": approved.folder, "lock_sha256": approved.lock_sha256,
                "modules": modules}
    if session().output != "table":
        show("omega.packages/1", document)
        return
    # Strings and lists of JSON are also TOML's.
    click.echo(
        f"[modules.allowed]\n{json.dumps(plugin)} = {json.dumps(modules)}\n\n"
        f"[modules.packages.{json.dumps(plugin)}]\n"
        f"folder = {json.dumps(approved.folder)}\nlock_sha256 = {json.dumps(approved.lock_sha256)}"
    )


def _highest(found: messages.Plugin) -> str:
    from semver import Version

    usable = [one.version for one in found.versions if one.state not in ("quarantined", "revoked")]
    if not usable:
        raise CommandError(FAILURE, f"{found.plugin}: no version of it may be enabled",
                           "register a higher version")
    return max(usable, key=Version.parse)


def _answer(schema: str, answer: msgspec.Struct) -> None:
    """Print what the gateway answered to a change."""
    import msgspec

    document = msgspec.to_builtins(answer)
    for name in ("type", "request_id"):
        document.pop(name, None)
    facts = [(name, value) for name, value in document.items() if name != "receipt"]
    receipt = document.get("receipt")
    if receipt is not None:
        facts.append(("receipt", f"event {receipt['seq']} of {receipt['log_id']}"))
    show(schema, document, Table(facts))


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
