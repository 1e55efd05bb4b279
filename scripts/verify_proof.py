#!/usr/bin/env python3
"""Verify a proof of the gateway's ledger, offline, with nothing but the Python standard library.

    verify_proof.py FILE --vkey KEY [--min-size N] [--output text|json]
                    [--open INDEX --key-file FILE --payload FILE [--kind text|json|raw]]

FILE is a bundle `omega-proof/v1` or one event as `c2sp.org/tlog-proof@v1`; - is stdin. This is a
second implementation of docs/LEDGER.md, which shares no code with the gateway. The key comes from
you, never from the file. --open shows that a payload is the one an event commits to. Exit status:
0 everything holds, 7 it does not, 2 wrong use, 1 a file could not be read.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import hmac
import json
import re
import sys

INTEGER_MAX = 2**53 - 1
PROOF_BYTES_MAX, PAYLOAD_BYTES_MAX = 256 * 1024 * 1024, 16 * 1024 * 1024
LINE_BYTES_MAX = 64 * 1024
ITEMS_MAX, OLDER_MAX, PATH_MAX = 100_000, 1024, 128
BUNDLE, TLOG_PROOF = "omega-proof/v1", "c2sp.org/tlog-proof@v1"
TLOG_HEAD = re.compile(
    TLOG_PROOF + r"\nextra (.*)\nindex (0|[1-9][0-9]{0,15})((?:\n[A-Za-z0-9+/=]{44})*)"
)
HASH = re.compile(r"[0-9a-f]{64}")
COUNT = re.compile(r"0|[1-9][0-9]{0,15}")
KEY_NAME = re.compile(r"[!-*,-~]{1,256}")
SIGNATURE = re.compile("\u2014 ([!-*,-~]{1,256}) ([A-Za-z0-9+/]+={0,2})\n")
EVENT_KEYS = "event_hash event_type f log_id mono_us prev_hash seq ts_us v"
ENVELOPE = re.compile(
    r'.{81}"event_type":"[a-z.]{1,64}","f":{.*},"log_id":"([^"]+)","mono_us":\d+,'
    r'"prev_hash":"[0-9a-f]{64}","seq":(\d+),"ts_us":\d+,"v":1}'
)
LABELS = {
    "input_commitment": b"input", "output_commitment": b"output",
    "message_commitment": b"output", "note_commitment": b"progress",
}
"""The members of `f` that commit to something, and the label under which they do."""

Point = tuple[int, int, int, int]
Key = tuple[str, bytes]
Checkpoint = tuple[str, int, bytes]
Event = dict[str, object]


class WrongError(Exception):
    """The file does not prove what it should; the sentence says what was found."""


# --- Ed25519 (RFC 8032), verification only ---

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
NEUTRAL = 0, 1, 1, 0


def add(a: Point, b: Point) -> Point:
    """Add two points in extended coordinates (RFC 8032, section 5.1.4)."""
    left, right = (a[1] - a[0]) * (b[1] - b[0]), (a[1] + a[0]) * (b[1] + b[0])
    t, z = 2 * a[3] * b[3] % P * D, 2 * a[2] * b[2]
    e, f, g, h = (right - left) % P, (z - t) % P, (z + t) % P, (right + left) % P
    return e * f % P, g * h % P, f * g % P, e * h % P


def decompress(data: bytes) -> Point:
    """Read a point in its only spelling (RFC 8032, section 5.1.3); small order is refused."""
    y = int.from_bytes(data, "little")
    sign, y = y >> 255, y & (2**255 - 1)
    u, v = (y * y - 1) % P, (D * y * y + 1) % P
    x = u * pow(v, 3, P) * pow(u * pow(v, 7, P), (P - 5) // 8, P) % P
    if v * x * x % P == -u % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    if y >= P or v * x * x % P != u or (x == 0 and sign):
        raise WrongError("a point is not on the curve or not in its only spelling")
    x = P - x if x & 1 != sign else x
    point = eightfold = x, y, 1, x * y % P
    for _ in range(3):
        eightfold = add(eightfold, eightfold)
    if eightfold[0] == 0 and eightfold[1] == eightfold[2]:
        raise WrongError("a point has small order")
    return point


BASE = decompress(bytes.fromhex("58" + "66" * 31))


def check_signature(public_key: bytes, message: bytes, signature: bytes) -> None:
    """Raise WrongError unless this is the key's signature over the message.

    RFC 8032, section 5.1.7, without cofactor; points of small order, other spellings of points and
    scalars beyond the group order are refused. That is the set which libsodium accepts.
    """
    if len(public_key) != 32 or len(signature) != 64:
        raise WrongError("a key has 32 bytes, a signature 64")
    x, y, z, t = decompress(public_key)
    commitment, scalar = decompress(signature[:32]), int.from_bytes(signature[32:], "little")
    if scalar >= ORDER:
        raise WrongError("the signature is not in its only spelling")
    digest = hashlib.sha512(signature[:32] + public_key + message).digest()
    challenge = int.from_bytes(digest, "little") % ORDER
    base, negated_key = [NEUTRAL], [NEUTRAL]
    for _ in range(15):
        base.append(add(base[-1], BASE))
        negated_key.append(add(negated_key[-1], (-x % P, y, z, -t % P)))
    point = NEUTRAL
    for place in range(252, -4, -4):
        for _ in range(4):
            point = add(point, point)
        point = add(point, base[scalar >> place & 15])
        point = add(point, negated_key[challenge >> place & 15])
    if any((point[at] - commitment[at] * point[2]) % P for at in (0, 1)):
        raise WrongError("the signature is wrong")


# --- The tree (RFC 6962, RFC 9162) ---


def node(left: bytes, right: bytes) -> bytes:
    """Hash two subtrees into one."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def climb(index: int, last: int, seed: bytes, proof: list[bytes]) -> tuple[bytes, bytes]:
    """Hash from a node to the root; gives the root with only left neighbours, and the whole one.

    `index` is the node's place on its level and `last` that of the level's last node.
    """
    old = new = seed
    for one in proof:
        if last == 0:
            raise WrongError("the proof is too long")
        if index & 1 or index == last:
            old, new = node(one, old), node(one, new)
            while index and not index & 1:
                index, last = index >> 1, last >> 1
        else:
            new = node(new, one)
        index, last = index >> 1, last >> 1
    if last:
        raise WrongError("the proof is too short")
    return old, new


