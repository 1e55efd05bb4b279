"""Which system calls exist: one table, from which every filter is generated.

What an honest Python program may try fails softly, with the errno it expects; everything else
kills the process. The kernel takes the most severe answer of all filters: the zygote's (`base`)
allows more than a call process may (`strict`) only where `ZYGOTE` and grants say so, and a call
process adds a short filter for just those calls. Both together are `strict`; a test compares them.

Rules: an allow list, unknown numbers kill; pids and ids read as zero, because a pid counts the
calls before it; no call that creates a process, descriptor, mapping shared with anybody, or
executable page is allowed in a call process. The numbers lie in `syscalls_x86_64.txt`.
"""

from __future__ import annotations

import errno
from pathlib import Path

from sandbox_worker.jail.bpf import ALLOW, KILL, Check, Rule, assemble, errno_action

SOFT: dict[int, str] = {
    errno.EACCES: """
        open openat openat2 creat stat lstat newfstatat statx access faccessat faccessat2 readlink
        readlinkat getdents getdents64 mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2
        link linkat symlink symlinkat chmod fchmodat fchmodat2 chown lchown fchownat truncate chdir
        getcwd statfs utime utimes utimensat futimesat mknod mknodat getxattr lgetxattr listxattr
        llistxattr setxattr lsetxattr removexattr lremovexattr""",
    errno.EBADF: """
        close close_range fstat lseek dup dup2 dup3 fcntl flock fsync fdatasync ftruncate fallocate
        fadvise64 pread64 pwrite64 preadv pwritev preadv2 pwritev2 readv writev sendfile fchdir
        fchmod fchown fstatfs fgetxattr fsetxattr flistxattr fremovexattr poll ppoll select
        pselect6 copy_file_range""",
    errno.ENOTTY: "ioctl",
    errno.ENOSYS: "clone3 rseq membarrier set_robust_list get_robust_list",
    errno.EPERM: """
        socket socketpair connect accept accept4 bind listen getsockname getpeername setsockopt
        getsockopt shutdown sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg pipe pipe2 eventfd
        eventfd2 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2
        memfd_create inotify_init inotify_init1 inotify_add_watch inotify_rm_watch timerfd_create
        timerfd_settime timerfd_gettime signalfd signalfd4 fork vfork clone execve execveat kill
        tkill tgkill wait4 waitid pause rt_sigaction rt_sigpending rt_sigsuspend rt_sigtimedwait
        sigaltstack alarm setitimer getitimer getrlimit setrlimit prlimit64 getrusage times sysinfo
        uname getcpu sched_getaffinity sched_setaffinity sched_getscheduler sched_setscheduler
        sched_getparam sched_setparam sched_getattr sched_setattr sched_get_priority_max
        sched_get_priority_min getpriority setpriority prctl arch_prctl set_tid_address umask sync
        getgroups getresuid getresgid getpgrp getpgid getsid setpgid setsid mincore msync mlock
        munlock mbind get_mempolicy set_mempolicy""",
}
"""Refused with an errno that Python turns into an ordinary exception."""

ALWAYS = "munmap brk rt_sigprocmask rt_sigreturn restart_syscall sched_yield exit exit_group"
ZERO = "getpid gettid getppid getuid geteuid getgid getegid"

FIRST_FILE, FILES_MAX = 4, 16
"""A call process's granted descriptors are 4 and the numbers after it, at most so many."""

_EPERM = errno_action(errno.EPERM)
_EBADF = errno_action(errno.EBADF)
_JOB = Check(0, 32, one_of=(3,))
_CLOCK_ID = Check(0, 32, one_of=tuple(range(8)))

CHECKED: dict[str, Rule] = {
    "read": Rule(ALLOW, (_JOB,), _EBADF),
    "write": Rule(ALLOW, (_JOB,), _EBADF),
    # PROT_READ and PROT_WRITE only; MAP_PRIVATE and MAP_ANONYMOUS always, and beside them only
    # MAP_FIXED, MAP_NORESERVE and MAP_STACK: nothing shared, nothing executable, no file.
    "mmap": Rule(
        ALLOW, (Check(2, 64, subset=3), Check(3, 64, subset=0x24032, contains=0x22)), _EPERM
    ),
    "mprotect": Rule(ALLOW, (Check(2, 64, subset=3),), _EPERM),
    "mremap": Rule(ALLOW, (Check(3, 64, subset=3),), _EPERM),
    # NORMAL, DONTNEED, FREE, HUGEPAGE, NOHUGEPAGE.
    "madvise": Rule(ALLOW, (Check(2, 32, one_of=(0, 4, 8, 14, 15)),), _EPERM),
    # WAIT, WAKE and their bitset forms, private only: a shared one on a page of a library, which
    # every process on the machine maps, would wake a process in another jail.
    "futex": Rule(ALLOW, (Check(1, 32, one_of=(128, 129, 137, 138, 393)),), KILL),
}
"""Allowed in every call process, for some arguments."""

