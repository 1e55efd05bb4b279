"""Run a function in a process that may be ruined: jailed, killed, stripped of rights."""

from __future__ import annotations

import faulthandler
import json
import os
import traceback
from collections.abc import Callable
from typing import Any

ORDINARY = 65534
ANSWER = 3
IDENTITIES = ("root", "ordinary") if os.getuid() == 0 else ("ordinary",)
"""Whom the tests can be; run the suite as an ordinary user too."""


class Killed(Exception):
    """The process died of a signal."""

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal


def inside(function: Callable[[], object], identity: str = "root") -> Any:
    """What the function returned in a forked process, as JSON; an exception there fails here.

    Args:
        function: runs in the child, which has this process's modules and one thread.
        identity: "ordinary" gives up root first.

    Raises:
        Killed: the child died of a signal.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        # Descriptor 3 is the one that even the strictest filter lets a process write to.
        os.dup2(writer, ANSWER)
        faulthandler.disable()
        try:
            if identity == "ordinary" and os.getuid() == 0:
                os.setgroups([])
                os.setresgid(ORDINARY, ORDINARY, ORDINARY)
                os.setresuid(ORDINARY, ORDINARY, ORDINARY)
            answer = {"value": function()}
        except BaseException:  # noqa: BLE001  Told to the parent, which fails.
            answer = {"error": traceback.format_exc()}
        os.write(ANSWER, json.dumps(answer).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        raise Killed(os.WTERMSIG(status))
    answer = json.loads(data)
    assert "error" not in answer, answer["error"]
    return answer["value"]
