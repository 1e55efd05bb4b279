"""Attempts at what lies outside: files, sockets, and descriptors that were left open."""

from __future__ import annotations

from functools import partial

from tests.escape.attempts.attempt import Attempt, raw

_ANY_FILE_LAYER = "root landlock seccomp"
_file = partial(Attempt, "files", held=_ANY_FILE_LAYER)

FILES = [
    _file("read_passwd", "result = open('/etc/passwd').read(10)"),
    _file("list_a_folder", "import os; result = os.listdir('/usr')"),
    # Landlock has no right for looking at names: the empty root or the filter must hold it.
    _file("stat", "import os; result = os.stat('/etc/passwd')", held="root seccomp"),
    _file("is_it_there", "import os; os.access('/etc/passwd', 0) or 1 / 0", held="root seccomp"),
    _file("create", "import os; name = PLACE + '/new'; "
          "os.close(os.open(name, os.O_CREAT | os.O_WRONLY)); result = os.unlink(name)"),
    _file("append", "import os; n = os.open(PLACE + '/file', os.O_WRONLY | os.O_APPEND)\n"
          "result = os.write(n, b'x')", held=_ANY_FILE_LAYER + " limits"),
    _file("truncate", "import os; result = os.truncate(PLACE + '/file', 0)"),
    _file("touch", "import os; result = os.utime(PLACE + '/file')", held="root seccomp"),
    _file("symbolic_link", "import os; os.symlink('/', PLACE + '/link'); "
          "result = os.unlink(PLACE + '/link')"),
    _file("named_pipe", "import os; os.mkfifo(PLACE + '/fifo'); "
          "result = os.unlink(PLACE + '/fifo')"),
    _file("make_a_folder", "import os; os.mkdir(PLACE + '/sub'); "
          "result = os.rmdir(PLACE + '/sub')"),
    _file("own_mappings", "result = open('/proc/self/maps').read(10)"),
    _file("own_memory_file", "result = open('/proc/self/mem', 'rb', 0)",
          held=_ANY_FILE_LAYER + " hidden+no_host_rights"),
    _file("environment_of_the_zygote", "result = open(f'/proc/{PARENT}/environ', 'rb').read(1)",
          held=_ANY_FILE_LAYER + " namespaces hidden+no_host_rights"),
    _file("entropy_device", "result = open('/dev/urandom', 'rb', 0).read(1)"),
    _file("change_directory", "import os; result = os.chdir('/etc')", held="root seccomp",
          alone=True),
    _file("working_directory", "import os; result = os.getcwd()", held="seccomp"),
    _file("climb_out", "result = open('../' * 40 + 'etc/passwd').read(1)"),
    _file("open_with_openat2", "import struct; how = Memory(struct.pack('=QQQ', 0, 0, 0)); "
          "result = linux.call(437, -100, Memory(b'/etc/passwd\\0'), how, 24)"),
    _file("file_handle", raw(303, "-100", "Memory(b'/etc/passwd\\0')", "Memory(8)", "Memory(4)",
          "0"), held="root seccomp", answer="killed", reached="EOVERFLOW"),
    _file("import_from_disk", "import sys; sys.path.insert(0, PLACE); import left_here; "
          "result = 1"),
]

_socket = partial(Attempt, "sockets")
_ADDRESS = (
    "at = Memory(b'\\2\\0' + PORT.to_bytes(2, 'big') + bytes([127, 0, 0, 1]) + bytes(8))\n"
)
_UNIX = "def named(path):\n    return Memory((1).to_bytes(2, 'little') + path)\n"
_ONE_DESCRIPTOR = (
    "import struct\n"
    "word = Memory(b'x'); vector = Memory(struct.pack('=QQ', word.address, 1))\n"
    "control = Memory(struct.pack('=Qiii4x', 20, 1, 1, 3))\n"
    "message = Memory(struct.pack('=QQQQQQQ', 0, 0, vector.address, 1, control.address, 24, 0))\n"
)

