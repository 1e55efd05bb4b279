#!/usr/bin/env python3
"""Verify a ledger directory with nothing but the Python standard library.

    verify_ledger.py DIRECTORY [--vkey KEY] [--anchor DIRECTORY] [--output text|json]

A second implementation of docs/LEDGER.md that shares no code with the gateway: a mistake in one of
the two shows as a difference. It only reads. Exit status: 0 the ledger holds, 7 it does not, 2 bad
usage, 1 a file could not be read. Give the verifier key yourself (`--vkey`): the key that the first
event claims proves only that the ledger agrees with itself.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import functools
import hashlib
import io
import json
import os
import re
import stat
import sys
import zlib
from collections.abc import Iterator

INTEGER_MAX = 2**53 - 1
ENTRY_BYTES_MAX = 1024
SEGMENT = re.compile(r"([0-9]{12})\.ndjson(?:\.gz)?")
PLAIN_BYTES_MAX = 256 * 1024 * 1024
GZIP_HEADER = bytes.fromhex("1f8b08000000000000ff")
ENVELOPE = re.compile(
    rb',"log_id":"[ -!#-\[\]-~]+","mono_us":[0-9]+,"prev_hash":"([0-9a-f]{64})"'
    rb',"seq":([0-9]+),"ts_us":[0-9]+,"v":1\}\n'
)
ENTRY = re.compile(rb"([0-9]{1,16})\n((?:[^\n]+\n){3}\n\xe2\x80\x94 [^\n]+\n)")
KEY_NAME = re.compile(r"[!-*,-~]{1,256}")
SIGNATURE = re.compile("\u2014 ([!-*,-~]{1,256}) ([A-Za-z0-9+/]+={0,2})\n")
SIZE = re.compile(r"0|[1-9][0-9]{0,15}")
LOG_ID = re.compile(r"omega-gateway/(production|development)/[0-9a-f]{16}")
EVENT_KEYS = "event_hash event_type f log_id mono_us prev_hash seq ts_us v"
EVENT_TYPE = re.compile(
    r"ledger\.(open|close|recovery|roll)|state\.snapshot|(key|trust|policy|grant|breaker)\.change"
    r"|plugin\.(register|reject|enable|disable|quarantine|approve)|revoke|quota\.refuse"
    r"|worker\.(start|attest|probe|exit)|zygote\.recycle|frame\.(in|out|drop)"
    r"|invoke\.(accept|refuse|end)|reply\.undeliverable|determinism\.mismatch|gateway\.degraded"
)

Point = tuple[int, int, int, int]
Key = tuple[str, bytes]
Checkpoint = tuple[str, int, bytes]


def regular(path: str, flags: int) -> int:
    """Open a regular file: a pipe would hold the verifier up, and a device gives bytes for ever."""
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(22, "not a regular file", path)  # EINVAL


class DamageError(Exception):
    """The first damaged place: kind, file, sentence, byte, expected event or checkpoint."""

    def __init__(self, *facts: str | int | None) -> None:
        """Keep what the report will say."""
        super().__init__(*facts)
        names = ("kind", "file", "sentence", "offset", "number")
        self.problem = dict(zip(names, (*facts, None, None), strict=False))


class WrongError(Exception):
    """A signature, key, note or line is not what it must be."""


# --- Ed25519 (RFC 8032), verification only ---

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
NEUTRAL = (0, 1, 1, 0)
BASE = bytes.fromhex("58" + "66" * 31)


def add(a: Point, b: Point) -> Point:
    """Add two points in extended coordinates (RFC 8032, section 5.1.4)."""
    left = (a[1] - a[0]) * (b[1] - b[0]) % P
    right = (a[1] + a[0]) * (b[1] + b[0]) % P
    t, z = 2 * a[3] * b[3] * D % P, 2 * a[2] * b[2] % P
    e, f, g, h = right - left, z - t, z + t, right + left
    return e * f % P, g * h % P, f * g % P, e * h % P


def decompress(data: bytes) -> Point:
    """Read a point in its only spelling (RFC 8032, section 5.1.3).

    Points of small order are refused, as libsodium does.
    """
    y = int.from_bytes(data, "little")
    sign, y = y >> 255, y & (2**255 - 1)
    u, v = (y * y - 1) % P, (D * y * y + 1) % P
    x = u * pow(v, 3, P) * pow(u * pow(v, 7, P), (P - 5) // 8, P) % P
    if v * x * x % P == -u % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    if y >= P or v * x * x % P != u or (x == 0 and sign):
        raise WrongError("a point is not on the curve or not in its only spelling")
    if x & 1 != sign:
        x = P - x
    point = eightfold = x, y, 1, x * y % P
    for _ in range(3):
        eightfold = add(eightfold, eightfold)
    if eightfold[0] == 0 and eightfold[1] == eightfold[2]:
        raise WrongError("a point has small order")
    return point


@functools.cache
def windows(data: bytes, *, negated: bool) -> list[list[Point]]:
    """Make the table of 0 to 15 times a point at each of 64 hexadecimal places.

    A ledger has few keys and many signatures, so the tables are kept.
    """
    x, y, z, t = decompress(data)
    point, table = (-x % P, y, z, -t % P) if negated else (x, y, z, t), []
    for _ in range(64):
        row: list[Point] = [NEUTRAL]
        for _ in range(15):
            row.append(add(row[-1], point))
        table.append(row)
        point = add(row[-1], point)
    return table


def check_signature(public_key: bytes, message: bytes, signature: bytes) -> None:
    """Raise WrongError unless this is the key's signature (RFC 8032 5.1.7, without cofactor)."""
    if len(public_key) != 32 or len(signature) != 64:
        raise WrongError("a key has 32 bytes, a signature 64")
    commitment, scalar = decompress(signature[:32]), int.from_bytes(signature[32:], "little")
    if scalar >= ORDER:
        raise WrongError("the signature is not in its only spelling")
    digest = hashlib.sha512(signature[:32] + public_key + message).digest()
    challenge, point = int.from_bytes(digest, "little") % ORDER, NEUTRAL
    base, key = windows(BASE, negated=False), windows(public_key, negated=True)
    for place, (base_row, key_row) in enumerate(zip(base, key, strict=True)):
        point = add(point, base_row[scalar >> 4 * place & 15])
        point = add(point, key_row[challenge >> 4 * place & 15])
    if any((point[at] - commitment[at] * point[2]) % P for at in (0, 1)):
        raise WrongError("the signature is wrong")


