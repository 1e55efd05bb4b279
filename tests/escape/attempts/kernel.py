"""Attempts at the kernel's other doors, and at namespaces and privileges.

For a door the question is whether the kernel's own code behind it ran at all, so any errno that
is not the filter's counts as success. Arguments are harmless even for root.
"""

from __future__ import annotations

from functools import partial

from tests.escape.attempts.attempt import Attempt, raw

_door = partial(Attempt, "kernel", answer="killed", reached="any")
_soft = partial(Attempt, "kernel")

KERNEL = [
    _door("io_uring", raw(425, "1", "Memory(120)")),
    _door("io_uring_registration", raw(427, "-1", "0", "0", "0")),
    _door("programs_in_the_kernel", raw(321, "0", "0", "0")),
    _door("performance_counters", raw(298, "0", "0", "-1", "-1", "0")),
    _door("load_a_module", raw(175, "0", "0", "0")),
    _door("load_a_module_from_a_file", raw(313, "-1", "0", "0")),
    _door("another_kernel", raw(246, "0", "0", "0", "0xFFFF")),
    _door("restart", raw(169, "0", "0", "0", "0")),
    _door("swap", raw(167, "0", "0")),
    _door("accounting", raw(163, "1")),
    _door("kernel_log", raw(103, "10", "0", "0")),
    _door("adjust_the_clock", raw(159, "Memory(208)")),
    _door("set_the_clock", raw(227, "-1", "Memory(16)")),
    _door("input_and_output_ports", raw(173, "0", "1", "0")),
    _door("segment_table", raw(154, "0", "Memory(16)", "16")),
    _door("execution_domain", raw(135, "0xFFFFFFFF")),
    _door("watch_all_files", raw(300, "0", "0")),
    _door("another_filter", raw(317, "1", "0", "0")),
    _door("listen_to_a_filter", raw(317, "1", "8", "0")),
    _door("filter_actions", raw(317, "2", "0", "Memory(4)")),
    _door("another_landlock", raw(444, "0", "0", "1")),
    _door("futex_of_another_kind", raw(202, "Memory(4)", "6", "0", "0")),
    _door("new_futex", raw(454, "Memory(4)", "1", "1", "2")),
    _door("security_attributes", raw(459, "0", "0", "0", "0")),
    _door("list_mounts", raw(458, "0", "0", "0", "0")),
    _door("page_cache", raw(451, "3", "0", "0", "0")),
    _door("thread_comparison", raw(312, "0", "0", "0", "0", "0")),
    _door("move_pages", raw(279, "0", "0", "0", "0", "0", "0")),
    _soft("system_information", raw(99, "Memory(112)")),
    _soft("host_name", "import os; result = os.uname()"),
    _soft("which_processor", raw(309, "Memory(4)", "Memory(4)", "0")),
    _soft("which_processors", raw(204, "0", "128", "Memory(128)")),
    _soft("restartable_sequences", raw(334, "0", "0", "0", "0"), reached="EINVAL"),
    _soft("barrier_for_all_threads", raw(324, "0", "0", "0")),
    _soft("robust_list", raw(273, "Memory(24)", "24"), alone=True),
    _soft("watch_files", raw(294, "0")),
    _soft("timer_as_a_file", raw(283, "1", "0")),
    _door("write_everything_out", raw(277, "-1", "0", "0", "0")),
]

_privilege = partial(Attempt, "privileges", answer="killed", alone=True)
_WITHIN = "no_rights seccomp"
_ON_HOST = "no_host_rights seccomp"
_MAKE_SPACE = "no_rights namespaces seccomp"

PRIVILEGES = [
    _privilege("new_user_namespace", raw(272, "0x10000000"), held="namespaces seccomp"),
    _privilege("new_mount_namespace", raw(272, "0x00020000"), held=_MAKE_SPACE),
    _privilege("new_network", raw(272, "0x40000000"), held=_MAKE_SPACE),
    _privilege("new_clock", raw(272, "0x80"), held=_MAKE_SPACE),
    _privilege("enter_a_namespace", raw(308, "3", "0"), reached="EINVAL"),
    _privilege("change_a_mount", raw(165, "0", "Memory(b'/\\0')", "0", "0x44000", "0"),
               held="no_rights landlock seccomp"),
    _privilege("open_a_file_system", raw(430, "Memory(b'tmpfs\\0')", "0"), held=_WITHIN),
    _privilege("copy_a_tree_of_mounts", raw(428, "-100", "Memory(b'/\\0')", "1"),
               held=_MAKE_SPACE),
    _privilege("move_a_mount", raw(429, "-1", "Memory(1)", "-1", "Memory(1)", "0"), held=_WITHIN,
               reached="EBADF ENOENT"),
    _privilege("swap_the_root", raw(155, "Memory(b'/\\0')", "Memory(b'/\\0')"),
               held="no_rights landlock seccomp", reached="EBUSY EINVAL"),
    _privilege("change_root", raw(161, "Memory(b'/\\0')"), held=_WITHIN),
    _privilege("name_the_host", raw(170, "Memory(b'escaped')", "7"), held=_WITHIN),
    _privilege("become_another_user", raw(117, "12345", "12345", "12345"), held=_ON_HOST),
    _privilege("become_another_group", raw(119, "12345", "12345", "12345"), held=_ON_HOST),
    _privilege("drop_groups", raw(116, "0", "0"), held=_ON_HOST),
    _privilege("keep_one_capability", "import struct; head = struct.pack('=Ii', 0x20080522, 0)\n"
               "bits = struct.pack('=6I', 1 << 21, 1 << 21, 0, 0, 0, 0)\n"
               + raw(126, "Memory(head)", "Memory(bits)"), held=_WITHIN),
    _privilege("drop_from_the_bounding_set", raw(157, "24", "21", "0", "0", "0"), held=_WITHIN,
               answer="refused"),
    _privilege("be_dumpable_again", raw(157, "4", "1", "0", "0", "0"), answer="refused"),
    _privilege("outlive_the_zygote", raw(157, "1", "0", "0", "0", "0"), answer="refused"),
    _privilege("adopt_orphans", raw(157, "36", "1", "0", "0", "0"), answer="refused"),
    _privilege("another_filter_by_prctl", raw(157, "22", "2", "0", "0", "0"), answer="refused",
               reached="EFAULT"),
    _privilege("process_name", raw(157, "15", "Memory(b'init\\0')", "0", "0", "0"),
               answer="refused"),
    _privilege("slack_of_timers", raw(157, "29", "1", "0", "0", "0"), answer="refused"),
    _privilege("time_stamp_counter", raw(157, "26", "1", "0", "0", "0"), answer="refused"),
    _privilege("segment_base", raw(158, "0x1001", "0"), answer="refused"),
]  # fmt: skip
