"""A worker's life in order: launch document, own layer, zygote, attestation, seal, socket, calls.

    python -m sandbox_worker --launch-fd N [--life-fd M]

The launch document is read from descriptor N to its end. Descriptor M is a pipe that only the
broker could write to and never does: its end means the broker is gone, and the worker ends with
it. Without it, silence on `ping` means the same.

Rules: the order of `main` is the safety argument; nothing is connected before the supervisor is
sealed; a start that fails still says why, over the socket, and ends with exit code 5.
"""

from __future__ import annotations

import argparse
import os
import select
import sys
import time

import msgspec

from sandbox_worker import forker, seal
from sandbox_worker.bundle import Bundle, LaunchRefusedError, read_bundle
from sandbox_worker.forker import Exit, Forker
from sandbox_worker.handing import FolderMissingError, Folders
from sandbox_worker.jail.linux import SandboxUnavailable
from sandbox_worker.link import Link
from sandbox_worker.packages import PackagesChangedError
from sandbox_worker.probes import PROBES
from sandbox_worker.replies import Probed
from sandbox_worker.slot import Slot
from sandbox_worker.supervisor import Supervisor, WorkerEndedError, monotonic
from schemas.launch import LAUNCH_BYTES_MAX, LaunchDocument
from schemas.messages import (
    Abort,
    Bye,
    Drain,
    Ping,
    Pong,
    Probe,
    ProbeOutcome,
    ProbeReport,
    Ready,
    Run,
)

EXIT_MACHINE = 5
SILENCE_S = 30.0
"""A worker without a life pipe ends when the broker has said nothing for this long."""


def main(arguments: list[str] | None = None) -> int:
    """Live one life. Returns the exit code."""
    options = _options(arguments)
    try:
        launch = _read_launch(options.launch_fd)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"sandbox_worker: launch document: {error}\n")
        return EXIT_MACHINE
    started: Forker | None = None
    try:
        bundle = read_bundle(launch)
        seal.close_outside()
        started = forker.start(launch, bundle)
        folders = Folders(launch)
        seal.close_files(folders.by_grant.values())
    except (SandboxUnavailable, LaunchRefusedError) as error:
        if started is not None:
            started.close()
        return _refuse(launch, error)
    try:
        return _Worker(launch, bundle, started, folders, options.life_fd).live()
    finally:
        started.close()


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sandbox_worker", allow_abbrev=False)
    parser.add_argument("--launch-fd", type=int, required=True)
    parser.add_argument("--life-fd", type=int)
    return parser.parse_args(arguments)


def _read_launch(descriptor: int) -> LaunchDocument:
    """Read the launch document to the end of its descriptor."""
    with open(descriptor, "rb") as file:
        data = file.read(LAUNCH_BYTES_MAX + 1)
    if len(data) > LAUNCH_BYTES_MAX:
        raise ValueError(f"longer than {LAUNCH_BYTES_MAX} bytes")
    launch = msgspec.json.decode(data, type=LaunchDocument)
    if launch.expires_at_us < time.time() * 1_000_000:
        raise ValueError("it has expired")
    return launch


def _refuse(launch: LaunchDocument, error: SandboxUnavailable | LaunchRefusedError) -> int:
    """Tell the broker why there will be no worker."""
    sys.stderr.write(f"sandbox_worker: {error}\n")
    link = Link(launch)
    detail = "".join(letter if " " <= letter <= "~" else "?" for letter in str(error))[:1024]
    if isinstance(error, SandboxUnavailable):
        link.send(Bye(reason="sandbox_unavailable", detail=detail))
    elif isinstance(error, PackagesChangedError):
        link.send(Bye(reason="packages_changed", detail=detail))
    elif isinstance(error, FolderMissingError):
        link.send(Bye(reason="launch_refused", detail=detail))
    else:
        link.send(Bye(reason="plugin_load_failed", detail=detail))
    link.close()
    return EXIT_MACHINE


