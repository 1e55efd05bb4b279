"""What a hostile plugin tries, as data: code, what the full jail must answer, and a control.

Each piece of code runs as plugin code in a call process. `linux` is the raw system call layer,
found by walking stack frames as an attacker would; `Memory` its buffers. The same code also runs in
an ordinary process of the same user, where it must succeed: that shows that the jail refused it,
and not a mistake in the attempt. `control` is False where success would harm the machine the tests
run on, needs rights an ordinary user lacks, or means nothing outside a call process.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Answer = Literal["refused", "killed"]


class Attempt(NamedTuple):
    """One thing tried."""

    group: str
    name: str
    code: str
    answer: Answer = "refused"
    control: bool = True


def _raw(number: int, *arguments: str) -> str:
    return f"result = linux.call({number}, {', '.join(arguments)})"


ATTEMPTS = [
    # Files.
    Attempt("files", "read_passwd", "result = open('/etc/passwd').read(10)"),
    Attempt("files", "list_root", "import os; result = os.listdir('/')"),
    Attempt("files", "stat_root", "import os; result = os.stat('/')"),
    Attempt("files", "create_in_tmp", "import os; result = os.open('/tmp/omega-escape-' + "
            "str(os.urandom(4).hex()), os.O_CREAT | os.O_WRONLY)"),
    Attempt("files", "open_by_descriptor_path", "result = open('/proc/self/fd/0', 'rb')"),
    Attempt("files", "read_own_memory_file", "result = open('/proc/self/mem', 'rb')"),
    Attempt("files", "read_parent_environment", "result = open('/proc/1/environ', 'rb')",
            control=False),
    Attempt("files", "change_directory", "import os; result = os.chdir('/')"),
    Attempt("files", "working_directory", "import os; result = os.getcwd()"),
    Attempt("files", "open_with_openat2",
            "import struct; how = Memory(struct.pack('=QQQ', 0, 0, 0)); "
            "result = linux.call(437, -100, Memory(b'/etc/passwd\\0'), how, 24)"),
    Attempt("files", "import_from_disk", "import wave; result = wave"),
    # Sockets.
    Attempt("sockets", "internet_stream", _raw(41, "2", "1", "0")),
    Attempt("sockets", "internet_datagram", _raw(41, "2", "2", "0")),
    Attempt("sockets", "internet_version_six", _raw(41, "10", "1", "0"), control=False),
    Attempt("sockets", "unix_stream", _raw(41, "1", "1", "0")),
    Attempt("sockets", "netlink", _raw(41, "16", "3", "0")),
    Attempt("sockets", "socket_pair", _raw(53, "1", "1", "0", "Memory(8)")),
    Attempt("sockets", "pass_a_descriptor_upwards", _raw(46, "3", "Memory(56)", "0"),
            control=False),
    Attempt("sockets", "who_is_my_supervisor",
            _raw(55, "3", "1", "17", "Memory(12)", "Memory((12).to_bytes(4, 'little'))"),
            control=False),
    # Processes.
    Attempt("processes", "fork", "import os; pid = os.fork(); pid or os._exit(0); result = pid"),
    Attempt("processes", "vfork_by_clone", "import os; pid = linux.call(56, 17, 0, 0, 0, 0); "
            "pid or os._exit(0); result = pid"),
    Attempt("processes", "clone3_in_a_new_user_namespace",
            "import os, struct; a = Memory(struct.pack('=11Q', 0x10000000, 0, 0, 0, 17, *[0] * 6));"
            " pid = linux.call(435, a, 88); pid or os._exit(0); result = pid"),
    Attempt("processes", "thread", "import _thread; result = _thread.start_new_thread(int, ())"),
    Attempt("processes", "execute", "import os; os.execv('/bin/true', ['true'])", control=False),
    Attempt("processes", "execute_from_memory",
            "result = linux.call(322, 3, Memory(b'\\0'), 0, 0, 0x1000)", control=False),
    Attempt("processes", "wait_for_a_sibling", "import os; result = os.wait()", control=False),
    # Signals.
    Attempt("signals", "signal_the_zygote", "import os; result = os.kill(1, 0)", control=False),
    Attempt("signals", "kill_the_zygote", "import os; result = os.kill(1, 9)", control=False),
    Attempt("signals", "signal_every_process", "import os; result = os.kill(-1, 15)",
            control=False),
    Attempt("signals", "signal_any_sibling", "import os\nfor pid in range(2, 99):\n"
            "    os.kill(pid, 0)\nresult = 'one answered'", control=False),
    Attempt("signals", "stop_oneself", "import os; result = os.kill(os.getpid(), 19)",
            control=False),
    Attempt("signals", "queue_a_signal", _raw(129, "1", "10", "Memory(128)"), "killed",
            control=False),
    Attempt("signals", "ignore_the_cpu_signal", "import _signal as s; "
            "result = s.signal(24, s.SIG_IGN)"),
    Attempt("signals", "interval_timer", "import _signal as s; result = s.setitimer(0, 0)"),
    # Tracing.
    Attempt("tracing", "trace_me", _raw(101, "0", "0", "0", "0"), "killed"),
    Attempt("tracing", "attach_to_the_zygote", _raw(101, "16", "1", "0", "0"), "killed",
            control=False),
    Attempt("tracing", "read_the_zygotes_memory", _raw(310, "1", "0", "0", "0", "0", "0"),
            "killed", control=False),
    Attempt("tracing", "open_the_zygotes_pidfd", _raw(434, "1", "0"), "killed"),
    Attempt("tracing", "compare_with_the_zygote", _raw(312, "1", "1", "0", "0", "0"), "killed",
            control=False),
    # Memory.
    Attempt("memory", "shared_mapping", _raw(9, "0", "4096", "3", "0x21", "-1", "0")),
    Attempt("memory", "executable_mapping", _raw(9, "0", "4096", "7", "0x22", "-1", "0")),
    Attempt("memory", "make_heap_executable",
            "at = linux.call(9, 0, 4096, 3, 0x22, -1, 0); result = linux.call(10, at, 4096, 5)"),
    Attempt("memory", "memory_file", _raw(319, "Memory(b'x\\0')", "0")),
    Attempt("memory", "secret_memory_file", _raw(447, "0"), "killed", control=False),
    Attempt("memory", "lock_pages", _raw(149, "0", "0")),
    Attempt("memory", "protection_key", _raw(329, "0", "0", "0", "-1"), "killed"),
    Attempt("memory", "read_implies_execute", _raw(135, "0x0400000"), "killed"),
    Attempt("memory", "page_fault_handler", _raw(323, "1"), "killed", control=False),
    # Interprocess communication.
    # Private objects, removed at once, so that the controls leave nothing behind on the host.
    Attempt("ipc", "shared_segment",
            _raw(29, "0", "4096", "0o1600") + "; linux.call(31, result, 0, 0)", "killed"),
    Attempt("ipc", "semaphore",
            _raw(64, "0", "1", "0o1600") + "; linux.call(66, result, 0, 0, 0)", "killed"),
    Attempt("ipc", "message_queue",
            _raw(68, "0", "0o1600") + "; linux.call(71, result, 0, 0)", "killed"),
    Attempt("ipc", "posix_queue",
            "import os; name = Memory(b'omega-%d\\0' % os.getpid()); "
            "result = linux.call(240, name, 0o102, 0o600, 0); linux.call(241, name)", "killed"),
    Attempt("ipc", "pipe", "import os; result = os.pipe()"),
    Attempt("ipc", "event_counter", _raw(290, "0", "0")),
    Attempt("ipc", "add_a_key", _raw(248, "Memory(b'user\\0')", "Memory(b'omega\\0')",
            "Memory(b'x')", "1", "-3"), "killed"),
    Attempt("ipc", "read_the_keyring", _raw(250, "0", "-4", "0"), "killed"),
    # Kernel interfaces.
    Attempt("kernel", "io_uring", _raw(425, "1", "Memory(120)"), "killed", control=False),
    Attempt("kernel", "bpf", _raw(321, "0", "0", "0"), "killed", control=False),
    Attempt("kernel", "performance_counter", _raw(298, "0", "0", "-1", "-1", "0"), "killed",
            control=False),
    Attempt("kernel", "load_a_module", _raw(175, "0", "0", "0"), "killed", control=False),
    Attempt("kernel", "system_information", _raw(99, "Memory(112)")),
    Attempt("kernel", "host_name", "import os; result = os.uname()"),
    Attempt("kernel", "another_filter", _raw(317, "2", "0", "Memory(4)"), "killed",
            control=False),
    Attempt("kernel", "unknown_number", _raw(600), "killed", control=False),
    Attempt("kernel", "other_abi_number", _raw(0x40000000 + 39), "killed", control=False),
    # Namespaces and privileges.
    Attempt("privileges", "new_user_namespace", _raw(272, "0x10000000"), "killed"),
    Attempt("privileges", "mount", _raw(165, "0", "Memory(b'/\\0')", "0", "0x44000", "0"),
            "killed", control=False),
    Attempt("privileges", "change_root", _raw(161, "Memory(b'/\\0')"), "killed", control=False),
    Attempt("privileges", "become_root", _raw(105, "0"), "killed", control=False),
    Attempt("privileges", "raise_a_capability", _raw(126, "0", "0"), "killed", control=False),
    Attempt("privileges", "process_flags", _raw(157, "4", "1", "0", "0", "0")),
    Attempt("privileges", "another_landlock", _raw(444, "0", "0", "1"), "killed"),
    # Descriptors.
    Attempt("descriptors", "duplicate_the_job", "import os; result = os.dup(3)", control=False),
    Attempt("descriptors", "own_the_job_socket", _raw(72, "3", "8", "1"), control=False),
    Attempt("descriptors", "read_standard_input", "import os; result = os.read(0, 1)",
            control=False),
    Attempt("descriptors", "write_standard_error", "import os; result = os.write(2, b'x')",
            control=False),
    Attempt("descriptors", "control_of_terminal", _raw(16, "3", "0x5412", "0"), control=False),
    Attempt("descriptors", "control_with_high_bits", _raw(16, "3", "0x1_0000_5412", "0"),
            control=False),
    Attempt("descriptors", "any_other_open_one",
            "import os\nfor n in [*range(3), *range(4, 200)]:\n"
            "    try:\n        result = os.write(n, b'x')\n        break\n"
            "    except OSError:\n        pass\nelse:\n    raise OSError(9, 'none')",
            control=False),
    # Limits and time.
    Attempt("limits", "raise_memory_limit", _raw(302, "0", "9", "Memory(b'\\xff' * 16)", "0"),
            control=False),
    Attempt("limits", "read_the_zygotes_limits", _raw(302, "1", "9", "0", "Memory(16)"),
            control=False),
    Attempt("limits", "disarm_the_cpu_timer", _raw(226, "0"), "killed", control=False),
    Attempt("limits", "rearm_the_cpu_timer", _raw(223, "0", "0", "Memory(32)", "0"), "killed",
            control=False),
    Attempt("limits", "pin_the_zygote", _raw(203, "1", "8", "Memory(b'\\1' + b'\\0' * 7)"),
            control=False),
    Attempt("limits", "renice_the_zygote", _raw(141, "0", "1", "5"), control=False),
    Attempt("limits", "wall_clock", "import time; result = time.time()"),
    Attempt("limits", "monotonic_clock", "import time; result = time.monotonic()"),
    Attempt("limits", "local_time", "import time; result = time.localtime()"),
    Attempt("limits", "sleep", "import time; result = time.sleep(0.001)"),
    Attempt("limits", "clock_of_another_process", _raw(228, "-10", "Memory(16)"), control=False),
    Attempt("limits", "entropy", "import os; result = os.urandom(8)"),
]
