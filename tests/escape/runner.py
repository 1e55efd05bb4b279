"""The code that makes an attempt: the same text in a plugin and in the rig's processes.

An attempt finds `linux`, the raw system call layer (in a plugin by walking stack frames, as an
attacker would), `Memory`, its buffers, and the names of `HERE`. It sets `result`, or raises.
"""

from __future__ import annotations

import errno
import json
import signal

from tests.escape.attempts.attempt import Attempt

RUNNER = '''
def attempt(code, linux, scope):
    scope = {"linux": linux, "Memory": linux.Memory, **scope}
    try:
        exec(code, scope)
    except BaseException as error:
        return ["refused", type(error).__name__, getattr(error, "errno", None) or 0]
    return ["succeeded", repr(scope.get("result"))[:100], 0]
'''
BETWEEN = "\f"
"""Between the attempts of one call."""

PLUGIN = RUNNER + '''
import sys
from sandbox_worker.sdk import method

HERE = {
    "PARENT": 1, "SIBLINGS": list(range(2, 99)), "OTHERS": [0, 1, 2, *range(4, 128)],
    "PLACE": "/tmp", "PORT": 9, "ABSTRACT": b"omega",
}

@method()
def main(ctx, text):
    frame = sys._getframe()
    while "linux" not in frame.f_globals:
        frame = frame.f_back
    linux = frame.f_globals["linux"]
    return [attempt(code, linux, HERE) for code in text.text.split("\\f")]
'''

SUCCEEDED = 77
"""Exit status of an attempt that cannot tell its success otherwise."""


def outcome(attempt: Attempt, status: int, line: str) -> str:
    """What became of an attempt, in one word, with the errno of a refusal behind it.

    Args:
        attempt: what was tried.
        status: exit code of the process in which it was tried.
        line: what `attempt` in there gave, as JSON; empty where the process ended in it.
    """
    if not line:
        ends = {SUCCEEDED: "succeeded", -signal.SIGSYS: "killed", -signal.SIGKILL: "ended"}
        return ends.get(status, f"died {status}")
    # Some attempts write to the job socket before they succeed.
    kind, name, code = json.loads(line[line.index('["') :])
    if kind == "succeeded":
        return "succeeded"
    known = errno.errorcode.get(code, name)
    reached = code if attempt.reached == "any" else known in attempt.reached.split()
    return "succeeded" if reached else f"refused {known}"
