"""What strangers, full volumes, odd files and bad moments cost: one refusal, never the gateway."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from broker.client import AdminClient, Call, GatewayError, NotAuthorised, OmegaClient, Refused
from broker.home import load_home
from schemas.events import (
    Event,
    GatewayDegraded,
    LedgerClose,
    PluginQuarantine,
    PluginReject,
    PolicyChange,
    WorkerExit,
)
from schemas.refusals import RefusalCode
from tests.support import gateway as support
from tests.support.gateway import (
    ECHO,
    ROOT,
    RunningGateway,
    free_port,
    running_gateway,
    wait_for,
)
from tests.system.test_life import LIMITS, SLOW, Asked, descendants, slow_gateway_call

pytestmark = [pytest.mark.system, pytest.mark.jail]

STRANGERS = 700

@pytest.fixture
def gateway() -> Iterator[RunningGateway]:
    """A gateway without plugins."""
    with running_gateway() as running:
        yield running


def alive(gateway: RunningGateway) -> bool:
    """Whether the broker still runs."""
    return gateway.process is not None and gateway.process.poll() is None


# --- descriptors ---


def on_tcp(gateway: RunningGateway) -> int:
    """Put the operators' front on a port that is free, in configuration and profiles."""
    port = free_port()
    endpoint = f'endpoint = "tcp://127.0.0.1:{port}"'
    # As many strangers as a test makes shall get as far as they can.
    bounds = "handshakes_per_s_max = 100000"
    config = gateway.home / "gateway.toml"
    config.write_text(re.sub(r'(\[admin\]\n)endpoint = "[^"]*"', rf"\1{endpoint}\n{bounds}",
                             config.read_text()))
    for role in ("operator", "auditor"):
        profile = gateway.home / "profiles" / role / "profile.toml"
        profile.write_text(re.sub(r'endpoint = "[^"]*"', endpoint, profile.read_text()))
    return port


