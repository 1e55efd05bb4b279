"""One job in a call process: load the plugin, run one method, write what it gave as a reply.

It runs when the jail is closed, next to code that may rewrite all of it, so nothing here protects
anybody: a call process is trusted with nothing, and the supervisor reads its reply as hostile.

Rules: what the zygote can make once is made there, because an object that is written to here, and
counting a reference writes, is a page copied in every call. That is why exact types are looked
for before subclasses, names before expressions, and why the common replies are joined from bytes.
It leaves limits, deadlines and the judgement of replies to the supervisor.
"""

from __future__ import annotations

import builtins
import marshal
import sys

from sandbox_worker import denials, probes
from sandbox_worker.encode import canonical_json, pack
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
    from types import CodeType

    from sandbox_worker.printing import Printer

MARSHAL_VERSION = 0
"""Without interning: a table of all names of the interpreter would be copied for a handful."""

PLUGIN_MODULE = "plugin"
_BUILTINS = vars(builtins)
_PAYLOADS = frozenset(KINDS.values())
_PLAIN = frozenset((dict, list, str, int, float, bool, type(None)))
"""Types of results that are JSON and nothing else, unless the method gives text."""

_JSON_REPLY, _SCHEMA = b"\x92\xa6result\x83\xa4type\xa4json\xa4data\xc6", b"\xa6schema"
"""`["result", {"type": "json", "data": ..., "schema": ...}]` in msgpack, around its values."""

WARM_ROUNDS = 16
_WARM_SOURCE = """
from __future__ import annotations
from sandbox_worker.sdk import Context, TextPayload, method
@method()
def warm(ctx: Context, text: TextPayload):
    return {"a": [1, 1.5, None, text.text], "b": {}}
"""

_loads = marshal.loads  # What it reads is the supervisor's, which is trusted.
_module = type(sys)


class Plugin:
    """What the zygote made of a plugin, up to the point where its own code would run.

    Attributes:
        code: the module's code.
        module: the module it will run in; classes made by the plugin look it up by name.
        context: what the method gets, but for what differs from call to call.
        reseed: makes `random` start anew, where entropy is not granted.
        heard: whether an audit hook notices what is denied.
        printer: takes what the plugin prints, where anybody reads it.
    """

    __slots__ = ("code", "context", "heard", "module", "printer", "reseed", "to_builtins")

    def __init__(
        self,
        code: CodeType,
        resources: dict[str, bytes],
        reseed: Callable[[], object] | None,
        progress: Callable[[float, str], object] | None,
        *,
        printer: Printer | None = None,
        heard: bool = False,
    ) -> None:
        """Hold code and resources, and make module and context."""
        self.code = code
        self.reseed = reseed
        self.heard = heard
        self.printer = printer
        self.context = Context(
            env=denials.NOTHING, resources=resources, progress=progress,
            log=None if printer is None else printer.log,
        )  # fmt: skip
        self.module = sys.modules[PLUGIN_MODULE] = _module(PLUGIN_MODULE)
        self.module.__dict__["__builtins__"] = builtins
        self.to_builtins: Callable[[object], object] | None = getattr(
            sys.modules.get("msgspec"), "to_builtins", None
        )


def warm_up() -> None:
    """Serve a module of our own a few times, in the zygote, before anything is forked.

    The interpreter makes types ready, fills caches and rewrites code when something first runs.
    What is left undone here is done again, page by copied page, in every call process.
    """
    code = compile(_WARM_SOURCE, "warm", "exec", dont_inherit=True)
    environment: dict[str, str] = {}
    job = ("run", "", "warm", "text", ("", "text/plain"), "json", environment, ())
    for _ in range(WARM_ROUNDS):
        reply(marshal.dumps(job, MARSHAL_VERSION), Plugin(code, {}, None, None))