class _Worker:
    """The sealed supervisor with its socket open: everything from `ready` to `bye`."""

    def __init__(
        self, launch: LaunchDocument, bundle: Bundle, started: Forker, folders: Folders,
        life: int | None,
    ) -> None:
        self._link = Link(launch)
        self._supervisor = Supervisor(started, bundle, launch, folders, self._link.send)
        self._supervisor.on_probe_end = self._probe_ended
        self._probes: dict[int, list[ProbeOutcome]] = {}
        self._life = life
        self._connected = False
        self._heard = monotonic()
        assert started.attestation is not None
        self._ready = Ready(
            pid=os.getpid(),
            attestation=started.attestation,
            concurrency=launch.limits.concurrency,
        )

    def live(self) -> int:
        """Serve until drained, ended or alone."""
        supervisor, poll = self._supervisor, self._supervisor.poll
        poll.register(self._link.descriptor, select.EPOLLIN)
        if self._life is not None:
            poll.register(self._life, select.EPOLLIN)
        supervisor.fill(monotonic())
        self._link.send(self._ready)
        try:
            while True:
                # First, and after every send: the link's descriptor tells of changes only.
                self._take_orders()
                if supervisor.draining and supervisor.busy == 0:
                    break
                for descriptor, _ in poll.poll(self._wait_s()):
                    if descriptor == self._life:
                        return 0
                    supervisor.turn(descriptor, monotonic())
                supervisor.expire(monotonic())
                supervisor.desk.step(monotonic())
                if self._life is None and monotonic() - self._heard > SILENCE_S:
                    return 0
        except SandboxUnavailable as error:
            self._say_bye(WorkerEndedError("sandbox_unavailable", str(error)))
            return EXIT_MACHINE
        except WorkerEndedError as error:
            self._say_bye(error)
            return EXIT_MACHINE
        self._link.send(Bye(reason="drained"))
        self._link.close()
        return 0

    def _say_bye(self, error: WorkerEndedError) -> None:
        if error.reason == "sandbox_unavailable":
            self._link.send(Bye(reason="sandbox_unavailable", detail=error.detail))
        else:
            self._link.send(Bye(reason="recycle_killed", detail=error.detail))
        self._link.close()

    def _wait_s(self) -> float:
        limit = SILENCE_S if self._life is None else 60.0
        return max(0.0, min(limit, self._supervisor.next_deadline() - monotonic()))

    def _take_orders(self) -> None:
        for order in self._link.orders():
            now = self._heard = monotonic()
            if not self._connected:
                # The broker has spoken, so its connection stands; no plugin code has run yet.
                seal.close_connections()
                self._connected = True
            match order:
                case Run():
                    self._supervisor.run(order, now)
                case Abort():
                    self._supervisor.abort(order)
                case Drain():
                    self._supervisor.drain(order)
                case Ping():
                    self._link.send(Pong(nonce=order.nonce))
                case Probe():
                    self._probes[order.probe] = []
                    soft = [name for name in PROBES if name != "ptrace"]
                    self._supervisor.probe(order, soft, now)
                    self._supervisor.probe(order, ["ptrace"], now)

    def _probe_ended(self, slot: Slot, ending: Exit) -> None:
        """Collect both halves of a probe; the report leaves with the second."""
        assert isinstance(slot.order, Probe)
        outcomes = self._probes[slot.order.probe]
        if isinstance(slot.reply, Probed):
            outcomes += [ProbeOutcome(name, outcome) for name, outcome in slot.reply.outcomes]
        elif os.waitstatus_to_exitcode(ending.status) == -31:
            outcomes.append(ProbeOutcome("ptrace", "killed"))
        if slot.order.probe in self._supervisor.open_probes():
            return
        report = ProbeReport(
            probe=slot.order.probe, nonce=slot.order.nonce,
            outcomes=tuple(self._probes.pop(slot.order.probe)),
        )  # fmt: skip
        self._link.send(report)


if __name__ == "__main__":
    sys.exit(main())
