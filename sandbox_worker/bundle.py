"""Read what a worker needs out of its bundle: manifest, source and resources.

Rules: the bundle's digest is compared with the launch document's before anything is read from it,
and each file's size and digest with the manifest's. The signature was checked by the broker
before the digest entered the launch document; checking it again here would add a key and no
knowledge.
"""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from collections.abc import Collection

import msgspec

from schemas.launch import LaunchDocument
from schemas.manifest import (
    BUNDLE_BYTES_MAX,
    MANIFEST_FILE,
    SOURCE_BYTES_MAX,
    Envelope,
    PluginManifest,
)
from schemas.modules import FREE_MODULES, VETTED_MODULES, is_standard

COMPANIONS: dict[str, tuple[str, ...]] = {"datetime": ("_strptime",)}
"""What a vetted module imports late, when there is no file system any more."""


class LaunchRefusedError(Exception):
    """The launch document and the bundle do not fit together, or the plugin cannot be loaded."""


class Bundle(msgspec.Struct, frozen=True):
    """What the worker took from its bundle."""

    manifest: PluginManifest
    source: str
    resources: dict[str, bytes]


def read_bundle(launch: LaunchDocument) -> Bundle:
    """Open, compare and read the bundle that the launch document names.

    Raises:
        LaunchRefusedError: any digest, size, name or encoding differs from what was promised.
    """
    try:
        with open(launch.bundle, "rb") as file:
            data = file.read(BUNDLE_BYTES_MAX + 1)
        if hashlib.sha256(data).hexdigest() != launch.plugin_digest:
            raise LaunchRefusedError("the bundle's digest is not the launch document's")
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _read_archive(archive, launch)
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, NotImplementedError) as error:
        # msgspec's errors are ValueErrors, and so is text that is not UTF-8.
        raise LaunchRefusedError(f"the bundle cannot be read: {type(error).__name__}") from error


def _read_archive(archive: zipfile.ZipFile, launch: LaunchDocument) -> Bundle:
    envelope = msgspec.json.decode(archive.read(MANIFEST_FILE), type=Envelope)
    payload = base64.b64decode(envelope.payload, validate=True)
    manifest = msgspec.json.decode(payload, type=PluginManifest)
    if (manifest.id, manifest.version) != (launch.plugin, launch.version):
        raise LaunchRefusedError("the bundle holds another plugin or version")
    files = {file.path: file for file in manifest.files}

    def content(path: str) -> bytes:
        with archive.open(path) as member:
            data = member.read(files[path].size + 1)
        if hashlib.sha256(data).hexdigest() != files[path].sha256:
            raise LaunchRefusedError(f"{path} is not the file that was signed")
        return data

    source = content(manifest.entry)
    if len(source) > SOURCE_BYTES_MAX:
        raise LaunchRefusedError("the source is longer than the compiler is given")
    resources = {path: content(path) for path in manifest.resources}
    return Bundle(manifest, source.decode("utf-8-sig"), resources)


def modules_to_load(
    manifest: PluginManifest, approved: Collection[str]
) -> tuple[list[str], list[str]]:
    """What the zygote imports for this plugin, companions first.

    Args:
        manifest: the plugin's.
        approved: modules beyond the vetted ones that an operator approved.

    Returns:
        Modules of the standard library, and modules that lie in a folder of packages.

    Raises:
        LaunchRefusedError: the manifest names a module that is neither vetted nor approved.
    """
    wanted = [name for name in manifest.modules if name not in FREE_MODULES]
    for name in wanted:
        if name not in VETTED_MODULES and name not in approved:
            raise LaunchRefusedError(f"module {name} is not one a plugin may load")
    packaged = [name for name in wanted if name not in VETTED_MODULES and not is_standard(name)]
    standard = [name for name in wanted if name not in packaged]
    return [
        companion for name in standard for companion in (*COMPANIONS.get(name, ()), name)
    ], packaged
