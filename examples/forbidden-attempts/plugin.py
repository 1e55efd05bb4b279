"""What a hostile plugin would try first, and what comes of it.

Inside the sandbox every attempt is stopped: softly, with an exception that a plugin can catch,
where an honest program may well ask, and by ending the process where only an attacker would. The
same attempts succeed in an ordinary process; the tests of this folder show that.

Modules that are not declared are fetched from the interpreter behind the manifest's back, as an
attacker would do it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import ModuleType

import msgspec

from sandbox_worker.sdk import Context, TextPayload, method


class Attempt(msgspec.Struct, forbid_unknown_fields=True):
    """One thing tried; `outcome` is what the operating system said to it."""

    attempt: str
    stopped: bool
    outcome: str


class Report(msgspec.Struct, forbid_unknown_fields=True):
    """The answer: every attempt in order."""

    all_stopped: bool
    attempts: list[Attempt]


@method()
def try_everything(context: Context, text: TextPayload) -> Report:
    """Try one thing after the other and say how each ended; `text` is a path to read."""
    tried = [_try(name, attempt) for name, attempt in attempts(text.text or "/etc/passwd").items()]
    context.progress(1.0, f"{len(tried)} attempts")
    return Report(all(one.stopped for one in tried), tried)


@method()
def open_file(context: Context, text: TextPayload) -> TextPayload:
    """Read a file and let the refusal end the call."""
    context.progress(0.0, "opening")
    with open(text.text, encoding="utf-8") as file:
        return TextPayload(file.read())


@method()
def set_clock(context: Context, text: TextPayload) -> TextPayload:
    """Set the machine's clock, which no honest plugin would: the kernel ends the process."""
    context.progress(0.0, "setting the clock")
    time.clock_settime(time.CLOCK_REALTIME, 0)
    return text


def attempts(path: str) -> dict[str, Callable[[], object]]:
    """Give everything that is tried, by name; the last one would replace the process."""
    posix = _fetched("posix")
    return {
        "read a file": lambda: _read(path),
        "write a file": lambda: _write(f"{path}.forbidden"),
        "list a folder": lambda: posix.listdir("/"),
        "open a socket": lambda: _fetched("_socket").socket(),
        "start a process": lambda: posix.waitpid(posix.fork() or posix.kill(posix.getpid(), 9), 0),
        "start a thread": lambda: _fetched("_thread").start_new_thread(int, ()),
        "signal the parent": lambda: posix.kill(posix.getppid(), 0),
        "read the clock": time.time,
        "draw entropy": lambda: posix.urandom(1),
        "read the environment": lambda: posix.environ[b"PATH"],
        "run a program": lambda: posix.execv("/bin/true", ["true"]),
    }


def _try(name: str, attempt: Callable[[], object]) -> Attempt:
    try:
        attempt()
    except (OSError, ImportError, LookupError, RuntimeError) as error:
        outcome = f"{type(error).__name__}: {error}"[:200]
        return Attempt(attempt=name, stopped=True, outcome=outcome)
    return Attempt(attempt=name, stopped=False, outcome="it succeeded")


def _fetched(module: str) -> ModuleType:
    return __import__(module)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(1)


def _write(path: str) -> int:
    with open(path, "xb") as file:
        return file.write(b"x")