SOCKETS = [
    _socket("internet_stream", raw(41, "2", "1", "0")),
    _socket("connect_to_the_host", _ADDRESS + "s = linux.call(41, 2, 1, 0); "
            "result = linux.call(42, s, at, 16)", held="namespaces landlock seccomp"),
    _socket("listen", "s = linux.call(41, 2, 1, 0); "
            "result = linux.call(49, s, Memory((2).to_bytes(2, 'little') + bytes(14)), 16)",
            held="landlock seccomp"),
    # Landlock governs no datagrams: the empty network namespace or the filter must.
    _socket("datagram_to_the_host", _ADDRESS + "s = linux.call(41, 2, 2, 0); "
            "result = linux.call(44, s, at, 1, 0, at, 16)", held="namespaces seccomp"),
    _socket("internet_version_six", raw(41, "10", "1", "0"), reached="EAFNOSUPPORT"),
    _socket("unix_stream", raw(41, "1", "1", "0")),
    _socket("socket_pair", raw(53, "1", "1", "0", "Memory(8)")),
    _socket("abstract_name_of_the_host", _UNIX + "s = linux.call(41, 1, 1, 0)\n"
            "a = b'\\0' + ABSTRACT; result = linux.call(42, s, named(a), 2 + len(a))",
            held="namespaces landlock seccomp"),
    # Nor does it govern unix sockets with a path.
    _socket("path_of_the_host", _UNIX + "s = linux.call(41, 1, 1, 0)\n"
            "a = PLACE.encode() + b'/unix\\0'; result = linux.call(42, s, named(a), 2 + len(a))",
            held="root seccomp"),
    _socket("leave_an_abstract_name", _UNIX + "s = linux.call(41, 1, 1, 0)\n"
            "result = linux.call(49, s, named(b'\\0left-behind'), 14)"),
    _socket("netlink", raw(41, "16", "3", "0")),
    _socket("raw_packets", raw(41, "17", "3", "768"), held="no_rights seccomp"),
    _socket("kernel_ciphers", raw(41, "38", "5", "0"), reached="EAFNOSUPPORT"),
    _socket("virtual_machine_socket", raw(41, "40", "1", "0"),
            reached="EAFNOSUPPORT ESOCKTNOSUPPORT"),
    _socket("pass_a_descriptor_upwards", _ONE_DESCRIPTOR + raw(46, "3", "message", "0")),
    _socket("receive_a_descriptor", _ONE_DESCRIPTOR + raw(47, "3", "message", "64"),
            reached="EAGAIN"),
    _socket("who_is_my_supervisor",
            raw(55, "3", "1", "17", "Memory(12)", "Memory((12).to_bytes(4, 'little'))")),
    _socket("filter_on_the_job_socket", raw(54, "3", "1", "26", "Memory(16)", "16"),
            reached="EINVAL EFAULT"),
    _socket("grow_the_job_socket", raw(54, "3", "1", "7", "Memory(b'\\0\\0\\1\\0')", "4"),
            alone=True),
    _socket("shut_the_job_socket", raw(48, "3", "0"), alone=True),
    _socket("out_of_band", raw(44, "3", "Memory(b'x')", "1", "0x4040", "0", "0"),
            reached="EOPNOTSUPP"),
]  # fmt: skip

_descriptor = partial(Attempt, "descriptors")

DESCRIPTORS = [
    _descriptor("read_what_was_left_open", "import os\nfor n in OTHERS:\n"
                "    try:\n        result = os.read(n, 1)\n        break\n"
                "    except OSError:\n        pass\nelse:\n    raise OSError(9, 'none')",
                held="descriptors seccomp"),
    _descriptor("open_beneath_what_was_left_open", "import os\nfor n in OTHERS:\n"
                "    try:\n        result = os.open('passwd', 0, dir_fd=n)\n        break\n"
                "    except OSError:\n        pass\nelse:\n    raise OSError(9, 'none')",
                held="descriptors landlock seccomp"),
    _descriptor("duplicate_the_job", "import os; result = os.dup(3)"),
    _descriptor("duplicate_far_up", raw(292, "3", "1000", "0"), held="limits seccomp", alone=True),
    _descriptor("close_the_job_and_end", "import os; os.close(3); os._exit(77)", alone=True),
    _descriptor("let_the_job_signal_another", raw(72, "3", "8", "PARENT"), alone=True),
    _descriptor("choose_that_signal", raw(72, "3", "10", "9"), alone=True),
    _descriptor("make_it_asynchronous", raw(72, "3", "4", "0o24000"), alone=True),
    _descriptor("ask_for_its_lease", raw(72, "3", "1025", "0")),
    _descriptor("be_told_of_changes", raw(72, "3", "1026", "1"), reached="ENOTDIR"),
    _descriptor("lock_it", raw(73, "3", "2")),
    _descriptor("stat_it", "import os; result = os.fstat(3)"),
    _descriptor("seek_it", "import os; result = os.lseek(3, 0, 0)", reached="ESPIPE"),
    _descriptor("ask_how_much_waits", raw(16, "3", "0x541B", "Memory(4)")),
    _descriptor("control_with_high_bits", raw(16, "3", "0x1_0000_541B", "Memory(4)")),
    _descriptor("wait_for_it", raw(7, "Memory(b'\\3\\0\\0\\0\\4\\0\\0\\0')", "1", "0")),
    _descriptor("gathered_write", "import os; result = os.writev(3, [b''])"),
    _descriptor("watch_it", raw(291, "0")),
]  # fmt: skip