def check_inclusion(leaf: bytes, index: int, tree: Checkpoint, proof: list[bytes]) -> None:
    """Raise WrongError unless a leaf is at its place in a tree (RFC 9162, section 2.1.3.2)."""
    if not 0 <= index < tree[1] or climb(index, tree[1] - 1, leaf, proof)[1] != tree[2]:
        raise WrongError(f"its proof does not lead to the root over {tree[1]} events")


def check_consistency(old: Checkpoint, new: Checkpoint, proof: list[bytes]) -> None:
    """Raise WrongError unless one tree continues another (RFC 9162, section 2.1.4.2)."""
    size1, size2 = old[1], new[1]
    if size1 > size2:
        raise WrongError(f"a tree of {size2} cannot continue one of {size1}")
    if size1 in (0, size2):
        if proof or old[2] != (new[2] if size1 else hashlib.sha256(b"").digest()):
            raise WrongError("the roots do not belong together, or the proof must be empty")
        return
    level = (size1 & -size1).bit_length() - 1
    path = [old[2], *proof] if size1 == 1 << level else proof
    if not path:
        raise WrongError("the proof is too short")
    roots = climb((size1 - 1) >> level, (size2 - 1) >> level, path[0], path[1:])
    if roots != (old[2], new[2]):
        raise WrongError("the proof leads to other roots")


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
    """Read a verifier key: name, hash, base64 of the algorithm byte 1 and the key."""
    name, _, rest = text.partition("+")
    stated, _, material = rest.partition("+")
    raw = unbase64(material)
    if not KEY_NAME.fullmatch(name) or len(raw) != 33 or raw[0] != 1:
        raise WrongError("a verifier key is name+hash+base64 of an Ed25519 key")
    if key_hash((name, raw[1:])).hex() != stated:
        raise WrongError("its hash does not belong to its name and key")
    return name, raw[1:]