# --- Notes and checkpoints (C2SP signed-note, tlog-checkpoint) ---


def unbase64(text: str) -> bytes:
    """Decode base64 in its only spelling."""
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        raise WrongError("not base64") from None
    if base64.b64encode(data).decode() != text:
        raise WrongError("base64 in another spelling")
    return data


def key_hash(key: Key) -> bytes:
    """Give the four bytes that name an Ed25519 key in a signature line."""
    return hashlib.sha256(key[0].encode() + b"\n\x01" + key[1]).digest()[:4]


def parse_key(text: str) -> Key:
    """Read a verifier key: name, hash, base64 of the algorithm byte and the key."""
    parts = text.split("+", 2)
    if len(parts) != 3 or not KEY_NAME.fullmatch(parts[0]):
        raise WrongError("a verifier key is name+hash+base64")
    material = unbase64(parts[2])
    if len(material) != 33 or material[0] != 1:
        raise WrongError("the verifier key is not an Ed25519 key")
    key = parts[0], material[1:]
    if key_hash(key).hex() != parts[1]:
        raise WrongError("the verifier key's hash does not belong to its name and key")
    return key


def parse_note(note: str) -> tuple[str, Checkpoint, dict[tuple[str, bytes], bytes]]:
    """Split a note into text, claimed checkpoint and signatures; nothing is verified."""
    text, _, tail = note.rpartition("\n\n")
    text += "\n"
    if len(note.encode()) > 16 * 1024 or re.search(r"[\x00-\x09\x0b-\x1f\x7f]|^\n", text, re.M):
        raise WrongError("a note is at most 16 KiB of text without control characters")
    signatures: dict[tuple[str, bytes], bytes] = {}
    for line in tail.splitlines(keepends=True):
        match = SIGNATURE.fullmatch(line)
        raw = unbase64(match[2]) if match else b""
        if match is None or len(raw) < 5 or (match[1], raw[:4]) in signatures:
            raise WrongError("a signature line is an em dash, a name and base64, once for a key")
        signatures[match[1], raw[:4]] = raw[4:]
    lines = text.split("\n")
    if len(signatures) > 16 or len(lines) != 4 or not SIZE.fullmatch(lines[1]):
        raise WrongError("a checkpoint is three lines: origin, size, root")
    root = unbase64(lines[2])
    if len(root) != 32 or not KEY_NAME.fullmatch(lines[0]) or int(lines[1]) > INTEGER_MAX:
        raise WrongError("a checkpoint has a name, a size within 53 bits and a root of 32 bytes")
    return text, (lines[0], int(lines[1]), root), signatures


