"""Hostile archives: nothing but the one form is read, and it says what is wrong."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib

import pytest

from broker.trust.bundles import (
    read_archive,
    read_bundle,
    write_archive,
    write_bundle,
)
from broker.trust.errors import TrustRefused
from schemas.manifest import BUNDLE_BYTES_MAX, MANIFEST_FILE
from schemas.refusals import RefusalCode

FILES = {"plugin.py": b"print(1)\n", "data/table.csv": b"a,b\n", MANIFEST_FILE: b"{}"}
GOOD = write_archive(FILES)


def refused(data: bytes, part: str = "") -> RefusalCode:
    """The code with which an archive is refused, after checking its sentence."""
    with pytest.raises(TrustRefused) as caught:
        read_archive(data)
    assert part in caught.value.sentence, caught.value.sentence
    return caught.value.code


def zipped(name: str = "plugin.py", data: bytes = b"x", *, compress: int = 0, **fields) -> bytes:
    """What a common zip library writes for one member, with some of its fields changed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
        info.compress_type = compress
        info.external_attr = 0o100644 << 16
        for field, value in fields.items():
            setattr(info, field, value)
        archive.writestr(info, data)
    return buffer.getvalue()


def raw(members: list[tuple[bytes, bytes]], *, attributes: int = 0o100644 << 16) -> bytes:
    """An archive with any names in any order, otherwise in the one form."""
    body, directory = b"", b""
    for name, data in members:
        common = (20, 0, 0, 0, 33, zlib.crc32(data), len(data), len(data))
        directory += struct.pack(
            "<4s6H3I5H2I", b"PK\1\2", 0x314, *common, len(name), 0, 0, 0, 0, attributes, len(body)
        ) + name
        body += struct.pack("<4s5H3I2H", b"PK\3\4", *common, len(name), 0) + name + data
    count = len(members)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, len(directory), len(body), 0)
    return body + directory + end


def test_what_is_written_is_read():
    """Files and envelope come back, in the order of their names."""
    assert read_archive(GOOD) == FILES
    files = {"plugin.py": b"1", "z.txt": b""}
    bundle = read_bundle(write_bundle(files, b"envelope"))
    assert (bundle.files, bundle.envelope) == (files, b"envelope")


def test_same_files_same_bytes():
    """The order in which files are given does not matter, and a common reader agrees."""
    assert write_archive(dict(reversed(FILES.items()))) == GOOD
    with zipfile.ZipFile(io.BytesIO(GOOD)) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == FILES


def test_the_form_is_what_the_helper_of_these_tests_writes():
    """The archives below differ from the one form in what their names say and in nothing else."""
    assert raw([(b"a.py", b"1"), (b"b.py", b"2")]) == write_archive({"a.py": b"1", "b.py": b"2"})


@pytest.mark.parametrize(
    "name",
    ["../plugin.py", "a/../b", "/etc/passwd", "C:\\x", "a\\b", "./a", "a//b", ".hidden", "a\x00b",
     "a b", "\u00e9.py", "a/", "", "x" * 65, "/".join("abcdefghi")],
)
def test_a_name_that_climbs_or_is_not_plain_is_refused(name: str):
    """Only plain relative names are members."""
    assert refused(raw([(name.encode(), b"x")])) is RefusalCode.BUNDLE_MALFORMED


@pytest.mark.parametrize(
    ("names", "part"),
    [
        ((b"a.py", b"a.py"), "twice"),
        ((b"A.py", b"a.py"), "only in case"),
        ((b"a", b"a/b"), "folder of another"),
        ((b"b.py", b"a.py"), "one form"),
    ],
)
def test_names_that_collide_or_are_out_of_order_are_refused(names, part: str):
    """Two names never mean one file on any file system."""
    assert refused(raw([(name, b"x") for name in names]), part) is RefusalCode.BUNDLE_MALFORMED


@pytest.mark.parametrize(
    ("mode", "kind"),
    [(0o120777, "link"), (0o060644, "block device"), (0o020644, "character device"),
     (0o010644, "fifo"), (0o140644, "socket"), (0o040755, "folder"), (0, "nothing")],
)
def test_links_devices_and_folders_are_refused(mode: int, kind: str):
    """Every member is a regular file."""
    data = raw([(b"plugin.py", b"/etc/passwd")], attributes=mode << 16)
    assert refused(data, "not a regular file") is RefusalCode.BUNDLE_MALFORMED, kind


