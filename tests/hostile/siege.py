"""A gateway under attack: a real broker on two ports, ten good clients, and what both noticed.

Rules this file keeps: nothing of the gateway is bent; only what an operator could write in its
configuration is small here, so that a bound can be reached at all. Attacks are in
`tests.hostile.attacks` and its neighbours.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import select
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import zmq

from broker.authoring.pack import pack, sign
from broker.authoring.source import read_folder
from broker.client_profile import Profile, read_profile
from broker.home import load_home, new_profile
from broker.keys import CurvePair, read_secret
from schemas.events import Event, FrameDrop, decode_event
from tests.hostile.clients import PLUGIN, WORK
from tests.hostile.wire import Peer
from tests.support.gateway import PATIENCE_S, ROOT, RunningGateway, free_port, wait_for

STUB = "from benchmarks.stub import serve; serve('{run}', '{plugin}')"
VICTIM = "victim-plugin"
"""Served by workers that attack; good clients do not call it."""
FILES_MAX = 2_700
"""How many descriptors the broker may have: what its configuration needs, and a few hundred."""
LIMIT = f"import resource as r; r.setrlimit(r.RLIMIT_NOFILE, ({FILES_MAX}, {FILES_MAX}))\n"
MEMORY_MB_MAX = 256
CONFIG = f"""
[limits]
workers_max = 8
[process]
memory_mb_max = {MEMORY_MB_MAX}
[times]
backoff_ms_min = 1
backoff_ms_max = 1
[workers]
external = ["{PLUGIN}", "{VICTIM}"]
crash_loop_max = 1000
[ledger]
durability = "process"
"""


class Report(NamedTuple):
    """What the ten good clients noticed since the last report; times in us."""

    answers: list[int]
    errors: list[str]
    p50_us: float | None
    p99_us: float | None


class Siege:
    """The running broker with its clients; made by `siege`."""

    def __init__(self, gateway: RunningGateway, clients: subprocess.Popen[bytes]) -> None:
        self.gateway = gateway
        self.clients = clients
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.hostile = read_profile(str(gateway.home / "profiles" / "hostile"))
        self.spy = read_profile(str(gateway.home / "profiles" / "spy"))
        self.run_directory = load_home(
            str(gateway.home), environment=gateway.environment).run_directory
        self._read: Counter[str] = Counter()
        self._drops: Counter[str] = Counter()
        self._drop_events = 0

    # --- attackers' tools ---

    def peer(self, pair: CurvePair | None = None, *, admin: bool = False) -> Peer:
        """Connect a bare stream to a front; by default a stranger to OMEGA's."""
        settings = (self.spy if admin else self.hostile).settings
        return Peer(settings.endpoint, settings.server_key, pair)

    def stranger(self, *, admin: bool = False) -> socket.socket:
        """Connect a plain socket that knows nothing."""
        return self.peer(admin=admin).socket

    def dealer(self, profile: Profile | None = None, *, routing_id: bytes = b"",
               pair: CurvePair | None = None) -> zmq.Socket[bytes]:
        """Connect an ordinary client with a hostile key, or with the one given."""
        profile = profile or self.hostile
        pair = pair or profile.pair
        peer = self.context.socket(zmq.DEALER)
        peer.linger = 0
        peer.sndtimeo = peer.rcvtimeo = int(PATIENCE_S * 1000)
        peer.curve_serverkey = profile.settings.server_key.encode()
        peer.curve_publickey, peer.curve_secretkey = pair.public.encode(), pair.secret.encode()
        if routing_id:
            peer.setsockopt(zmq.ROUTING_ID, routing_id)
        peer.connect(profile.settings.endpoint)
        return peer

    # --- what became of it ---

    def report(self) -> Report:
        """Ask the good clients."""
        assert self.clients.stdin is not None
        assert self.clients.stdout is not None
        self.clients.stdin.write(b"tell\n")
        self.clients.stdin.flush()
        assert select.select([self.clients.stdout], [], [], PATIENCE_S)[0], "no word of the clients"
        return Report(**json.loads(self.clients.stdout.readline()))

    def progress(self) -> Report:
        """Wait until every good client was answered twice more; gives all that happened."""
        answers = [0] * len(WORK)
        errors: list[str] = []
        slowest = [0.0, 0.0]
        def everyone() -> bool:
            told = self.report()
            errors.extend(told.errors)
            for place, count in enumerate(told.answers):
                answers[place] += count
            slowest[0] = max(slowest[0], told.p50_us or 0)
            slowest[1] = max(slowest[1], told.p99_us or 0)
            return bool(errors) or min(answers) >= 2
        wait_for("every good client to be answered", everyone)
        return Report(answers, errors, *slowest)

    def alive(self) -> bool:
        """Whether the broker runs."""
        return self.gateway.process is not None and self.gateway.process.poll() is None

    def memory_mb(self) -> float:
        """How much memory the broker has."""
        text = Path(f"/proc/{self.gateway.pid}/statm").read_text()
        return int(text.split()[1]) * resource.getpagesize() / 2**20

    def files(self) -> int:
        """How many descriptors the broker has open."""
        return len(os.listdir(f"/proc/{self.gateway.pid}/fd"))

    def drops(self) -> Counter[str]:
        """Count what was not let in so far: by refusal code, and by code and place."""
        self._tail()
        return self._drops

    def drop_events(self) -> int:
        """How many events told of that."""
        self._tail()
        return self._drop_events

    def _tail(self) -> None:
        for segment in sorted((self.gateway.home / "ledger" / "segments").glob("*.ndjson")):
            with segment.open("rb") as file:
                file.seek(self._read[segment.name])
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._read[segment.name] += len(whole)
            self._count(whole)

    def _count(self, lines: bytes) -> None:
        for line in lines.splitlines():
            if b'"frame.drop"' in line:
                event: Event = decode_event(line)
                fields = event.fields
                assert isinstance(fields, FrameDrop)
                self._drop_events += 1
                self._drops[str(fields.code)] += fields.count
                self._drops[f"{fields.code}: {fields.where}"] += fields.count

    def until(self, what: str, probe: Callable[[], object]) -> None:
        """Wait until something is true."""
        wait_for(what, probe)

    def raised(self, code: str, before: Counter[str], count: int = 1) -> None:
        """Wait until one code was counted so many times since `before`."""
        wait_for(f"{count} times {code}", lambda: self.drops()[code] - before[code] >= count)