def verify_note(note: str, key: Key) -> Checkpoint:
    """Give a checkpoint whose signature by the key holds and whose origin is the key's name."""
    text, checkpoint, signatures = parse_note(note)
    signature = signatures.get((key[0], key_hash(key)))
    if signature is None:
        raise WrongError(f"no signature of {key[0]}")
    check_signature(key[1], text.encode(), signature)
    if checkpoint[0] != key[0]:
        raise WrongError(f"a checkpoint of {checkpoint[0]} is signed by {key[0]}")
    return checkpoint


# --- Canonical JSON (RFC 8785, for our documents: no floats) ---


def number(text: str) -> int:
    """Read an integer that RFC 8785 spells exactly; refuse every other number."""
    if not text.lstrip("-").isdigit() or abs(int(text)) > INTEGER_MAX:
        raise WrongError(f"{text} is no integer within 53 bits")
    return int(text)


def decode_canonical(line: bytes) -> tuple[str, str, dict[str, object]]:
    """Give log_id, type and fields of a line in its only spelling; a key cannot stand twice."""
    try:
        value = json.loads(line.decode(), parse_int=number, parse_float=number,
                           parse_constant=number)
        again = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        same = again.encode() == line[:-1]
    except (ValueError, RecursionError) as error:
        raise WrongError(str(error)) from None
    whole = same and isinstance(value, dict) and " ".join(value) == EVENT_KEYS
    if not whole or not isinstance(value["f"], dict):
        raise WrongError("it is not an event in its canonical spelling")
    log_id, event_type, fields = str(value["log_id"]), str(value["event_type"]), value["f"]
    if not EVENT_TYPE.fullmatch(event_type) or not LOG_ID.fullmatch(log_id):
        raise WrongError("its type or its log_id is none of ours")
    return log_id, event_type, fields


# --- The directory ---


