"""Attempts with memory, between processes, with time, with too much, and with other ABIs."""

from __future__ import annotations

from functools import partial

from tests.escape.attempts.attempt import Attempt, raw

_memory = partial(Attempt, "memory")
_TEXT = (
    "page = ctypes.cast(linux._syscall, ctypes.c_void_p).value & ~4095\n"
)
"""A page of the C library's code."""

MEMORY = [
    _memory("shared_mapping", raw(9, "0", "4096", "3", "0x21", "-1", "0")),
    _memory("executable_mapping", raw(9, "0", "4096", "7", "0x22", "-1", "0")),
    _memory("executable_only_mapping", raw(9, "0", "4096", "4", "0x22", "-1", "0")),
    _memory("make_heap_executable",
            "at = linux.call(9, 0, 4096, 3, 0x22, -1, 0); result = linux.call(10, at, 4096, 5)"),
    _memory("make_code_writable", _TEXT + "result = linux.call(10, page, 4096, 7)", alone=True),
    # Of a function that nobody needs in between.
    _memory("make_code_executable_again", _TEXT
            + "page = ctypes.cast(ctypes.PyDLL(None).argp_parse, ctypes.c_void_p).value & ~4095\n"
            "linux.call(10, page, 4096, 3); result = linux.call(10, page, 4096, 5)", alone=True),
    _memory("protection_key", raw(329, "0", "0", "0", "-1"), answer="killed"),
    _memory("read_implies_execute", raw(135, "0x0400000"), answer="killed", alone=True),
    _memory("function_made_at_run_time",
            "result = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 7)()"),
    _memory("memory_file", raw(319, "Memory(b'x\\0')", "0")),
    _memory("secret_memory_file", raw(447, "0"), answer="killed", reached="any"),
    _memory("fill_at_once", raw(9, "0", "4096", "3", "0x8022", "-1", "0")),
    _memory("lock_pages", "at = Memory(4096); result = linux.call(149, at, 4096)",
            held="limits+no_host_rights seccomp"),
    _memory("lock_all_pages", raw(151, "2"), held="limits+no_host_rights seccomp",
            answer="killed", alone=True),
    _memory("merge_equal_pages", "at = linux.call(9, 0, 4096, 3, 0x22, -1, 0); "
            "result = linux.call(28, at, 4096, 12)", reached="EINVAL"),
    _memory("push_pages_out", "at = linux.call(9, 0, 4096, 3, 0x22, -1, 0); "
            "result = linux.call(28, at, 4096, 21)"),
    _memory("which_pages_are_resident", _TEXT + "result = linux.call(27, page, 4096, Memory(8))"),
    _memory("page_fault_handler", raw(323, "1"), answer="killed", reached="any"),
    _memory("shadow_stack", raw(453, "0", "0", "0"), answer="killed", reached="any"),
    _memory("seal_pages", raw(462, "0", "0", "0"), answer="killed", reached="any"),
]  # fmt: skip

_ipc = partial(Attempt, "ipc", answer="killed")
_KEY = "Memory(b'user\\0'), Memory(b'omega-escape\\0')"

# Objects are private or removed at once, so that controls leave nothing behind on the host.
IPC = [
    _ipc("shared_segment", raw(29, "0", "4096", "0o1600") + "; linux.call(31, result, 0, 0)"),
    _ipc("semaphore", raw(64, "0", "1", "0o1600") + "; linux.call(66, result, 0, 0, 0)"),
    _ipc("message_queue", raw(68, "0", "0o1600") + "; linux.call(71, result, 0, 0)"),
    _ipc("posix_queue", "name = Memory(b'omega-escape\\0')\n"
         "result = linux.call(240, name, 0o102, 0o600, 0); linux.call(241, name)",
         held="limits landlock seccomp"),
    _ipc("pipe", "import os; result = os.pipe()", answer="refused"),
    _ipc("event_counter", raw(290, "0", "0"), answer="refused"),
    _ipc("add_a_key", raw(248, _KEY, "Memory(b'x')", "1", "-3")),
    _ipc("ask_for_a_key", raw(249, _KEY, "0", "-3"), reached="ENOKEY"),
    _ipc("join_a_keyring", raw(250, "1", "0"), alone=True),
    _ipc("read_the_keyring", raw(250, "0", "-4", "0")),
    # Found when it still worked: every process maps this page, so it rang between jails.
    _ipc("bell_on_a_library_page", _TEXT + "result = linux.call(202, page, 1, 1)"),
    _ipc("splice", raw(275, "3", "0", "3", "0", "0", "0"), reached="any"),
    _ipc("tee", raw(276, "3", "3", "0", "0"), reached="any"),
    _ipc("pages_into_a_pipe", raw(278, "3", "0", "0", "0"), reached="any"),
]  # fmt: skip

