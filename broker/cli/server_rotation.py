"""`keys rotate --server`: the next step of giving a front another key.

Rules this file keeps: one run is one step, and its last line says what comes next; a profile learns
the new endpoint only after the gateway let its key in there. It leaves the files to `broker.fronts`
and serving both endpoints to the gateway.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click
import msgspec

from broker.cli.ends import RELOAD, UNREACHABLE, USAGE, CommandError
from broker.cli.output import Table, show

if TYPE_CHECKING:
    from broker.effects import Front
    from broker.fronts import Served
    from broker.home import Home

_START = "start the gateway anew (`systemctl restart omega-gateway`): it then serves both endpoints"


def rotate_server(
    home: Home, front: Front, profiles: Sequence[str], endpoint: str | None, days: int, *,
    finish: bool,
) -> None:
    """Do the next step: begin, teach profiles, or finish.

    Args:
        home: the gateway's home.
        front: whose key is replaced.
        profiles: folders of clients that are to learn the new endpoint; a development home's own
            are added.
        endpoint: where the next key is served; None takes an ipc path beside the present one.
        days: how long the old endpoint is served.
        finish: whether the old endpoint ends now.

    Raises:
        CommandError: it is not the time for this step.
        KeyFileRefused: a file cannot be used.
    """
    from broker.fronts import read_rotation

    rotation = read_rotation(home.path, front)
    if rotation is None and (finish or profiles):
        raise CommandError(USAGE, f"no key of {front} is being replaced",
                           "begin with `omega-gateway keys rotate --server`")
    if finish:
        step, following = "finish", _finish(home, front)
    elif rotation is None:
        step, following = "begin", _begin(home, front, endpoint, days)
    else:
        step, following = "teach", _teach(home, front, profiles)
    from broker.home import load_home

    doors = load_home(home.path).fronts[front]
    old = doors[1] if doors[1:] else None
    facts = {
        "step": step, "front": front, "endpoint": doors[0].endpoint, "key_id": doors[0].key_id,
        "server_key": doors[0].pair.public,
        "old_endpoint": old.endpoint if old else None,
        "old_key_id": old.key_id if old else None,
        "old_until": None if old is None else datetime.fromtimestamp(
            old.until_us / 1_000_000, UTC).isoformat(timespec="seconds"),
        "next": following,
    }
    show("omega.server_key_rotation/1", facts, Table([*facts.items()]))


def _begin(home: Home, front: Front, endpoint: str | None, days: int) -> str:
    from broker import fronts
    from broker.configured import config_with_origins
    from broker.home import CONFIG_FILE
    from broker.keys import curve_key_id, new_curve_pair, read_curve_pair, write_secret

    line = f"{front.partition('.')[2]}.endpoint"
    path = os.path.join(home.path, CONFIG_FILE)
    origin = config_with_origins(path, environment=os.environ, overrides={}).origins[line]
    if origin != path:
        raise CommandError(USAGE, f"{line} comes from {origin}, and must stand in {path}")
    present = home.fronts[front][0]
    if endpoint is None:
        secret = fronts.next_path(home.path, front)
        if not os.path.lexists(secret):
            write_secret(secret, new_curve_pair().secret)
        name = curve_key_id(read_curve_pair(secret).public)[:4]
        endpoint = fronts.beside(present.endpoint, name)
    if endpoint is None or endpoint in {home.omega_endpoint, home.admin_endpoint}:
        raise CommandError(USAGE, f"{front} needs another address for its next key",
                           "name it with --endpoint tcp://ADDRESS:PORT")
    if endpoint.startswith("tcp://*"):
        # Profiles learn this very address.
        raise CommandError(USAGE, f"{endpoint}: no client can connect to this",
                           "name the address that clients use with --endpoint tcp://ADDRESS:PORT")
    # Refuses what the configuration would refuse.
    config_with_origins(path, environment=os.environ, overrides={line: endpoint})
    until = datetime.now(UTC) + timedelta(days=days)
    fronts.begin(home.path, front, endpoint, int(until.timestamp() * 1_000_000))
    return f"{_START}; then run this command again with the clients' profiles"


def _teach(home: Home, front: Front, profiles: Sequence[str]) -> str:
    from broker.client_link import Link
    from broker.client_profile import read_profile
    from broker.fronts import teach
    from broker.keys import curve_key_id

    doors = home.fronts[front]
    _require_served(front, doors[0])
    own = os.path.join(home.path, "profiles")
    folders = [os.path.expanduser(one) for one in profiles]
    given = {os.path.realpath(one) for one in folders}
    if os.path.isdir(own):
        omega = front == "front.omega"
        folders += [
            folder for name in sorted(os.listdir(own)) if (name == "omega") == omega
            and os.path.realpath(os.path.join(own, name)) not in given
            and curve_key_id(read_profile(folder := os.path.join(own, name)).pair.public)
            in home.clients
        ]
    learned = 0
    for folder in folders:
        profile = read_profile(folder)
        link = Link(profile._replace(settings=msgspec.structs.replace(
            profile.settings, endpoint=doors[0].endpoint, server_key=doors[0].pair.public)), 5.0)
        try:
            link.open()
        finally:
            link.close()
        learned += teach(folder, doors)
    click.echo(f"{learned} of {len(folders)} profiles learned the new endpoint", err=True)
    return (
        "let these clients connect anew; a profile elsewhere needs `endpoint` and `server_key` as "
        "above in its profile.toml; then run this command with --finish"
    )


def _require_served(front: Front, door: Served) -> None:
    """Refuse to go on while nobody serves the new endpoint.

    Asked with a stranger's key: to be refused by that server key is the answer.
    """
    from broker.client_errors import NotAuthorised, Unreachable
    from broker.client_link import Link
    from broker.client_profile import Profile
    from broker.keys import new_curve_pair
    from schemas.profile import ClientProfile

    settings = ClientProfile(format="omega-profile/1", endpoint=door.endpoint,
                             server_key=door.pair.public, role="auditor")
    link = Link(Profile("", settings, new_curve_pair()), 5.0)
    path = door.endpoint.removeprefix("ipc://")
    found = "there is no socket"
    try:
        # A client would wait for a socket that is not there yet.
        if path == door.endpoint or os.path.lexists(path):
            link.open()
    except NotAuthorised:
        return
    except Unreachable as error:
        found = str(error)
    finally:
        link.close()
    raise CommandError(
        UNREACHABLE, f"{door.endpoint}: the next key of {front} is not served yet ({found})", _START
    )


def _finish(home: Home, front: Front) -> str:
    from broker.fronts import finish
    from broker.home import CONFIG_FILE

    new, *old = home.fronts[front]
    if any(door.until_us > datetime.now(UTC).timestamp() * 1_000_000 for door in old):
        _require_served(front, new)
    finish(home.path, front, os.path.join(home.path, CONFIG_FILE))
    return f"{RELOAD}: the old endpoint ends, and with it the old key"
