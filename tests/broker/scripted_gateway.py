"""A gateway that says what a test tells it to: real sockets and keys, scripted answers.

It runs in a thread of its own, because a synchronous client blocks the test's.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import msgspec
from nacl.signing import SigningKey

from broker.arrivals import FrontFrames
from broker.client_profile import write_profile
from broker.keys import curve_key_id, curve_pair, new_curve_pair
from broker.ledger.merkle import CompactRange, consistency_path, inclusion_path
from broker.transport import FrontSetup, Transport
from schemas import messages
from schemas.codec import encode, from_admin, from_omega
from schemas.events import FrameIn, encode_event, line_hash
from schemas.names import Role
from schemas.profile import ClientProfile
from schemas.proof import Checkpoint, VerifierKey, sign_note

LOG_ID = "omega-gateway/development/0123456789abcdef"
SEED = b"\x07" * 32
VERIFIER = VerifierKey(LOG_ID, bytes(SigningKey(SEED).verify_key))
USAGE = messages.Usage(cpu_ms=1, wall_ms=2, max_rss_kb_upper_bound=3, output_bytes=4)

Request = messages.FromOmega | messages.FromAdmin
Script = Callable[[Request], Sequence[msgspec.Struct | bytes | list[bytes]]]


class SmallLedger:
    """A ledger in memory: lines, a tree, and signed checkpoints of any of its sizes."""

    def __init__(self, count: int = 0, salt: str = "0") -> None:
        """Begin with `count` events; another salt makes another history."""
        self.lines: list[bytes] = []
        for number in range(count):
            self.append(salt, number)

    def append(self, salt: str, number: int) -> None:
        """Add an event."""
        fields = FrameIn(plane="worker", peer="unknown", type="ping", bytes=number)
        line, _ = encode_event(
            fields, log_id=LOG_ID, seq=len(self.lines), ts_us=1, mono_us=1,
            prev_hash=salt * 64,
        )
        self.lines.append(line.rstrip(b"\n"))

    def root(self, begin: int, end: int) -> bytes:
        """Hash the events from `begin` to before `end`."""
        tree = CompactRange()
        for line in self.lines[begin:end]:
            tree.push(bytes.fromhex(line_hash(line)))
        return tree.root()

    def note(self, size: int, *, key: VerifierKey = VERIFIER, seed: bytes = SEED,
             origin: str = LOG_ID) -> str:
        """Sign the checkpoint of a size."""
        text = str(Checkpoint(origin, size, self.root(0, size)))
        return sign_note(text, key, lambda data: SigningKey(seed).sign(data).signature)

    def consistency(self, old: int, size: int) -> tuple[str, ...]:
        """Prove that one size continues another."""
        return tuple(one.hex() for one in consistency_path(old, size, self.root)) if old else ()

    def inclusion(self, seq: int, size: int) -> tuple[str, ...]:
        """Prove that an event is there."""
        return tuple(one.hex() for one in inclusion_path(seq, size, self.root))


_positions = itertools.count(5)


def receipt(seq: int | None = None, **more: object) -> messages.Receipt:
    """Make a receipt; without a position it is behind all that were made before."""
    seq = next(_positions) if seq is None else seq
    return msgspec.structs.replace(
        messages.Receipt(log_id=LOG_ID, seq=seq, event_hash="ab" * 32), **more
    )


def echo(request: Request, **more: object) -> messages.Result:
    """Answer an invocation with its own payload."""
    assert isinstance(request, messages.Invoke)
    result = messages.Result(
        request_id=request.request_id, receipt=receipt(), payload=request.payload, usage=USAGE,
        output_sha256="cd" * 32, plugin=request.plugin, version="1.2.3",
    )
    return msgspec.structs.replace(result, **more)


class ScriptedGateway:
    """Both fronts of a gateway, with a profile for each role, driven by `script`."""

    def __init__(self) -> None:
        """Make keys and profiles; `start` opens the sockets."""
        self.directory = tempfile.mkdtemp(prefix="omega-")
        os.mkdir(f"{self.directory}/run", 0o700)
        os.mkdir(f"{self.directory}/profiles", 0o700)
        self._servers = (new_curve_pair(), new_curve_pair())
        self.script: Script = lambda request: [echo(request)]
        self.requests: list[Request] = []
        self.admitted: dict[Role, str] = {
            role: self.profile(role, f"{self.directory}/profiles/{role}")
            for role in ("omega", "operator", "auditor")
        }
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def profile(self, role: Role, path: str, **changes: str | None) -> str:
        """Write a profile for one of the fronts; gives its public key."""
        front = 0 if role == "omega" else 1
        settings = ClientProfile(
            format="omega-profile/1",
            endpoint=f"ipc://{self.directory}/run/front{front}",
            server_key=self._servers[front].public,
            role=role, log_id=LOG_ID, verifier_key=str(VERIFIER), timeout_ms=5000,
        )
        return write_profile(path, msgspec.structs.replace(settings, **changes))

    def path(self, role: Role = "omega") -> str:
        """Give a role's profile folder."""
        return f"{self.directory}/profiles/{role}"

    def start(self) -> None:
        """Serve in a thread until `stop`; returns when the sockets are open."""
        opened = threading.Event()
        self._stop.clear()
        self._thread = threading.Thread(target=self._serve, args=(opened,))
        self._thread.start()
        assert opened.wait(10), "the scripted gateway did not open"

    def stop(self) -> None:
        """Close the sockets, like a gateway that dies."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        """Stop, and remove everything."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _serve(self, opened: threading.Event) -> None:
        omega, admin = (
            FrontSetup(
                endpoint=f"ipc://{self.directory}/run/front{number}",
                server_secret_z85=server.secret,
                keys={key: curve_key_id(key) for role, key in self.admitted.items()
                      if (role == "omega") == (number == 0)},
                bytes_max=1 << 24, high_water_mark=1000, connections_max=100,
                crowd_max=4096, handshakes_per_s_max=100_000,
            )
            for number, server in enumerate(self._servers)
        )
        transport = Transport.open(omega=omega, admin=admin, run_directory=f"{self.directory}/run")
        transport.listen()
        opened.set()
        while not self._stop.is_set():
            for arrival in transport.poll(10):
                if isinstance(arrival, FrontFrames):
                    self._answer(transport, arrival)
        transport.close(linger_ms=0)

    def _answer(self, transport: Transport, arrival: FrontFrames) -> None:
        decoder = from_omega if arrival.origin.front == "front.omega" else from_admin
        request = decoder.decode(arrival.frames[0])
        self.requests.append(request)
        for reply in self.script(request):
            if isinstance(reply, list):
                socket = transport._fronts[arrival.origin.front].socket
                socket.send_multipart([arrival.origin.route, *reply])
            else:
                frame = reply if isinstance(reply, bytes) else encode(reply)
                assert transport.send(arrival.origin, frame) == "sent"


@contextmanager
def scripted_gateway(
    script: Script | None = None, *, start: bool = True
) -> Iterator[ScriptedGateway]:
    """Make a gateway and start it."""
    gateway = ScriptedGateway()
    if script is not None:
        gateway.script = script
    try:
        if start:
            gateway.start()
        yield gateway
    finally:
        gateway.close()


def public_of(path: str) -> str:
    """Give the public key of a profile folder."""
    with open(f"{path}/client.key_secret", encoding="ascii") as file:
        return curve_pair(file.read().strip()).public
