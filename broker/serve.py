"""Start-up and end of a gateway, in order; nothing is routed before all of it has succeeded.

Order: home → launcher → seal → sockets (with their self-test) → ledger → fold → endpoints → loop.
The broker gives up what it does not need before its first socket, because Landlock is per thread
and a socket starts threads; the launcher is begun before that, because a sealed broker can start
nothing. Connecting is given up after the self-test. Nobody can reach a front, and nothing of
another gateway is removed, before the ledger is ours and folded.

It leaves the loop to `broker.gateway`. Every failure is one exception with a sentence; the command
line gives it its exit status. Source: docs/ARCHITECTURE.md, section "Start".
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import platform
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from importlib import metadata

import msgspec
import zmq
from nacl.signing import SigningKey

from broker.bundles import BundleFolder
from broker.client_keys import admitted, key_changes
from broker.config import GatewayConfig
from broker.configured import HomeRefused
from broker.core import Core
from broker.descriptors import HALF_OPEN, raise_descriptor_limit
from broker.effects import Front
from broker.fronts import FRONTS
from broker.gateway import Gateway
from broker.home import Home, find_home, load_home, prepare_run_directory
from broker.inventory import Inventory
from broker.kept import StateFolder, take_up_past
from broker.launchers.external import ExternalLauncher
from broker.launchers.local import LocalLauncher
from broker.ledger.commit import Ledger
from broker.ledger.watchdog import FlushWatchdog
from broker.library import Library
from broker.log import Log, open_log
from broker.policy import policy_digest
from broker.reload import Settings, fixed_difference
from broker.seal import refuse_connections, refuse_networks, seal_broker
from broker.shell import Signalled
from broker.state import Edge, KnownKey, State
from broker.transport import (
    DEFAULT_LIMITS,
    FrontSetup,
    OldFront,
    Transport,
    TransportRefused,
)
from broker.trust_folder import TrustFolder
from schemas.events import (
    EventFields,
    KeyChange,
    LedgerClose,
    LedgerOpen,
    PolicyChange,
    TrustChange,
)
from schemas.names import API_VERSION, FRAME_BYTES_MAX_ADMIN, FRAME_BYTES_MAX_OMEGA
from schemas.refusals import RefusalCode

GARBAGE_OBJECTS = 20_000
"""New containers that make the collector look: a large document has none of its garbage."""


class SystemClock:
    """The machine's two clocks, in us, read once for each decision of the loop."""

    def __init__(self) -> None:
        """Read both clocks a first time."""
        self._both = (0, 0)
        self.tick()

    def tick(self) -> int:
        """Read both clocks and give the monotonic time."""
        mono_us = time.monotonic_ns() // 1000
        self._both = (time.time_ns() // 1000, mono_us)
        return mono_us

    def wall_us(self) -> int:
        """Give the wall time of the last tick."""
        return self._both[0]

    def both(self) -> tuple[int, int]:
        """Give wall time and monotonic time of the last tick, as the ledger stamps events."""
        return self._both


class StopSignals:
    """SIGTERM and SIGINT as a descriptor to watch: each is one request to stop.

    SIGHUP reads gateway.toml, policy.toml and the clients' keys again; also a terminal that was
    closed ends nothing.
    """

    def __init__(self, log: Log, reread: Callable[[], Settings]) -> None:
        """Catch the signals from here on; `reread` gives what the files say now."""
        self._log = log
        self._reread = reread
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda _number, _frame: None)

    @property
    def fd(self) -> int:
        """The descriptor that becomes readable when a signal came."""
        return self._read

    def take(self) -> Signalled:
        """Give what came since the last time; settings that cannot be taken change nothing."""
        numbers = b""
        with contextlib.suppress(BlockingIOError):
            numbers = os.read(self._read, 64)
        settings = self._settings() if signal.SIGHUP in numbers else None
        stops = sum(number in (signal.SIGTERM, signal.SIGINT) for number in numbers)
        return Signalled(stops, settings)

    def _settings(self) -> Settings | None:
        # Where the terminal is gone, stderr may be too.
        try:
            settings = self._reread()
        except (HomeRefused, TransportRefused, OSError) as error:
            with contextlib.suppress(OSError):
                self._log.error("settings not changed", reason=str(error))
            return None
        with contextlib.suppress(OSError):
            self._log.info("settings read again", policy_sha256=settings.policy_sha256)
        return settings


def _reread(home: Home, overrides: dict[str, str]) -> Settings:
    """Read a home's configuration and policy again.

    Raises:
        HomeRefused: something is wrong with a file, or a section changed that needs a new start.
        TransportRefused: the machine allows fewer descriptors than these bounds may need.
    """
    fresh = load_home(home.path, overrides=overrides)
    section = fixed_difference(_bound(home, home), _bound(fresh, home))
    if section is not None:
        raise HomeRefused(
            RefusalCode.CONFIG_INVALID,
            f"{home.path}/gateway.toml: {section} changed, which needs a new start",
        )
    raise_descriptor_limit(fresh.config, tcp_fronts=len(home.tcp_ports),
                           old_connections=_old_connections(home))
    old = tuple((front, doors[1].until_us) for front, doors in fresh.fronts.items() if doors[1:])
    return Settings(
        fresh.config, fresh.policy, policy_digest(fresh.policy), _known_keys(fresh), old
    )


