"""What an operator hands to plugins from this machine: named folders, artifacts and packages.

Rules this file keeps: no named folder holds or lies in a folder of the gateway's own, so that no
grant can reach a key, the ledger or another plugin's bundle; an artifact is one regular file of the
store, named by its id, and its reference is made from the bytes that are there now; a lock is made
of every file of its folder, and of regular files only.

It leaves to the policy which root a plugin may read, and opening for a call to the worker, which
checks size and digest again. Source: specification section 9 (`BinaryRefPayload`).
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable

import msgspec

from broker.configured import HomeRefused
from schemas.names import ArtifactId
from schemas.packages import LOCK_FILE, PackageFolder, write_lock
from schemas.payloads import BinaryRefPayload, MediaType
from schemas.policy import Policy
from schemas.refusals import RefusalCode

_CHUNK_BYTES = 1 << 20


def check_folders(policy: Policy, own_folders: Iterable[str]) -> None:
    """Hold the folders that a policy names apart from the gateway's own.

    Args:
        policy: named roots and folders of packages. One that is missing is no mistake here: it
            costs the plugins that need it, not the gateway.
        own_folders: home, anchor and run directory.

    Raises:
        HomeRefused: `config_invalid`; a folder holds one of them or lies in one, or a root's path
            leads through a link.
    """
    named = {f"roots.{name}": folder for name, folder in policy.roots.items()}
    for glob, packages in policy.modules.packages.items():
        named[f"modules.packages.{glob}"] = packages.folder
    own = [os.path.realpath(folder) for folder in own_folders]
    for name, folder in named.items():
        real = os.path.realpath(folder)
        for other in own:
            if os.path.commonpath([real, other]) in (real, other):
                raise HomeRefused(
                    RefusalCode.CONFIG_INVALID,
                    f"policy.toml: $.{name}: {folder} and the gateway's own {other} lie in "
                    "one another; name a folder apart from it",
                )
        if name.startswith("roots.") and real != os.path.normpath(folder):
            # Whoever may change the link could lead a plugin elsewhere, and a worker follows none.
            raise HomeRefused(
                RefusalCode.CONFIG_INVALID,
                f"policy.toml: $.{name}: {folder} leads through a link; name {real} itself",
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


def lock_packages(folder: str) -> tuple[PackageFolder, tuple[str, ...]]:
    """Write the lock of a folder of packages, of the files that lie in it now.

    Args:
        folder: where third-party modules were installed, for instance by `pip install --target`.

    Returns:
        What policy.toml names to approve it, and the modules that can be imported from it.

    Raises:
        ValueError: it holds something else than files and folders, or a name that a lock cannot
            hold.
        OSError: it cannot be read or written.
    """
    files: dict[str, str] = {}
    for directory, folders, names in os.walk(folder, onerror=_raise):
        for name in (*folders, *names):
            path = os.path.join(directory, name)
            mode = os.lstat(path).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise ValueError(f"{path} is neither a file nor a folder")
        for name in names:
            path = os.path.join(directory, name)
            inside = os.path.relpath(path, folder)
            if inside != LOCK_FILE:
                with open(path, "rb") as file:
                    files[inside] = hashlib.file_digest(file, "sha256").hexdigest()
    data = write_lock(files)
    unfinished = os.path.join(folder, f"{LOCK_FILE}.{os.getpid()}")
    with open(unfinished, "xb") as file:
        os.fchmod(file.fileno(), 0o644)
        file.write(data)
    os.replace(unfinished, os.path.join(folder, LOCK_FILE))
    tops = {path.removesuffix("/__init__.py").removesuffix(".py") for path in files
            if path.count("/") <= path.endswith("/__init__.py") and path.endswith(".py")}
    approved = PackageFolder(os.path.abspath(folder), hashlib.sha256(data).hexdigest())
    return approved, tuple(sorted(name for name in tops if name.isidentifier()))


def _raise(error: OSError) -> None:
    raise error
