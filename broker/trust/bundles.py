"""Bundles: a zip in exactly one form, written and read here byte for byte.

The form: members sorted by name, stored without compression, dated 1980-01-01, regular files of
mode 0644, no flags, no extra fields, no comments, nothing before, between or behind. So the same
files always give the same bytes, with any compression library, and there is nothing to unpack: an
archive cannot hold more than its own size.

Rules this file keeps:
- Reading is from bytes in memory. Sizes and counts are bounded before anything is copied.
- Whatever the reader understood is written again and compared with what came: equal is accepted.
  The checks before that are there to say what is wrong.
- A name is a relative path of plain ASCII that cannot climb; two names that differ only in case, or
  of which one is a folder of the other, are refused.

It leaves signatures and the manifest to its neighbours. Source: APPNOTE.TXT 6.3.3 (the zip format).
"""

from __future__ import annotations

import hashlib
import stat
import struct
import zlib
from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec

from broker.trust.errors import TrustRefused, printable
from schemas.manifest import BUNDLE_BYTES_MAX, MANIFEST_FILE
from schemas.names import FilePath
from schemas.refusals import RefusalCode

UNSIGNED_MANIFEST_FILE: Final = "manifest.json"
"""Where `omega-plugin pack` puts the manifest until `omega-plugin sign` wraps it in an envelope."""
FILES_MAX: Final = 256

_LOCAL: Final = struct.Struct("<4s5H3I2H")
_CENTRAL: Final = struct.Struct("<4s6H3I5H2I")
_END: Final = struct.Struct("<4s4H2IH")
_VERSION, _UNIX, _DOS_DATE = 20, 3 << 8, (1 << 5) | 1
_ATTRIBUTES: Final = (stat.S_IFREG | 0o644) << 16


class Bundle(NamedTuple):
    """A bundle's bytes, taken apart: `sha256` of the whole, the envelope, and all other files."""

    sha256: str
    envelope: bytes
    files: dict[str, bytes]


def write_archive(members: Mapping[str, bytes]) -> bytes:
    """Write members in the one form.

    Raises:
        TrustRefused: a name that has no place in a bundle, or too many or too large members.
    """
    _check_names(sorted(members))
    body, directory = bytearray(), bytearray()
    for name in sorted(members):
        data, path = members[name], name.encode("ascii")
        common = (_VERSION, 0, 0, 0, _DOS_DATE, zlib.crc32(data), len(data), len(data))
        directory += _CENTRAL.pack(
            b"PK\1\2", _UNIX | _VERSION, *common, len(path), 0, 0, 0, 0, _ATTRIBUTES, len(body)
        ) + path
        body += _LOCAL.pack(b"PK\3\4", *common, len(path), 0) + path + data
    count = len(members)
    end = _END.pack(b"PK\5\6", 0, 0, count, count, len(directory), len(body), 0)
    data = bytes(body + directory + end)
    _check_size(data)
    return data


def read_archive(data: bytes) -> dict[str, bytes]:
    """Take an archive apart, in the order of its names.

    Args:
        data: the whole archive.

    Raises:
        TrustRefused: `bundle_too_large` or `bundle_malformed`, with the member in `where`.
    """
    _check_size(data)
    if len(data) < _END.size or data[-_END.size : -_END.size + 4] != b"PK\5\6":
        raise _malformed("the bytes do not end as a zip without a comment does")
    _, _, _, _, count, length, start, comment = _END.unpack_from(data, len(data) - _END.size)
    if comment or start + length + _END.size != len(data):
        raise _malformed("there are bytes that belong to no member, or a comment")
    if count > FILES_MAX + 1:
        raise TrustRefused(
            RefusalCode.BUNDLE_TOO_LARGE, f"{count} members, allowed are {FILES_MAX + 1}"
        )
    members: dict[str, bytes] = {}
    at, copied = start, 0
    for _ in range(count):
        if at + _CENTRAL.size > len(data):
            raise _malformed("the directory ends in the middle of an entry")
        entry = _CENTRAL.unpack_from(data, at)
        name_length, extra, remark = entry[10:13]
        name = data[at + _CENTRAL.size : at + _CENTRAL.size + name_length].decode("latin-1")
        if extra or remark:
            raise _malformed("the member has extra fields or a comment", name)
        at += _CENTRAL.size + name_length
        if name in members:
            raise _malformed("the name occurs twice", name)
        members[name] = _member(data, name, entry)
        copied += len(members[name])
        if copied > start:
            raise _malformed("members overlap", name)
    _check_names(list(members))
    if write_archive(members) != data:
        raise _malformed("the archive is not in the one form that `omega-plugin pack` writes")
    return members


