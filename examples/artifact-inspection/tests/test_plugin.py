"""Real files, and files that lie: headers are believed only as far as the file goes."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable

import pytest
from plugin import Elf, Inspection, Png, Zip, inspect

from sandbox_worker.sdk import BinaryRefPayload, Context, HandedFile, InvalidInput


def inspected(data: bytes, media_type: str = "application/octet-stream") -> Inspection:
    """Hand bytes over as the sandbox does: an open file of which the plugin knows the size."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        context = Context(artifact=HandedFile(file.fileno(), len(data)))
        return inspect(context, BinaryRefPayload("one", "0" * 64, len(data), media_type))


def chunk(kind: bytes, body: bytes) -> bytes:
    """One chunk of a PNG with its right checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def image(width: int = 3, height: int = 2) -> bytes:
    """A whole image in true colour."""
    rows = b"".join(b"\0" + b"\x80\x40\x20" * width for _ in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def archive(**files: bytes) -> bytes:
    """A compressed archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        for name, data in files.items():
            target.writestr(name.replace("__", "/"), data)
    return buffer.getvalue()


def interpreter() -> bytes:
    """The first part of the Python that runs this, which holds every header but the sections'."""
    with open(os.path.realpath(sys.executable), "rb") as file:
        return file.read()


def test_an_image_is_described():
    """Size, colour and chunks, and that OMEGA called it what it is."""
    found = inspected(image(), "image/png")
    assert found.found == Png(
        3, 2, 8, "rgb", interlaced=False, chunks={"IHDR": 1, "IDAT": 1, "IEND": 1}
    )
    assert (found.media_type, found.agrees, found.oddities) == ("image/png", True, [])


def test_a_spoiled_image_is_odd():
    """A wrong checksum and bytes behind the end are told, and no more."""
    data = bytearray(image())
    data[20] ^= 1
    found = inspected(bytes(data) + b"hidden", "application/zip")
    assert found.oddities == [
        "chunk IHDR at 8 has a wrong checksum", "6 bytes lie behind the end of the image",
    ]
    assert not found.agrees


def test_an_archive_is_described():
    """Every entry with its sizes."""
    found = inspected(archive(a=b"one", folder__b=b"two" * 10)).found
    assert isinstance(found, Zip)
    assert [(one.name, one.size) for one in found.entries] == [("a", 3), ("folder/b", 30)]
    assert found.files == 2


def test_an_archive_that_would_hurt_is_odd():
    """Bombs and climbing names are found without unpacking anything."""
    found = inspected(archive(bomb=bytes(1 << 20), **{"..__etc__passwd": b"x"}))
    assert found.oddities == [
        "bomb: it grows more than a hundredfold",
        "../etc/passwd: the name climbs out of its folder",
    ]


def test_the_python_that_runs_this_is_described():
    """A real program of this machine: its bits, order and interpreter."""
    found = inspected(interpreter(), "application/x-elf")
    assert isinstance(found.found, Elf)
    assert found.agrees
    assert found.found.bits == struct.calcsize("P") * 8
    assert found.found.byte_order == sys.byteorder
    assert found.found.interpreter.startswith("/lib")
    assert not found.found.stack_executable


def test_what_is_none_of_the_three_is_invalid_input():
    """A text is no artifact that has headers."""
    with pytest.raises(InvalidInput, match="no PNG, ZIP or ELF"):
        inspected(b"just a text")


@pytest.mark.parametrize("make", [image, lambda: archive(a=b"one", b=b"two"), interpreter])
def test_a_file_that_ends_early_or_lies_is_invalid_or_odd(make: Callable[[], bytes]):
    """Cut anywhere in its headers, or with any of its bytes changed, it never raises another
    error."""
    data = make()
    for count in range(4, min(len(data), 600)):
        for spoiled in (data[:count], data[:count] + b"\xff" * 4 + data[count + 4 :]):
            with contextlib.suppress(InvalidInput):
                assert inspected(spoiled).size == len(spoiled)
