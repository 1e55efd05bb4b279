"""A worker's life: how it starts, why it does not, how it ends, and that nothing outlives it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import time
import uuid
from pathlib import Path

import msgspec
import pytest

from sandbox_worker.bundle import read_bundle
from sandbox_worker.forker import Forker
from sandbox_worker.handing import Folders
from sandbox_worker.jail import attest
from sandbox_worker.supervisor import Supervisor, WorkerEndedError
from schemas.launch import LaunchDocument
from schemas.messages import Bye, CallFailure, Drain, Run
from schemas.payloads import TextPayload
from tests.sandbox_worker.harness import (
    LIMITS,
    PATIENCE_S,
    Worker,
    make_bundle,
    text_to_json,
    worker,
)
from tests.support.gateway import wait_for
from tests.support.timing import GONE_S, best_of

pytestmark = [pytest.mark.jail, pytest.mark.system]

SPINNER = '''
from sandbox_worker.sdk import method

@method()
def main(ctx, text):
    while True:
        pass
'''


def test_drain_finishes_what_runs_and_says_bye(tmp_path: Path) -> None:
    """A draining worker answers its open call, says bye and ends with code 0."""
    limits = msgspec.structs.replace(LIMITS, cpu_ms=200)
    with worker(tmp_path, SPINNER, limits=limits) as one:
        call = one.start("")
        one.send(Drain())
        end = one.end_of(call)

        assert isinstance(end, CallFailure)
        assert one.receive() == Bye(reason="drained")
        assert one.process.wait(PATIENCE_S) == 0


def _children(pid: int) -> set[int]:
    """Every process below one, by walking /proc."""
    found: set[int] = set()
    edges: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat") as file:
            parent = int(file.read().rpartition(")")[2].split()[1])
            edges.setdefault(parent, []).append(int(name))
    queue = [pid]
    while queue:
        for child in edges.get(queue.pop(), []):
            found.add(child)
            queue.append(child)
    return found


def _gone_after(pids: set[int]) -> float:
    """How long it took until none of these processes was left."""
    began = time.monotonic()
    while any(os.path.exists(f"/proc/{pid}") and not _zombie(pid) for pid in pids):
        assert time.monotonic() - began < PATIENCE_S, "processes are left"
        os.sched_yield()
    return time.monotonic() - began


def _zombie(pid: int) -> bool:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "Z"
    return True


@pytest.mark.parametrize("ending", [
    "broker pipe", "supervisor killed", "supervisor killed, zygote stopped", "zygote killed",
])
def test_nothing_outlives_the_broker_the_supervisor_or_the_zygote(
    tmp_path: Path, ending: str
) -> None:
    """With a call running, half a second after either is gone no process is left."""
    limits = msgspec.structs.replace(LIMITS, cpu_ms=60_000, wall_ms=60_000)
    bundle = make_bundle(tmp_path, SPINNER, methods=text_to_json(), limits=limits)

    def end_once() -> float:
        one = Worker(tmp_path, bundle, limits=limits)
        try:
            zygote = one.ready().attestation.zygote_pid
            one.start("", timeout_ms=60_000)
            wait_for("stub, zygote, a busy and an idle call process",
                     lambda: len(_children(one.process.pid)) >= 4)
            below = _children(one.process.pid)
            assert zygote in below
            match ending:
                case "broker pipe":
                    os.close(one.life)
                    one.life = os.open("/dev/null", os.O_RDONLY)
                case "supervisor killed":
                    one.process.kill()
                case "supervisor killed, zygote stopped":
                    # It reads no end of file: the kernel alone ends it, once its stub is gone.
                    os.kill(zygote, signal.SIGSTOP)
                    one.process.kill()
                case "zygote killed":
                    os.kill(zygote, signal.SIGKILL)
            return _gone_after(below | {one.process.pid})
        finally:
            one.close()

    assert best_of(end_once) < GONE_S


def test_a_zygote_that_is_gone_when_a_call_comes_ends_the_worker(tmp_path: Path) -> None:
    """Its end may be noticed by writing to it: that is the worker's end, with its sentence."""
    bundle = make_bundle(tmp_path, SPINNER, methods=text_to_json())
    launch = LaunchDocument(
        format="omega-launch/1", incarnation="0" * 32, plugin="plugin-under-test",
        version="1.0.0", plugin_digest=hashlib.sha256(bundle.read_bytes()).hexdigest(),
        bundle=str(bundle), endpoint="", server_key="0" * 40, worker_secret_key="0" * 40,
        limits=LIMITS, grants=(), expires_at_us=0,
    )
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with subprocess.Popen(["true"]) as stub, ours:
        forker = Forker(ours, 0, stub, os.pidfd_open(stub.pid))
        supervisor = Supervisor(forker, read_bundle(launch), launch, Folders(launch), print)
        theirs.close()
        order = Run(call=1, method="main", payload=TextPayload(""), timeout_ms=1000,
                    request_id=str(uuid.uuid4()))
        with pytest.raises(WorkerEndedError, match="the zygote ended"):
            supervisor.run(order, time.monotonic())
        forker.kill(1)
        assert forker.ended() is None
        with pytest.raises(WorkerEndedError, match="the zygote's stub ended"):
            supervisor.turn(forker.stub_pidfd, time.monotonic())
        supervisor.poll.close()
        os.close(forker.stub_pidfd)


