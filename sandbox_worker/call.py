"""The call process: a fresh fork of the zygote that closes its own jail, serves one job and ends.

Order, as in docs/ARCHITECTURE.md: job socket to descriptor 3, time hidden, own Landlock domain,
every other descriptor closed, limits, CPU timer, filter. Only then is the job read, and only then
does plugin code run: no plugin code runs before OMEGA's call has arrived. A step that fails ends
the process with `JAIL_FAILED`.

Rules: nothing is imported or allocated that the zygote could have prepared; what leaves is one
reply, after any progress, each a length and msgpack; the supervisor trusts none of it.
"""

from __future__ import annotations

import builtins
import gc
import marshal
import os
import sys

from sandbox_worker import denials, probes
from sandbox_worker.encode import canonical_json, pack
from sandbox_worker.jail import linux, rlimits
from sandbox_worker.jail.linux import Prepared
from sandbox_worker.sdk.api import OPTIONS_ATTRIBUTE, CannotAnswer, Context, InvalidInput
from sandbox_worker.sdk.payloads import (
    KINDS,
    BinaryRefPayload,
    DatasetSlicePayload,
    JSONPayload,
    TextPayload,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    # Never true when running: the zygote stays lean.
    from collections.abc import Callable
    from types import CodeType, ModuleType
    from typing import NoReturn

JOB = 3
JAIL_FAILED = 70
"""Exit status of a call process that could not close its jail; the worker ends with it."""

MARSHAL_VERSION = 0
"""Without interning: a table of all names of the interpreter would be copied for a handful."""

PLUGIN_MODULE = "plugin"
_READ_BYTES = 4096
_WARM_ROUNDS = 16
_WARM_SOURCE = """
from sandbox_worker.sdk import method
@method()
def warm(ctx, text):
    return {"a": [1, 1.5, None, text.text], "b": {}}
"""
_SIGNAL_PARENT = [Prepared(linux.KILL, 1, 0)]


class Jail:
    """The prepared steps by which every call process jails itself, in order.

    Attributes:
        before: steps up to the layer that forbids signals to the outside.
        after: steps from the closing of descriptors to the last before the filter.
        seal: the filter, last of all.
    """

    __slots__ = ("after", "before", "cpu_ms", "limits", "seal")

    def __init__(
        self,
        before: list[Prepared],
        after: list[Prepared],
        seal: list[Prepared],
        *,
        limits: list[tuple[int, int]],
        cpu_ms: int,
    ) -> None:
        """Hold the steps, and for the rehearsal the limits that they must have set."""
        self.before = before
        self.after = after
        self.seal = seal
        self.limits = limits
        self.cpu_ms = cpu_ms


class Plugin:
    """What the zygote compiled and read for the plugin."""

    __slots__ = ("code", "heard", "reseed", "resources")

    def __init__(
        self, code: CodeType, resources: dict[str, bytes], reseed: Callable[[], object] | None,
        *, heard: bool = False,
    ) -> None:
        """Hold the module's code, its resources, what makes `random` start anew, and whether an
        audit hook notices what is denied."""
        self.code = code
        self.resources = resources
        self.reseed = reseed
        self.heard = heard


def serve(take_job: list[Prepared], jail: Jail, plugin: Plugin, *, rehearsal: bool) -> NoReturn:
    """Become a call process: close the jail, answer one job, end. Never returns.

    Args:
        take_job: puts this process's end of the job socket at descriptor 3.
        jail: the prepared steps.
        plugin: what to run.
        rehearsal: read every effect back, and say so once the filter is on.
    """
    try:
        if plugin.reseed is not None:
            plugin.reseed()
        if not linux.succeeds(take_job):
            os._exit(JAIL_FAILED)
        _close_jail(jail, rehearsal=rehearsal)
        if plugin.heard:
            denials.listen()
        _answer(plugin)
        # The supervisor reads what this process used while it waits here, and ends it.
        os.read(JOB, 1)
        os._exit(0)
    except BaseException:  # noqa: BLE001  The process ends here, whatever it was.
        os._exit(1)


def _close_jail(jail: Jail, *, rehearsal: bool) -> None:
    succeeds = linux.succeeds
    # Between the two: in its own Landlock domain the process cannot signal its parent, pid 1.
    if not succeeds(jail.before) or succeeds(_SIGNAL_PARENT) or not succeeds(jail.after):
        os._exit(JAIL_FAILED)
    if rehearsal and not _effects_hold(jail):
        os._exit(JAIL_FAILED)
    if not succeeds(jail.seal):
        os._exit(JAIL_FAILED)
    if rehearsal:
        _send(pack(["rehearsed"]))


def _effects_hold(jail: Jail) -> bool:
    """Read back what an outer sandbox could have faked: limits, timer and closed descriptors."""
    for kind, value in jail.limits:
        if rlimits.soft_limit(kind) != value:
            return False
    if not 0 < rlimits.timer_remaining_ns() <= jail.cpu_ms * 1_000_000:
        return False
    others = (0, 1, 2, *range(JOB + 1, rlimits.ZYGOTE_DESCRIPTORS))
    return not any(linux.succeeds([Prepared(linux.CLOSE, number)]) for number in others)


def _answer(plugin: Plugin) -> None:
    """Read the job and send exactly one reply."""
    try:
        frame = _frame(_receive(), plugin)
    except MemoryError:
        frame = pack(["failed", "memory_limit_exceeded", ""])
    _send(frame)


def _frame(job: bytes, plugin: Plugin) -> bytes:
    """The reply to one job."""
    kind, *details = marshal.loads(job)  # noqa: S302  From the supervisor, which is trusted.
    if kind == "probe":
        return pack(["probed", probes.run(details[0])])
    request_id, name, input_kind, fields, output_kind, env = details
    env = denials.Environment(env) if env else denials.NOTHING
    context = Context(request_id, name, env=env, resources=plugin.resources, progress=_progress)
    gc.enable()
    reply = _run(plugin.code, context, KINDS[input_kind](*fields), output_kind)
    if denials.last and reply[0] == "failed":
        reply.append(denials.last)
    try:
        return pack(reply)
    except (TypeError, ValueError, AttributeError) as error:
        return pack(["failed", "output_invalid", ascii(error)[:256]])


def warm_up() -> None:
    """Serve a module of our own a few times, in the zygote, before anything is forked.

    The interpreter makes types ready, fills caches and rewrites code when something first runs.
    What is left undone here is done again, page by copied page, in every call process.
    """
    own = Plugin(compile(_WARM_SOURCE, "warm", "exec", dont_inherit=True), {}, None)
    environment: dict[str, str] = {}
    job = marshal.dumps(
        ("run", "", "warm", "text", ("", "text/plain"), "json", environment), MARSHAL_VERSION
    )
    for _ in range(_WARM_ROUNDS):
        linux.succeeds(_SIGNAL_PARENT)
        _frame(job, own)
    del sys.modules[PLUGIN_MODULE]


def _run(
    code: CodeType, context: Context, payload: object, output_kind: str
) -> list[object]:
    """Load the module, run the method, and say how it ended as a frame."""
    try:
        function = _method(code, context.method)
    except MemoryError:
        raise
    except BaseException as error:  # noqa: BLE001  Plugin code may raise anything.
        return ["failed", "plugin_load_failed", _sentence(error)]
    try:
        result = function(context, _argument(function, payload))
    except MemoryError:
        raise
    except InvalidInput as error:
        return ["failed", "invalid_input", str(error)]
    except CannotAnswer as error:
        return ["failed", "cannot_answer", str(error)]
    except BaseException as error:  # noqa: BLE001  As above.
        return ["failed", "plugin_error", _sentence(error)]
    try:
        return ["result", _payload(result, output_kind)]
    except MemoryError:
        raise
    except BaseException as error:  # noqa: BLE001  A plugin's object may raise while it is read.
        return ["failed", "output_invalid", _sentence(error)]


def _method(code: CodeType, name: str) -> Callable[[Context, object], object]:
    """Execute the module and find a function that `@method` marked."""
    module: ModuleType = type(sys)(PLUGIN_MODULE)
    # Classes made by the plugin look their module up by name.
    sys.modules[PLUGIN_MODULE] = module
    module.__dict__["__builtins__"] = builtins
    exec(code, module.__dict__)  # noqa: S102  Running it is what the whole jail is for.
    function = module.__dict__.get(name)
    if function is None or not hasattr(function, OPTIONS_ATTRIBUTE):
        raise InvalidInput(f"the module has no @method named {name}")
    found: Callable[[Context, object], object] = function
    return found


def _argument(function: Callable[..., object], payload: object) -> object:
    """The payload as the function's second parameter is annotated: payload, struct or value."""
    names = function.__code__.co_varnames[:2]
    wanted = function.__annotations__.get(names[-1])
    if isinstance(wanted, str):
        wanted = eval(wanted, function.__globals__)  # noqa: S307  The plugin's own annotation.
    if wanted is None or wanted in KINDS.values():
        return payload
    value = payload.text if isinstance(payload, TextPayload) else payload
    value = payload.data if isinstance(payload, JSONPayload) else value
    if not hasattr(wanted, "__struct_fields__"):
        return value
    msgspec = sys.modules["msgspec"]
    try:
        return msgspec.convert(value, wanted)
    except msgspec.ValidationError as error:
        raise InvalidInput(str(error)) from None


def _payload(result: object, output_kind: str) -> dict[str, object]:
    """A method's result as the wire's map."""
    if output_kind == "text" and isinstance(result, str):
        result = TextPayload(result)
    if isinstance(result, TextPayload):
        return {"type": "text", "text": result.text, "media_type": result.media_type}
    if isinstance(result, BinaryRefPayload):
        names = BinaryRefPayload.__slots__
        return {"type": "binary_ref"} | {name: getattr(result, name) for name in names}
    if isinstance(result, DatasetSlicePayload):
        return {"type": "dataset_slice", "dataset_id": result.dataset_id, "keys": result.keys}
    document = result if isinstance(result, JSONPayload) else JSONPayload(result)
    data, msgspec = document.data, sys.modules.get("msgspec")
    if msgspec is not None:
        data = msgspec.to_builtins(data)
    return {"type": "json", "data": canonical_json(data), "schema": document.schema}


def _progress(fraction: float, note: str) -> None:
    _send(pack(["progress", max(0, min(1000, int(fraction * 1000))), note]))


def _sentence(error: BaseException) -> str:
    """The class and the text of an exception, shortened; hostile like everything from here."""
    try:
        return f"{type(error).__name__}: {error}"[:1024]
    except Exception:  # noqa: BLE001  A hostile __str__; the class name alone must do.
        return type(error).__name__[:256]


def _receive() -> bytes:
    """One length-prefixed message from the supervisor, which is trusted."""
    data = os.read(JOB, _READ_BYTES)
    size = int.from_bytes(data[:4], "big")
    parts, missing = [data[4:]], size + 4 - len(data)
    while missing > 0 and data:
        data = os.read(JOB, missing)
        parts.append(data)
        missing -= len(data)
    if missing:
        # The supervisor closed the socket: there will be no job.
        os._exit(0)
    return b"".join(parts) if len(parts) > 1 else parts[0]


def _send(frame: bytes) -> None:
    """Write one length-prefixed frame."""
    data = len(frame).to_bytes(4, "big") + frame
    while data:
        data = data[os.write(JOB, data) :]
