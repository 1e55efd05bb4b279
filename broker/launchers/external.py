"""Workers that an operator starts: the launch document lies in one file until somebody takes it.

The broker writes `RUN/launch/PLUGIN.json`, mode 0600, whole or not at all. `omega-gateway worker
PLUGIN` waits for it, takes it by renaming, so that of two takers one gets it, removes it and
becomes `python -m sandbox_worker`. The broker ends such a worker by closing its socket; a worker
that hears nothing from the broker ends by itself.

Rules this file keeps: the document holds the one-shot secret key, so the file is its owner's alone,
in a 0700 folder, and gone before the worker starts; a file that is anything else is refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from typing import Final, NoReturn

import msgspec

from broker.keys import KeyFileRefused, make_private_directory
from broker.launchers.process import worker_command, worker_environment
from schemas.launch import LAUNCH_BYTES_MAX
from schemas.names import PluginId

LAUNCH_FOLDER: Final = "launch"
POLL_S: Final = 0.05
"""How often a waiting worker looks for its document, in seconds."""


class ExternalLauncher:
    """Writes launch documents for operators. It knows no pid and reports nothing."""

    def __init__(self, run_directory: str) -> None:
        """Use the folder `launch` of this run directory.

        Raises:
            KeyFileRefused: the folder is open to others.
        """
        self._folder = os.path.join(run_directory, LAUNCH_FOLDER)
        make_private_directory(self._folder)
        self._offered: dict[str, str] = {}

    def clear(self) -> None:
        """Remove every document of a broker that is gone: it would only lead a worker astray.

        Call it when this broker is known to be the only one, that is, when it listens.
        """
        for name in os.listdir(self._folder):
            os.unlink(os.path.join(self._folder, name))

    def launch(self, incarnation: str, plugin: str, document: bytes) -> None:
        """Offer one document; it replaces one for the same plugin that nobody took.

        Args:
            incarnation: whom the document is for.
            plugin: the plugin's id.
            document: the launch document's bytes, at most `LAUNCH_BYTES_MAX`.

        Raises:
            OSError: the run directory's volume refused.
        """
        path = os.path.join(self._folder, f"{plugin}.json")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(f"{path}.new", flags, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(document)
        os.rename(f"{path}.new", path)
        self._offered = {one: of for one, of in self._offered.items() if of != path}
        self._offered[incarnation] = path

    def withdraw(self, incarnation: str) -> None:
        """Take back the document of an incarnation that ended, if it is still the one offered."""
        path = self._offered.pop(incarnation, None)
        if path is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


def take_document(run_directory: str, plugin: str) -> bytes | None:
    """Take the launch document of one plugin, if there is one, so that no second worker can.

    Raises:
        KeyFileRefused: the file is open to others, of another owner, or no launch document's size.
    """
    path = os.path.join(run_directory, LAUNCH_FOLDER, f"{plugin}.json")
    taken = f"{path}.taken-{os.getpid()}"
    try:
        os.rename(path, taken)
    except FileNotFoundError:
        return None
    try:
        descriptor = os.open(taken, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise KeyFileRefused(path, f"cannot be opened ({error.strerror})") from None
    finally:
        os.unlink(taken)
    with os.fdopen(descriptor, "rb") as file:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid():
            raise KeyFileRefused(path, "is not a regular file of this user")
        if stat.S_IMODE(about.st_mode) != 0o600:
            raise KeyFileRefused(path, f"has mode {stat.S_IMODE(about.st_mode):04o}, expected 0600")
        document = file.read(LAUNCH_BYTES_MAX + 1)
    if len(document) > LAUNCH_BYTES_MAX:
        raise KeyFileRefused(path, f"is longer than {LAUNCH_BYTES_MAX} bytes")
    return document


def become_worker(run_directory: str, plugin: str) -> NoReturn:
    """Wait in the foreground for a plugin's launch document, then become its worker.

    Args:
        run_directory: the gateway's run directory; it may not exist yet.
        plugin: the plugin's id.

    Raises:
        ValueError: the text is no plugin id.
        KeyFileRefused: the document's file is not as the broker writes it.
        OSError: the worker cannot be started.
    """
    # The id becomes a file name; its pattern cannot climb.
    msgspec.convert(plugin, PluginId)
    while (document := take_document(run_directory, plugin)) is None:
        time.sleep(POLL_S)
    read, write = os.pipe()
    os.set_blocking(write, False)
    if os.write(write, document) != len(document):
        raise OSError(f"a pipe takes fewer than the launch document's {len(document)} bytes")
    os.close(write)
    fcntl.fcntl(read, fcntl.F_SETFD, 0)
    command = worker_command(read, None)
    os.execve(command[0], command, worker_environment())  # noqa: S606  A fixed program, no shell.
