"""State written in one call must be gone in the next: pairs of write and read.

The worker keeps one warm call process, forked while the writing call runs, so anything that
outlives a process, or reaches the zygote, would show.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from schemas.manifest import Method, PayloadSpec
from schemas.messages import CallFailure, CallResult
from tests.escape.runner import RUNNER
from tests.sandbox_worker.harness import Worker, worker

pytestmark = [pytest.mark.jail, pytest.mark.system]

PLUGIN = RUNNER + '''
import builtins
import random
import sys

from sandbox_worker.sdk import method

STATE = []

@method()
def main(ctx, text):
    frame = sys._getframe()
    while "linux" not in frame.f_globals:
        frame = frame.f_back
    linux = frame.f_globals["linux"]
    scope = {"linux": linux, "Memory": linux.Memory, "STATE": STATE, "builtins": builtins,
             "random": random, "sys": sys, "frame": frame, "ctx": ctx, "result": None}
    if "ctypes" in text.text:
        scope["ctypes"] = ctypes_over(linux._ctypes)
    exec(text.text, scope)
    return scope["result"]
'''

HARMLESS = [
    ("globals", "STATE.append(1)", "result = len(STATE)", 0),
    ("builtins", "builtins.omega = 1", "result = hasattr(builtins, 'omega')", False),
    ("replaced builtin", "builtins.sum = lambda _: 99", "result = sum([])", 0),
    ("modules", "sys.modules['omega'] = 1", "result = 'omega' in sys.modules", False),
    ("module attribute", "sys.omega = 1", "result = hasattr(sys, 'omega')", False),
    ("environment", "import os; os.environ['OMEGA'] = '1'",
     "import os; result = dict(os.environ)", {}),
    ("the interpreter's environment", "import posix; posix.environ[b'OMEGA'] = b'1'",
     "import posix; result = [str(key) for key in posix.environ]", []),
    ("search path", "sys.path.append('/')", "result = sys.path", []),
    ("context environment", "ctx.env['OMEGA'] = '1'", "result = ctx.env", {}),
    ("process id", "result = linux.call(39)", "result = linux.call(39)", 0),
    ("parent id", "", "result = linux.call(110)", 0),
    ("user id", "", "result = linux.call(102)", 0),
    ("recursion limit", "sys.setrecursionlimit(77)", "result = sys.getrecursionlimit()", 1000),
    ("random state", "random.seed(5); random.random()",
     "result = random.random() == (random.seed(0), random.random())[1]", True),
    ("heap bytes", "kept = [bytearray(b'OMEGA' * 1000) for _ in range(50)]; del kept",
     "import gc; result = any(b'OMEGA' * 9 in bytes(x) for x in gc.get_objects() "
     "if isinstance(x, bytearray))", False),
    # SIGCHLD, which the zygote reads from a descriptor, is blocked in each; nothing else.
    ("signal mask", "linux.call(14, 0, Memory(b'\\xff' * 8), 0, 8)",
     "mask = Memory(8); linux.call(14, 0, 0, mask, 8); "
     "result = int.from_bytes(mask.read(), 'little')", 1 << 16),
    ("mapping at a known place", "at = linux.call(9, 1 << 40, 4096, 3, 0x32, -1, 0); "
     "ctypes.memmove(at, b'OMEGA', 5)", "at = linux.call(9, 1 << 40, 4096, 3, 0x32, -1, 0); "
     "result = ctypes.string_at(at, 5).hex()", "00" * 5),
    ("page of a library", "at = ctypes.cast(ctypes.PyDLL(None).argp_parse, "
     "ctypes.c_void_p).value & ~4095; linux.call(10, at, 4096, 3); "
     "ctypes.memmove(at, b'OMEGA', 5)", "at = ctypes.cast("
     "ctypes.PyDLL(None).argp_parse, ctypes.c_void_p).value & ~4095; "
     "result = ctypes.string_at(at, 5) == b'OMEGA'", False),
    ("function of ours", "frame.f_globals['pack'] = None; linux.call = None",
     "result = [frame.f_globals.get('pack', 1) is None, linux.call is None]", [False, False]),
    ("class of ours", "type(ctx).omega = 1", "result = hasattr(type(ctx), 'omega')", False),
    ("dictionary of ours", "frame.f_back.f_globals['omega'] = 1",
     "result = 'omega' in frame.f_back.f_globals", False),
    ("import hook", "sys.meta_path.append(1)", "result = 1 in sys.meta_path", False),
    ("trace function", "sys.settrace(lambda *_: None)", "result = sys.gettrace()", None),
    ("switch interval", "sys.setswitchinterval(1)", "result = sys.getswitchinterval() == 1", False),
    ("garbage collector", "import gc; gc.set_threshold(7)",
     "import gc; result = gc.get_threshold()[0] == 7", False),
    ("codec", "import codecs; codecs.register(lambda n: STATE.append(n))",
     "try:\n    'x'.encode('omega')\nexcept LookupError:\n    pass\nresult = len(STATE)", 0),
    ("at the end", "import atexit; atexit.register(lambda: linux.call(1, 3, Memory(b'x'), 1))",
     "result = 'nothing came early'", "nothing came early"),
    ("bytes after the reply", "class Late:\n    def __del__(self):\n"
     "        linux.call(1, 3, Memory(b'\\0' * 64), 64)\nkept = Late()",
     "result = 'mine'", "mine"),
]  # fmt: skip
REFUSED = [
    ("shared segment", "linux.call(29, 77, 4096, 0o1600)", "system_call_forbidden"),
    ("keyring", "linux.call(248, Memory(b'user\\0'), Memory(b'x\\0'), Memory(b'1'), 1, -4)",
     "system_call_forbidden"),
    ("affinity of the zygote", "linux.call(203, 1, 8, Memory(b'\\1' + bytes(7)))", "plugin_error"),
    ("affinity", "linux.call(203, 0, 8, Memory(b'\\1' + bytes(7)))", "plugin_error"),
    ("priority of the zygote", "linux.call(141, 0, 1, 5)", "plugin_error"),
    ("resource limit of the zygote", "linux.call(302, 1, 7, Memory(16), 0)", "plugin_error"),
    ("working directory", "import os; os.chdir('/')", "plugin_error"),
    ("file mode mask", "import os; os.umask(0o77)", "plugin_error"),
    ("thread", "import _thread; _thread.start_new_thread(int, ())", "plugin_error"),
    ("signal handler", "import _signal; _signal.signal(10, _signal.SIG_IGN)", "plugin_error"),
    ("descriptor", "import os; os.dup2(3, 9)", "plugin_error"),
    ("shared page", "linux.call(9, 0, 4096, 3, 0x21, -1, 0)", "plugin_error"),
    ("semaphore", "linux.call(64, 77, 1, 0o1600)", "system_call_forbidden"),
    ("message queue", "linux.call(68, 77, 0o1600)", "system_call_forbidden"),
    ("session keyring", "linux.call(250, 1, 0)", "system_call_forbidden"),
    ("own resource limit", "linux.call(302, 0, 7, Memory(16), 0)", "plugin_error"),
    ("own priority", "linux.call(141, 0, 0, 5)", "plugin_error"),
    ("priority of all", "linux.call(141, 2, 0, 5)", "plugin_error"),
    ("scheduler of the zygote", "linux.call(144, 1, 5, Memory(4))", "plugin_error"),
    ("disk priority", "linux.call(251, 1, 1, 0x4007)", "system_call_forbidden"),
    ("whom the kernel kills first", "open('/proc/self/oom_score_adj', 'w')", "plugin_error"),
    ("timer", "linux.call(222, 1, 0, Memory(4))", "system_call_forbidden"),
    ("interval timer", "linux.call(38, 0, Memory(32), 0)", "plugin_error"),
    ("alarm", "linux.call(37, 9)", "plugin_error"),
    ("process name", "linux.call(157, 15, Memory(b'x\\0'), 0, 0, 0)", "plugin_error"),
    ("dumpable", "linux.call(157, 4, 1, 0, 0, 0)", "plugin_error"),
    ("parent death signal", "linux.call(157, 1, 0, 0, 0, 0)", "plugin_error"),
    ("slack of timers", "linux.call(157, 29, 1, 0, 0, 0)", "plugin_error"),
    ("session", "import os; os.setsid()", "plugin_error"),
    ("process group", "import os; os.setpgid(0, 0)", "plugin_error"),
    ("host name", "linux.call(170, Memory(b'x'), 1)", "system_call_forbidden"),
    ("memory policy", "linux.call(238, 0, 0, 0)", "plugin_error"),
    ("execution domain", "linux.call(135, 0x0040000)", "system_call_forbidden"),
    ("flags of the job socket", "linux.call(72, 3, 4, 0o4000)", "plugin_error"),
    ("bell on a library's page", "linux.call(202, ctypes.cast(linux._syscall, "
     "ctypes.c_void_p).value & ~4095, 1, 1)", "system_call_forbidden"),
]  # fmt: skip


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """A worker with one warm call process."""
    folder = tmp_path_factory.mktemp("leaks")
    with worker(folder, PLUGIN, modules=("random", "struct", "types"), pool_size=1) as running:
        yield running


@pytest.mark.parametrize(("name", "write", "read", "initial"), HARMLESS)
def test_what_one_call_wrote_the_next_does_not_see(
    one: Worker, name: str, write: str, read: str, initial: object
) -> None:
    """Three calls that write, each followed by one that finds the initial state."""
    for _ in range(3):
        one.value(write)
        assert one.value(read) == initial, name


@pytest.mark.parametrize(("name", "write", "code"), REFUSED)
def test_state_outside_the_process_cannot_be_written(
    one: Worker, name: str, write: str, code: str
) -> None:
    """What would outlive the call is refused softly or kills it."""
    end = one.call(write)

    assert isinstance(end, CallFailure), name
    assert end.code == code


def test_random_starts_at_the_same_place_in_every_call(one: Worker) -> None:
    """Without `random.read` no entropy reaches a call: equal draws, call after call."""
    draws = {str(one.value("result = [random.random(), random.random()]")) for _ in range(3)}

    assert len(draws) == 1


def test_a_deterministic_plugin_has_a_fixed_hash_seed(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Two workers of a plugin with a deterministic method hash a string alike, a replica not."""
    methods = {"main": Method(PayloadSpec("text"), PayloadSpec("json"), deterministic=True)}
    hashes = []
    for role in ("primary", "primary", "replica"):
        folder = tmp_path_factory.mktemp("seed")
        with worker(folder, PLUGIN, modules=("random",), methods=methods,
                    changes={"role": role}) as running:
            hashes.append(running.value("result = hash('omega') % 2**50"))

    assert hashes[0] == hashes[1] != hashes[2]


