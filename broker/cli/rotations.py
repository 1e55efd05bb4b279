"""`keys rotate`: the next step of giving a client, or a front, another key.

Rules this file keeps: one run is one step, and its last line says what comes next; the old key is
revoked only after the profile has the new one, and the profile gets it only after the gateway let
it in. It leaves the files to `broker.rotation`, revoking to the gateway, and a front's own
key to `broker.cli.server_rotation`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from broker.cli.ends import NOT_AUTHORISED, RELOAD, CommandError
from broker.cli.options import home_option, output_option, session
from broker.cli.output import Table, show

if TYPE_CHECKING:
    from broker.home import Home
    from broker.rotation import ClientRotation


@click.command()
@home_option
@output_option
@click.option("--profile", "directories", metavar="DIR", multiple=True,
              help="The client's profile whose key is replaced, or that learns the server's.")
@click.option("--operator", metavar="DIR",
              help="An operator's profile, to revoke with; else the home's own.")
@click.option("--server", type=click.Choice(["omega", "admin"]),
              help="Replace the key of this front instead.")
@click.option("--endpoint", metavar="ADDRESS",
              help="Where the front is served with its next key; tcp needs it.")
@click.option("--days", type=click.IntRange(min=1, max=365), default=7, show_default=True,
              help="How long the old endpoint is served beside the new one.")
@click.option("--finish", is_flag=True, help="End the old endpoint of --server.")
def rotate(directories: tuple[str, ...], operator: str | None, server: str | None,
           endpoint: str | None, days: int, *, finish: bool) -> None:
    """Do the next step of replacing a key.

    For a client's key (--profile DIR): first both keys are valid, then the profile has the new one,
    then the old one is revoked. For a front's (--server): both keys are served side by side until
    --days are over; profiles named by --profile learn the new one; --finish ends the old one. Run
    the command again for each step; what was interrupted is done again.
    """
    import os

    from broker.home import load_home
    from broker.rotation import client_rotation

    home = load_home(session().home_path())
    if server is not None:
        from broker.cli.server_rotation import rotate_server

        rotate_server(home, "front.omega" if server == "omega" else "front.admin", directories,
                      endpoint, days, finish=finish)
        return
    if len(directories) != 1 or endpoint is not None or finish:
        raise click.UsageError("name one client's profile with --profile, or a front with --server")
    rotation = client_rotation(home, os.path.expanduser(directories[0]))
    done = {"begin": _begin, "switch": _switch, "finish": _finish}[rotation.step]
    if operator is not None:
        session().profile = operator
    key_id, replaces, following = done(home, rotation)
    facts = {"step": rotation.step, "key_id": key_id, "replaces": replaces,
             "profile": rotation.profile.directory, "next": following}
    show("omega.key_rotation/1", facts, Table([*facts.items()]))


def _begin(home: Home, rotation: ClientRotation) -> tuple[str, str, str]:
    from broker.rotation import begin

    return begin(home, rotation), rotation.key_id, f"{RELOAD}; then run this command again"


def _switch(_home: Home, rotation: ClientRotation) -> tuple[str, str, str]:
    from broker.client_errors import NotAuthorised
    from broker.client_link import Link
    from broker.keys import curve_key_id
    from broker.rotation import switch

    pair = rotation.next_pair
    assert pair is not None
    key_id = curve_key_id(pair.public)
    link = Link(rotation.profile._replace(pair=pair), 5.0)
    try:
        link.open()
    except NotAuthorised:
        raise CommandError(
            NOT_AUTHORISED, f"the gateway does not admit the new key {key_id} yet", RELOAD
        ) from None
    finally:
        link.close()
    switch(rotation)
    return key_id, rotation.key_id, (
        "let the clients of this profile connect anew; then run this command again, which revokes "
        f"{rotation.key_id} and ends what runs for it"
    )


def _finish(home: Home, rotation: ClientRotation) -> tuple[str, str, str]:
    from broker.cli.connect import admin_client
    from broker.keys import remove_client_key

    with admin_client() as client:
        client.revoke("client_key", rotation.replaced, "replaced by another key")
    remove_client_key(home.path, rotation.replaced)
    return rotation.key_id, rotation.replaced, "nothing: the old key is revoked"
