"""From a command line to a client: which profile, and which of the two clients it is for.

Rules this file keeps: a profile is named or is the one a development home keeps; a profile of the
wrong role ends before anything is sent. It leaves speaking to `broker.client`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from broker.cli.ends import INVALID, NOT_AUTHORISED, CommandError
from broker.cli.options import session

if TYPE_CHECKING:
    from broker.client import AdminClient, OmegaClient
    from schemas.names import Role


def omega_client() -> OmegaClient:
    """Make OMEGA's client; `invoke` is its."""
    from broker.client import OmegaClient

    return OmegaClient(_directory("omega", ("omega",)))


def admin_client() -> AdminClient:
    """Make an operator's client."""
    from broker.client import AdminClient

    return AdminClient(_directory("operator", ("operator",)))


def reading_client() -> OmegaClient | AdminClient:
    """Make the client of whatever role the profile has; every role may read."""
    from broker.client import AdminClient, OmegaClient
    from broker.client_profile import read_profile

    directory = _directory("operator", ("omega", "operator", "auditor"))
    if read_profile(directory).settings.role == "omega":
        return OmegaClient(directory)
    return AdminClient(directory)


def _directory(usual: Role, roles: tuple[Role, ...]) -> str:
    from broker.client_errors import Unreachable
    from broker.client_profile import read_profile

    current = session()
    named = current.profile
    directory = (
        os.path.expanduser(named) if named else os.path.join(current.home_path(), "profiles", usual)
    )
    if not os.path.isdir(directory):
        raise CommandError(
            INVALID, f"{directory}: there is no such profile",
            "name one with --profile DIR; `omega-gateway keys new` makes one",
        )
    settings = read_profile(directory).settings
    role = settings.role
    if role not in roles:
        raise CommandError(
            NOT_AUTHORISED,
            f"{directory}: is a profile of role {role}, needed is {' or '.join(roles)}",
            "name another profile with --profile DIR",
        )
    path = settings.endpoint.removeprefix("ipc://")
    if path != settings.endpoint and not os.path.lexists(path):
        # A gateway that stopped took its socket along; a client would wait for it to come back.
        raise Unreachable(f"no gateway answers at {settings.endpoint}")
    return directory