def _member(data: bytes, name: str, entry: tuple[int, ...]) -> bytes:
    """Check one directory entry and cut the member out."""
    flags, method = entry[3:5]
    packed, size, name_length = entry[8:11]
    attributes, offset = entry[15:17]
    if flags & 0x41:
        raise _malformed("the member is encrypted", name)
    kind = stat.S_IFMT(attributes >> 16)
    if kind != stat.S_IFREG or name.endswith("/"):
        raise _malformed("the member is a link, device or folder, not a regular file", name)
    if size > BUNDLE_BYTES_MAX or packed > BUNDLE_BYTES_MAX:
        raise TrustRefused(
            RefusalCode.BUNDLE_TOO_LARGE,
            f"the member says it has {max(size, packed)} bytes, allowed are {BUNDLE_BYTES_MAX}",
            where=printable(name),
        )
    if method != 0 or packed != size:
        raise _malformed("the member is compressed; members are stored", name)
    begin = offset + _LOCAL.size + name_length
    content = data[begin : begin + size]
    if len(content) != size or zlib.crc32(content) != entry[7]:
        raise _malformed("the member's bytes are not those its checksum is of", name)
    return content


def _check_size(data: bytes) -> None:
    if len(data) > BUNDLE_BYTES_MAX:
        raise TrustRefused(
            RefusalCode.BUNDLE_TOO_LARGE,
            f"the bundle has {len(data)} bytes, allowed are {BUNDLE_BYTES_MAX}",
        )


def _check_names(names: list[str]) -> None:
    if len(names) > FILES_MAX + 1:
        raise TrustRefused(
            RefusalCode.BUNDLE_TOO_LARGE, f"{len(names)} members, allowed are {FILES_MAX + 1}"
        )
    folded: dict[str, str] = {}
    for name in names:
        try:
            msgspec.convert(name, FilePath)
        except msgspec.ValidationError:
            raise _malformed("a member's name is a plain relative path that cannot climb",
                             name) from None
        other = folded.setdefault(name.lower(), name)
        if other != name:
            raise _malformed(f"the name differs from {other} only in case", name)
    for lower, name in folded.items():
        parts = lower.split("/")
        for end in range(1, len(parts)):
            if "/".join(parts[:end]) in folded:
                raise _malformed("one name is a folder of another", name)


def _malformed(sentence: str, name: str = "") -> TrustRefused:
    return TrustRefused(RefusalCode.BUNDLE_MALFORMED, sentence, where=printable(name))


def write_bundle(files: Mapping[str, bytes], envelope: bytes) -> bytes:
    """Write a signed bundle: the plugin's files and the envelope of its manifest."""
    if MANIFEST_FILE in files:
        raise _malformed("the name is the manifest's own", MANIFEST_FILE)
    return write_archive({**files, MANIFEST_FILE: envelope})


def read_bundle(data: bytes) -> Bundle:
    """Take a signed bundle apart, without believing any of it.

    Raises:
        TrustRefused: as `read_archive`, or the archive holds no envelope.
    """
    files = read_archive(data)
    envelope = files.pop(MANIFEST_FILE, None)
    if envelope is None:
        unsigned = UNSIGNED_MANIFEST_FILE in files
        raise TrustRefused(
            RefusalCode.BUNDLE_MALFORMED,
            "the bundle is not signed" if unsigned else f"the bundle holds no {MANIFEST_FILE}",
            where=MANIFEST_FILE,
            hint="sign it: omega-plugin sign FILE --key KEY" if unsigned else "",
        )
    return Bundle(hashlib.sha256(data).hexdigest(), envelope, files)