class Events:
    """Walks all segments and keeps what the checkpoints need."""

    def __init__(self, directory: str, sizes: set[int]) -> None:
        """Keep the root at each of the sizes."""
        self.directory, self.sizes = directory, sizes
        self.seq = self.segments = self.torn_bytes = self.begins = 0
        self.file, self.log_id, self.previous = "segments", "", "0" * 64
        self.claimed_key: object = None
        self.rolled = False
        self.archived, self.before = 0, 0.0
        self.peaks: list[bytes] = []
        self.roots = {0: self.root()}

    def root(self) -> bytes:
        """Give the RFC 6962 root over the events so far."""
        if not self.peaks:
            return hashlib.sha256(b"").digest()
        root = self.peaks[-1]
        for peak in self.peaks[-2::-1]:
            root = hashlib.sha256(b"\x01" + peak + root).digest()
        return root

    def push(self, leaf: bytes) -> None:
        """Add a leaf hash to the tree."""
        index = self.seq
        while index & 1:
            leaf = hashlib.sha256(b"\x01" + self.peaks.pop() + leaf).digest()
            index >>= 1
        self.peaks.append(leaf)
        self.seq += 1
        if self.seq in self.sizes:
            self.roots[self.seq] = self.root()

    def damage(self, kind: str, offset: int, what: str) -> DamageError:
        """Say what is wrong at a byte of the present segment."""
        return DamageError(kind, self.file, f"event {self.seq}: {what}", offset, self.seq)

    def missing_segment(self) -> DamageError:
        """Say that the next segment is not there."""
        file = f"segments/{self.seq:012d}.ndjson"
        return DamageError("missing_segment", file, "this segment is missing", None, self.seq)

    def begin_later(self, first: int) -> None:
        """Take the hashes of the events before the first one there, if there are as many."""
        path, hashes = f"{self.directory}/before.hashes", b""
        if os.path.isfile(path):
            with open(path, "rb", opener=regular) as file:
                hashes = file.read(first * 32)
                self.before = os.path.getsize(path) / 32
        if first and len(hashes) == first * 32:
            for at in range(0, len(hashes), 32):
                self.push(hashes[at : at + 32])
            self.begins, self.previous = first, hashes[-32:].hex()

    def walk(self, *, anchored: bool) -> None:
        """Check all segments in the order of their names."""
        folder = f"{self.directory}/segments"
        found = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        names = [one for one in found if one[-3:] != ".gz" or one[:-3] not in found]
        if names and SEGMENT.fullmatch(names[0]):
            self.begin_later(int(names[0][:12]))
        for name in names:
            match, file = SEGMENT.fullmatch(name), f"segments/{name}"
            if match is None:
                raise DamageError("foreign_file", file, "this is not a segment")
            if name != names[0] and not self.rolled:
                raise DamageError("truncated", self.file, "its end is missing", None, self.seq)
            if int(match[1]) > self.seq:
                raise self.missing_segment()
            if int(match[1]) < self.seq:
                raise DamageError("inserted", file, "it begins too early", None, self.seq)
            self.file = file
            self.walk_segment(last=name == names[-1])
            self.segments += 1
        longer = self.before > self.begins
        if self.begins and (anchored or longer) and (
            self.archived < self.begins or (longer and self.before != self.archived)
        ):
            self.seq = 0
            raise self.missing_segment()

    def walk_segment(self, *, last: bool) -> None:
        """Check the lines of one segment."""
        offset, self.rolled = 0, False
        for line in self.lines():
            if line.endswith(b"\n"):
                self.check_line(line, offset)
            elif last:
                self.torn_bytes = len(line)
            else:
                raise self.damage("truncated", offset, "it ends before its newline")
            offset += len(line)

    def lines(self) -> Iterator[bytes]:
        """Give the lines of the present segment; a compressed one is one gzip member."""
        with open(f"{self.directory}/{self.file}", "rb", opener=regular) as file:
            if not self.file.endswith(".gz"):
                yield from file
                return
            member, plain, head = zlib.decompressobj(31), b"", b""
            with contextlib.suppress(zlib.error):
                head, data = file.read(10), file.read()
                plain = member.decompress(head + data, PLAIN_BYTES_MAX)
        if head != GZIP_HEADER or not member.eof or member.unused_data:
            raise self.damage("flipped", 0, "it is not one whole gzip member")
        yield from io.BytesIO(plain)

    def check_line(self, line: bytes, offset: int) -> None:
        """Check one line: bytes, position, chain, spelling, owner."""
        digest = hashlib.sha256(b"\x00{" + line[81:-1])
        if not line.startswith(b'{"event_hash":"%b",' % digest.hexdigest().encode()):
            raise self.damage("flipped", offset, "its bytes do not have its hash")
        envelope = ENVELOPE.search(line)
        if envelope is None:
            raise self.damage("not_canonical", offset, "its members are not those of an event")
        self.check_position(int(envelope[2]), envelope[1].decode(), offset)
        try:
            log_id, event_type, fields = decode_canonical(line)
        except WrongError as error:
            raise self.damage("not_canonical", offset, str(error)) from None
        if self.log_id not in ("", log_id):
            raise self.damage("other_log", offset, f"it is an event of {log_id}")
        self.log_id, self.previous = log_id, digest.hexdigest()
        self.rolled = event_type == "ledger.roll"
        if event_type == "ledger.open":
            self.claimed_key = self.claimed_key or fields.get("verifier_key")
            archived = fields.get("archived_before")
            self.archived = max(self.archived, archived if isinstance(archived, int) else 0)
        self.push(digest.digest())

    def check_position(self, found: int, previous: str, offset: int) -> None:
        """Tell apart why an undamaged line is not the next event."""
        if found < self.seq:
            raise self.damage("inserted", offset, f"event {found} stands here again")
        if found > self.seq:
            wanted = b',"seq":%d,"ts_us":' % self.seq
            # Of the lines before this one each has its own position, so none is the wanted one.
            later = any(wanted in line for line in self.lines())
            kind = "swapped" if later else "deleted"
            raise self.damage(kind, offset, f"event {found} stands in its place")
        if previous != self.previous:
            raise self.damage("rewritten", offset, "it does not follow the event before it")

    def check_checkpoint(self, note: str, file: str, place: tuple[int, int], key: Key) -> None:
        """Check one checkpoint against the key and the events."""
        try:
            origin, size, root = verify_note(note, key)
        except WrongError as error:
            kind = "checkpoint_invalid" if file == "checkpoints.log" else "anchor_invalid"
            raise DamageError(kind, file, str(error), *place) from None
        if self.seq and origin != self.log_id:
            raise DamageError("other_log", file, f"it is a checkpoint of {origin}", *place)
        if size > self.seq:
            if self.rolled or not self.segments:
                raise self.missing_segment()
            raise DamageError("truncated", self.file, f"{size} were signed", None, self.seq)
        if self.roots[size] != root:
            raise DamageError("rewritten", file, f"the first {size} events are others", *place)


