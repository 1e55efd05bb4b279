"""`keys`: the client keys that a home admits, and how each comes and goes.

Rules this file keeps: a secret is written to the profile's folder and nowhere else; only its public
key enters the home. It leaves key files to `broker.keys` and revocation to the gateway.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import click

from broker.cli.connect import admin_client
from broker.cli.ends import FAILURE, CommandError
from broker.cli.options import home_option, output_option, read_options, session
from broker.cli.output import Table, show
from broker.cli.rotations import rotate

if TYPE_CHECKING:
    from schemas.names import Role

_NAME = re.compile(r"[a-z][a-z0-9-]{0,63}")
_LATER = "a running gateway learns of it by SIGHUP or at its next start"


@click.group()
def keys() -> None:
    """Make, list, rotate and revoke keys."""


keys.add_command(rotate)


@keys.command("new")
@home_option
@output_option
@click.option("--role", type=click.Choice(["omega", "operator", "auditor"]), required=True,
              help="omega invokes, operators manage the registry, auditors read.")
@click.option("--profile", "directory", metavar="DIR", required=True,
              help="The folder to make; it holds the secret key and belongs to the client.")
@click.option("--name", help="A name for people; else the role.")
def new(role: Role, directory: str, name: str | None) -> None:
    """Make a client's profile and let its public key into the home."""
    from broker.home import load_home, new_profile

    if name is not None and not _NAME.fullmatch(name):
        raise click.BadParameter("a name is lower-case letters, digits and hyphens",
                                 param_hint="--name")
    home = load_home(session().home_path())
    path = os.path.abspath(os.path.expanduser(directory))
    key_id = new_profile(home, role, path, name or role)
    facts = {"key_id": key_id, "role": role, "name": name or role, "profile": path}
    show("omega.key/1", facts, Table([*facts.items()]))
    click.echo(f"{_LATER}; hand {path} to the client and keep no copy", err=True)


@keys.command("list")
@home_option
@output_option
def list_keys() -> None:
    """List the client keys of a home."""
    import msgspec

    from broker.keys import list_client_keys

    found = list_client_keys(session().home_path())
    entries = [
        {"key_id": key_id, "role": key.role, "name": key.name, "public_key": key.public_key,
         "replaces": key.replaces or None}
        for key_id, key in found.items()
    ]
    rows = [tuple(entry.values()) for entry in entries]
    show("omega.keys/1", {"keys": msgspec.to_builtins(entries)},
         Table(rows, ("key id", "role", "name", "public key", "replaces")),
         each=("keys", "omega.key/1"))


@keys.command("revoke")
@read_options
@click.argument("key_id", metavar="ID")
@click.option("--reason", default="revoked by an operator", show_default=True,
              help="Why; it stands in the ledger.")
@click.option("--disconnect", is_flag=True,
              help="End its open connections too.")
def revoke(key_id: str, reason: str, *, disconnect: bool) -> None:
    """Take a client's key back.

    A running gateway refuses the key from its next frame on, and for good. Its open connections
    stay open, without use, unless --disconnect ends them; with them go those of the same front by
    which nobody has spoken yet, since only a frame says whose a connection is: such clients connect
    anew by themselves and lose nothing. When no gateway answers, the key is taken out of the home,
    and a gateway learns of that at its next start.
    """
    from broker.client_errors import Unreachable
    from broker.keys import list_client_keys, remove_client_key

    facts: dict[str, object] = {"key_id": key_id}
    try:
        with admin_client() as client:
            answer = client.revoke("client_key", key_id, reason, disconnect=disconnect)
        # An operator's machine need not be the gateway's.
        home = session().home_path()
        if os.path.isdir(os.path.join(home, "keys")) and key_id in list_client_keys(home):
            remove_client_key(home, key_id)
        facts |= {"revoked": True, "ended_calls": answer.ended, "disconnected": disconnect}
        if disconnect:
            click.echo("its connections are ended; clients of the same front that had said nothing "
                       "yet connect anew by themselves", err=True)
    except Unreachable as unreachable:
        home = session().home_path()
        if key_id not in list_client_keys(home):
            raise CommandError(FAILURE, f"{home}/keys/clients: holds no key {key_id}",
                               "`omega-gateway keys list` lists them") from None
        remove_client_key(home, key_id)
        facts |= {"revoked": False, "removed_from_home": True}
        click.echo(f"{unreachable}: the key was taken out of the home; {_LATER}", err=True)
    show("omega.key_revocation/1", facts, Table([*facts.items()]))