def test_another_mode_is_another_form():
    """A set-uid bit or an executable bit is no part of the form."""
    for mode in (0o104644, 0o100755, 0o100600):
        assert refused(raw([(b"a.py", b"x")], attributes=mode << 16), "one form")


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (zipped(compress=zipfile.ZIP_DEFLATED, data=bytes(1_000_000)), "compressed"),
        (zipped(compress=zipfile.ZIP_BZIP2, data=bytes(1_000_000)), "compressed"),
        (zipped(date_time=(2026, 1, 1, 0, 0, 0)), "one form"),
        (zipped(create_system=0), "one form"),
        (zipped(extra=b"\x01\x99\x04\x00abcd"), "extra fields"),
        (zipped(comment=b"hello"), "a comment"),
    ],
)
def test_other_forms_of_a_zip_are_refused(data: bytes, part: str):
    """Compression, dates, extra fields and comments of members are refused."""
    assert refused(data, part) is RefusalCode.BUNDLE_MALFORMED


def _patched(offset_from_directory: int, value: bytes) -> bytes:
    data = bytearray(raw([(b"a.py", b"x")]))
    start = data.index(b"PK\1\2") + offset_from_directory
    data[start : start + len(value)] = value
    return bytes(data)


def test_an_encrypted_member_is_refused():
    """The flag of encryption is named."""
    assert refused(_patched(8, b"\x01\x00"), "encrypted") is RefusalCode.BUNDLE_MALFORMED


def test_a_declared_bomb_is_refused_before_anything_is_copied():
    """A member that says it is larger than a bundle may be is too large."""
    huge = struct.pack("<I", 0xFFFFFFFF)
    assert refused(_patched(20, huge + huge)) is RefusalCode.BUNDLE_TOO_LARGE
    assert refused(_patched(24, huge)) is RefusalCode.BUNDLE_TOO_LARGE


def test_overlapping_members_are_refused():
    """Many entries over the same bytes cannot make a small archive large."""
    content = bytes(100_000)
    body = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 33, zlib.crc32(content),
                       len(content), len(content), 6, 0) + b"f00000" + content
    entries = b"".join(
        struct.pack("<4s6H3I5H2I", b"PK\1\2", 0x314, 20, 0, 0, 0, 33, zlib.crc32(content),
                    len(content), len(content), 6, 0, 0, 0, 0, 0o100644 << 16, 0)
        + b"f%05d" % number
        for number in range(200)
    )
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 200, 200, len(entries), len(body), 0)
    assert refused(body + entries + end, "overlap") is RefusalCode.BUNDLE_MALFORMED


def test_bytes_before_between_and_behind_are_refused():
    """An archive holds its members and nothing else."""
    for data in (b"#!/bin/sh\n" + GOOD, GOOD + b"x", GOOD[:-2] + b"\x01\x00x"):
        assert refused(data) is RefusalCode.BUNDLE_MALFORMED
    moved = bytearray(GOOD)
    start = struct.unpack_from("<I", GOOD, len(GOOD) - 6)[0]
    moved[start:start] = b"hidden"
    struct.pack_into("<I", moved, len(moved) - 6, start + 6)
    assert refused(bytes(moved)) is RefusalCode.BUNDLE_MALFORMED


def test_sizes_and_counts_are_bounded():
    """Too many bytes or members are too large, both when read and when written."""
    assert refused(bytes(BUNDLE_BYTES_MAX + 1)) is RefusalCode.BUNDLE_TOO_LARGE
    many = {f"f{number}": b"" for number in range(258)}
    with pytest.raises(TrustRefused, match="258"):
        write_archive(many)
    assert refused(raw([(name.encode(), b"") for name in sorted(many)])) \
        is RefusalCode.BUNDLE_TOO_LARGE
    with pytest.raises(TrustRefused, match="bytes"):
        write_archive({"a": bytes(BUNDLE_BYTES_MAX)})


def test_every_truncation_is_refused():
    """A half-written bundle is never a bundle."""
    for length in range(len(GOOD)):
        refused(GOOD[:length])


def test_every_flipped_byte_is_refused():
    """No byte of an archive can be changed without being noticed."""
    for position in range(len(GOOD)):
        changed = bytearray(GOOD)
        changed[position] ^= 0x20
        refused(bytes(changed))


def test_an_unsigned_bundle_says_so():
    """What `omega-plugin pack` wrote is refused with the command that signs it."""
    with pytest.raises(TrustRefused) as caught:
        read_bundle(write_archive({"plugin.py": b"", "manifest.json": b"{}"}))
    assert "omega-plugin sign" in caught.value.hint