class Log:
    """Reads checkpoints.log; what is wrong with it is told after the events were checked."""

    def __init__(self, directory: str) -> None:
        """Read all entries."""
        self.entries: list[tuple[int, int, str]] = []  # Byte, size and note of each.
        self.problem: DamageError | None = None
        self.directory, path = directory, f"{directory}/checkpoints.log"
        if os.path.exists(path):
            with open(path, "rb", opener=regular) as file:
                self.read(file.read())

    def read(self, data: bytes) -> None:
        """Split the log into entries."""
        offset = 0
        while match := ENTRY.match(data, offset):
            if not self.read_entry(int(match[1]), match[2], offset):
                return
            offset = match.end()
        rest = data[offset:]
        if len(rest) >= ENTRY_BYTES_MAX or rest.count(b"\n") >= 6:
            self.fail("checkpoint_invalid", offset, "the bytes are no checkpoint")

    def read_entry(self, number: int, data: bytes, offset: int) -> bool:
        """Take an entry in, or say what is wrong with its form, number or growth."""
        expected = len(self.entries)
        try:
            note = data.decode()
            size = parse_note(note)[1][1]
        except (WrongError, UnicodeDecodeError) as error:
            return self.fail("checkpoint_invalid", offset, str(error))
        if number != expected or (self.entries and size <= self.entries[-1][1]):
            kind = "missing_checkpoint" if number > expected else "checkpoint_invalid"
            return self.fail(kind, offset, f"{number} over {size} stands in its place")
        self.entries.append((offset, size, note))
        return True

    def fail(self, kind: str, offset: int, what: str) -> bool:
        """Remember the problem; it ends the log."""
        self.problem = DamageError(kind, "checkpoints.log", what, offset, len(self.entries))
        return False

    def check(self, events: Events, key: Key) -> None:
        """Check every signature and root, and that the log did not lose its end."""
        for number, (offset, _, note) in enumerate(self.entries):
            events.check_checkpoint(note, "checkpoints.log", (offset, number), key)
        if self.problem is not None:
            raise self.problem
        if not self.entries:
            raise DamageError("missing_checkpoint", "checkpoints.log", "there is no checkpoint")
        if events.begins:
            self.must_be_reached(events.begins)
        try:
            with open(f"{self.directory}/checkpoint", "rb", opener=regular) as file:
                size = verify_note(file.read(ENTRY_BYTES_MAX).decode(), key)[1]
        except (FileNotFoundError, WrongError, UnicodeDecodeError):
            return
        self.must_reach(size)

    def must_be_reached(self, begins: int) -> None:
        """Raise when no checkpoint covers anything of an exported range."""
        if self.entries[-1][1] <= begins:
            facts = "checkpoints.log", f"none reaches event {begins}", None, len(self.entries)
            raise DamageError("missing_checkpoint", *facts)

    def must_reach(self, size: int) -> None:
        """Raise when a checkpoint over more events is known elsewhere."""
        if size > self.entries[-1][1]:
            facts = "checkpoints.log", f"the one over {size} is missing", None, len(self.entries)
            raise DamageError("missing_checkpoint", *facts)


