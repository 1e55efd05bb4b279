"""What this machine can enforce: each feature the sandbox stands on, looked at or really tried.

    python broker/machine.py

prints the first sentence that is not satisfied and exits 5, before anything is installed; `doctor`
shows all of them.

Rules this file keeps: standard library only, and readable by Pythons that are too old to run the
gateway, so that those too get their sentence; what a system call can promise and not keep is tried
in a forked child; a feature that is missing gets one sentence with what was found, what is
required and what to change. There is no lesser mode and nothing to switch a check off with.

It leaves what to change to `schemas.remedies`, where workers have it from too. Sources:
user_namespaces(7), landlock(7), seccomp(2).
"""

import errno
import functools
import importlib.util
import os
import platform
import sys
from typing import Callable, NamedTuple  # noqa: UP035  Pythons that are too old know no other.

EXIT_MACHINE = 5
LINUX_MIN = (6, 12)
PYTHON_MIN, PYTHON_END = (3, 11), (3, 14)
NOBODY = 65534

_UNSHARE, _MOUNT, _PRCTL = 272, 165, 157
_SET_DUMPABLE, _SET_NO_NEW_PRIVS = 4, 38
_ALL_NAMESPACES = 0x10000000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000 | 0x02020000
_PRIVATE_RECURSIVE = 0x4000 | 1 << 18


class Finding(NamedTuple):
    """One feature: what was found, what is required, whether that is enough, what to change."""

    feature: str
    found: str
    required: str
    ok: bool
    remedy: str

    def sentence(self) -> str:
        """Feature, finding and remedy in one line for a person."""
        found = f"{self.feature}: found {self.found}"
        return found if self.ok else f"{found}, required is {self.required}; {self.remedy}."


def examine() -> "list[Finding]":
    """Look at every feature, in the order in which one needs the other.

    Returns:
        The findings; those behind a wrong system, processor or Python are left out, because their
        trials could not run.
    """
    findings = [_system(), _processor(), _python()]
    if all(finding.ok for finding in findings):
        findings += [_environments(), _landlock(), _seccomp(), _user_namespaces()]
    return findings


def main() -> int:
    """Print the first finding that is not enough. Returns the exit code: 0 or 5."""
    for finding in examine():
        if not finding.ok:
            sys.stderr.write(finding.sentence() + "\n")
            return EXIT_MACHINE
    return 0


def _system() -> Finding:
    release = platform.release()
    digits = [part for part in release.replace("-", ".").split(".")[:2] if part.isdigit()]
    ok = platform.system() == "Linux" and tuple(map(int, digits)) >= LINUX_MIN
    return Finding(
        "operating system", f"{platform.system()} {release}", "Linux 6.12 or later", ok,
        "use Debian 13, Ubuntu 25.04 or later, or an older release with such a kernel",
    )  # fmt: skip


def _processor() -> Finding:
    found = f"{platform.machine()}, {sys.maxsize.bit_length() + 1} bits"
    return Finding(
        "processor", found, "x86_64, 64 bits", found == "x86_64, 64 bits",
        "use a machine with that processor and a Python built for it",
    )  # fmt: skip


def _python() -> Finding:
    found = f"{platform.python_implementation()} {platform.python_version()}"
    ok = found.startswith("CPython ") and PYTHON_MIN <= sys.version_info[:2] < PYTHON_END
    return Finding(
        "Python", found, "CPython 3.11, 3.12 or 3.13", ok,
        "install one of these and start again with it",
    )  # fmt: skip


def _environments() -> Finding:
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    # Inside a virtual environment there is no second one to make.
    ok = not missing or sys.prefix != sys.base_prefix
    version = ".".join(map(str, sys.version_info[:2]))
    return Finding(
        "Python's venv module", f"no {' and no '.join(missing)}" if missing else "venv, ensurepip",
        "venv and ensurepip", ok,
        f"install the package python{version}-venv or python3-venv",
    )  # fmt: skip


