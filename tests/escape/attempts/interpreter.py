"""Tricks on the interpreter and on the bytes between a call process and its supervisor.

No layer of the jail holds these: a process may always crash, lie and write what it likes to its one
socket. What holds them is the supervisor, which reads those bytes as hostile, and that the process
is thrown away. Each has a control: the same way used within its bounds, which is accepted.
"""

from __future__ import annotations

from typing import NamedTuple

SEND = (
    "import os\n"
    "def send(body, size=None):\n"
    "    data = (len(body) if size is None else size).to_bytes(4, 'big') + body\n"
    "    while data:\n        data = data[os.write(3, data):]\n"
    "def answer(data, kind=b'\\xa4json'):\n"
    "    return (b'\\x92\\xa6result\\x82\\xa4type' + kind + b'\\xa4data\\xc6' "
    "+ len(data).to_bytes(4, 'big') + data)\n"
)
"""A frame by hand, and a whole answer."""

HONEST = SEND + "send(b'\\x93\\xa8progress\\x00\\xa4note'); send(answer(b'[1]'))"
"""Progress and an answer by hand, as the worker's own code writes them."""

ALIVE = "result = 1"


class Trick(NamedTuple):
    """One trick.

    Attributes:
        name: what it plays on.
        code: as of an attempt.
        ends: how its call may end: failure codes, or "result".
        control: the same way within its bounds; its call must give a result.
        timeout_ms: the call's deadline.
    """

    name: str
    code: str
    ends: str
    control: str = HONEST
    timeout_ms: int = 4000


TRICKS = (
    Trick("forged_rehearsal", SEND + "send(b'\\x91\\xa9rehearsed')", "output_invalid"),
    Trick("forged_probe_report", SEND + "send(b'\\x92\\xa6probed\\x91\\x92\\xa4fork\\xa6denied')",
          "output_invalid"),
    Trick("unknown_frame", SEND + "send(b'\\x91\\xa7granted')", "output_invalid"),
    Trick("empty_frame", SEND + "send(b'')", "output_invalid"),
    Trick("no_message_at_all", SEND + "send(b'\\xc1' * 9)", "output_invalid"),
    Trick("wrong_type", SEND + "send(b'\\x92\\xa6result\\x05')", "output_invalid"),
    Trick("deep_nesting", SEND + "send(b'\\x91' * 4000)", "output_invalid"),
    Trick("length_beyond_all_bounds", SEND + "send(b'', 0xFFFFFFFF)", "output_limit_exceeded"),
    Trick("answer_too_large", SEND + "send(answer(b'\"' + b'x' * 66000 + b'\"'))",
          "output_limit_exceeded", SEND + "send(answer(b'\"' + b'x' * 60000 + b'\"'))"),
    Trick("answer_of_another_kind",
          SEND + "send(b'\\x92\\xa6result\\x82\\xa4type\\xa4text\\xa4text\\xa1x')",
          "output_kind_mismatch"),
    Trick("flood_of_progress",
          SEND + "while True:\n    send(b'\\x93\\xa8progress\\x00\\xda\\x0f\\xa0' + b'x' * 4000)",
          "output_limit_exceeded cpu_limit_exceeded"),
    Trick("half_a_frame_and_end", SEND + "os.write(3, b'\\0\\0\\0\\x64abc'); os._exit(0)",
          "plugin_crashed"),
    Trick("half_a_frame_and_wait", SEND + "os.write(3, b'\\0\\0\\0\\x64abc'); os.read(3, 1)",
          "deadline_exceeded", timeout_ms=300),
    Trick("wait_for_ever", "import os; os.read(3, 1)", "deadline_exceeded", timeout_ms=300),
    Trick("end_without_a_word", "import os; os._exit(0)", "plugin_crashed", ALIVE),
    Trick("claim_that_the_jail_failed", "import os; os._exit(70)", "plugin_crashed", ALIVE),
    # The answer counts, what comes after it is not read, and the process does not live on.
    Trick("answer_and_go_on", SEND + "send(answer(b'[1]'))\nwhile True:\n    pass", "result"),
    Trick("answer_and_sleep", SEND + "send(answer(b'[1]'))\nword = Memory(4)\n"
          "linux.call(202, word, 128, 0, 0, 0, 0)", "result"),
    Trick("answer_twice", SEND + "send(answer(b'[1]')); send(answer(b'[2]'))", "result"),
    Trick("read_nowhere", "ctypes.string_at(0)", "plugin_crashed", ALIVE),
    Trick("abort", "ctypes.PyDLL(None).abort()", "plugin_crashed", ALIVE),
    Trick("jump_into_data", "room = Memory(64)\n"
          "ctypes.CFUNCTYPE(ctypes.c_int)(room.address)()", "plugin_crashed", ALIVE),
    Trick("recursion_without_end", "import sys; sys.setrecursionlimit(10 ** 8)\n"
          "def f():\n    return f()\nf()",
          "plugin_crashed cpu_limit_exceeded memory_limit_exceeded result", ALIVE),
    Trick("recursion_in_the_interpreter", "import sys; sys.setrecursionlimit(10 ** 8)\nx = []\n"
          "for _ in range(200_000):\n    x = [x]\nrepr(x)",
          "plugin_crashed cpu_limit_exceeded memory_limit_exceeded result", ALIVE),
    Trick("jail_steps_again", "import sys\nframe = sys._getframe()\n"
          "while 'jail' not in frame.f_locals:\n    frame = frame.f_back\n"
          "linux.succeeds(frame.f_locals['jail'].before)", "system_call_forbidden", ALIVE),
    Trick("zygotes_messages", "import sys\nframe = sys._getframe()\n"
          "while frame and 'control' not in frame.f_locals:\n    frame = frame.f_back\n"
          "control = frame.f_locals['control'] if frame else None\n"
          "control.send(b'K' + bytes(8)) if control else linux.call(44, 3, Memory(9), 9, 0, 0, 0)\n"
          "import os; os._exit(1)", "result", ALIVE),
    Trick("our_own_code_rewritten", "import sys\nframe = sys._getframe()\n"
          "while frame:\n    frame.f_globals['pack'] = lambda _: b'\\xc1'\n"
          "    frame = frame.f_back\nraise ValueError", "result output_invalid plugin_crashed",
          ALIVE),
)
"""All of the class "interpreter and protocol"."""
