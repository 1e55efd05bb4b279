"""Attempts through the descriptors that a call is handed: they can be read, and nothing else.

Each attempt runs as plugin code with an artifact as descriptor 4 and a file as 5. The same code
runs in an ordinary process with the same two files open for reading and writing, where it must
succeed: that shows that the jail refused it, and not a mistake in the attempt. `control` is False
where nothing but a call process has what is tried.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.manifest import Limits, Method, PayloadSpec
from schemas.messages import CallFailure, CallResult
from schemas.payloads import BinaryRefPayload, JSONPayload
from tests.sandbox_worker.harness import ROOT, Worker, worker

pytestmark = [pytest.mark.jail, pytest.mark.system]

RUNNER = '''
def attempt(code, linux, job):
    scope = {"linux": linux, "Memory": linux.Memory, "job": job}
    try:
        exec(code, scope)
    except BaseException as error:
        return ["refused", type(error).__name__]
    return ["succeeded", repr(scope.get("result"))[:100]]
'''
PLUGIN = RUNNER + '''
import sys
from sandbox_worker.sdk import Context, TextPayload, method

@method()
def main(ctx, text):
    frame = sys._getframe()
    while "linux" not in frame.f_globals:
        frame = frame.f_back
    code = ctx.resource("attempts.txt").decode().split("---")[ctx.artifact.size - 1]
    return attempt(code, frame.f_globals["linux"], 3)
'''
OUTSIDE = RUNNER + '''
import json, os, sys
from sandbox_worker.jail import linux

for number, path in ((4, sys.argv[2]), (5, sys.argv[3])):
    os.dup2(os.open(path, os.O_RDWR), number)
for number in (6, 20):
    os.dup2(4, number)
pipe = os.pipe()
print(json.dumps(attempt(sys.argv[1], linux, pipe[1])))
'''
LIMITS = Limits(cpu_ms=500, wall_ms=2000, memory_mb=128, output_bytes=4096, concurrency=4)

# Name, whether the process is killed instead of refused, whether there is a control, code.
ATTEMPTS = [
    ("write", False, True, "import os; result = os.write(4, b'x')"),
    ("write the file", False, True, "import os; result = os.write(5, b'x')"),
    ("write at a place", False, True, "import os; result = os.pwrite(4, b'x', 0)"),
    ("write a vector", False, True, "import os; result = os.writev(5, [b'x'])"),
    ("cut", False, True, "import os; result = os.ftruncate(4, 0)"),
    ("grow", False, True, "import os; result = os.ftruncate(5, 1 << 20)"),
    ("allocate", False, True, "result = linux.call(285, 5, 0, 0, 4096)"),
    ("map shared for writing", False, True, "result = linux.call(9, 0, 4096, 3, 1, 5, 0)"),
    ("map shared for reading", False, True, "result = linux.call(9, 0, 4096, 1, 1, 4, 0)"),
    ("map privately", False, True, "result = linux.call(9, 0, 4096, 1, 2, 5, 0)"),
    ("map executable", False, True, "result = linux.call(9, 0, 4096, 5, 2, 4, 0)"),
    ("duplicate", False, True, "import os; result = os.dup(4)"),
    ("duplicate to a number", False, True, "import os; result = os.dup2(5, 9)"),
    ("duplicate over the job", False, True, "import os; result = os.dup2(4, job)"),
    ("duplicate by fcntl", False, True, "result = linux.call(72, 4, 0, 10)"),
    ("close", False, True, "import os; result = os.close(4)"),
    ("close all", False, True, "result = linux.call(436, 4, 5, 0)"),
    ("reopen by path", False, True, "import os; result = os.open('/proc/self/fd/4', os.O_RDWR)"),
    ("reopen by another path", False, True, "result = open('/dev/fd/5', 'rb')"),
    ("open beside it", False, False, "import os; result = os.open('.', os.O_RDONLY, dir_fd=5)"),
    ("reopen with an empty path", False, False,
     "result = linux.call(257, 5, Memory(b'\\0'), 0x1000, 0)"),
    ("add seals", False, False, "result = linux.call(72, 4, 1033, 1)"),
    ("read its seals", False, False, "result = linux.call(72, 4, 1034, 0)"),
    ("lock", False, True, "result = linux.call(73, 5, 2)"),
    ("lock a range", False, True,
     "import struct; lock = Memory(struct.pack('=hh4xqqi4x', 1, 0, 0, 1, 0)); "
     "result = linux.call(72, 5, 6, lock)"),
    ("be told of changes", False, False, "result = linux.call(72, 5, 1024, 0)"),
    ("own it", False, True, "import os; result = linux.call(72, job, 8, os.getpid())"),
    ("status", False, True, "import os; result = os.fstat(4)"),
    ("status of the volume", False, True, "import os; result = os.fstatvfs(5)"),
    ("mode", False, True, "import os; result = os.fchmod(5, 0o600)"),
    ("owner", False, True, "import os; result = os.fchown(5, -1, -1)"),
    ("times", False, True, "import os; result = os.utime(5)"),
    ("attributes", False, True, "import os; result = os.listxattr(5)"),
    ("set an attribute", False, False, "import os; result = os.setxattr(5, 'user.x', b'x')"),
    ("flush", False, True, "import os; result = os.fsync(5)"),
    ("enter", False, False, "import os; result = os.fchdir(5)"),
    ("list", False, False, "import os; result = os.listdir(5)"),
    ("execute", False, False, "import os; result = os.execve(4, ['x'], {})"),
    ("control", False, True, "result = linux.call(16, 5, 0x541B, Memory(8))"),
    ("wait for it", False, False, "result = linux.call(7, Memory(8), 0, 0)"),
    ("send to the job", False, True, "import os; result = os.sendfile(job, 5, 0, 4)"),
    ("send a descriptor", False, False, "result = linux.call(46, 3, Memory(56), 0)"),
    ("copy from one to the other", False, True,
     "result = linux.call(326, 4, 0, 5, 0, 1, 0)"),
    ("splice", True, True, "result = linux.call(275, 5, 0, job, 0, 1, 0)"),
    ("tee", True, False, "result = linux.call(276, 4, 5, 1, 0)"),
    ("read ahead", True, True, "result = linux.call(187, 5, 0, 4096)"),
    ("advise", False, True, "result = linux.call(221, 5, 0, 0, 0)"),
    ("sync a range", True, True, "result = linux.call(277, 5, 0, 0, 0)"),
    ("read a vector", False, True, "import os; result = os.readv(4, [bytearray(1)])"),
    ("read at a place", False, True, "import os; result = os.pread(4, 1, 0)"),
    ("move in the job", False, False, "import os; result = os.lseek(3, 0, 0)"),
    ("move to a hole", False, True, "import os; result = os.lseek(5, 0, os.SEEK_HOLE)"),
    ("read the next number", False, True, "import os; result = os.read(6, 1)"),
    ("read a far number", False, True, "import os; result = os.read(20, 1)"),
    ("read with high bits", False, False,
     "result = linux.call(0, 0x1_0000_0006, Memory(1), 1)"),
    ("read standard input", False, False, "import os; result = os.read(0, 1)"),
    ("use a ring", True, False, "result = linux.call(425, 1, Memory(120))"),
    ("name it", True, False,
     "result = linux.call(303, 5, Memory(b'\\0'), Memory(16), Memory(4), 0x1000)"),
]  # fmt: skip


def _place(folder: Path) -> tuple[str, str]:
    """Write an artifact for each attempt, told apart by its size, and a file of a root."""
    (folder / "artifacts").mkdir()
    (folder / "corpus").mkdir()
    for number in range(1, len(ATTEMPTS) + 1):
        (folder / "artifacts" / f"a{number}").write_bytes(b"a" * number)
    (folder / "corpus" / "words").write_bytes(b"w" * 5000)
    return str(folder / "artifacts"), str(folder / "corpus")


@pytest.fixture(scope="module")
def jail(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """A worker whose plugin makes the attempt that the artifact's size names."""
    folder = tmp_path_factory.mktemp("handed")
    artifacts, corpus = _place(folder)
    spec = Method(PayloadSpec("binary_ref"), PayloadSpec("json"), files={"words": "corpus/words"})
    codes = "---".join(code for _, _, _, code in ATTEMPTS)
    with worker(
        folder, PLUGIN, methods={"main": spec}, limits=LIMITS,
        resources={"attempts.txt": codes.encode()}, grants=("artifact.read", "fs.read:corpus"),
        grant_values={"artifact.read": artifacts, "fs.read:corpus": corpus},
    ) as running:  # fmt: skip
        yield running


