"""The code that makes an attempt: the same text in a plugin and in the rig's processes.

An attempt finds `linux`, the raw system call layer (in a plugin by walking stack frames, as an
attacker would), `Memory`, its buffers, `ctypes`, built anew over the core that this layer uses, and
the names of `HERE`. It sets `result`, or raises.
"""

from __future__ import annotations

import ast
import ctypes
import errno
import signal
from pathlib import Path

from tests.escape.attempts.attempt import Attempt

_PACKAGE = "".join(
    line
    for line in Path(ctypes.__file__).read_text("utf-8").splitlines(keepends=True)
    if not line.startswith("from ctypes._endian")
)
"""A zygote has only the core of `ctypes`; an attacker brings the rest along."""

RUNNER = f"PACKAGE = {_PACKAGE!r}\n" + '''
def ctypes_over(core):
    import sys
    if "ctypes" not in sys.modules:
        sys.modules["_ctypes"], package = core, type(sys)("ctypes")
        exec(PACKAGE, package.__dict__)
        sys.modules["ctypes"] = package
    return sys.modules["ctypes"]


def attempt(code, linux, scope):
    scope = {"linux": linux, "Memory": linux.Memory, **scope}
    if "ctypes" in code:
        scope["ctypes"] = ctypes_over(linux._ctypes)
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
    "PLACE": "/tmp", "PORT": 9, "ABSTRACT": b"omega", "ROUNDS": 10 ** 9,
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
        line: what `attempt` in there gave, as Python writes it; empty where the process ended.
    """
    if not line:
        ends = {SUCCEEDED: "succeeded", -signal.SIGSYS: "killed", -signal.SIGKILL: "ended"}
        return ends.get(status, f"died {status}")
    # Some attempts write to the job socket before they succeed.
    kind, name, code = ast.literal_eval(line[line.index("['") :])
    if kind == "succeeded":
        return "succeeded"
    known = errno.errorcode.get(code, name)
    reached = code if attempt.reached == "any" else known in attempt.reached.split()
    return "succeeded" if reached else f"refused {known}"