def serve(home_path: str | None, overrides: dict[str, str]) -> int:
    """Run a gateway in the foreground until it is told to stop.

    Args:
        home_path: the home's folder, or None for the usual place.
        overrides: configuration from the command line, by dotted name.

    Returns:
        The exit status: 0 after a drain.

    Raises:
        HomeRefused, LedgerRefused, TransportRefused, SealUnavailable, LauncherLost: it did not
        start.
        LedgerFailure: the ledger could not be written while it ran; the status is 74.
    """
    os.umask(0o077)
    home = load_home(find_home(home_path), overrides=overrides)
    prepare_run_directory(home.run_directory)
    log = open_log(home.config.log)
    with contextlib.ExitStack() as stack:
        launcher = LocalLauncher.start(worker_stderr=home.config.domain == "development")
        stack.callback(launcher.close)
        external = ExternalLauncher(home.run_directory)
        signals = StopSignals(log, functools.partial(_reread, home, overrides))
        crowd_max = raise_descriptor_limit(
            home.config, tcp_fronts=len(home.tcp_ports), old_connections=_old_connections(home)
        )
        seal_broker(writable=home.writable, tcp_ports=home.tcp_ports)
        clock = SystemClock()
        transport = _open_transport(home, crowd_max, clock.wall_us())
        stack.callback(transport.close)
        refuse_connections()
        ledger = Ledger.open(
            home.ledger, home.anchor, log_id=home.config.log_id,
            signing_key=SigningKey(bytes.fromhex(home.keys.ledger.secret)),
            durability=home.config.ledger.durability, now=clock.both,
            low_space_bytes=home.config.ledger.low_space_bytes,
        )
        stack.callback(ledger.close)
        watchdog = FlushWatchdog(
            lambda: ledger.flush_started_mono_us,
            flush_ms_max=home.config.times.flush_ms_max,
        )
        watchdog.start()
        stack.callback(watchdog.stop)
        core = Core(initial_state(home, clock))
        states = stack.enter_context(contextlib.closing(StateFolder(home.states, home.ledger)))
        gateway = Gateway(
            core=core, ledger=ledger, transport=transport, launcher=launcher, external=external,
            bundles=BundleFolder(home.bundles), trust=TrustFolder(home.path),
            states=states, artifacts=home.artifacts, signals=signals, clock=clock,
        )
        _begin(home, core, gateway, ledger, states, clock, log)
        _admit(core.state, transport)
        try:
            transport.listen()
        except TransportRefused:
            gateway.append(LedgerClose(reason="failed"))
            raise
        refuse_networks()
        external.clear()
        _announce(home, log, ledger)
        # What is here now stays: the collector need not walk it again in the middle of a load.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GARBAGE_OBJECTS)
        status = gateway.run()
        log.info("stopped", ledger_size=ledger.size)
        return status


def _open_transport(home: Home, crowd_max: int, now_us: int) -> Transport:
    """Make the sockets; nobody is admitted, because the ledger has not said who was revoked."""
    setups: dict[Front, list[FrontSetup]] = {}
    for front, doors in home.fronts.items():
        omega = front == "front.omega"
        config = home.config.omega if omega else home.config.admin
        setups[front] = [
            FrontSetup(door.endpoint, door.pair.secret, {},
                       FRAME_BYTES_MAX_OMEGA if omega else FRAME_BYTES_MAX_ADMIN,
                       config.high_water_mark, config.connections_max, crowd_max,
                       config.handshakes_per_s_max)
            for door in doors
        ]
    return Transport.open(
        omega=setups["front.omega"][0],
        admin=setups["front.admin"][0],
        run_directory=home.run_directory,
        limits=DEFAULT_LIMITS._replace(memory_mb_max=home.config.process.memory_mb_max),
        old=[
            OldFront(front, setup, door.key_id, door.until_us)
            for front, doors in home.fronts.items()
            for door, setup in zip(doors[1:], setups[front][1:], strict=True)
            if door.until_us > now_us
        ],
    )


def _old_connections(home: Home) -> int:
    config = home.config
    bounds = {"front.omega": config.omega, "front.admin": config.admin}
    return sum(
        bounds[front].connections_max + HALF_OPEN
        for front, doors in home.fronts.items() for _ in doors[1:]
    )


def _bound(home: Home, running: Home) -> GatewayConfig:
    """Give a home's configuration with its fronts' endpoints: the running one's, while it has them.

    A rotation that began after the start is none for this process.
    """
    config = home.config
    omega, admin = (
        next((door.endpoint for door in home.fronts[front]
              if door.endpoint == running.fronts[front][0].endpoint),
             home.fronts[front][0].endpoint)
        for front in FRONTS
    )
    return msgspec.structs.replace(
        config,
        omega=msgspec.structs.replace(config.omega, endpoint=omega),
        admin=msgspec.structs.replace(config.admin, endpoint=admin),
    )