def verify_note(note: str, key: Key) -> Checkpoint:
    """Give a checkpoint whose signature by the key holds and whose origin is the key's name."""
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
    if len(signatures) > 16 or len(lines) != 4 or not COUNT.fullmatch(lines[1]):
        raise WrongError("a checkpoint is three lines: origin, size, root")
    origin, size, root = lines[0], int(lines[1]), unbase64(lines[2])
    if len(root) != 32 or size > INTEGER_MAX:
        raise WrongError("a checkpoint has a size within 53 bits and a root of 32 bytes")
    signature = signatures.get((key[0], key_hash(key)))
    if signature is None:
        raise WrongError(f"no signature of {key[0]} with the given key")
    check_signature(key[1], text.encode(), signature)
    if origin != key[0]:
        raise WrongError(f"a checkpoint of {origin} is signed by {key[0]}")
    return origin, size, root


# --- Canonical JSON (RFC 8785, for our documents: no floats) and events ---


def number(text: str) -> int:
    """Read an integer that RFC 8785 spells exactly; refuse every other number."""
    if not COUNT.fullmatch(text) or int(text) > INTEGER_MAX:
        raise WrongError(f"{text[:40]} is no count within 53 bits")
    return int(text)


def decode_canonical(text: str, end: str = "") -> object:
    """Read a document in its only spelling, `end` behind it; so no member can stand twice."""
    try:
        value: object = json.loads(
            text, parse_int=number, parse_float=number, parse_constant=number
        )
        again = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    except (ValueError, RecursionError) as error:
        raise WrongError(f"it is no JSON: {error}") from None
    if again + end != text:
        raise WrongError("it is not in its canonical spelling")
    return value


