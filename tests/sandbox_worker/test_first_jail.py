"""Approved packages are imported in a first jail: what they reach, leave, and how they fail."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from sandbox_worker.bundle import LaunchRefusedError
from sandbox_worker.jail import attest, bpf, identity, linux, policy, seccomp
from sandbox_worker.packages import PackagesChangedError
from schemas.messages import Bye, CallResult
from schemas.packages import PackageFolder
from tests.sandbox_worker.harness import PATIENCE_S, Worker, make_bundle, text_to_json, worker
from tests.sandbox_worker.jail.inside import inside
from tests.sandbox_worker.zygotes import refusal_of
from tests.support.packages import lock, numpy_folder, package_folder

pytestmark = [pytest.mark.jail, pytest.mark.system]

CURIOUS = '''
import ctypes
import os
import socket

ALLOWED, DENIED = [], {}
HERE, LIBRARY = os.path.dirname(__file__), os.path.dirname(os.__file__)


def attempt(name, function):
    try:
        function()
    except OSError as error:
        DENIED[name] = error.errno
    else:
        ALLOWED.append(name)


def raw(number, *arguments):
    library = ctypes.CDLL(None, use_errno=True)
    if library.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "")


def connect(host):
    with socket.socket() as one:
        one.connect((host, 1))


attempt("its own folder", lambda: os.listdir(HERE))
attempt("its own file", lambda: open(__file__).close())
attempt("the library", lambda: os.listdir(LIBRARY))
attempt("the root", lambda: os.listdir("/"))
attempt("passwd", lambda: open("/etc/passwd"))
attempt("proc", lambda: open("/proc/self/environ"))
attempt("above", lambda: os.listdir(os.path.dirname(HERE) + "/.."))
attempt("write its file", lambda: open(__file__, "a"))
attempt("make a file", lambda: open(HERE + "/new", "w"))
attempt("make a file in the root", lambda: open("/new", "w"))
attempt("remove its file", lambda: os.unlink(__file__))
attempt("network", lambda: connect("127.0.0.1"))
attempt("exec", lambda: os.execv("/bin/sh", ["sh"]))
attempt("become root", lambda: os.setuid(0))
attempt("mount", lambda: raw(165, b"x", HERE.encode(), b"tmpfs", 0, 0))
attempt("unmount", lambda: raw(166, HERE.encode(), 2))
attempt("new user namespace", lambda: raw(272, 0x10000000))
attempt("host name", lambda: socket.sethostname("x"))
'''

USE = '''
import {module}
from sandbox_worker.sdk import method


@method()
def main(ctx, text):
    return eval(text.text)
'''


def _approved(folder: PackageFolder, *modules: str) -> dict[str, object]:
    return {"modules": modules, "packages": folder}


def _refusal(folder: Path, approved: PackageFolder | None) -> LaunchRefusedError | None:
    """Why no zygote starts with these packages."""
    changes = {"modules": ("package",), "packages": approved}
    return refusal_of(
        folder, USE.format(module="package"), modules=("package",), changes=changes
    )


def _refused(folder: Path, approved: PackageFolder) -> Bye:
    """The bye of a worker that cannot start with these packages."""
    source = USE.format(module="package")
    bundle = make_bundle(folder, source, methods=text_to_json(), modules=("package",))
    one = Worker(folder, bundle, changes=_approved(approved, "package"))
    try:
        report = one.receive()
        assert isinstance(report, Bye), report
        assert one.process.wait(PATIENCE_S) == 5
        return report
    finally:
        one.close()


def test_an_import_reaches_two_folders_and_nothing_else(tmp_path: Path) -> None:
    """Reading its own folder and the library succeeds, the control; every other attempt fails."""
    with package_folder({"package/__init__.py": CURIOUS}) as path:
        changes = _approved(lock(path), "package")
        with worker(
            tmp_path, USE.format(module="package"), modules=("package",), changes=changes
        ) as one:
            allowed = one.value("package.ALLOWED")
            denied = one.value("package.DENIED")
            status = attest.status(one.zygote)

    assert allowed == ["its own folder", "its own file", "the library"]
    assert isinstance(denied, dict)
    assert set(denied.values()) <= {
        errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENETUNREACH, errno.ENOSPC,
        errno.EINVAL,
    }, denied
    assert len(denied) == CURIOUS.count("attempt(") - 1 - len(allowed)
    # What attestation asks of every zygote, it asked of this one too.
    assert (status["Threads"], status["Seccomp"], status["CapBnd"]) == ("1", "2", "0" * 16)


LEFT = {
    "a thread": "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True)"
                ".start()\n",
    "a process": "import os, signal\nif os.fork() == 0: signal.pause()\n",
    "memory that processes share": "import mmap\nheld = mmap.mmap(-1, 4096)\n",
}


@pytest.mark.parametrize("what", sorted(LEFT))
def test_an_import_leaves_nothing_but_memory(tmp_path: Path, what: str) -> None:
    """A thread, a process or shared memory left by an import refuses the start, by its name."""
    with package_folder({"package.py": LEFT[what]}) as path:
        refusal = _refusal(tmp_path, lock(path))

    assert f"left {what} behind" in str(refusal)


FAILING = {
    "raises": ("raise ValueError('on purpose')\n", "package: ValueError: on purpose"),
    "is not there": ("import no_such_module\n", "ModuleNotFoundError"),
    "does not compile": ("def (:\n", "SyntaxError"),
    "leaves": ("import sys\nsys.exit(0)\n", "package: SystemExit"),
    "ends the process": ("import os\nos._exit(0)\n", "ended while it imported"),
    "crashes": ("import os\nos.abort()\n", "ended while it imported"),
}


@pytest.mark.parametrize("how", sorted(FAILING))
def test_an_import_that_fails_refuses_the_start_with_its_reason(tmp_path: Path, how: str) -> None:
    """The refusal says which module and why."""
    text, words = FAILING[how]
    with package_folder({"package.py": text}) as path:
        refusal = _refusal(tmp_path, lock(path))

    assert words in str(refusal)


def test_a_changed_byte_refuses_the_start(tmp_path: Path) -> None:
    """The refusal has its own reason and names the file; nothing of the folder was loaded."""
    with package_folder({"package.py": "x = 1\n"}) as path:
        approved = lock(path)
        (path / "package.py").write_text("x = 2\n")
        report = _refused(tmp_path, approved)

    assert report == Bye(
        reason="packages_changed", detail="packages: package.py is not the file that was approved"
    )


def test_an_approved_module_without_a_folder_refuses_the_start(tmp_path: Path) -> None:
    """A name alone brings no code: it is not looked for anywhere on the machine."""
    refusal = _refusal(tmp_path, None)

    assert isinstance(refusal, PackagesChangedError)
    assert "no folder for package" in str(refusal)


def test_an_approved_module_of_the_standard_library_needs_no_folder(tmp_path: Path) -> None:
    """It is loaded with the vetted ones, and what it would do is denied all the same."""
    with worker(
        tmp_path, USE.format(module="socket"), modules=("socket",), changes={"modules": ("socket",)}
    ) as one:
        assert one.value("socket.AF_INET") == 2
        assert one.call("socket.socket()").denied == "socket"


FAULTS = [
    ("open_tree", errno.EPERM, "first jail"),
    ("open_tree", errno.ENOSYS, "first jail"),
    ("mount_setattr", errno.EPERM, "first jail"),
    ("mount_setattr", 0, "read-only packages"),
    ("move_mount", errno.EPERM, "first jail"),
    ("move_mount", 0, "read-only packages"),
    ("landlock_restrict_self", 0, "landlock"),
]


@pytest.mark.parametrize(("name", "answer", "feature"), FAULTS, ids=str)
def test_a_missing_or_faked_step_refuses_the_start(
    tmp_path: Path, name: str, answer: int, feature: str
) -> None:
    """Under a filter that refuses or fakes one call of the first jail the start names the step."""
    rule = bpf.Rule(bpf.errno_action(answer), (), bpf.ALLOW)
    program = bpf.assemble({policy.numbers()[name]: rule}, bpf.ALLOW)

    with package_folder({"package.py": "x = 1\n"}) as path:
        approved = lock(path)

        def attempt() -> object:
            identity.no_new_privileges()
            seccomp.install(program)
            try:
                return str(_refusal(tmp_path, approved))
            except linux.SandboxUnavailable as error:
                return [error.feature, error.errno]

        assert inside(attempt) == [feature, answer]


MATRIX = '''
import numpy
import numpy.random
from sandbox_worker.sdk import JSONPayload, method


@method(deterministic=True)
def main(ctx, text):
    if text.text:
        return eval(text.text)
    square = numpy.arange(90_000, dtype=float).reshape(300, 300) / 90_000
    product = square @ square
    return [float(product[0, 0]), float(product[299, 299]), float(product.trace())]
'''


def test_numpy_computes_with_one_thread_and_no_entropy(tmp_path: Path) -> None:
    """A product of 300 x 300 is right, chance starts at one place, and what is late is denied."""
    with numpy_folder() as approved:
        modules = ("numpy", "numpy.random")
        with worker(
            tmp_path, MATRIX, modules=modules, changes=_approved(approved, *modules)
        ) as one:
            status = attest.status(one.zygote)
            first, second = (one.value("numpy.random.rand(3).tolist()") for _ in range(2))
            product = one.value("")
            late = one.call("__import__('numpy.testing')")
            entropy = one.call("numpy.random.default_rng()")

    assert status["Threads"] == "1"
    assert isinstance(product, list)
    # Row 0 times column 0, row 299 times column 299, and the trace, in closed form.
    rows = [[(300 * i + j) / 90_000 for j in range(300)] for i in range(300)]
    corners = [sum(rows[at][k] * rows[k][at] for k in range(300)) for at in range(300)]
    assert product == pytest.approx([corners[0], corners[299], sum(corners)], rel=1e-12)
    assert first == second == pytest.approx([0.5488135039, 0.7151893664, 0.6027633761])
    assert (late.denied, entropy.denied) == ("import", "random")
    assert not isinstance(entropy, CallResult)
