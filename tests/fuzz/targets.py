"""What is fuzzed: every decoder of bytes that somebody else wrote, and the core behind them.

A target takes bytes and returns; the exceptions that its decoder promises are caught here, and any
other is a finding. Where a decoder promises one spelling, the target holds it to that. `seeds` give
a fuzzer valid inputs to begin with.

It leaves choosing bytes to `scripts/fuzz` (guided by coverage) and to tests/fuzz/test_fuzz.py.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
import zmq

from broker.arrivals import WorkerFrames
from broker.evidence.bundles import verify_bundle
from broker.evidence.prove import bundle_from_files, encode_bundle, encode_tlog_proof
from broker.evidence.reading import LedgerReader
from broker.keys import curve_bytes
from broker.policy import load_policy
from broker.trust.bundles import read_archive, read_bundle
from broker.trust.errors import TrustRefused
from broker.trust.json_schemas import compile_schema
from broker.trust.manifests import read_manifest
from broker.trust.roots import load_first_root, parse_root
from broker.trust.signatures import read_envelope
from broker.trust.validation import validate_bundle
from broker.trust.versions import parse
from broker.zap import FrontDoor, WorkerDoor
from sandbox_worker.replies import Inbox, ReplyError
from schemas import codec
from schemas.canonical import InvalidJson, canonical_bytes, check_canonical
from schemas.events import InvalidEvent, decode_event, encode_event
from schemas.packages import read_lock, write_lock
from schemas.pipelines import resolve_pointer
from schemas.proof import ProofError, parse_checkpoint, parse_note, parse_verifier_key
from schemas.request_ids import request_id_of
from tests.evidence.conftest import SCRIPTS
from tests.ledger.conftest import VERIFIER_KEY, Place
from tests.schemas import samples
from tests.simulation.clients import KEYS
from tests.simulation.fakes import require
from tests.simulation.world import World
from tests.trust.builders import bundle, context, manifest

GOLDEN_EVENTS = Path(__file__).resolve().parents[1] / "schemas" / "golden" / "events.json"
STEPS_MAX = 64
ID_BITS = 128


class Target(NamedTuple):
    """One thing that takes bytes, and inputs that it takes gladly."""

    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]


# --- the wire ---


def _messages(direction: str) -> list[bytes]:
    return [codec.encode(message) for message in samples.DIRECTIONS[direction]]


def _decoder(decoder: codec.Decoder[msgspec.Struct]) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        for frame in (data, codec.MAGIC + data):
            request_id_of(frame)
            with contextlib.suppress(codec.WireError):
                message = decoder.decode(frame)
                require(decoder.decode(codec.encode(message)) == message, "two readings")

    return run


def _reply(data: bytes) -> None:
    for frame in (data, codec.MAGIC + data):
        with contextlib.suppress(codec.WireError):
            codec.decode_reply(frame)


def _worker_reply(data: bytes) -> None:
    """The same bytes give the same frames, however they are cut."""
    whole = split = None
    with contextlib.suppress(ReplyError):
        whole = Inbox(1024).feed(data)
    inbox = Inbox(1024)
    with contextlib.suppress(ReplyError):
        split = [frame for byte in data for frame in inbox.feed(bytes([byte]))]
    if whole is not None and split is not None:
        require(whole == split[: len(whole)], "cut bytes were read otherwise")


def _doors(data: bytes) -> None:
    key, address = data[:32], data[32:]
    FrontDoor({b"k" * 32: "a" * 16}, 4).decide(key)
    door = WorkerDoor("one", b"k" * 32)
    door.expect(1, 0)
    verdict = door.decide(b"k" * 32, address)
    require(verdict is not None, "a reported worker is judged at once")
    with contextlib.suppress(ValueError, zmq.ZMQError):
        curve_bytes(data.decode("latin-1"))


# --- documents ---


def _golden_events() -> list[bytes]:
    return [row["line"].encode() for row in json.loads(GOLDEN_EVENTS.read_text())]


def _canonical(data: bytes) -> None:
    with contextlib.suppress(InvalidJson):
        require(canonical_bytes(check_canonical(data)) == data, "two spellings")


def _event(data: bytes) -> None:
    with contextlib.suppress(InvalidEvent):
        event = decode_event(data)
        line, _ = encode_event(
            event.fields, log_id=event.log_id, seq=event.seq, ts_us=event.ts_us,
            mono_us=event.mono_us, prev_hash=event.prev_hash,
        )
        require(line.rstrip() == data.rstrip(), "two spellings of an event")


def _notes(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    for read in (parse_verifier_key, parse_note, parse_checkpoint):
        with contextlib.suppress(ProofError):
            read(text)


def _lock(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        require(write_lock(read_lock(data)) == data, "two spellings of a lock")


def _pointer(data: bytes) -> None:
    document, _, pointer = data.decode("utf-8", "replace").partition("\0")
    with contextlib.suppress(InvalidJson, LookupError):
        resolve_pointer(check_canonical(document.encode()), pointer)


def _manifest(data: bytes) -> None:
    found, problems = read_manifest(data)
    require(bool(problems) or found is not None, "neither a manifest nor a problem")


def _trust(data: bytes) -> None:
    for read in (read_envelope, parse_root, load_policy, read_archive, read_bundle):
        with contextlib.suppress(TrustRefused):
            read(data)
    with contextlib.suppress(TrustRefused):
        load_first_root(data, "development")
    parse(data.decode("latin-1"))


def _bundle(data: bytes) -> None:
    validated = validate_bundle(data, context())
    if validated.problems == ():
        require(data in _bundles(), "a bundle was accepted that nobody signed")


@functools.cache
def _bundles() -> list[bytes]:
    return [bundle(), bundle(files={"plugin.py": b"x = 1\n", "data.txt": b"one"})]


def _schema(data: bytes) -> None:
    """What is admitted judges a document without another exception."""
    with contextlib.suppress(TrustRefused):
        compiled = compile_schema(data)
        for value in (None, True, 1, "text", [1, "a"], {"a": {"b": [None]}}):
            compiled.problem(value)


_SCHEMAS = [
    {"type": "object", "properties": {"words": {"type": "integer", "minimum": 0}}},
    {"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"type": "string"}}}},
    {"anyOf": [{"const": 1}, {"enum": ["a", "b"]}, {"pattern": "^a{1,3}$"}]},
]


# --- evidence, as the scripts read it that share no code with the gateway ---

# By their names, so that a fuzzer's importer sees them.
sys.path.append(str(SCRIPTS))
VERIFY_LEDGER = importlib.import_module("verify_ledger")
VERIFY_PROOF = importlib.import_module("verify_proof")


def _verify_ledger(data: bytes) -> None:
    text = data.decode("latin-1")
    for read, given in (
        (VERIFY_LEDGER.parse_key, text), (VERIFY_LEDGER.parse_note, text),
        (VERIFY_LEDGER.decode_canonical, data),
    ):
        with contextlib.suppress(VERIFY_LEDGER.WrongError, VERIFY_LEDGER.DamageError):
            read(given)


def _verify_proof(data: bytes) -> None:
    """Both verifiers say the same, and nothing is proven that was not signed."""
    proof, holds = VERIFY_PROOF.Proof(VERIFY_PROOF.parse_key(VERIFIER_KEY)), False
    with contextlib.suppress(VERIFY_PROOF.WrongError):
        proof.read(data)
        holds = True
    with contextlib.suppress(ProofError):
        verify_bundle(data, parse_verifier_key(VERIFIER_KEY))
        require(holds, "only the gateway's verifier accepts it")
    require(not holds or data in proofs(), "bytes were proven that nobody signed")


@functools.cache
def proofs() -> tuple[bytes, ...]:
    """A proof bundle over three events of ten with an older checkpoint, and one event's proof."""
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        ledger = place.fill(4)
        older = ledger.checkpoint()
        place.fill(6, ledger=ledger).close()
        with LedgerReader(str(place.ledger), parse_verifier_key(VERIFIER_KEY)) as reader:
            bundle = bundle_from_files(reader, (0, 3, 7), (older,))
            one = encode_tlog_proof(bundle_from_files(reader, (5,), ()))
        return encode_bundle(bundle), one


