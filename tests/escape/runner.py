"""The code that makes an attempt: the same text in a plugin and in the rig's processes.

`linux` is the raw system call layer, found by walking stack frames as an attacker would; `Memory`
its buffers. An attempt sets `result`, or raises.
"""

from __future__ import annotations

RUNNER = '''
def attempt(code, linux):
    scope = {"linux": linux, "Memory": linux.Memory}
    try:
        exec(code, scope)
    except BaseException as error:
        return ["refused", type(error).__name__]
    return ["succeeded", repr(scope.get("result"))[:100]]
'''
PLUGIN = RUNNER + '''
import sys
from sandbox_worker.sdk import method

@method()
def main(ctx, text):
    frame = sys._getframe()
    while "linux" not in frame.f_globals:
        frame = frame.f_back
    return attempt(text.text, frame.f_globals["linux"])
'''
