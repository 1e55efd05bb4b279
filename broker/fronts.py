"""Where each front listens and with which key, also while another key takes over.

    keys/front.omega.key_secret            the key at the endpoint that gateway.toml names
    keys/front.omega.next.key_secret       the next key, and
    keys/front.omega.rotation.toml         where it is served, and until when the other one is

Rules this file keeps: one ROUTER has one server key, so a new key has an endpoint of its own, and
both are served side by side until a time; from the rotation file on, the next key's endpoint is
*the* front, the other is the old one. Every step is one file put in place at once, and the order is
such that a home can be served whatever step was the last.

It leaves asking clients to `broker.cli.rotations` and sockets to `broker.transport`. Source:
docs/decisions/0030-keys-change-in-steps.md.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tomllib
from collections.abc import Mapping
from typing import Annotated, Final, Literal, NamedTuple

import msgspec
from msgspec import Meta

from broker.client_profile import read_profile
from broker.effects import Front
from broker.keys import (
    CurvePair,
    KeyFileRefused,
    curve_key_id,
    flat_toml,
    new_curve_pair,
    read_curve_pair,
    read_private,
    sync_directory,
    write_secret,
)
from schemas.profile import PROFILE_FILE

FRONTS: Final[tuple[Front, Front]] = ("front.omega", "front.admin")


class FrontRotation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`keys/FRONT.rotation.toml`: where the next key is served; until when the other, wall us."""

    format: Literal["omega-front-rotation/1"]
    endpoint: Annotated[str, Meta(min_length=6, max_length=200, pattern=r"^(ipc|tcp)://")]
    until_us: Annotated[int, Meta(ge=0, le=2**53 - 1)]


class Served(NamedTuple):
    """One endpoint of a front, its key, and until when it is served: wall us, 0 for ever."""

    endpoint: str
    pair: CurvePair
    until_us: int = 0

    @property
    def key_id(self) -> str:
        """The id of the server key."""
        return curve_key_id(self.pair.public)


def secret_path(home: str, front: Front) -> str:
    """Give the file of a front's key."""
    return os.path.join(home, "keys", f"{front}.key_secret")


def next_path(home: str, front: Front) -> str:
    """Give the file of a front's next key."""
    return os.path.join(home, "keys", f"{front}.next.key_secret")


def rotation_path(home: str, front: Front) -> str:
    """Give the file that says that a front's key is being replaced."""
    return os.path.join(home, "keys", f"{front}.rotation.toml")


def read_rotation(home: str, front: Front) -> FrontRotation | None:
    """Read whether a front's key is being replaced.

    Raises:
        KeyFileRefused: the file cannot be used.
    """
    path = rotation_path(home, front)
    if not os.path.lexists(path):
        return None
    try:
        return msgspec.convert(tomllib.loads(read_private(path)), FrontRotation)
    except (msgspec.ValidationError, tomllib.TOMLDecodeError) as error:
        raise KeyFileRefused(path, f"is no rotation of a front: {error}") from None


def served(home: str, front: Front, endpoint: str, pair: CurvePair) -> tuple[Served, ...]:
    """Give a front's endpoints, the one for new profiles first.

    Args:
        home: the home's folder.
        front: which one.
        endpoint: what the configuration says.
        pair: the front's key.

    Raises:
        KeyFileRefused: a file cannot be used.
    """
    rotation = read_rotation(home, front)
    if rotation is None:
        return (Served(endpoint, pair),)
    path = next_path(home, front)
    if rotation.endpoint == endpoint:
        # The end was cut short: the configuration has the endpoint, the key may have its name.
        return (Served(endpoint, read_curve_pair(path) if os.path.lexists(path) else pair),)
    return (
        Served(rotation.endpoint, read_curve_pair(path)),
        Served(endpoint, pair, rotation.until_us),
    )


def begin(home: str, front: Front, endpoint: str, until_us: int) -> None:
    """Make the next key and say where it is served; the rotation file is what counts.

    Raises:
        KeyFileRefused: a file of the home cannot be used.
    """
    path = next_path(home, front)
    if not os.path.lexists(path):
        write_secret(path, new_curve_pair().secret)
    rotation = FrontRotation("omega-front-rotation/1", endpoint, until_us)
    replace_file(rotation_path(home, front), flat_toml(rotation).encode())


def finish(home: str, front: Front, config_path: str) -> None:
    """Make the next key and its endpoint the front's only ones; what was cut short is done again.

    Raises:
        KeyFileRefused: gateway.toml has no line of the endpoint that could be changed.
    """
    rotation = read_rotation(home, front)
    if rotation is None:
        return
    with open(config_path, encoding="utf-8") as file:
        text = file.read()
    section = front.partition(".")[2]
    changed = _with_endpoint(config_path, text, section, rotation.endpoint)
    if changed != text:
        replace_file(config_path, changed.encode())
    with contextlib.suppress(FileNotFoundError):
        os.replace(next_path(home, front), secret_path(home, front))
    os.unlink(rotation_path(home, front))
    sync_directory(os.path.join(home, "keys"))


def teach(directory: str, doors: tuple[Served, ...]) -> bool:
    """Lead a client's profile to a front's newest endpoint; False when it is there already.

    Raises:
        KeyFileRefused: the profile cannot be used, or is none of this front's.
    """
    profile = read_profile(directory)
    settings, new = profile.settings, doors[0]
    if settings.server_key == new.pair.public:
        return False
    if settings.server_key not in {door.pair.public for door in doors[1:]}:
        raise KeyFileRefused(
            profile.directory, f"has server key {curve_key_id(settings.server_key)}, which is not "
            "the one that is replaced"
        )
    learned = msgspec.structs.replace(settings, endpoint=new.endpoint, server_key=new.pair.public)
    replace_file(os.path.join(profile.directory, PROFILE_FILE), flat_toml(learned).encode())
    return True


def beside(endpoint: str, name: str) -> str | None:
    """Give an ipc endpoint beside another one; None for tcp, whose port is an operator's choice."""
    if not endpoint.startswith("ipc://"):
        return None
    return re.sub(r"-[0-9a-f]{4}$", "", endpoint) + f"-{name}"


def replace_file(path: str, data: bytes) -> None:
    """Put a file of mode 0600 in the place of another at once, durable when this returns."""
    new = f"{path}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    with os.fdopen(os.open(new, flags, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)
    sync_directory(os.path.dirname(path))


def _with_endpoint(path: str, text: str, section: str, endpoint: str) -> str:
    """Change one line of gateway.toml, and show that nothing else means anything else."""
    lines, inside = text.splitlines(keepends=True), False
    written = f"endpoint = {json.dumps(endpoint, ensure_ascii=False)}"
    for number, line in enumerate(lines):
        if line.lstrip().startswith("["):
            inside = line.strip().startswith(f"[{section}]")
        elif inside and re.match(r"\s*endpoint\s*=", line):
            lines[number] = f"{written}\n"
    changed = "".join(lines)
    before: Mapping[str, object] = tomllib.loads(text)
    own = before.get(section)
    wanted = {**before, section: {**(own if isinstance(own, dict) else {}), "endpoint": endpoint}}
    if tomllib.loads(changed) != wanted:
        raise KeyFileRefused(
            path, f"write `{written}` under [{section}] by hand, then run the command again"
        )
    return changed
