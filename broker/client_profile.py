"""A client's profile: the folder that holds its key, its gateway's address and key, and its head.

Rules this file keeps: the folder and its files are the owner's alone; a profile is written once and
only its public key leaves it. The files are read with the strictness of every other key file.

It leaves the fields to `schemas.profile` and admitting the key to `broker.keys`.
"""

from __future__ import annotations

import os
import tomllib
from typing import NamedTuple

import msgspec

from broker.keys import (
    CurvePair,
    KeyFileRefused,
    curve_bytes,
    flat_toml,
    make_private_directory,
    new_curve_pair,
    read_curve_pair,
    read_private,
    write_private,
    write_secret,
)
from schemas.profile import KEY_FILE, PROFILE_FILE, ClientProfile

PathText = str | os.PathLike[str]


class Profile(NamedTuple):
    """A profile that was read: its folder, its settings and its key pair."""

    directory: str
    settings: ClientProfile
    pair: CurvePair


def write_profile(directory: PathText, settings: ClientProfile) -> str:
    """Make a profile folder with a fresh key.

    Args:
        directory: the folder, made if it is missing; it must not hold a profile.
        settings: what `profile.toml` will say.

    Returns:
        The public key in Z85, to be admitted by the gateway's home.

    Raises:
        KeyFileRefused: there is a profile already, or the folder is open to others.
    """
    folder = os.path.abspath(directory)
    make_private_directory(folder)
    pair = new_curve_pair()
    write_secret(os.path.join(folder, KEY_FILE), pair.secret)
    write_private(os.path.join(folder, PROFILE_FILE), flat_toml(settings))
    return pair.public


def read_profile(directory: PathText) -> Profile:
    """Read a profile folder.

    Raises:
        KeyFileRefused: a file is missing, open to others, or malformed.
    """
    folder = os.path.abspath(directory)
    path = os.path.join(folder, PROFILE_FILE)
    try:
        settings = msgspec.convert(tomllib.loads(read_private(path)), ClientProfile)
        curve_bytes(settings.server_key)
    except (msgspec.ValidationError, tomllib.TOMLDecodeError, ValueError) as error:
        raise KeyFileRefused(path, f"is not a client profile: {error}") from None
    return Profile(folder, settings, read_curve_pair(os.path.join(folder, KEY_FILE)))