@contextlib.contextmanager
def allowed(soft: int, hard: int | None = None) -> Iterator[None]:
    """Let processes that are started here inherit another limit of open files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard or before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_strangers_on_a_port_do_not_take_the_gateways_descriptors() -> None:
    """More silent connections than the inherited limit: a call, a proof, an operator all go on."""
    with tempfile.TemporaryDirectory(prefix="og-") as folder:
        gateway = RunningGateway(Path(folder))
        port = on_tcp(gateway)
        try:
            with allowed(STRANGERS // 2):
                gateway.start()
            gateway.install(gateway.write_plugin("echo-plugin", ECHO))
            with allowed(resource.getrlimit(resource.RLIMIT_NOFILE)[1]), \
                    contextlib.ExitStack() as crowd:
                # The kernel drops what comes faster than it is accepted, and who says nothing is
                # sent away when its handshake is overdue: they come until enough are in at once.
                def more_are_in() -> bool:
                    for _ in range(STRANGERS // 10):
                        stranger = crowd.enter_context(socket.socket())
                        stranger.settimeout(support.PATIENCE_S)
                        stranger.connect(("127.0.0.1", port))
                    return len(os.listdir(f"/proc/{gateway.pid}/fd")) > STRANGERS // 2 + 50

                wait_for("the strangers to be in", more_are_in)

                omega = gateway.omega()
                assert omega.invoke("echo-plugin", "echo", "x", timeout=15).text == "x"
                assert omega.prove(3).hashes
                assert gateway.auditor().status().state == "serving"
            assert gateway.stop() == 0
        finally:
            gateway.stop()


def test_a_machine_that_allows_too_few_descriptors_is_told_before_anything_is_served() -> None:
    """Where connections and workers cannot fit, one sentence says what is needed."""
    with tempfile.TemporaryDirectory(prefix="og-") as folder:
        gateway = RunningGateway(Path(folder))
        limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (500, 500))\n"
        done = subprocess.run(
            [sys.executable, "-c", limit + support.SERVE, str(gateway.home)], cwd=ROOT, text=True,
            env=gateway.environment, capture_output=True, timeout=60, check=False,
        )
        assert done.returncode != 0
        assert re.search(r"500 files may be open and \d+ are needed", done.stderr.splitlines()[-1])


# --- the volume and the ledger's files ---


def test_a_bundle_that_cannot_be_stored_is_refused_and_forgotten(gateway: RunningGateway) -> None:
    """No folder, no space: `low_space`, an event, and nothing of the plugin is left to enable."""
    bundle = gateway.bundle(gateway.write_plugin("echo-plugin", ECHO))
    operator = gateway.operator()
    bundles = gateway.home / "registry" / "bundles"
    bundles.rename(bundles.with_name("gone"))

    with pytest.raises(Refused) as refused:
        operator.register_plugin(bundle)

    assert refused.value.code == RefusalCode.LOW_SPACE
    receipt = refused.value.refusal.receipt
    assert receipt is not None
    assert isinstance(gateway.events()[receipt.seq].fields, PluginReject)
    assert operator.list_plugins().plugins == ()
    bundles.with_name("gone").rename(bundles)
    assert operator.register_plugin(bundle).plugin == "echo-plugin"


def test_damaged_tiles_cost_proofs_and_nothing_else(gateway: RunningGateway) -> None:
    """A proof is refused as `ledger_damaged`, told once and shown; calls and receipts go on."""
    gateway.install(gateway.write_plugin("echo-plugin", ECHO))
    omega, auditor = gateway.omega(), gateway.auditor()
    omega.invoke("echo-plugin", "echo", "x")
    wait_for("a checkpoint", lambda: msgspec.json.encode(omega.ledger_head().checkpoint))
    tiles = gateway.home / "ledger" / "tiles"
    wait_for("tiles", lambda: (tiles / "L0").stat().st_size > 320)
    for level in tiles.iterdir():
        data = bytes(byte ^ 0x55 for byte in level.read_bytes())
        with level.open("r+b") as file:
            file.write(data)

    for _ in range(3):
        with pytest.raises(Refused) as refused:
            auditor.prove(3)
        assert refused.value.code == RefusalCode.LEDGER_DAMAGED
    assert omega.invoke("echo-plugin", "echo", "y").text == "y"

    assert auditor.status().degraded == ("ledger_unreadable",)
    told = [event for event in gateway.events() if isinstance(event.fields, GatewayDegraded)]
    assert len(told) == 1


def test_a_stray_file_among_the_segments_costs_nothing(gateway: RunningGateway) -> None:
    """An editor's copy in the folder: proofs and stories of this process go on."""
    auditor = gateway.auditor()
    auditor.status()
    wait_for("a checkpoint", lambda: gateway.omega().prove(1).hashes)
    (gateway.home / "ledger" / "segments" / "000000000000.ndjson~").touch()

    assert auditor.prove(1).hashes


def test_a_schema_that_is_not_admitted_any_more_costs_its_version_only() -> None:
    """A stricter gateway quarantines what it would not register, and serves."""
    with running_gateway() as gateway:
        gateway.install(ROOT / "examples" / "text-statistics")
        gateway.stop()
        stricter = "import broker.trust.json_schemas as rules; rules.WEIGHT_MAX = 0\n"
        before, support.SERVE = support.SERVE, stricter + support.SERVE
        try:
            gateway.start()
        finally:
            support.SERVE = before

        assert gateway.operator().list_plugins().plugins[0].enabled_version is None
        assert any(isinstance(event.fields, PluginQuarantine) for event in gateway.events())


# --- signals and starts ---


