"""The code that makes an attempt: the same text in a plugin and in the rig's processes.

An attempt finds `linux`, the raw system call layer (in a plugin by walking stack frames, as an
attacker would), `Memory`, its buffers, and the names of `HERE`. It sets `result`, or raises.
"""

from __future__ import annotations

RUNNER = '''
def attempt(code, linux, scope):
    scope = {"linux": linux, "Memory": linux.Memory, **scope}
    try:
        exec(code, scope)
    except BaseException as error:
        return ["refused", type(error).__name__, getattr(error, "errno", None) or 0]
    return ["succeeded", repr(scope.get("result"))[:100], 0]
'''
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
    return attempt(text.text, frame.f_globals["linux"], HERE)
'''

SUCCEEDED = 77
"""Exit status of an attempt that cannot tell its success otherwise."""