CLOCK: dict[str, Rule] = {
    "time": Rule(ALLOW),
    "gettimeofday": Rule(ALLOW),
    "nanosleep": Rule(ALLOW),
    # Only clocks that every process has: a larger id could name another process's clock.
    "clock_gettime": Rule(ALLOW, (_CLOCK_ID,), _EPERM),
    "clock_getres": Rule(ALLOW, (_CLOCK_ID,), _EPERM),
    "clock_nanosleep": Rule(ALLOW, (Check(0, 32, one_of=(0, 1, 7)),), _EPERM),
}
"""Allowed with `clock.read`, else refused softly."""

RANDOM: dict[str, Rule] = {"getrandom": Rule(ALLOW, (Check(2, 32, subset=1),), _EPERM)}
"""Allowed with `random.read`, else refused softly."""

_FILES = tuple(range(FIRST_FILE, FIRST_FILE + FILES_MAX))

ZYGOTE: dict[str, Rule] = {
    **{name: Rule(ALLOW) for name in ["read", "write", "poll", "recvmsg", "sendmsg", "close",
    "close_range"]},
    "wait4": Rule(ALLOW),
    # fork(3) of glibc: child tid set and cleared, SIGCHLD, nothing else.
    "clone": Rule(ALLOW, (Check(0, 64, one_of=(0x01200011,)),), _EPERM),
    # 9 ends a call; 0 is how a call process checks its Landlock domain.
    "kill": Rule(ALLOW, (Check(1, 32, one_of=(0, 9)),), _EPERM),
    "dup3": Rule(ALLOW, (Check(1, 32, one_of=(3, *_FILES)),), _EBADF),
    "prlimit64": Rule(ALLOW, (Check(0, 32, one_of=(0,)),), _EPERM),
    "timer_create": Rule(ALLOW, (Check(0, 32, one_of=(2,)),), KILL),
    "timer_settime": Rule(ALLOW),
    "timer_gettime": Rule(ALLOW),
    "landlock_restrict_self": Rule(ALLOW),
    "seccomp": Rule(ALLOW, (Check(0, 32, one_of=(1,)),), KILL),
}
"""What the zygote needs beyond a call process in order to fork and jail one."""

SUPERVISOR_REFUSED = """
    execve execveat fork vfork ptrace process_vm_readv process_vm_writev process_madvise kcmp
    process_mrelease setpriority ioprio_set sched_setaffinity sched_setattr move_pages
    migrate_pages fanotify_init syslog vhangup pidfd_getfd chmod fchmod fchmodat fchmodat2 chown
    fchown lchown fchownat utime utimes futimesat utimensat setxattr lsetxattr fsetxattr
    setxattrat removexattr lremovexattr fremovexattr
    removexattrat file_setattr mount umount2 pivot_root chroot move_mount fsopen fsconfig fsmount
    fspick open_tree open_tree_attr mount_setattr unshare setns bpf perf_event_open userfaultfd
    io_uring_setup io_uring_enter io_uring_register add_key request_key keyctl init_module
    finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff settimeofday
    clock_settime adjtimex clock_adjtime sethostname setdomainname acct quotactl quotactl_fd
    personality name_to_handle_at open_by_handle_at shmget shmat shmctl msgget msgsnd msgrcv msgctl
    semget semop semtimedop semctl mq_open mq_unlink iopl ioperm modify_ldt memfd_secret"""
"""What a sealed supervisor may not do any more; the rest of its seal is Landlock."""


def numbers() -> dict[str, int]:
    """System call numbers by name."""
    table = Path(__file__).with_name("syscalls_x86_64.txt").read_text("utf-8")
    pairs = (line.split() for line in table.splitlines())
    return {name: int(number) for number, name in pairs}


