"""The broker's side of the launcher: start it before the seal, give orders, take reports.

Rules this file keeps: nothing here blocks the loop; what arrives is decoded strictly and bounded
per turn; a launcher that is gone, or says what it may not, is `LauncherLost`, and the broker must
end, because it could neither start nor kill a worker any more.

It leaves back-off, deadlines and what an exit means to the core.
"""

from __future__ import annotations

import collections
import fcntl
import os
import socket
import struct
import subprocess
from typing import Final

import msgspec

from broker.launchers import orders
from broker.launchers.orders import (
    Exited,
    Kill,
    Report,
    Start,
    Started,
    StartFailed,
    Tried,
    Try,
)
from broker.launchers.process import INTERPRETER, worker_environment
from broker.seal import SealUnavailable

__all__ = [
    "Exited", "LauncherLost", "LocalLauncher", "Report", "StartFailed", "Started", "Tried",
]

REPORTS_PER_TURN: Final = 256
ORDERS_WAITING_MAX: Final = 4096
START_S: Final = 10.0
"""How long the launcher may take to start and seal itself."""


class LauncherLost(Exception):
    """The launcher ended or broke the protocol; no worker can be started or killed any more."""


class LocalLauncher:
    """A running launcher. Watch `fd` for reading, then call `receive`."""

    def __init__(
        self, channel: socket.socket, process: subprocess.Popen[bytes], life: int
    ) -> None:
        """Hold the socket, the process and the write end of the workers' life pipe."""
        self._channel = channel
        self._process = process
        self._life = life
        self._waiting: collections.deque[tuple[bytes, int | None]] = collections.deque()
        self._running: set[str] = set()

    @classmethod
    def start(cls, *, worker_stderr: bool) -> LocalLauncher:
        """Start the launcher and wait until it has sealed itself. Call it before the broker's seal.

        Args:
            worker_stderr: whether workers' stderr goes to this terminal (development) or nowhere.

        Raises:
            SealUnavailable: the launcher could not seal itself.
            LauncherLost: it did not start.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        life_read, life_write = os.pipe()
        command = [
            *INTERPRETER, "-m", "broker.launchers.process",
            str(theirs.fileno()), str(life_read), "terminal" if worker_stderr else "null",
        ]  # fmt: skip
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=worker_environment(),
            pass_fds=(theirs.fileno(), life_read),
            # A Ctrl-C at the terminal is the broker's to answer, by draining.
            start_new_session=True,
        )
        theirs.close()
        os.close(life_read)
        launcher = cls(ours, process, life_write)
        try:
            ours.settimeout(START_S)
            sealed = orders.decode_seal(orders.receive(ours))
            ours.settimeout(None)
        except (OSError, *orders.MALFORMED) as error:
            process.kill()
            launcher.close()
            raise LauncherLost(f"the launcher did not start: {error}") from None
        if isinstance(sealed, orders.SealFailed):
            launcher.close()
            raise SealUnavailable(sealed.feature, sealed.errno, sealed.hint)
        return launcher

    @property
    def fd(self) -> int:
        """The descriptor that becomes readable when there are reports."""
        return self._channel.fileno()

    @property
    def pid(self) -> int:
        """The launcher's pid."""
        return self._process.pid

    def launch(self, incarnation: str, document: bytes) -> None:
        """Ask for one worker; a `Started` or `StartFailed` follows.

        Args:
            incarnation: 32 hex digits, never used before.
            document: the launch document's bytes, at most `LAUNCH_BYTES_MAX`.

        Raises:
            LauncherLost: the launcher takes no orders any more.
        """
        self._order(Start(incarnation, document))

    def try_schemas(self, trial: str, schemas: dict[str, bytes]) -> None:
        """Ask for one trial of schemas; a `Tried` or `StartFailed` follows.

        Args:
            trial: 32 hex digits; no trial and no worker of that name runs.
            schemas: the bytes of each by its content id.

        Raises:
            OSError: there is no memory, or no descriptor, for handing them over.
            LauncherLost: the launcher takes no orders any more.
        """
        descriptor = os.memfd_create("schemas", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(msgspec.msgpack.encode(schemas))
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        self._order(Try(trial), descriptor)

    def kill(self, incarnation: str) -> None:
        """Ask for the end of one worker or trial; its report follows unless it came before.

        Raises:
            LauncherLost: the launcher takes no orders any more.
        """
        self._order(Kill(incarnation))

    def receive(self) -> list[Report]:
        """Take the reports that are there, at most `REPORTS_PER_TURN`, and send waiting orders.

        Raises:
            LauncherLost: the launcher is gone or broke the protocol.
        """
        reports: list[Report] = []
        while len(reports) < REPORTS_PER_TURN:
            try:
                packet = orders.receive(self._channel, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            if not packet:
                raise LauncherLost("the launcher ended")
            try:
                report = orders.decode_report(packet)
            except orders.MALFORMED:
                raise LauncherLost("the launcher said something that is not a report") from None
            if isinstance(report, Started):
                self._running.add(report.incarnation)
            else:
                self._running.discard(report.incarnation)
            reports.append(report)
        self._flush()
        return reports

    def runs(self, incarnation: str) -> bool:
        """Say whether a worker was reported as started and not yet as ended."""
        return incarnation in self._running

    def close(self) -> None:
        """End the launcher and with it every worker; waits for the launcher's end."""
        self._channel.close()
        os.close(self._life)
        self._process.wait(START_S)

    def _order(self, order: orders.Order, descriptor: int | None = None) -> None:
        if len(self._waiting) >= ORDERS_WAITING_MAX:
            raise LauncherLost("the launcher does not take orders")
        self._waiting.append((orders.encode(order), descriptor))
        self._flush()

    def _flush(self) -> None:
        """Send what the socket takes. A launcher with a full socket has reports to make, and the
        next of them comes back here."""
        while self._waiting:
            packet, descriptor = self._waiting[0]
            handed = [] if descriptor is None else [descriptor]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", one))
                      for one in handed]
            try:
                # socket.send_fds does not pass flags on, and a send that waits stops the loop.
                self._channel.sendmsg([packet], rights, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except ConnectionError:
                raise LauncherLost("the launcher ended") from None
            self._waiting.popleft()
            for sent in handed:
                os.close(sent)
