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
from sandbox_worker.encode import canonical_json, framed, pack
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
    from collections.abc import Callable, Mapping, Sequence
    from types import CodeType, ModuleType
    from typing import Any

    from sandbox_worker.printing import Printer

MARSHAL_VERSION = 0
"""Without interning: a table of all names of the interpreter would be copied for a handful."""

PLUGIN_MODULE = "plugin"
_BUILTINS = vars(builtins)
_PAYLOADS = frozenset(KINDS.values())
_PLAIN = frozenset((dict, list, str, int, float, bool, type(None)))
"""Types of results that are JSON and nothing else, unless the method gives text."""

_JSON_REPLY = b"\x92\xa6result\x83\xa4type\xa4json\xa4data\xc6"
_SCHEMA, _NO_SCHEMA = b"\xa6schema", b"\xa6schema\xc0"
"""`["result", {"type": "json", "data": ..., "schema": ...}]` in msgpack, around its values."""

_JSON_OVERHEAD = len(_JSON_REPLY) + 4
_joined = b"".join

WARM_ROUNDS = 16
_WARM_SOURCE = """
from __future__ import annotations
from sandbox_worker.sdk import Context, JSONPayload, TextPayload, method
@method()
def text(ctx: Context, text: TextPayload):
    return {"a": [1, 1.5, None, text.text], "b": {}}
@method()
def document(ctx: Context, document: JSONPayload) -> JSONPayload:
    return document
"""

_PRACTICE: list[Any] = []
"""The last job that was served to warm up, and a plugin that has served none."""

_AT_HAND = {name: sys.modules[name] for name in ("__future__", "sandbox_worker.sdk")}
_import_any = builtins.__import__
_loads = marshal.loads  # What it reads is the supervisor's, which is trusted.


class Plugin:
    """What the zygote made of a plugin, up to the point where its own code would run.

    Attributes:
        code: the module's code.
        names: those of the module that it will run in.
        context: what the method gets, but for what differs from call to call.
        reseed: makes `random` start anew, where entropy is not granted.
        heard: whether an audit hook notices what is denied.
        printer: takes what the plugin prints, where anybody reads it.
    """

    __slots__ = ("code", "context", "heard", "names", "printer", "reseed", "to_builtins")

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
        # Classes that the plugin makes look their module up by its name.
        module = sys.modules[PLUGIN_MODULE] = type(sys)(PLUGIN_MODULE)
        self.names = module.__dict__
        self.names["__builtins__"] = builtins
        self.to_builtins: Callable[[object], object] | None = getattr(
            sys.modules.get("msgspec"), "to_builtins", None
        )


def import_quickly() -> None:
    """Have this process import what nearly every plugin imports without a search."""
    _BUILTINS["__import__"] = _import


def _import(
    name: str,
    globals: Mapping[str, object] | None = None,  # noqa: A002  As the function it stands for.
    locals: Mapping[str, object] | None = None,  # noqa: A002  As above.
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> ModuleType:
    if fromlist and name in _AT_HAND:
        return _AT_HAND[name]
    return _import_any(name, globals, locals, fromlist, level)


def warm_up() -> None:
    """Serve a module of our own a few times, in the zygote, before anything is forked.

    The interpreter makes types ready, fills caches and rewrites code when something first runs.
    What is left undone here is done again, page by copied page, in every call process.
    """
    code = compile(_WARM_SOURCE, "warm", "exec", dont_inherit=True)
    environment: dict[str, str] = {}
    jobs: tuple[tuple[str, str, tuple[str | dict[str, list[int]] | None, ...]], ...] = (
        ("text", "text", ("", "text/plain")), ("document", "json", ({"a": [1, True]}, None)),
    )  # fmt: skip
    for name, kind, fields in jobs * WARM_ROUNDS:
        job = ("run", "", name, kind, fields, "json", environment, ())
        _PRACTICE[:] = marshal.dumps(job, MARSHAL_VERSION), Plugin(code, {}, None, None)
        practise()
    _PRACTICE[1] = Plugin(code, {}, None, None)


def practise() -> None:
    """Serve our own module once more: a call process does, to have its pages beforehand."""
    reply(*_PRACTICE)
    # What it made goes, and its place is there for what the plugin will make.
    _PRACTICE[1].names.clear()


def reply(job: bytes, plugin: Plugin) -> bytes:
    """The frame that answers one job."""
    order = _loads(job)
    if order[0] == "probe":
        return framed(pack(["probed", probes.run(order[1])]))
    if plugin.reseed is not None:
        plugin.reseed()
    if plugin.heard:
        denials.listen()
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
        return framed(pack(end))
    except (TypeError, ValueError, AttributeError):
        # The text of a failure that is no UTF-8 is told in ASCII.
        return framed(pack(["failed", end[1], ascii(end[2])[:256]]))


def _run(
    plugin: Plugin, context: Context, payload: object, output_kind: str
) -> bytes | list[object]:
    """Load the module, run the method, and say how it ended: packed, or a failure's values."""
    names = plugin.names
    try:
        exec(plugin.code, names)  # noqa: S102  Running it is what the whole jail is for.
        if context.method not in names or not hasattr(names[context.method], OPTIONS_ATTRIBUTE):
            return ["failed", "plugin_load_failed", f"no @method is named {context.method}"]
    except MemoryError:
        raise
    except BaseException as error:  # noqa: BLE001  Plugin code may raise anything.
        return _failed(plugin, "plugin_load_failed", error)
    try:
        function = names[context.method]
        result = function(context, _argument(function, payload, names))
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


def _argument(
    function: Callable[..., object], payload: object, names: dict[str, object]
) -> object:
    """The payload as the function's second parameter is annotated: payload, struct or value."""
    wanted: object = None
    annotations = function.__annotations__
    for name in annotations:
        if name != "return":
            wanted = annotations[name]
    if type(wanted) is str:
        if wanted in names:
            wanted = names[wanted]
        elif wanted in _BUILTINS:
            wanted = _BUILTINS[wanted]
        else:
            wanted = eval(wanted, names)  # noqa: S307  The plugin's own annotation.
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
    named = _NO_SCHEMA if schema is None else _SCHEMA + pack(schema)
    size = len(data)
    head = (size + _JSON_OVERHEAD + len(named)).to_bytes(4, "big")
    return _joined((head, _JSON_REPLY, size.to_bytes(4, "big"), data, named))


def _other_result(result: TextPayload | BinaryRefPayload | DatasetSlicePayload) -> bytes:
    kind = next(name for name, one in KINDS.items() if isinstance(result, one))
    fields = {name: getattr(result, name) for name in KINDS[kind].__slots__}
    return framed(pack(["result", {"type": kind} | fields]))


def _sentence(error: BaseException) -> str:
    """The class and the text of an exception, shortened; hostile like everything from here."""
    try:
        return f"{type(error).__name__}: {error}"[:1024]
    except Exception:  # noqa: BLE001  A hostile __str__; the class name alone must do.
        return type(error).__name__[:256]