@pytest.mark.parametrize("number", range(len(ATTEMPTS)), ids=[name for name, *_ in ATTEMPTS])
def test_a_handed_descriptor_can_only_be_read(jail: Worker, number: int) -> None:
    """Whatever else is tried with 4 and 5, or with a number beside them, is refused or killed."""
    _, killed, _, _ = ATTEMPTS[number]
    data = b"a" * (number + 1)
    end = jail.call(BinaryRefPayload(
        f"a{number + 1}", hashlib.sha256(data).hexdigest(), len(data), "application/octet-stream"
    ))
    if killed:
        assert isinstance(end, CallFailure)
        assert end.code == "system_call_forbidden"
    else:
        assert isinstance(end, CallResult), end
        assert isinstance(end.payload, JSONPayload)
        assert json.loads(end.payload.data)[0] == "refused"


def test_nothing_that_was_handed_over_was_changed(jail: Worker) -> None:
    """After all attempts the artifacts and the file are what they were."""
    store = Path(jail.launch.grant_values["artifact.read"])
    for number in range(1, len(ATTEMPTS) + 1):
        assert (store / f"a{number}").read_bytes() == b"a" * number
    root = Path(jail.launch.grant_values["fs.read:corpus"])
    assert (root / "words").read_bytes() == b"w" * 5000


CONTROLS = [(name, code) for name, _, control, code in ATTEMPTS if control]


@pytest.mark.parametrize("code", [code for _, code in CONTROLS], ids=[name for name, _ in CONTROLS])
def test_the_same_attempt_succeeds_outside(tmp_path: Path, code: str) -> None:
    """Without a jail, and with files opened for writing, the attempt works."""
    for file in ("artifact", "words"):
        (tmp_path / file).write_bytes(b"x" * 5000)
    done = subprocess.run(
        [sys.executable, "-S", "-c", OUTSIDE, code, str(tmp_path / "artifact"),
         str(tmp_path / "words")],
        capture_output=True, cwd=ROOT, timeout=20, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip

    assert done.stdout, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])[0] == "succeeded", done.stdout