def _admit(state: State, transport: Transport) -> None:
    """Give each front its keys, without those that the ledger says were revoked."""
    fronts: tuple[Front, Front] = ("front.omega", "front.admin")
    for front in fronts:
        transport.set_keys(front, admitted(state, front))


def _known_keys(home: Home) -> dict[str, KnownKey]:
    return {
        key_id: KnownKey(key_id, key.role, key.public_key, key.replaces)
        for key_id, key in home.clients.items()
    }


def opening(
    config: GatewayConfig, verifier_key: str, *, trust_sha256: str, trust_version: int,
    policy_sha256: str,
) -> LedgerOpen:
    """Say under what a process begins to write a ledger."""
    return LedgerOpen(
        gateway_version=metadata.version("omega-plugin-gateway"),
        api_version=API_VERSION,
        domain=config.domain,
        durability=config.ledger.durability,
        python_version=platform.python_version(),
        zmq_version=zmq.zmq_version(),
        kernel=platform.release(),
        verifier_key=verifier_key,
        trust_sha256=trust_sha256,
        trust_version=trust_version,
        policy_sha256=policy_sha256,
        request_window=config.limits.request_window,
        request_window_ms=config.limits.request_window_ms,
    )


def initial_state(home: Home, clock: SystemClock) -> State:
    """Give the memory of a process that has read its home and not yet its ledger."""
    state = State(
        config=home.config,
        policy=home.policy,
        trust=home.trust.trust,
        trust_sha256=home.trust.sha256,
        policy_sha256=policy_digest(home.policy),
        keys=_known_keys(home),
        inventory=Inventory(),
        plugins={},
        edge=Edge(
            new_incarnation=lambda: secrets.token_hex(16),
            new_nonce=lambda: secrets.token_bytes(16),
            determinism_key=home.keys.determinism,
            log_id=home.config.log_id,
            gateway_version=metadata.version("omega-plugin-gateway"),
        ),
    )
    state.wall_us = clock.wall_us()
    state.now = clock.tick()
    return state


def _begin(
    home: Home, core: Core, gateway: Gateway, ledger: Ledger, states: StateFolder,
    clock: SystemClock, log: Log,
) -> None:
    """Fold the past, say under what this process runs, end what was open; then it is durable.

    What lies in the home and is not what the ledger says is told on stderr too.
    """
    state = core.state
    states.sweep()
    for path in take_up_past(gateway, state.inventory, ledger, states):
        log.warning("state file not used", path=path)
    pinned = state.inventory.trust_version, state.inventory.trust_sha256
    home = home._replace(trust=TrustFolder(home.path).settle(home.trust, *pinned))
    state.trust, state.trust_sha256 = home.trust.trust, home.trust.sha256
    bundles = BundleFolder(home.bundles)
    bundles.sweep(state.inventory.bundles)
    state.plugins = library = Library(lambda: state.inventory, bundles, home.config.domain)
    damaged = list(library.damaged())
    for plugin, version in damaged:
        log.warning("bundle damaged", plugin=plugin, version=version, next="it is quarantined")
    if ledger.recovered is not None:
        gateway.append(ledger.recovered)
    gateway.append(opening(
        home.config, ledger.verifier_key, trust_sha256=home.trust.sha256,
        trust_version=home.trust.trust.version, policy_sha256=state.policy_sha256,
    ))
    for change in _changes(home, state):
        gateway.append(change)
    gateway.snapshot()
    gateway.perform(core.begin(damaged, clock.tick()))
    gateway.turn([])
    ledger.checkpoint()


def _changes(home: Home, state: State) -> Iterator[EventFields]:
    """Say what the home's own files changed since the ledger was last written."""
    inventory = state.inventory
    root = home.trust
    if inventory.trust_sha256 != root.sha256:
        yield TrustChange(version=root.trust.version, sha256=root.sha256, actor="home",
                          previous_sha256=inventory.trust_sha256 or None)
    if inventory.policy_sha256 != state.policy_sha256:
        yield PolicyChange(sha256=state.policy_sha256, actor="home",
                           previous_sha256=inventory.policy_sha256 or None)
    yield from key_changes(inventory.known_keys, state.keys)
    yield from _server_key_changes(home, inventory.server_keys, state.wall_us)


def _server_key_changes(home: Home, known: set[str], now_us: int) -> Iterator[EventFields]:
    """Say which server keys are new, and which are not served any more."""
    serving = {
        door.key_id: "rotated" if door is doors[0] and doors[1:] else "added"
        for doors in home.fronts.values() for door in doors
        if not door.until_us or door.until_us > now_us
    }
    for key_id in sorted(known - serving.keys()):
        yield KeyChange(action="removed", role="server", key_id=key_id, actor="home")
    for key_id in sorted(serving.keys() - known):
        yield KeyChange(action="rotated" if serving[key_id] == "rotated" else "added",
                        role="server", key_id=key_id, actor="home")


def _announce(home: Home, log: Log, ledger: Ledger) -> None:
    """Say on stderr that and where the gateway serves."""
    log.info(
        "ready", domain=home.config.domain, omega=home.omega_endpoint, admin=home.admin_endpoint,
        log_id=home.config.log_id, ledger_size=ledger.size,
    )
