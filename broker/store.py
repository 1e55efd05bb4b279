"""What an operator hands to plugins from this machine: folders with a name, and artifacts.

Rules this file keeps: no named root holds or lies in a folder of the gateway's own, so that no
grant can reach a key, the ledger or another plugin's bundle; an artifact is one regular file of the
store, named by its id, and its reference is made from the bytes that are there now.

It leaves to the policy which root a plugin may read, and opening for a call to the worker, which
checks size and digest again. Source: specification section 9 (`BinaryRefPayload`).
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Mapping

import msgspec

from broker.configured import HomeRefused
from schemas.names import ArtifactId
from schemas.payloads import BinaryRefPayload, MediaType
from schemas.refusals import RefusalCode

_CHUNK_BYTES = 1 << 20


def check_roots(roots: Mapping[str, str], own_folders: Iterable[str]) -> None:
    """Hold the named roots of a policy apart from the gateway's own folders.

    Args:
        roots: `[roots]` of policy.toml. A folder that is missing is no mistake here: it costs the
            plugins that need it, not the gateway.
        own_folders: home, anchor and run directory.

    Raises:
        HomeRefused: `config_invalid`; a root holds one of them or lies in one.
    """
    own = [os.path.realpath(folder) for folder in own_folders]
    for name, folder in roots.items():
        real = os.path.realpath(folder)
        for other in own:
            if os.path.commonpath([real, other]) in (real, other):
                raise HomeRefused(
                    RefusalCode.CONFIG_INVALID,
                    f"policy.toml: $.roots.{name}: {folder} and the gateway's own {other} lie in "
                    "one another; name a folder apart from it",
                )


def artifact_reference(
    store: str, artifact_id: str, media_type: MediaType
) -> BinaryRefPayload:
    """Make the reference to an artifact that lies in a store: size and SHA-256 of its bytes.

    Args:
        store: the folder `artifacts` of a home.
        artifact_id: the file's name.
        media_type: what the bytes are said to be.

    Raises:
        ValueError: the id is malformed, or names no regular file.
        OSError: the file cannot be read.
    """
    # The id becomes a file name; its pattern cannot climb.
    msgspec.convert(artifact_id, ArtifactId)
    path = os.path.join(store, artifact_id)
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError(f"{path} is not a regular file")
        digest, size = hashlib.sha256(), 0
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return BinaryRefPayload(artifact_id, digest.hexdigest(), size, media_type)