_bomb = partial(Attempt, "bombs", alone=True)
_SPIN = "for _ in range(ROUNDS):\n    pass\nresult = 'still here'"

BOMBS = [
    _bomb("one_large_object", "result = len(bytes(1 << 29))", held="limits"),
    _bomb("many_objects", "for _ in range(600):\n"
          "    result = linux.call(9, 0, 1 << 20, 3, 0x22, -1, 0)", held="limits"),
    _bomb("address_space", raw(9, "0", "1 << 36", "3", "0x4022", "-1", "0"), held="limits"),
    _bomb("grow_a_mapping", "at = linux.call(9, 0, 4096, 3, 0x22, -1, 0)\n"
          "result = linux.call(25, at, 4096, 1 << 32, 1)", held="limits"),
    _bomb("spin", _SPIN, held="limits", answer="ended", costly=True),
    _bomb("spin_with_signals_blocked", "linux.call(14, 2, Memory(b'\\xff' * 8), 0, 8)\n" + _SPIN,
          held="limits", answer="ended", costly=True),
    _bomb("spin_in_one_instruction", "result = (3 ** (ROUNDS // 4)) % 7", held="limits",
          answer="ended", costly=True),
    _bomb("spin_in_a_pattern", "import re; re.match('(a|a)*b', 'a' * 22); result = 1",
          held="limits", answer="ended", costly=True),
    _bomb("forks", "import os\nfor _ in range(8):\n    pid = os.fork() or os._exit(0)\nresult = 8",
          held="limits+no_host_rights seccomp"),
    _bomb("threads", "import _thread\nfor _ in range(2):\n    _thread.start_new_thread(int, ())\n"
          "result = 1", held="limits+no_host_rights seccomp"),
    _bomb("more_memory", raw(302, "0", "9", "Memory(b'\\xff' * 16)", "0"), held="limits seccomp"),
    _bomb("more_time", raw(302, "0", "0", "Memory(b'\\xff' * 16)", "0"), held="limits seccomp"),
    _bomb("disarm_the_timer", raw(226, "0"), answer="killed", reached="any"),
    _bomb("rearm_the_timer", raw(223, "0", "0", "Memory(32)", "0"), answer="killed",
          reached="any"),
]  # fmt: skip

_time = partial(Attempt, "time", held="time+seccomp")
_LIBRARY = (
    "library = ctypes.PyDLL(None, use_errno=True)\n"
    "def call(name, *arguments):\n"
    "    function = getattr(library, name)\n"
    "    function.restype = ctypes.c_long if name == 'time' else ctypes.c_int\n"
    "    result = function(*[a if a is None else ctypes.c_void_p(a) for a in arguments])\n"
    "    if result < 0:\n        raise OSError(ctypes.get_errno(), 'refused')\n"
    "    return result\n"
)

# Through the C library: what the time module says is refused by name, for honest code.
TIME = [
    _time("wall_clock", _LIBRARY + "at = Memory(16); call('clock_gettime', 0, at.address)"),
    _time("monotonic_clock", _LIBRARY + "at = Memory(16); call('clock_gettime', 1, at.address)"),
    _time("time_of_day", _LIBRARY + "at = Memory(16); call('gettimeofday', at.address, None)"),
    _time("processor_time", raw(228, "2", "Memory(16)"), held="seccomp"),
    # Answered from the page without a system call, so that the zero page alone must hold it.
    _time("seconds", _LIBRARY + "result = call('time', None)\n"
          "if result < 1_000_000_000:\n    raise OSError(1, 'the page is empty')", held="time"),
    _time("sleep", raw(35, "Memory(bytes(8) + b'\\1' + bytes(7))", "0"), held="seccomp"),
    _time("old_time_page",
          "call = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_void_p)(0xFFFFFFFFFF600400)\n"
          "result = call(None)\nif result < 0:\n    raise OSError(-result, 'refused')",
          held="seccomp"),
    _time("clock_of_another_process", raw(228, "~PARENT << 3 | 2", "Memory(16)"), held="seccomp"),
    _time("time_used_by_others", raw(98, "0", "Memory(144)"), held="seccomp"),
    _time("entropy", raw(318, "Memory(8)", "8", "0"), held="seccomp"),
]  # fmt: skip