def strict_rules(*, clock: bool, random: bool, descriptors: int = 0) -> dict[str, Rule]:
    """The rules of a call process, by name; a name not here kills.

    Args:
        clock: whether `clock.read` is granted.
        random: whether `random.read` is granted.
        descriptors: how many granted descriptors it has, from `FIRST_FILE` on; it may read them
            and move in them, and no others.

    Raises:
        ValueError: more than `FILES_MAX` descriptors, or fewer than none.
    """
    if not 0 <= descriptors <= FILES_MAX:
        raise ValueError(f"{descriptors} descriptors; a call process has 0 to {FILES_MAX}")
    rules = {name: Rule(errno_action(code)) for code, names in SOFT.items()
             for name in names.split()}  # fmt: skip
    rules.update({name: Rule(ALLOW) for name in ALWAYS.split()})
    rules.update({name: Rule(errno_action(0)) for name in ZERO.split()})
    rules.update(CHECKED)
    for group, granted in ((CLOCK, clock), (RANDOM, random)):
        rules.update(group if granted else {name: Rule(_EPERM) for name in group})
    if descriptors:
        given = _FILES[:descriptors]
        rules["read"] = Rule(ALLOW, (Check(0, 32, one_of=(*_JOB.one_of, *given)),), _EBADF)
        # From the start, from here, from the end: `seek`, and a size without fstat.
        whence = Check(2, 32, one_of=(0, 1, 2))
        rules["lseek"] = Rule(ALLOW, (Check(0, 32, one_of=given), whence), _EBADF)
    return rules


def call_filter(*, clock: bool, random: bool, descriptors: int = 0) -> bytes:
    """What a call process with these grants puts on over the zygote's filter.

    By itself it holds nothing: it has the rules of `strict_rules` only where the zygote's differ,
    because each installed instruction is paid for by every call (docs/decisions/0016).
    """
    strict = strict_rules(clock=clock, random=random, descriptors=descriptors)
    base = base_rules()
    differing = {name: strict.get(name, Rule(KILL)) for name in base
                 if base[name] != strict.get(name)}  # fmt: skip
    return program(differing, ALLOW)


def base_rules() -> dict[str, Rule]:
    """The rules of the zygote: nowhere more severe than any call process's, see `ZYGOTE`."""
    return {**strict_rules(clock=True, random=True, descriptors=FILES_MAX), **ZYGOTE}


def base_filter() -> bytes:
    """The zygote's filter, which every call process inherits."""
    return program(base_rules())


def supervisor_rules() -> dict[str, Rule]:
    """The rules of a sealed supervisor; a name not here is allowed."""
    rules = {name: Rule(_EPERM) for name in SUPERVISOR_REFUSED.split()}
    # Threads only (CLONE_THREAD); clone3 hides its flags behind a pointer, so libc must not use it.
    rules["clone"] = Rule(ALLOW, (Check(0, 64, contains=0x10000),), _EPERM)
    rules["clone3"] = Rule(errno_action(errno.ENOSYS))
    # Its own limits only; unix streams only, in pairs too: Landlock governs no datagrams.
    rules["prlimit64"] = Rule(ALLOW, (Check(0, 32, one_of=(0,)),), _EPERM)
    unix_stream = Check(0, 32, one_of=(1,)), Check(1, 32, subset=0x80801, contains=1)
    rules["socket"] = rules["socketpair"] = Rule(ALLOW, unix_stream, _EPERM)
    return rules


def connected_rules() -> dict[str, Rule]:
    """What a supervisor whose connection stands may not do any more; the rest is allowed.

    Landlock does not govern unix sockets with a path, and behind one may listen whoever trusts
    this user, the machine's own services included. Threads were needed for the connection only.
    """
    names = "socket connect bind listen clone sched_setparam"
    rules = {name: Rule(_EPERM) for name in names.split()}
    # A thread of libzmq sets the policy it already has (normal or batch) when it first runs, which
    # may be later than this, and ends the process if it may not.
    rules["sched_setscheduler"] = Rule(ALLOW, (Check(1, 32, one_of=(0, 3)),), _EPERM)
    return rules


def program(rules: dict[str, Rule], default: int = KILL) -> bytes:
    """The filter for a table by name."""
    known = numbers()
    return assemble({known[name]: rule for name, rule in rules.items()}, default)