def on_ports(gateway: RunningGateway) -> None:
    """Put both fronts on ports, with few connections each.

    OMEGA's takes as many handshakes as come: attacks by the hundred shall get there. The operators'
    keeps its bound.
    """
    config = gateway.home / "gateway.toml"
    text = config.read_text()
    for front, bounds in (
        ("omega", "connections_max = 64\nhandshakes_per_s_max = 100000"),
        ("admin", "connections_max = 32"),
    ):
        endpoint = f'endpoint = "tcp://127.0.0.1:{free_port()}"'
        text = re.sub(rf'(\[{front}\]\n)endpoint = "[^"]*"',
                      rf"\1{endpoint}\n{bounds}", text)
        for role in ("omega",) if front == "omega" else ("operator", "auditor"):
            profile = gateway.home / "profiles" / role / "profile.toml"
            profile.write_text(re.sub(r'endpoint = "[^"]*"', endpoint, profile.read_text()))
    config.write_text(text)


def register(gateway: RunningGateway) -> None:
    """Register and enable the echo plugin for the good clients and its twin for the others."""
    folder = read_folder(str(ROOT / "scripts" / "benchmarks" / "plugin"))
    key = bytes.fromhex(read_secret(str(gateway.home / "keys" / "publisher.key_secret")).strip())
    operator = gateway.operator()
    for plugin in (PLUGIN, VICTIM):
        source = msgspec.structs.replace(folder.source, id=plugin)
        bundle = sign(pack(folder._replace(source=source), "development").data, [key])
        operator.register_plugin(bundle.data)
        operator.enable_plugin(plugin, "1.0.0")


@contextlib.contextmanager
def siege() -> Iterator[Siege]:
    """Start everything, and end it whatever happens."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="og-"))
        gateway = RunningGateway(Path(folder), CONFIG)
        on_ports(gateway)
        home = load_home(str(gateway.home), environment=gateway.environment)
        new_profile(home, "omega", str(gateway.home / "profiles" / "hostile"), "hostile")
        new_profile(home, "auditor", str(gateway.home / "profiles" / "spy"), "spy")
        stack.callback(gateway.stop)
        gateway.start(LIMIT)
        register(gateway)
        for code in (
            ["-c", STUB.format(run=home.run_directory, plugin=PLUGIN)],
            ["-m", "tests.hostile.clients", str(gateway.home)],
        ):
            process = stack.enter_context(subprocess.Popen(
                [sys.executable, *code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": f"{ROOT}/scripts:{ROOT}"},
            ))
            stack.callback(process.kill)
        running = Siege(gateway, process)
        stack.callback(running.context.destroy, linger=0)
        yield running