def text_of(data: bytes) -> str:
    """Read UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise WrongError(f"it is no UTF-8 text: {error}") from None


def members(value: object, *allowed: str) -> dict[str, object]:
    """Give an object that has exactly the members of one of these lists."""
    if not isinstance(value, dict) or " ".join(value) not in allowed:
        raise WrongError(f"it is no object with the members {' or '.join(allowed)}")
    return value


def array(value: object, what: str, length_max: int) -> list[object]:
    """Give a list that is not empty and not too long."""
    if not isinstance(value, list) or not 0 < len(value) <= length_max:
        raise WrongError(f"{what} is a list of 1 to {length_max}")
    return value


def hash_of(value: object) -> bytes:
    """Read a hash of 64 hexadecimal digits."""
    if not isinstance(value, str) or not HASH.fullmatch(value):
        raise WrongError("a hash has 64 hexadecimal digits")
    return bytes.fromhex(value)


def path_of(value: object) -> list[bytes]:
    """Read the hashes of a proof; how many there must be follows from the sizes."""
    return [] if value == [] else [hash_of(one) for one in array(value, "a proof", PATH_MAX)]


def decode_event(line: str, index: int, log_id: str) -> tuple[bytes, Event]:
    """Give the leaf hash and the members of a line that is the event of that place and ledger."""
    data = line.encode()
    event, match = members(decode_canonical(line), EVENT_KEYS), ENVELOPE.fullmatch(line)
    if match is None or len(data) >= LINE_BYTES_MAX:
        raise WrongError("it is no event of ours")
    leaf = hashlib.sha256(b"\x00{" + data[81:]).digest()
    if event["event_hash"] != leaf.hex():
        raise WrongError("its bytes do not have its hash")
    if (match[1], int(match[2])) != (log_id, index):
        raise WrongError(f"it is event {match[2]} of {match[1]}")
    return leaf, event


# --- Proofs ---


class Proof:
    """What was proven: a checkpoint, events by their place, None if withheld, and older ones."""

    def __init__(self, key: Key) -> None:
        """Begin with nothing."""
        self.key = key
        self.format, self.place, self.last = "", "", -1
        self.checkpoint: Checkpoint = ("", 0, b"")
        self.events: dict[int, tuple[bytes, Event | None]] = {}
        self.older: list[int] = []

    def read(self, data: bytes) -> None:
        """Verify a file of either format."""
        text = text_of(data)
        if text.startswith(TLOG_PROOF + "\n"):
            self.read_tlog_proof(text)
        else:
            self.read_bundle(text)
        self.place = ""

    def read_bundle(self, text: str) -> None:
        """Verify a bundle `omega-proof/v1`."""
        bundle = members(decode_canonical(text, "\n"), "checkpoint format items origin",
                         "checkpoint consistency format items origin")
        self.read_checkpoint(BUNDLE, bundle["checkpoint"])
        if (bundle["format"], bundle["origin"]) != (BUNDLE, self.checkpoint[0]):
            raise WrongError(f"it is no {BUNDLE} of the ledger that signed its checkpoint")
        for item in array(bundle["items"], "items", ITEMS_MAX):
            self.read_item(item)
        if "consistency" in bundle:
            for item in array(bundle["consistency"], "consistency", OLDER_MAX):
                self.read_older(item)

    def read_tlog_proof(self, text: str) -> None:
        """Verify one event as `c2sp.org/tlog-proof@v1`; its record is the extra data."""
        head, _, note = text.partition("\n\n")
        self.read_checkpoint(TLOG_PROOF, note)
        match = TLOG_HEAD.fullmatch(head)
        if match is None:
            raise WrongError("its lines are not format, extra, index and hashes")
        record, path = unbase64(match[1]), [unbase64(one) for one in match[3].split()]
        if record[:1] != b"{" or any(len(one) != 32 for one in path):
            raise WrongError("its record is no event, or a hash has not 32 bytes")
        event_hash = hashlib.sha256(b"\x00" + record).hexdigest()
        self.read_event(int(match[2]), f'{{"event_hash":"{event_hash}",{text_of(record[1:])}',
                        b"", path)

    def read_checkpoint(self, kind: str, note: object) -> None:
        """Verify the checkpoint that everything is proven against."""
        self.format, self.checkpoint = kind, verify_note(str(note), self.key)

    def read_item(self, value: object) -> None:
        """Verify one item; indexes ascend."""
        item = members(value, "index line proof", "event_hash index proof")
        index = item["index"]
        if type(index) is not int or index <= self.last:
            raise WrongError("the indexes of the items do not ascend")
        line = str(item["line"]) if "line" in item else None
        leaf = b"" if "line" in item else hash_of(item["event_hash"])
        self.read_event(index, line, leaf, path_of(item["proof"]))

    def read_event(self, index: int, line: str | None, leaf: bytes, path: list[bytes]) -> None:
        """Verify one event: its line, if it is shown, its place, and its link to its neighbour."""
        self.place, event = f"event {index}: ", None
        if line is not None:
            leaf, event = decode_event(line, index, self.checkpoint[0])
        check_inclusion(leaf, index, self.checkpoint, path)
        before = self.events.get(index - 1, (bytes(32), None))[0].hex()
        linked = index == 0 or index - 1 in self.events
        if event is not None and linked and event["prev_hash"] != before:
            raise WrongError("it does not follow the event before it")
        self.events[index], self.last = (leaf, event), index

    def read_older(self, value: object) -> None:
        """Verify one older checkpoint that this one continues."""
        self.place = f"older checkpoint {len(self.older)}: "
        item = members(value, "old_checkpoint proof")
        old = verify_note(str(item["old_checkpoint"]), self.key)
        check_consistency(old, self.checkpoint, path_of(item["proof"]))
        self.older.append(old[1])

    def report(self) -> dict[str, object]:
        """Say what was proven."""
        shown = [
            {"index": index, "withheld": event is None, "event_hash": leaf.hex(),
             **{name: event[name] for name in ("event_type", "ts_us", "f") if event is not None}}
            for index, (leaf, event) in self.events.items()
        ]
        origin, size, root = self.checkpoint
        return {"format": self.format, "log_id": origin, "size": size, "root": root.hex(),
                "events": shown, "continues": self.older}


def open_commitment(proof: Proof, options: argparse.Namespace) -> dict[str, object]:
    """Show that payload and key are those of one commitment (docs/WIRE.md, Commitments)."""
    key = hash_of(text_of(read_file(options.key_file, 128)).strip())
    data = read_file(options.payload, PAYLOAD_BYTES_MAX)
    if options.kind != "raw":
        last = options.schema if options.kind == "json" else options.media_type
        fields = (options.kind.encode(), data, last.encode())
        data = b"".join(len(field).to_bytes(8, "big") + field for field in fields)
    event = proof.events.get(options.open, (b"", None))[1]
    held = event["f"] if event is not None else None
    if not isinstance(held, dict):
        raise WrongError(f"event {options.open} is not shown here")
    for member, label in LABELS.items():
        if hmac.digest(key, label + b"\x00" + data, "sha256").hex() == held.get(member):
            return {"index": options.open, "member": member, "label": label.decode()}
    raise WrongError(f"event {options.open} has no commitment to this payload under this key")


# --- The command line ---


def describe(report: dict[str, object]) -> str:
    """Give the account for people; what the ledger says is shown in ASCII."""
    events, opened, last = report["events"], report["opened"], None
    assert isinstance(events, list)
    lines = ["OK {log_id}: proven in the checkpoint over {size} events".format(**report)]
    for event in events:
        index, text = event["index"], f"WITHHELD, its hash is {event['event_hash']}"
        if last not in (None, index - 1):
            lines.append("       ... what lies between is not in this proof")
        if not event["withheld"]:
            text = f"{event['event_type']} {json.dumps(event['f'])}"
        lines.append(f"{index:>10} {text}")
        last = index
    if report["continues"]:
        lines.append("it continues the checkpoints over {continues} events".format(**report))
    if isinstance(opened, dict):
        lines.append("the payload is that of {member} in event {index}".format(**opened))
    return "\n".join(lines)


def read_file(path: str, bytes_max: int) -> bytes:
    """Read a file of bounded size; - is stdin."""
    with sys.stdin.buffer if path == "-" else open(path, "rb") as file:
        data = file.read(bytes_max + 1)
    if len(data) > bytes_max:
        raise WrongError(f"{path} is longer than {bytes_max} bytes")
    return data


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Verify a proof of a gateway's ledger.")
    option = parser.add_argument
    option("file", help="a bundle or a tlog-proof; - is stdin")
    option("--vkey", required=True, help="the verifier key, from a source of yours")
    option("--min-size", type=int, default=0, metavar="N", help="refuse an older checkpoint")
    option("--open", type=int, metavar="INDEX", help="an event whose payload you have")
    option("--key-file", help="the payload's commitment key, in hexadecimal digits")
    option("--payload", help="the payload's file")
    option("--kind", choices=["text", "json", "raw"], default="text", help="raw: its preimage")
    option("--media-type", default="text/plain", help="of a text")
    option("--schema", default="", help="of a JSON document that names one")
    option("--output", choices=["text", "json"], default="text")
    options = parser.parse_args()
    if len({one is None for one in (options.open, options.key_file, options.payload)}) != 1:
        parser.error("--open, --key-file and --payload belong together")
    try:
        options.key = parse_key(options.vkey)
    except WrongError as error:
        parser.error(f"--vkey: {error}")
    return options


def main() -> int:
    """Run the command line; gives the exit status."""
    options = parse_arguments()
    proof, problem, opened = Proof(options.key), None, None
    try:
        proof.read(read_file(options.file, PROOF_BYTES_MAX))
        if options.open is not None:
            opened = open_commitment(proof, options)
    except WrongError as error:
        problem = f"{proof.place}{error}"
    except OSError as error:
        print(f"verify_proof.py: {error}", file=sys.stderr)
        return 1
    if not problem and proof.checkpoint[1] < options.min_size:
        problem = f"its checkpoint is over {proof.checkpoint[1]} events only"
    report: dict[str, object] = {"ok": not problem, "problem": problem, "opened": opened}
    if not problem:
        report |= proof.report()
    text = f"FAILED {options.file}: {problem}" if problem else describe(report)
    print(json.dumps(report, sort_keys=True) if options.output == "json" else text)
    return 7 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