def read_anchor(anchor: str) -> tuple[str, int] | DamageError:
    """Give the anchor's note and the size it claims, or the problem with it."""
    try:
        with open(f"{anchor}/head", "rb", opener=regular) as file:
            note = file.read(ENTRY_BYTES_MAX).decode()
        return note, parse_note(note)[1][1]
    except FileNotFoundError:
        return DamageError("missing_anchor", "anchor/head", "the anchor holds no head")
    except (WrongError, UnicodeDecodeError) as error:
        return DamageError("anchor_invalid", "anchor/head", str(error))


def verify(directory: str, vkey: str | None, anchor: str | None) -> dict[str, object]:
    """Verify a ledger directory and give the report."""
    key = parse_key(vkey) if vkey is not None else None
    log, head = Log(directory), None if anchor is None else read_anchor(anchor)
    sizes = {size for _, size, _ in log.entries} | ({head[1]} if isinstance(head, tuple) else set())
    events, problem = Events(directory, sizes), None
    try:
        events.walk(anchored=anchor is not None)
        key = key or parse_key(str(events.claimed_key))
        log.check(events, key)
        if isinstance(head, DamageError):
            raise head
        if head is not None:
            events.check_checkpoint(head[0], "anchor/head", (0, 0), key)
            log.must_reach(head[1])
    except DamageError as damage:
        problem = damage.problem
    except WrongError as error:
        problem = DamageError("checkpoint_invalid", "checkpoints.log", f"no key: {error}").problem
    return {
        "ok": problem is None, "log_id": events.log_id, "events": events.seq,
        "segments": events.segments, "checkpoints": len(log.entries),
        "head_size": log.entries[-1][1] if log.entries else 0, "root": events.root().hex(),
        "torn_bytes": events.torn_bytes, "key_given": vkey is not None,
        "anchored": anchor is not None, "begins": events.begins, "problem": problem,
    }


def describe(report: dict[str, object]) -> str:
    """Give the verdict in one line."""
    counts = "{events} events, {segments} segments, {checkpoints} checkpoints".format(**report)
    problem = report["problem"]
    if isinstance(problem, dict):
        at = "" if problem["offset"] is None else f", byte {problem['offset']}"
        return f"FAILED {problem['kind']}: {problem['file']}{at}: {problem['sentence']} ({counts})"
    notes = [f"; {report['torn_bytes']} torn bytes at the end"] if report["torn_bytes"] else []
    notes += [] if report["key_given"] else ["; the key is the ledger's own claim"]
    notes += [f"; it begins with event {report['begins']}"] if report["begins"] else []
    notes += [] if report["anchored"] else ["; no anchor was compared"]
    return f"OK {report['log_id']}: {counts}, root {report['root']}" + "".join(notes)


def main() -> int:
    """Run the command line; gives the exit status."""
    parser = argparse.ArgumentParser(description="Verify a ledger directory.")
    parser.add_argument("directory", help="the ledger's folder, or a copy of it")
    parser.add_argument("--vkey", help="the verifier key that must have signed the checkpoints")
    parser.add_argument("--anchor", help="the anchor's folder")
    parser.add_argument("--output", choices=["text", "json"], default="text")
    options = parser.parse_args()
    if not os.path.isdir(options.directory):
        parser.error(f"{options.directory} is not a folder")
    try:
        report = verify(options.directory, options.vkey, options.anchor)
    except WrongError as error:
        parser.error(f"--vkey: {error}")
    except OSError as error:
        print(f"verify_ledger.py: {error}", file=sys.stderr)
        return 1
    print(json.dumps(report, sort_keys=True) if options.output == "json" else describe(report))
    return 0 if report["ok"] else 7


if __name__ == "__main__":
    sys.exit(main())
