"""A child of a bench: `python -m benchmarks.child ROLE`, its settings as one JSON line on stdin.

Rules this file keeps: the kernel ends it when the bench ends, also when that was killed; it says
`ready` on stdout when it can be used; its standard input is at its end after the settings line
for every role that takes nothing more.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def _proxy(settings: dict[str, str]) -> None:
    from benchmarks.plain import proxy

    proxy(settings)


def _relay(settings: dict[str, str]) -> None:
    from benchmarks.plain import relay

    relay(settings)


def _relay_bare(settings: dict[str, str]) -> None:
    from benchmarks.plain import relay_bare

    relay_bare(settings)


def _echo(settings: dict[str, str]) -> None:
    from benchmarks.plain import echo

    echo(settings)


def _stub(settings: dict[str, str]) -> None:
    from benchmarks.stub import serve

    serve(settings["run_directory"], settings["plugin"])


def _broker(settings: dict[str, str]) -> None:
    """Be a gateway as `omega-gateway serve` is one; what it says goes to a file."""
    log = os.open(settings["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for number in (1, 2):
        os.dup2(log, number)
    from broker.serve import serve

    sys.exit(serve(settings["home"], {}))


ROLES: dict[str, Callable[[dict[str, str]], None]] = {
    "proxy": _proxy,
    "relay": _relay,
    "relay_bare": _relay_bare,
    "echo": _echo,
    "stub": _stub,
    "broker": _broker,
}


def say_ready() -> None:
    """Tell the bench that this process can be used."""
    os.write(1, b"ready\n")


def main() -> None:
    """Tie this process to its parent, read the settings, play the role."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    settings: dict[str, str] = json.loads(sys.stdin.readline())
    if os.getppid() != int(settings["parent"]):
        return
    ROLES[sys.argv[1]](settings)


if __name__ == "__main__":
    main()
