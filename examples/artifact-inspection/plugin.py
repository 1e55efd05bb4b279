"""What an artifact's headers say: PNG, ZIP and ELF.

The artifact is read through `context.artifact`, which `artifact.read` hands in: an open file and
no place in any file system. Only headers are read, never what they describe, and each number in
them is held against the artifact's real size before it is used. What does not fit is listed under
`oddities`.

Formats: PNG (W3C, second edition), ZIP (APPNOTE 6.3), ELF (System V ABI, gABI 4).
"""

from __future__ import annotations

import struct
import zlib

import msgspec

from sandbox_worker.sdk import BinaryRefPayload, Context, HandedFile, InvalidInput, method

ENTRIES_MAX = 1_000
CHUNKS_MAX = 1_000
CHUNK_CHECKED_MAX = 1 << 20
RATIO_ODD = 100


class Entry(msgspec.Struct, forbid_unknown_fields=True):
    """One file of a ZIP; sizes are in bytes."""

    name: str
    size: int
    compressed: int
    method: int


class Png(msgspec.Struct, tag_field="format", tag="png", forbid_unknown_fields=True):
    """An image; sizes are in pixels, `chunks` counts each type."""

    width: int
    height: int
    bit_depth: int
    colour: str
    interlaced: bool
    chunks: dict[str, int]


class Zip(msgspec.Struct, tag_field="format", tag="zip", forbid_unknown_fields=True):
    """An archive; sizes are in bytes."""

    entries: list[Entry]
    files: int
    size: int
    compressed: int


class Elf(msgspec.Struct, tag_field="format", tag="elf", forbid_unknown_fields=True):
    """A program or library; `interpreter` is empty when none is named."""

    bits: int
    byte_order: str
    kind: str
    machine: str
    sections: int
    interpreter: str
    dynamic: bool
    stack_executable: bool


class Inspection(msgspec.Struct, forbid_unknown_fields=True):
    """The answer. `media_type` is what the headers say, `agrees` whether OMEGA said the same."""

    size: int
    media_type: str
    agrees: bool
    found: Png | Zip | Elf
    oddities: list[str]


@method(deterministic=True, idempotent=True)
def inspect(context: Context, reference: BinaryRefPayload) -> Inspection:
    """Say what an artifact's headers say."""
    file = context.artifact
    begin = file.read(8)
    oddities: list[str] = []
    for magic, media_type, reader in READERS:
        if begin.startswith(magic):
            found = reader(file, oddities)
            context.progress(1.0, f"{media_type}, {len(oddities)} oddities")
            agrees = reference.media_type == media_type
            return Inspection(file.size, media_type, agrees, found, oddities)
    raise InvalidInput("the artifact begins like no PNG, ZIP or ELF")


def _at(file: HandedFile, offset: int, count: int, what: str) -> bytes:
    """Read exactly so many bytes from a place that a header names."""
    if not 0 <= offset <= file.size - count:
        raise InvalidInput(f"{what} would lie outside of the artifact")
    file.seek(offset)
    return file.read(count)


def _png(file: HandedFile, oddities: list[str]) -> Png:
    length, kind, width, height, depth, colour, _, _, interlace = struct.unpack(
        ">I4sIIBBBBB", _at(file, 8, 21, "the image header")
    )
    if (length, kind) != (13, b"IHDR"):
        raise InvalidInput("the first chunk of the PNG is no image header")
    chunks: dict[str, int] = {}
    offset, last = 8, ""
    while last != "IEND" and offset < file.size:
        if sum(chunks.values()) == CHUNKS_MAX:
            oddities.append(f"more than {CHUNKS_MAX} chunks")
            break
        length, kind = struct.unpack(">I4s", _at(file, offset, 8, "a chunk"))
        last = kind.decode("ascii", "replace")
        if length <= CHUNK_CHECKED_MAX:
            body = _at(file, offset + 8, length + 4, f"chunk {last}")
            if zlib.crc32(kind + body[:-4]) != int.from_bytes(body[-4:]):
                oddities.append(f"chunk {last} at {offset} has a wrong checksum")
        chunks[last] = chunks.get(last, 0) + 1
        offset += length + 12
    if last == "IEND" and offset < file.size:
        oddities.append(f"{file.size - offset} bytes lie behind the end of the image")
    if "IDAT" not in chunks:
        oddities.append("the image holds no data")
    colours = {0: "grey", 2: "rgb", 3: "palette", 4: "grey and alpha", 6: "rgb and alpha"}
    name = colours.get(colour, f"unknown {colour}")
    return Png(width, height, depth, name, bool(interlace), chunks)


