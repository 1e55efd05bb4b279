"""What to change on a machine where the sandbox cannot be built: one sentence for each mechanism.

The worker says it when it refuses to start, `doctor` and the start scripts say it when they look at
the machine, so that one finding has one remedy. Rules: plain constants and no import, since a
zygote pays for whatever it loads and Pythons too old for the gateway read this file too.
"""

SETTINGS = (
    ("/proc/sys/user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=15000"),
    (
        "/proc/sys/kernel/unprivileged_userns_clone", "0",
        "sysctl -w kernel.unprivileged_userns_clone=1 (Debian)",
    ),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1",
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or write an AppArmor profile "
        "that allows userns for this Python (Ubuntu)",
    ),
)  # fmt: skip
"""Settings that forbid user namespaces: the file, the value that does, and what to run as root."""

USER_NAMESPACES = (
    "allow unprivileged user namespaces (sysctl user.max_user_namespaces above 0, on Debian "
    "kernel.unprivileged_userns_clone=1, on Ubuntu "
    "kernel.apparmor_restrict_unprivileged_userns=0 or an AppArmor profile); in a container, start "
    "it with a seccomp profile that allows unshare and mount and an AppArmor profile that allows "
    "mounts"
)
LANDLOCK = (
    "boot a kernel of 6.12 or later built with CONFIG_SECURITY_LANDLOCK=y and with landlock in "
    "its lsm= list; in a container, use a seccomp profile that allows Landlock"
)
SECCOMP = (
    "boot a kernel with CONFIG_SECCOMP_FILTER=y; in a container, use a seccomp profile that "
    "allows seccomp"
)
OUTER = (
    "an outer sandbox forbids or fakes this call; start the gateway outside it, or allow the call "
    "in the container's seccomp profile or the service's SystemCallFilter="
)
LIMITS = (
    "the limits it is started with are lower than its own; raise `ulimit -n` to 128, `ulimit -v` "
    "to 1 GiB, or LimitNOFILE= and LimitAS= of the service"
)
FORK = (
    "no further process may be started; raise `ulimit -u`, TasksMax= of the service or pids.max "
    "of its control group"
)
TIME_PAGES = (
    "this kernel shows the clock on pages that cannot be covered; use a kernel this release "
    "supports"
)
DEFECT = "run `omega-gateway doctor`; if it finds nothing, this is a defect of the gateway"


def user_namespaces(settings: "dict[str, str]") -> str:
    """The remedy for refused user namespaces.

    Args:
        settings: what the files of `SETTINGS` hold, for those that there are.
    """
    for path, forbids, change in SETTINGS:
        if settings.get(path) == forbids:
            return "as root: " + change
    return USER_NAMESPACES