def test_sighup_takes_settings_as_a_whole_or_not_at_all(gateway: RunningGateway) -> None:
    """Other quotas hold at once; what is wrong, or bound at the start, changes nothing."""
    gateway.install(gateway.write_plugin("echo-plugin", ECHO))
    omega, policy = gateway.omega(), gateway.home / "policy.toml"
    before = policy.read_text()

    def hang_up(expected: bytes) -> None:
        told = gateway.log.read_bytes().count(expected)
        os.kill(gateway.pid, signal.SIGHUP)
        wait_for("the log line", lambda: gateway.log.read_bytes().count(expected) > told)

    policy.write_text(before + "\n[quotas]\ncalls_per_second_max = 1\nwindow_ms = 60000\n")
    hang_up(b"settings read again")
    wait_for("the policy's event", lambda: any(
        isinstance(event.fields, PolicyChange) and event.fields.previous_sha256
        for event in gateway.events()
    ))
    calls = [Call("echo-plugin", "echo", "x", timeout=15) for _ in range(20)]
    refused = [one for _, one in omega.invoke_many(calls) if isinstance(one, Refused)]
    assert {one.code for one in refused} == {RefusalCode.QUOTA_EXCEEDED}
    assert all(one.refusal.retry_after_ms for one in refused)

    policy.write_text(before + "\n[quotas]\nno_such_line = 1\n")
    hang_up(b"settings not changed")
    policy.write_text(before)
    config = gateway.home / "gateway.toml"
    config.write_text(config.read_text() + '\n[ledger]\ndurability = "process"\n')
    hang_up(b"needs a new start")
    assert omega.status().state == "serving"
    assert gateway.stop() == 0


def test_a_revoked_key_is_refused_at_the_door_also_after_a_restart(
    gateway: RunningGateway,
) -> None:
    """The ledger, not the file in the home, says who is admitted when the fronts open."""
    clients = load_home(str(gateway.home), environment=gateway.environment).clients
    auditor = next(name for name, key in clients.items() if key.role == "auditor")
    gateway.operator().revoke("client_key", auditor, "lost")
    gateway.stop()

    gateway.start()

    with pytest.raises(NotAuthorised), \
            AdminClient(str(gateway.home / "profiles" / "auditor")) as client:
        client.status()
    assert gateway.operator().status().state == "serving"


EXTERNAL = '\n[workers]\nexternal = ["echo-plugin"]\n[times]\nstart_ms = 60000\n'


def test_a_second_start_takes_nothing_from_the_first() -> None:
    """It ends with one sentence; the first one's launch documents and sockets are as they were."""
    with running_gateway(EXTERNAL) as gateway:
        gateway.install(gateway.write_plugin("echo-plugin", ECHO))
        run = Path(load_home(str(gateway.home), environment=gateway.environment).run_directory)

        def call() -> None:
            with contextlib.suppress(GatewayError), \
                    OmegaClient.from_home(str(gateway.home)) as omega:
                omega.invoke("echo-plugin", "echo", "x", timeout=30)

        caller = threading.Thread(target=call)
        caller.start()
        document = wait_for("the launch document", lambda: next((run / "launch").glob("*"), None))
        before = sorted(run.rglob("*"))

        second = subprocess.run(
            [sys.executable, "-c", support.SERVE, str(gateway.home)], cwd=ROOT, text=True,
            env=gateway.environment, capture_output=True, timeout=60, check=False,
        )

        assert second.returncode != 0
        assert "another process serves this endpoint" in second.stderr.splitlines()[-1]
        assert sorted(run.rglob("*")) == before
        gateway.operator().revoke("plugin_version", "echo-plugin@1.0.0", "a test")
        wait_for("the document to be withdrawn with its worker", lambda: not document.exists())
        caller.join()


def test_what_a_killed_gateway_left_is_removed_by_the_next(gateway: RunningGateway) -> None:
    """After kill -9 the sockets of its workers lie there; the next start serves and clears them."""
    gateway.install(gateway.write_plugin("echo-plugin", ECHO))
    gateway.omega().invoke("echo-plugin", "echo", "x")
    run = Path(load_home(str(gateway.home), environment=gateway.environment).run_directory)
    gateway.stop(signal.SIGKILL)
    assert list(run.glob("*.worker"))

    gateway.start()

    assert not list(run.glob("*.worker"))
    assert gateway.omega().invoke("echo-plugin", "echo", "x").text == "x"


