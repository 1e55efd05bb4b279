"""Another key for a client, in steps that can each be interrupted and repeated.

    begin    a new key lies beside the old one, and the home admits both
    switch   the profile has the new key; the old secret is gone
    finish   the old key is revoked, and out of the home

Rules this file keeps: what step comes next is read from the files, never remembered elsewhere, so
that a step which was cut short is done again; a profile always holds one key that is admitted; the
new secret is never outside of the profile.

It leaves asking the gateway to `broker.cli.rotations` and key files to `broker.keys`. Source:
docs/decisions/0030-keys-change-in-steps.md.
"""

from __future__ import annotations

import os
from typing import Final, Literal, NamedTuple

from broker.client_profile import Profile, read_profile
from broker.home import Home
from broker.keys import (
    CurvePair,
    KeyFileRefused,
    add_client_key,
    curve_key_id,
    new_curve_pair,
    read_curve_pair,
    sync_directory,
    write_secret,
)
from schemas.profile import KEY_FILE

NEXT_KEY_FILE: Final = "client.next.key_secret"
"""A profile's key that the home admits already, and that takes over with the next step."""


class ClientRotation(NamedTuple):
    """Where a profile stands: what comes next, its key now, and the pair or id of the other."""

    step: Literal["begin", "switch", "finish"]
    profile: Profile
    key_id: str
    next_pair: CurvePair | None = None
    replaced: str = ""


def client_rotation(home: Home, directory: str) -> ClientRotation:
    """Read from a profile and its home which step comes next.

    Raises:
        KeyFileRefused: a file cannot be used, or the home does not know the profile's key.
    """
    profile = read_profile(directory)
    key_id = curve_key_id(profile.pair.public)
    path = os.path.join(profile.directory, NEXT_KEY_FILE)
    if os.path.lexists(path):
        pair = read_curve_pair(path)
        known = curve_key_id(pair.public) in home.clients
        return ClientRotation("switch" if known else "begin", profile, key_id, pair)
    present = home.clients.get(key_id)
    if present is None:
        raise KeyFileRefused(
            profile.directory, f"has key {key_id}, which {home.path} does not know"
        )
    if present.replaces in home.clients:
        return ClientRotation("finish", profile, key_id, replaced=present.replaces)
    return ClientRotation("begin", profile, key_id)


def begin(home: Home, rotation: ClientRotation) -> str:
    """Put a new key beside the old one and let it into the home; gives its id.

    Raises:
        KeyFileRefused: the home does not know the profile's key.
    """
    present = home.clients.get(rotation.key_id)
    if present is None:
        raise KeyFileRefused(
            rotation.profile.directory, f"has key {rotation.key_id}, which the home does not know"
        )
    pair = rotation.next_pair
    if pair is None:
        pair = new_curve_pair()
        write_secret(os.path.join(rotation.profile.directory, NEXT_KEY_FILE), pair.secret)
    return add_client_key(
        home.path, role=present.role, public_key=pair.public, name=present.name,
        replaces=rotation.key_id,
    )


def switch(rotation: ClientRotation) -> None:
    """Make the new key the profile's own, at once; the old secret is gone with it."""
    directory = rotation.profile.directory
    os.replace(os.path.join(directory, NEXT_KEY_FILE), os.path.join(directory, KEY_FILE))
    sync_directory(directory)