def _zip(file: HandedFile, oddities: list[str]) -> Zip:
    tail_size = min(file.size, 22 + 0xFFFF)
    tail = _at(file, file.size - tail_size, tail_size, "the end of the directory")
    end = tail.rfind(b"PK\5\6")
    if end < 0 or len(tail) - end < 22:
        raise InvalidInput("the ZIP has no end of its directory")
    number, directory_size, directory_at, comment = struct.unpack("<10xHIIH", tail[end : end + 22])
    behind = len(tail) - end - 22 - comment
    if behind:
        oddities.append(f"{behind} bytes lie behind the end of the archive")
    if directory_at + directory_size != file.size - len(tail) + end:
        oddities.append("bytes lie between the directory and its end, or before the archive")
    entries, names = [], set()
    offset = directory_at
    for _ in range(min(number, ENTRIES_MAX)):
        head = _at(file, offset, 46, "an entry of the directory")
        magic, flags, how, compressed, size, name_size, extra, remark = struct.unpack(
            "<4s4xHH8xIIHHH12x", head
        )
        if magic != b"PK\1\2":
            raise InvalidInput(f"there is no entry of the directory at {offset}")
        raw = _at(file, offset + 46, name_size, "a name")
        name = raw.decode("utf-8" if flags & 0x800 else "cp437", "replace")
        entries.append(Entry(name, size, compressed, how))
        oddities += _odd_entry(entries[-1], encrypted=bool(flags & 1), known=name in names)
        names.add(name)
        offset += 46 + name_size + extra + remark
    if number > ENTRIES_MAX:
        oddities.append(f"only {ENTRIES_MAX} of {number} entries were read")
    return Zip(
        entries, number, sum(one.size for one in entries), sum(one.compressed for one in entries)
    )


def _odd_entry(entry: Entry, *, encrypted: bool, known: bool) -> list[str]:
    """What an unpacker would better know about one entry."""
    parts = entry.name.replace("\\", "/").split("/")
    return [
        f"{entry.name}: {what}"
        for what, so in (
            ("encrypted", encrypted),
            ("the name occurs twice", known),
            ("the name climbs out of its folder", ".." in parts or entry.name.startswith("/")),
            ("it grows more than a hundredfold", entry.size > RATIO_ODD * max(entry.compressed, 1)),
        )
        if so
    ]


def _elf(file: HandedFile, oddities: list[str]) -> Elf:
    ident = _at(file, 0, 16, "the identification")
    if ident[4] not in (1, 2) or ident[5] not in (1, 2):
        raise InvalidInput("the ELF has neither 32 nor 64 bits, or no byte order")
    wide, order = ident[4] == 2, "<" if ident[5] == 1 else ">"
    form = f"{order}HHI{'QQQ' if wide else 'III'}IHHHHHH"
    kind, machine, _, _, program_at, _, _, _, entry_size, entries, _, sections, _ = struct.unpack(
        form, _at(file, 16, struct.calcsize(form), "the header")
    )
    interpreter, dynamic, stack_executable, stack_named = "", False, False, False
    layout = f"{order}IIQQQQQQ" if wide else f"{order}IIIIIIII"
    if entries and entry_size != struct.calcsize(layout):
        raise InvalidInput(f"a program header has {entry_size} bytes")
    for number in range(entries):
        place = program_at + number * entry_size
        values = struct.unpack(layout, _at(file, place, entry_size, "a program header"))
        what, flags = values[0], values[1] if wide else values[6]
        offset, size = (values[2], values[5]) if wide else (values[1], values[4])
        if what == PT_INTERP:
            found = _at(file, offset, min(size, 256), "the interpreter's name")
            interpreter = found.split(b"\0")[0].decode("ascii", "replace")
        dynamic |= what == PT_DYNAMIC
        if what == PT_GNU_STACK:
            stack_named, stack_executable = True, bool(flags & 1)
        if what == PT_LOAD and flags & 3 == 3:
            oddities.append(f"program header {number} is writable and executable at once")
    if entries and not stack_named:
        oddities.append("no program header says what the stack may do")
    if stack_executable:
        oddities.append("the stack is executable")
    return Elf(
        64 if wide else 32, "little" if order == "<" else "big",
        KINDS.get(kind, f"unknown {kind}"), MACHINES.get(machine, f"unknown {machine}"),
        sections, interpreter, dynamic, stack_executable,
    )


PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_GNU_STACK = 1, 2, 3, 0x6474E551
KINDS = {1: "relocatable", 2: "executable", 3: "shared", 4: "core"}
MACHINES = {3: "x86", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv"}
READERS = (
    (b"\x89PNG\r\n\x1a\n", "image/png", _png),
    (b"PK\3\4", "application/zip", _zip),
    (b"PK\5\6", "application/zip", _zip),
    (b"\x7fELF", "application/x-elf", _elf),
)