@functools.cache
def _notes_seeds() -> list[bytes]:
    return [VERIFIER_KEY.encode(), json.loads(proofs()[0])["checkpoint"].encode()]


# --- the core ---


class Drawn(random.Random):
    """Chance that is drawn from bytes: after them everything is zero.

    Its ids are none of those that the world's own chance gave out before, or gives behind it.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(1)
        self._data = data
        self.at = 0

    def getrandbits(self, count: int) -> int:
        """Take as many bits as are asked for; ids and nonces, which nobody outside chooses, not."""
        if count >= ID_BITS:
            return super().getrandbits(count)
        size = (count + 7) // 8
        taken = self._data[self.at : self.at + size]
        self.at += size
        return int.from_bytes(taken.ljust(size, b"\0"), "big") >> (size * 8 - count)

    def random(self) -> float:
        """Give a number from 0 to below 1, in 65,536 steps."""
        return self.getrandbits(16) / 65536

    @property
    def spent(self) -> bool:
        """Whether all bytes were taken."""
        return self.at >= len(self._data)


def _begun(steps: int) -> World:
    """A gateway that serves, with workers and calls under way."""
    world = World(0)
    for _ in range(steps):
        world.step()
    return world


def _core(data: bytes) -> None:
    """Every choice of a simulated run comes from the bytes: what happens, and in which order."""
    world = _begun(24)
    world.random = Drawn(data)
    for _ in range(STEPS_MAX):
        if world.random.spent:
            break
        world.step()
    world.random = random.Random(2)
    world.finish()


def _core_frames(data: bytes) -> None:
    """Each peer in turn says what the bytes say: a byte for whom, two for how long, the frame."""
    world = _begun(8)
    keys, at = list(KEYS), 0
    while at + 3 <= len(data):
        who, size = data[at], int.from_bytes(data[at + 1 : at + 3], "big")
        frame = data[at + 3 : at + 3 + size]
        at += 3 + size
        peers = list(world.peers)
        if who % 2 and peers:
            world.turn([WorkerFrames(peers[who // 2 % len(peers)], [frame])])
        else:
            world.turn([world.framed(keys[who // 2 % len(keys)], frame)])
    world.finish()


def _conversation(direction: str, who: int) -> list[bytes]:
    return [
        bytes([who]) + len(frame).to_bytes(2, "big") + frame for frame in _messages(direction)
    ]


def _choices() -> list[bytes]:
    source = random.Random(7)
    return [source.randbytes(size) for size in (16, 64, 256, 512)]


TARGETS: dict[str, Target] = {
    "wire-from-omega": Target(_decoder(codec.from_omega), lambda: _messages("from_omega")),
    "wire-from-admin": Target(_decoder(codec.from_admin), lambda: _messages("from_admin")),
    "wire-from-worker": Target(_decoder(codec.from_worker), lambda: _messages("from_worker")),
    "wire-to-worker": Target(_decoder(codec.to_worker), lambda: _messages("to_worker")),
    "wire-reply": Target(_reply, lambda: _messages("reply")),
    "worker-reply": Target(_worker_reply, lambda: [
        len(body).to_bytes(4, "big") + body
        for body in (b"\x81\xa4type\xa4told", b"\x80", b"\xc0")
    ]),
    "doors": Target(_doors, lambda: [b"k" * 32 + b"localhost:0:1:1", b"z" * 40]),
    "canonical-json": Target(_canonical, lambda: [
        b'{"a":[1,2.5,"\xc3\xa9",null,true],"b":{"c":-0.1e21}}', b"[]", b'"\\u0001"', b"1e30",
    ]),
    "event": Target(_event, _golden_events),
    "notes": Target(_notes, _notes_seeds),
    "packages-lock": Target(_lock, lambda: [write_lock({"a/b.py": "0" * 64, "c": "1" * 64})]),
    "pointer": Target(_pointer, lambda: [b'{"a":[{"b":1}]}\0/a/0/b', b'{"~":1}\0/~0']),
    "manifest": Target(_manifest, lambda: [msgspec.json.encode(manifest())]),
    "trust": Target(_trust, lambda: [
        b'{"payload":"AA==","payloadType":"a","signatures":[{"keyid":"","sig":"AA=="}]}',
        b'[grants."a-*"]\ncapabilities = ["clock.read"]\n', b"1.2.3-rc.1", *_bundles(),
    ]),
    "bundle": Target(_bundle, _bundles),
    "json-schema": Target(_schema, lambda: [json.dumps(one).encode() for one in _SCHEMAS]),
    "verify-ledger": Target(_verify_ledger, _golden_events),
    "verify-proof": Target(_verify_proof, lambda: list(proofs())),
    "core": Target(_core, _choices),
    "core-frames": Target(_core_frames, lambda: [
        *_conversation("from_omega", 0), *_conversation("from_admin", 4),
        *_conversation("from_worker", 1),
    ]),
}


