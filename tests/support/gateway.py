"""A real gateway for tests: a home in a temporary folder, a broker process, real signed plugins.

Everything is real: kernel, sockets, processes, files. Whoever starts one ends it; the context
manager leaves no process, no socket and no folder behind.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from broker.authoring.pack import pack, sign
from broker.authoring.source import read_folder
from broker.client import AdminClient, OmegaClient
from broker.evidence.audit import Audit
from broker.evidence.events import read_events
from broker.evidence.verify import verify_directory
from broker.home import create_home
from broker.keys import read_secret
from schemas.events import Event, decode_event

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 20.0
"""How long a test waits for anything before it fails."""

ThingT = TypeVar("ThingT")


def wait_for(what: str, probe: Callable[[], ThingT | None]) -> ThingT:
    """Wait until `probe` gives something true; fail with `what` after the bound."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        found = probe()
        if found:
            return found
        select.select([], [], [], 0.01)
    raise AssertionError(f"waited {PATIENCE_S} s for {what}")


def free_port() -> int:
    """Give a local port that nobody has, of those that the kernel gives to nobody by itself: any
    connection of a neighbour could get one of the others before it is used."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = 1024 + secrets.randbelow(lowest - 1024)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@contextlib.contextmanager
def held(pid: int) -> Iterator[None]:
    """Stop a process for as long as the block takes: what it does cannot end meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


class RunningGateway:
    """One home and the broker process that serves it now."""

    def __init__(self, folder: Path, config: str = "", environment: dict[str, str] | None = None):
        self.folder = folder
        self.environment = {**os.environ, **(environment or {}), "XDG_RUNTIME_DIR": str(folder)}
        self.home = folder / "home"
        create_home(str(self.home), "development", None, environment=self.environment)
        if config:
            with (self.home / "gateway.toml").open("a") as file:
                file.write(config)
        self.process: subprocess.Popen[bytes] | None = None
        self.log = folder / "broker.log"
        self._clients = contextlib.ExitStack()

    # --- the process ---

    def start(self, before: str = "") -> RunningGateway:
        """Start the broker and wait until it serves; `before` is Python that it runs first."""
        with self.log.open("ab") as log:
            position = log.tell()
            self.process = subprocess.Popen(
                [sys.executable, "-c", before + SERVE, str(self.home)],
                cwd=ROOT, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )
        def served() -> bool:
            assert self.process is not None
            text = self.log.read_bytes()[position:]
            assert self.process.poll() is None, text.decode()
            return b'"ready"' in text
        wait_for("the broker to be ready", served)
        return self

    @property
    def pid(self) -> int:
        """The broker's pid."""
        assert self.process is not None
        return self.process.pid

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal the broker and wait for its end; gives the exit status."""
        self._clients.close()
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(PATIENCE_S)
        finally:
            self.process.kill()
            self.process = None

    # --- clients ---

    def omega(self) -> OmegaClient:
        """A client of OMEGA's."""
        return self._clients.enter_context(OmegaClient.from_home(str(self.home)))

    def operator(self) -> AdminClient:
        """A client of an operator's."""
        return self._clients.enter_context(AdminClient(str(self.home / "profiles" / "operator")))

    def auditor(self) -> AdminClient:
        """A client of an auditor's."""
        return self._clients.enter_context(AdminClient(str(self.home / "profiles" / "auditor")))

    # --- plugins ---

    def bundle(self, directory: Path) -> bytes:
        """Pack and sign a plugin folder with the home's development publisher key."""
        seed = bytes.fromhex(read_secret(str(self.home / "keys" / "publisher.key_secret")).strip())
        packed = pack(read_folder(str(directory)), "development")
        return sign(packed.data, [seed], "development").data

    def write_plugin(
        self, plugin: str, source: str, *, version: str = "1.0.0", modules: str = "[]",
        limits: str = "", extra: str = "",
    ) -> Path:
        """Write a plugin's folder."""
        directory = self.folder / f"{plugin}-{version}"
        directory.mkdir(exist_ok=True)
        (directory / "plugin.py").write_text(source)
        (directory / "plugin.toml").write_text(
            f'id = "{plugin}"\nversion = "{version}"\napi_version = "1.0.0"\n'
            f'publisher = "development"\ndescription = "A test\'s plugin."\nmodules = {modules}\n'
            f"{extra}\n[limits]\n{limits or DEFAULT_LIMITS}"
        )
        return directory

    def install(self, directory: Path, operator: AdminClient | None = None) -> None:
        """Register and enable the version that a folder holds."""
        admin = operator or self.operator()
        registered = admin.register_plugin(self.bundle(directory))
        admin.enable_plugin(registered.plugin, registered.version)

    # --- the ledger ---

    def events(self) -> list[Event]:
        """Read every event that is in the ledger's files now."""
        events: list[Event] = []
        for segment in sorted((self.home / "ledger" / "segments").glob("*.ndjson")):
            data = segment.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            events += [decode_event(line) for line in whole.splitlines()]
        return events

    def audit(self) -> None:
        """Hold everything that was ledgered against the invariants, unless a test spoiled it."""
        directory = str(self.home / "ledger")
        if not verify_directory(directory).ok:
            return
        audit = Audit()
        for event in read_events(directory):
            audit.take(event)
        broken = [verdict for verdict in audit.report().verdicts if not verdict.ok]
        assert not broken, broken

    def wait_for_event(self, what: str, matches: Callable[[Event], bool]) -> Event:
        """Wait until the ledger holds an event that matches."""
        return wait_for(what, lambda: next(filter(matches, self.events()), None))


SERVE = "import sys; from broker.serve import serve; sys.exit(serve(sys.argv[1], {}))"

DEFAULT_LIMITS = (
    "cpu_ms = 1000\nwall_ms = 3000\nmemory_mb = 256\noutput_bytes = 65536\nconcurrency = 4\n"
)

ECHO = '''
from sandbox_worker.sdk import Context, TextPayload, method


@method()
def echo(context: Context, text: TextPayload) -> TextPayload:
    """Give the text back."""
    return text
'''


@contextlib.contextmanager
def running_gateway(
    config: str = "", environment: dict[str, str] | None = None, policy: str = ""
) -> Iterator[RunningGateway]:
    """Make a home, serve it, and clean up whatever happens.

    `policy` is added to policy.toml; `{corpus}` in it stands for the folder `corpus` beside the
    home.
    """
    with tempfile.TemporaryDirectory(prefix="og-") as folder:
        gateway = RunningGateway(Path(folder), config, environment)
        with (gateway.home / "policy.toml").open("a") as file:
            file.write(policy.replace("{corpus}", f"{folder}/corpus"))
        try:
            gateway.start()
            yield gateway
        finally:
            gateway.stop()
        gateway.audit()