def _landlock() -> Finding:
    from broker import seal
    from schemas import remedies

    # In a child that ends: a layer cannot be taken off again.
    refused = _tried(seal.seal_launcher)
    try:
        found = f"ABI {seal.call(444, 0, 0, 1)}"
    except OSError as error:
        found = f"no Landlock ({os.strerror(error.errno or 0)})"
    return Finding(
        "Landlock", f"{found}, refused: {refused}" if refused else found, "ABI 6 or later",
        refused is None, remedies.LANDLOCK,
    )  # fmt: skip


def _seccomp() -> Finding:
    from broker import seal
    from schemas import remedies

    def install() -> None:
        seal.call(_PRCTL, _SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        seal.refuse_connections()

    refused = _tried(install)
    return Finding(
        "seccomp", f"a filter is refused: {refused}" if refused else "a filter holds",
        "a filter holds", refused is None, remedies.SECCOMP,
    )  # fmt: skip


def _user_namespaces() -> Finding:
    from schemas import remedies

    refused = _tried(_enter_namespaces)
    settings = {}
    for path, _, _ in remedies.SETTINGS:
        try:
            with open(path, encoding="utf-8") as setting:
                settings[path] = setting.read().strip()
        except OSError:
            continue
    return Finding(
        "user namespaces", f"refused: {refused}" if refused else "made and mounted in",
        "made and mounted in", refused is None, remedies.user_namespaces(settings),
    )  # fmt: skip


def _enter_namespaces() -> None:
    """What the sandbox does first: leave every namespace, map one id, mount an empty root."""
    from broker import seal

    if os.getuid() == 0:
        # In a user namespace that lacks that id, root cannot become it.
        _step("setgroups", lambda: os.setgroups([]))
        _step("setresgid", lambda: os.setresgid(NOBODY, NOBODY, NOBODY))
        _step("setresuid", lambda: os.setresuid(NOBODY, NOBODY, NOBODY))
        # Giving up root made the files of /proc/self root's.
        seal.call(_PRCTL, _SET_DUMPABLE, 1, 0, 0, 0)
    user, group = os.getuid(), os.getgid()
    _step("unshare", lambda: seal.call(_UNSHARE, _ALL_NAMESPACES))
    for name, text in (("setgroups", "deny"), ("gid_map", f"1000 {group} 1"),
                       ("uid_map", f"1000 {user} 1")):  # fmt: skip
        _step(f"writing {name}", functools.partial(_write, f"/proc/self/{name}", text))
    _step("mount", lambda: seal.call(_MOUNT, b"none", b"/", 0, _PRIVATE_RECURSIVE, 0))
    _step("mount", lambda: seal.call(_MOUNT, b"none", b"/tmp", b"tmpfs", 0, 0))


def _write(path: str, text: str) -> None:
    with open(path, "wb", buffering=0) as file:
        file.write(text.encode())


def _step(name: str, attempt: "Callable[[], object]") -> None:
    """Name the step in the error of an attempt that failed."""
    try:
        attempt()
    except OSError as error:
        raise OSError(error.errno, f"{name}: {os.strerror(error.errno or 0)}") from None


def _tried(attempt: "Callable[[], object]") -> "str | None":
    """Make an attempt in a forked child; None when it went well, else what the child said."""
    from broker import seal

    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        said = "it ended without a word"
        try:
            attempt()
            said = "ok"
        except OSError as error:
            said = error.strerror or os.strerror(error.errno or errno.EIO)
        except seal.SealUnavailable as error:
            said = f"{error.feature}, {os.strerror(error.errno) if error.errno else 'no effect'}"
        finally:
            os.write(write, said.encode())
            os._exit(0)
    os.close(write)
    with open(read, encoding="utf-8") as pipe:
        said = pipe.read() or "it was killed"
    os.waitpid(child, 0)
    return None if said == "ok" else said


if __name__ == "__main__":
    # Run as a file, its own folder comes first and the package's cannot be found.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    sys.exit(main())