_abi = partial(Attempt, "other_abis", answer="killed")
_MACHINE = (
    "def run(code, low=0):\n"
    "    at = linux.call(9, 0, 4096, 7, 0x22 | low, -1, 0)\n"
    "    ctypes.memmove(at, code(at) if callable(code) else code, 64)\n"
    "    result = ctypes.CFUNCTYPE(ctypes.c_int)(at)()\n"
    "    if -4096 < result < 0:\n        raise OSError(-result, 'refused')\n"
    "    return result\n"
)
"""Run machine code, where a page for it can be had."""
_OLD_GATE = (
    # mov eax, NUMBER; mov ebx, BX; mov ecx, 0; push rbx, kept as the caller needs it.
    "def gate(number, bx=0):\n"
    "    return (b'\\x53\\xb8' + number.to_bytes(4, 'little') + b'\\xbb' + bx.to_bytes(4, 'little')"
    " + b'\\x31\\xc9\\x31\\xd2\\xcd\\x80\\x5b\\xc3').ljust(64, b'\\x90')\n"
)
_FIND = (
    "import struct\n"
    "at = ctypes.cast(linux._syscall, ctypes.c_void_p).value & ~4095\n"
    "while ctypes.string_at(at, 4) != b'\\x7fELF':\n    at -= 4096\n"
    "first, count = struct.unpack('=32xQ16xH', ctypes.string_at(at, 58))\n"
    "for n in range(count):\n"
    "    kind, flags, place, size = struct.unpack('=II8xQ16xQ', "
    "ctypes.string_at(at + first + 56 * n, 48))\n"
    "    if kind == 1 and flags & 1:\n"
    "        found = ctypes.string_at(at + place, size).find(b'\\xcd\\x80')\n"
    "        if found >= 0:\n"
    "            ctypes.CFUNCTYPE(ctypes.c_int)(at + place + found)()\n"
)

ABIS = [
    _abi("old_gate", _MACHINE + _OLD_GATE + "result = run(gate(20))", answer="refused"),
    _abi("old_gate_opens_a_file", _MACHINE + _OLD_GATE
         + "def code(at):\n    whole = gate(5, at + 32)\n"
         "    return whole[:32] + b'/etc/passwd\\0'.ljust(32, b'\\0')\n"
         "result = run(code, 0x40)", held="root landlock seccomp", answer="refused"),
    # Without a page for code of its own, the two bytes are looked for in the C library's.
    _abi("old_gate_found_in_a_library", _MACHINE + _OLD_GATE
         + "try:\n    result = run(gate(20))\nexcept PermissionError:\n    "
         + _FIND.replace("\n", "\n    ").rstrip()),
    _abi("narrow_pointers", raw(0x40000000 + 39), reached="ENOSYS"),
    _abi("narrow_pointers_open", raw(0x40000000 + 2, "Memory(b'/etc/passwd\\0')", "0"),
         reached="ENOSYS"),
    _abi("narrow_pointers_own_number", raw(0x40000000 + 520, "0", "0", "0"), reached="ENOSYS"),
    _abi("number_with_a_high_half", raw(0x1_0000_0000 + 101, "0", "0", "0", "0")),
    _abi("negative_number", raw(-2), reached="ENOSYS"),
    _abi("number_of_a_later_kernel", raw(600), reached="ENOSYS"),
    _abi("number_far_off", raw(0x3FFF_FFFF), reached="ENOSYS"),
]  # fmt: skip