def test_a_limit_is_kept_although_the_zygote_is_stuck(tmp_path: Path) -> None:
    """A stopped zygote ends nobody: the supervisor ends it, the call and itself, and says so."""
    limits = msgspec.structs.replace(LIMITS, cpu_ms=60_000, wall_ms=1000)
    bundle = make_bundle(tmp_path, SPINNER, methods=text_to_json(), limits=limits)
    one = Worker(tmp_path, bundle, limits=limits)
    try:
        zygote = one.ready().attestation.zygote_pid
        one.start("", timeout_ms=60_000)
        wait_for("the call to run", lambda: len(_children(one.process.pid)) >= 4)
        below = _children(one.process.pid)
        os.kill(zygote, signal.SIGSTOP)
        end = one.receive()

        assert isinstance(end, Bye)
        assert end.reason == "recycle_killed"
        assert one.process.wait(PATIENCE_S) == 5
        _gone_after(below)
    finally:
        one.close()


@pytest.mark.parametrize(
    ("source", "modules", "words"),
    [
        ("def broken(:\n", (), "does not compile: SyntaxError"),
        ("x = " + "(" * 5000 + ")" * 5000, (), "compile"),
        ("x = " + "-" * 200_000 + "1", (), "compile"),
        ("# coding: rot13\nfrom fnaqobk_jbexre.fqx vzcbeg zrgubq\nkkk kkk", (), "compile"),
        (SPINNER, ("socket",), "module socket is not one a plugin may load"),
        (SPINNER + "#" * 300_000, (), "longer than the compiler is given"),
    ],
    ids=["syntax", "nesting", "unary", "coding cookie", "module", "length"],
)
def test_a_plugin_that_cannot_be_loaded_is_refused_with_a_reason(
    tmp_path: Path, source: str, modules: tuple[str, ...], words: str
) -> None:
    """The worker says why and ends with code 5; the compiler's worst inputs are no crash."""
    bundle = make_bundle(tmp_path, source, methods=text_to_json(), modules=modules)
    one = Worker(tmp_path, bundle)
    try:
        report = one.receive()
        assert isinstance(report, Bye)
        assert report.reason == "plugin_load_failed"
        assert words in report.detail
        assert one.process.wait(PATIENCE_S) == 5
    finally:
        one.close()


def test_the_sealed_supervisor_has_lost_what_it_does_not_need(tmp_path: Path) -> None:
    """From outside: a filter on every thread, no new privileges, no capability but kill."""
    capability = f"{1 << 5:016x}" if os.getuid() == 0 else "0" * 16
    with worker(tmp_path, SPINNER) as one:
        tasks = os.listdir(f"/proc/{one.process.pid}/task")
        assert len(tasks) > 1
        for task in tasks:
            fields = attest.status(f"{one.process.pid}/task/{task}")
            assert fields["Seccomp"] == "2"
            assert fields["NoNewPrivs"] == "1"
            assert fields["CapEff"] == capability


def test_a_machine_without_memory_ends_call_processes_first(tmp_path: Path) -> None:
    """The zygote and every call process offer themselves to the kernel; the supervisor does not."""
    with worker(tmp_path, SPINNER) as one:
        below = _children(one.process.pid)
        scores = [Path(f"/proc/{pid}/oom_score_adj").read_text() for pid in below]
        own = int(Path(f"/proc/{one.process.pid}/oom_score_adj").read_text())

    assert len(below) >= 3
    assert {int(score) for score in scores} == {1000}
    assert own == int(Path("/proc/self/oom_score_adj").read_text()) < 1000


def test_a_bundle_other_than_the_one_promised_is_not_opened(tmp_path: Path) -> None:
    """The digest is compared first: a changed bundle ends the worker with that sentence."""
    bundle = make_bundle(tmp_path, SPINNER, methods=text_to_json())
    one = Worker(tmp_path, bundle, changes={"plugin_digest": "0" * 64})
    try:
        report = one.receive()
        assert isinstance(report, Bye)
        assert "digest" in report.detail
    finally:
        one.close()


def test_an_expired_launch_document_is_not_used(tmp_path: Path) -> None:
    """A document that lay around too long starts nothing."""
    bundle = make_bundle(tmp_path, SPINNER, methods=text_to_json())
    one = Worker(tmp_path, bundle, changes={"expires_at_us": 1})
    try:
        assert one.process.wait(PATIENCE_S) == 5
    finally:
        one.close()