def test_granted_clock_and_entropy_work(tmp_path_factory: pytest.TempPathFactory) -> None:
    """With both capabilities time moves and draws differ; this is the control of their denial."""
    folder = tmp_path_factory.mktemp("granted")
    grants = ("clock.read", "random.read")
    code = (
        "import time, os; recent = time.localtime().tm_year > 2000;"
        "result = [time.time() > 1e9, recent, os.urandom(8).hex(), random.random()]"
    )
    with worker(folder, PLUGIN, modules=("random",), grants=grants) as running:
        answers = [running.value(code) for _ in range(2)]

    assert all(isinstance(answer, list) and answer[:2] == [True, True] for answer in answers)
    assert answers[0][2:] != answers[1][2:]  # type: ignore[index]  # Lists, see above.


def test_without_the_clock_nothing_gives_1970(tmp_path_factory: pytest.TempPathFactory) -> None:
    """`datetime.now()` and its kin raise instead of giving the epoch; given times still work."""
    folder = tmp_path_factory.mktemp("clock")
    code = '''
import datetime, time
result = []
for read in (datetime.datetime.now, datetime.datetime.utcnow, datetime.date.today, time.localtime,
             time.gmtime, time.ctime, time.time, time.monotonic, lambda: time.strftime("%Y"),
             lambda: datetime.datetime.now(datetime.timezone.utc)):
    try:
        read()
    except PermissionError:
        result.append("refused")
result.append(datetime.datetime(2020, 1, 2, 3, 4).isoformat())
result.append(datetime.datetime.strptime("2020-01-02", "%Y-%m-%d").year)
result.append(time.gmtime(0).tm_year)
'''
    with worker(folder, PLUGIN, modules=("random", "datetime")) as running:
        end = running.call(code)
        assert isinstance(end, CallResult), end
        assert running.value(code) == ["refused"] * 10 + ["2020-01-02T03:04:00", 2020, 1970]