def reply(job: bytes, plugin: Plugin) -> bytes:
    """The reply to one job, as msgpack."""
    order = _loads(job)
    if order[0] == "probe":
        return pack(["probed", probes.run(order[1])])
    _, request_id, name, kind, fields, output_kind, env, handed = order
    context = plugin.context
    context.request_id, context.method = request_id, name
    if env:
        context.env = denials.Environment(env)
    if handed:
        context.hand(handed)
    end = _run(plugin, context, KINDS[kind](*fields), output_kind)
    if isinstance(end, bytes):
        return end
    if denials.last:
        end.append(denials.last)
    try:
        return pack(end)
    except (TypeError, ValueError, AttributeError) as error:
        return pack(["failed", "output_invalid", ascii(error)[:256]])


def _run(
    plugin: Plugin, context: Context, payload: object, output_kind: str
) -> bytes | list[object]:
    """Load the module, run the method, and say how it ended: packed, or a failure's values."""
    try:
        function = _method(plugin, context.method)
    except MemoryError:
        raise
    except BaseException as error:  # noqa: BLE001  Plugin code may raise anything.
        return _failed(plugin, "plugin_load_failed", error)
    try:
        result = function(context, _argument(function, payload, plugin.module.__dict__))
    except MemoryError:
        raise
    except InvalidInput as error:
        return ["failed", "invalid_input", str(error)]
    except CannotAnswer as error:
        return ["failed", "cannot_answer", str(error)]
    except BaseException as error:  # noqa: BLE001  As above.
        return _failed(plugin, "plugin_error", error)
    try:
        return _result(result, output_kind, plugin)
    except MemoryError:
        raise
    except BaseException as error:  # noqa: BLE001  A plugin's object may raise while it is read.
        return _failed(plugin, "output_invalid", error)


def _failed(plugin: Plugin, code: str, error: BaseException) -> list[object]:
    if plugin.printer is not None:
        plugin.printer.show(error)
    return ["failed", code, _sentence(error)]


def _method(plugin: Plugin, name: str) -> Callable[[Context, object], object]:
    """Execute the module and find a function that `@method` marked."""
    names = plugin.module.__dict__
    exec(plugin.code, names)  # noqa: S102  Running it is what the whole jail is for.
    function = names.get(name)
    if function is None or not hasattr(function, OPTIONS_ATTRIBUTE):
        raise InvalidInput(f"the module has no @method named {name}")
    found: Callable[[Context, object], object] = function
    return found


def _argument(
    function: Callable[..., object], payload: object, names: dict[str, object]
) -> object:
    """The payload as the function's second parameter is annotated: payload, struct or value."""
    wanted: object = None
    for name, annotation in function.__annotations__.items():
        if name != "return":
            wanted = annotation
    if type(wanted) is str:
        found = names.get(wanted) or _BUILTINS.get(wanted)
        wanted = eval(wanted, names) if found is None else found  # noqa: S307  The plugin's own.
    # With one annotation it may be the context's.
    if wanted is type(payload) or wanted is None or wanted is Context or wanted in _PAYLOADS:
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


def _result(result: object, output_kind: str, plugin: Plugin) -> bytes:
    """A method's result as the frame that says so; the supervisor holds it against the manifest."""
    schema = None
    if type(result) not in _PLAIN or output_kind == "text":
        if isinstance(result, str) and output_kind == "text":
            result = TextPayload(result)
        if isinstance(result, JSONPayload):
            schema, result = result.schema, result.data
        elif isinstance(result, (TextPayload, BinaryRefPayload, DatasetSlicePayload)):
            return _other_result(result)
    if plugin.to_builtins is not None:
        result = plugin.to_builtins(result)
    data = canonical_json(result)
    size = len(data).to_bytes(4, "big")
    return b"".join((_JSON_REPLY, size, data, _SCHEMA, b"\xc0" if schema is None else pack(schema)))


def _other_result(result: TextPayload | BinaryRefPayload | DatasetSlicePayload) -> bytes:
    kind = next(name for name, one in KINDS.items() if isinstance(result, one))
    fields = {name: getattr(result, name) for name in KINDS[kind].__slots__}
    return pack(["result", {"type": kind} | fields])


def _sentence(error: BaseException) -> str:
    """The class and the text of an exception, shortened; hostile like everything from here."""
    try:
        return f"{type(error).__name__}: {error}"[:1024]
    except Exception:  # noqa: BLE001  A hostile __str__; the class name alone must do.
        return type(error).__name__[:256]
