"""Attempts at other processes: making them, tracing them, signalling them."""

from __future__ import annotations

from functools import partial

from tests.escape.attempts.attempt import Attempt, raw

_process = partial(Attempt, "processes")
_BY_TRACING = "landlock hidden+no_host_rights seccomp"
"""What the kernel allows to a tracer only."""
_BY_FORKING = "limits+no_host_rights seccomp"
"""What the kernel does not allow to a user who may have no process, unless that is root."""
_GONE = "pid or os._exit(0); result = os.waitpid(pid, 0)"
_VECTORS = (
    "import struct; word = Memory(8)\n"
    "ours = Memory(struct.pack('=QQ', word.address, 8))\n"
    "theirs = Memory(struct.pack('=QQ', 0, 8))\n"
)

PROCESSES = [
    _process("fork", f"import os; pid = os.fork(); {_GONE}", held=_BY_FORKING, alone=True),
    _process("fork_by_clone", f"import os; pid = linux.call(56, 17, 0, 0, 0, 0); {_GONE}",
             held=_BY_FORKING, alone=True),
    _process("clone_as_a_sibling", "import os; pid = linux.call(56, 0x8011, 0, 0, 0, 0); "
             "pid or os._exit(0); result = pid", held=_BY_FORKING, alone=True),
    _process("clone3_in_a_new_user_namespace", "import os, struct\n"
             "a = Memory(struct.pack('=11Q', 0x10000000, 0, 0, 0, 17, *[0] * 6))\n"
             f"pid = linux.call(435, a, 88); {_GONE}", held=f"namespaces {_BY_FORKING}",
             alone=True),
    _process("clone3", "import os, struct\n"
             "a = Memory(struct.pack('=11Q', 0, 0, 0, 0, 17, *[0] * 6))\n"
             f"pid = linux.call(435, a, 88); {_GONE}", held=_BY_FORKING, alone=True),
    _process("thread", "import _thread; result = _thread.start_new_thread(int, ())",
             held=_BY_FORKING, alone=True),
    _process("execute", "import os; os.execv('/bin/sh', ['sh', '-c', 'exit 77'])",
             held="root landlock seccomp", alone=True),
    _process("execute_from_memory", "import os\nn = linux.call(319, Memory(b'x\\0'), 0)\n"
             "os.write(n, b'#!/bin/sh\\nexit 77\\n')\n"
             "path, arguments = Memory(b'\\0'), Memory(16)\n"
             "result = linux.call(322, n, path, arguments, Memory(8), 0x1000)",
             held="root limits landlock seccomp", alone=True),
    _process("be_traced", raw(101, "0", "0", "0", "0"), answer="killed", alone=True),
    _process("trace_the_zygote", raw(101, "0x4206", "PARENT", "0", "0"), held=_BY_TRACING,
             answer="killed"),
    _process("trace_a_sibling", raw(101, "0x4206", "SIBLINGS[0]", "0", "0"), held=_BY_TRACING,
             answer="killed"),
    _process("read_the_zygotes_memory", _VECTORS + raw(310, "PARENT", "ours", "1", "theirs", "1",
             "0"), held=_BY_TRACING, answer="killed", reached="EFAULT"),
    _process("write_a_siblings_memory", _VECTORS + raw(311, "SIBLINGS[0]", "ours", "1", "theirs",
             "1", "0"), held=_BY_TRACING, answer="killed", reached="EFAULT"),
    _process("handle_on_the_zygote", raw(434, "PARENT", "0"), answer="killed"),
    _process("take_a_siblings_descriptor", "pid = linux.call(434, SIBLINGS[0], 0)\n"
             "result = linux.call(438, pid, 3, 0)", held=_BY_TRACING, answer="killed"),
    _process("compare_with_the_zygote", raw(312, "PARENT", "PARENT", "1", "0", "0"),
             held=_BY_TRACING, answer="killed"),
    _process("advise_another_process", raw(440, "-1", "0", "0", "0", "0"), answer="killed",
             reached="any"),
    _process("reap_anothers_memory", raw(448, "-1", "0"), answer="killed", reached="any"),
    _process("wait_for_a_sibling", "import os; result = os.waitpid(-1, os.WNOHANG)",
             reached="ECHILD"),
    _process("session_of_its_own", "import os; result = os.setsid()", alone=True),
    _process("limits_of_the_zygote", raw(302, "PARENT", "9", "0", "Memory(16)")),
    _process("pin_the_zygote", raw(203, "PARENT", "8", "Memory(b'\\3' + bytes(7))")),
    _process("renice_the_zygote", raw(141, "0", "PARENT", "5")),
    _process("renice_a_sibling", raw(141, "0", "SIBLINGS[0]", "5")),
    _process("schedule_the_zygote", raw(144, "PARENT", "3", "Memory(4)")),
    _process("disk_priority_of_the_zygote", raw(251, "1", "PARENT", "0x4007"), answer="killed"),
]  # fmt: skip

_signal = partial(Attempt, "signals", held="landlock seccomp")
_TO_SIBLINGS = (
    "import os\nfor pid in SIBLINGS:\n"
    "    try:\n        os.kill(pid, {})\n        break\n"
    "    except ProcessLookupError:\n        pass\nelse:\n    raise ProcessLookupError\n"
    "result = pid"
)

SIGNALS = [
    _signal("is_the_zygote_there", "import os; result = os.kill(PARENT, 0)"),
    _signal("continue_the_zygote", "import os; result = os.kill(PARENT, 18)"),
    _signal("is_a_sibling_there", _TO_SIBLINGS.format(0)),
    _signal("kill_a_sibling", _TO_SIBLINGS.format(9), alone=True),
    # The kernel answers success although each single one was refused: only the filter shows.
    _signal("everybody", "import os; result = os.kill(-1, 0)", held="seccomp"),
    _signal("a_thread_of_the_zygote", raw(234, "PARENT", "PARENT", "0")),
    _signal("queued_with_a_value", "import struct; word = struct.pack('=iii', 0, 0, -1)\n"
            + raw(129, "SIBLINGS[0]", "0", "Memory(word + bytes(116))"), answer="killed"),
    _signal("through_a_handle", "pid = linux.call(434, SIBLINGS[0], 0)\n"
            "result = linux.call(424, pid, 0, 0, 0)", answer="killed"),
    _signal("oneself", "import os; result = os.kill(os.getpid(), 23)", held="seccomp"),
    _signal("own_group", "import os; result = os.kill(0, 0)", held="seccomp"),
    _signal("ignore_the_cpu_signal", "import _signal as s; result = s.signal(24, s.SIG_IGN)",
            held="seccomp", alone=True),
    _signal("handle_a_fault", "import _signal as s; result = s.signal(11, lambda *_: None)",
            held="seccomp", alone=True),
    _signal("stack_of_its_own", "import struct; room = Memory(16384)\n"
            + raw(131, "Memory(struct.pack('=QiiQ', room.address, 0, 0, 16384))", "0"),
            held="seccomp", alone=True),
    _signal("interval_timer", "import _signal as s; result = s.setitimer(0, 0)", held="seccomp"),
    _signal("timer_of_its_own", "import struct\nevent = Memory(struct.pack('=Qii6Q', 0, 23, 0, "
            "*[0] * 6))\n" + raw(222, "1", "event", "Memory(8)"), held="seccomp", answer="killed",
            alone=True),
    _signal("wait_for_a_signal", raw(128, "Memory(8)", "0", "Memory(16)", "8"), held="seccomp",
            reached="EAGAIN"),
    _signal("signals_as_a_file", raw(289, "-1", "Memory(8)", "8", "0"), held="seccomp"),
]  # fmt: skip