def test_a_front_that_cannot_be_opened_ends_the_start_in_order() -> None:
    """A port that somebody holds: the ledger is closed as it should be, nothing needs recovery."""
    with tempfile.TemporaryDirectory(prefix="og-") as folder:
        gateway = RunningGateway(Path(folder))
        port = on_tcp(gateway)
        with socket.create_server(("127.0.0.1", port)):
            done = subprocess.run(
                [sys.executable, "-c", support.SERVE, str(gateway.home)], cwd=ROOT, text=True,
                env=gateway.environment, capture_output=True, timeout=60, check=False,
            )
        assert "another process serves this endpoint" in done.stderr.splitlines()[-1]
        assert gateway.events()[-1].fields == LedgerClose(reason="failed")


# --- the end of a worker ---


def busy(pid: int) -> int:
    """How much processor time a worker and its processes have used, in ticks."""
    total = 0
    for one in (pid, *descendants(pid)):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15]))
    return total


def in_progress(event: Event) -> bool:
    """Whether a plugin told of its progress."""
    return getattr(event.fields, "type", "") == "call_progress"


def exits(gateway: RunningGateway) -> list[tuple[int | None, int | None]]:
    """Status and signal of every worker that ended, of which there will be at least one.

    An answer may be there before the exit's report, which comes another way.
    """
    gateway.wait_for_event("a worker's exit", lambda event: isinstance(event.fields, WorkerExit))
    fields = [event.fields for event in gateway.events()]
    return [(one.status, one.signal) for one in fields if isinstance(one, WorkerExit)]


def rested(pid: int) -> bool:
    """Whether a worker has used no processor time for a third of a second and wants none: on a
    crowded machine who works may have to wait for longer."""
    before = busy(pid)
    select.select([], [], [], 0.3)
    return busy(pid) == before and not any(map(wants_processor, (pid, *descendants(pid))))


def wants_processor(pid: int) -> bool:
    """Whether a thread of a process runs or could."""
    states = set()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            states.add((task / "stat").read_text().rpartition(")")[2].split()[0])
    return bool(states & {"R", "D"})


def test_a_result_that_was_sent_counts_although_its_worker_is_killed() -> None:
    """The gateway was busy elsewhere: it finds result, hang-up and exit together, result first.

    The exit's signal is in the ledger, whichever of hang-up and exit was seen first.
    """
    with running_gateway() as gateway:
        gateway.install(gateway.write_plugin("slow-plugin", SLOW, limits=LIMITS))
        gateway.omega().invoke("slow-plugin", "echo", "warm")
        worker = gateway.operator().status().workers[0].pid
        assert worker is not None
        asked = Asked(gateway, "dawdle", "20000000")
        gateway.wait_for_event("the plugin's progress", in_progress)
        os.kill(gateway.pid, signal.SIGSTOP)
        try:
            wait_for("the worker to have answered", lambda: rested(worker))
            os.kill(worker, signal.SIGKILL)
            wait_for("the worker to be gone", lambda: not Path(f"/proc/{worker}").exists())
        finally:
            os.kill(gateway.pid, signal.SIGCONT)

        assert getattr(asked.finish(), "text", asked.outcome) == "20000000"
        assert exits(gateway) == [(0, signal.SIGKILL)]


def test_a_worker_that_is_killed_in_a_call_has_its_signal_in_the_ledger() -> None:
    """The call is lost at once, and the ledger says what ended the process."""
    with running_gateway() as gateway:
        asked = slow_gateway_call(gateway)
        worker = gateway.operator().status().workers[0].pid
        assert worker is not None

        os.kill(worker, signal.SIGKILL)

        outcome = asked.finish()
        assert isinstance(outcome, Refused), outcome
        assert outcome.code == RefusalCode.WORKER_LOST
        assert exits(gateway) == [(0, signal.SIGKILL)]
