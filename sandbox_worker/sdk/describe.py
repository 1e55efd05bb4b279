"""What a plugin's source promises, as JSON: `python -m sandbox_worker.sdk.describe plugin.py`.

It imports the source, so it runs the author's own code on the author's machine; no gateway ever
calls it. It prints one object: `methods` (name to input, output and options), `modules` (what the
source imports and a manifest must name) and `problems`, each with `where`, `found` and `expected`.
Each mistake is found for itself, so that an author sees all of them.

It leaves the manifest, its limits and its signature to `omega-plugin pack`.
"""

from __future__ import annotations

import ast
import inspect
import sys
import time
import types
import typing
from collections.abc import Callable, Iterator

import msgspec

from sandbox_worker.sdk.api import OPTIONS_ATTRIBUTE, Context, MethodOptions
from sandbox_worker.sdk.payloads import KINDS
from schemas.modules import FREE_MODULES, VETTED_MODULES

PLUGIN_MODULE = "plugin"
SLOW_US = 5_000
_UNFINISHED = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
_ANY_JSON: dict[str, object] = {"description": "Any JSON value."}


class Side(msgspec.Struct, omit_defaults=True):
    """What a method takes or gives; `schema` is None where plugin.toml has to name one."""

    kind: str
    schema: dict[str, object] | None = None


class Described(msgspec.Struct):
    """One method. `timeout_ms` None means that the source does not say."""

    input: Side
    output: Side
    deterministic: bool
    timeout_ms: int | None
    idempotent: bool


class Mistake(msgspec.Struct):
    """One thing an author has to change."""

    where: str
    found: str
    expected: str


class Description(msgspec.Struct):
    """The whole answer. `top_level_us` is the processor time of the top level, which each call
    pays."""

    methods: dict[str, Described] = {}
    modules: list[str] = []
    problems: list[Mistake] = []
    top_level_us: int = 0


def describe(source: str, name: str = "plugin.py") -> Description:
    """Describe a plugin's source by importing it.

    Args:
        source: the text of the file.
        name: what to call the file in problems.
    """
    answer = Description()
    try:
        tree = ast.parse(source, name)
    except (SyntaxError, ValueError) as error:
        # A zero byte has no line, and is a ValueError in some releases.
        line = error.lineno if isinstance(error, SyntaxError) else None
        found = error.msg if isinstance(error, SyntaxError) else str(error)
        where = f"{name} line {line}" if line else name
        answer.problems.append(Mistake(where, found, "Python that compiles"))
        return answer
    answer.modules = sorted({found for found, _ in _imports(tree)} - FREE_MODULES)
    module = types.ModuleType(PLUGIN_MODULE)
    # Structs look their module up by name when annotations are resolved.
    sys.modules[PLUGIN_MODULE] = module
    try:
        code = compile(tree, name, "exec", dont_inherit=True)
        took_us = _timed(code, module)
        if took_us > SLOW_US:
            # Only the first time also pays for what it imports, which a call does not.
            took_us = _timed(code, types.ModuleType(PLUGIN_MODULE))
    except Exception as error:  # noqa: BLE001  Whatever it is, it is the answer.
        where = f"{name} line {_line_of(error, name)}"
        found, expected = f"{type(error).__name__}: {error}", "a module that can be imported"
        if "method() takes 0 positional arguments" in found:
            found, expected = "no parentheses behind @method", "@method()"
        elif isinstance(error, ImportError):
            expected = "plugin.py alone, and modules that are installed where this command runs"
        answer.problems.append(Mistake(where, found, expected))
        return answer
    for attribute, function in vars(module).items():
        options = getattr(function, OPTIONS_ATTRIBUTE, None)
        if isinstance(options, MethodOptions):
            _describe_method(attribute, function, options, answer)
    if not answer.methods and not answer.problems:
        answer.problems += _undecorated(tree, name) or [
            Mistake(name, "no method", "a function below @method(), from sandbox_worker.sdk")
        ]
    answer.top_level_us = took_us
    return answer


def _timed(code: types.CodeType, module: types.ModuleType) -> int:
    """Run a module's code and give the processor time it took, in us."""
    begin = time.process_time_ns()
    exec(code, module.__dict__)  # noqa: S102  The author's own code.
    return (time.process_time_ns() - begin) // 1000


def _undecorated(tree: ast.Module, name: str) -> list[Mistake]:
    """Name the functions that look like methods: public, with a Context first."""
    return [
        Mistake(f"{name} line {node.lineno}", f"{node.name}() without a decorator",
                "@method() on the line above it, from sandbox_worker.sdk")
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
        and not node.decorator_list and node.args.args
        and "Context" in ast.unparse(node.args.args[0])
    ]


def _describe_method(
    name: str, function: Callable[..., object], options: MethodOptions, answer: Description
) -> None:
    where = f"{name}()"
    code = function.__code__
    parameters = code.co_varnames[: code.co_argcount]
    if code.co_flags & _UNFINISHED:
        found = "a generator" if code.co_flags & inspect.CO_GENERATOR else "an async function"
        answer.problems.append(
            Mistake(where, found, "a plain function that returns its whole answer")
        )
        return
    if len(parameters) != 2 or code.co_kwonlyargcount or code.co_flags & 0x0C:
        answer.problems.append(Mistake(
            where, f"parameters ({', '.join(parameters)})", "(context: Context, input: TYPE)",
        ))
        return
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception as error:  # noqa: BLE001  An annotation may be any expression.
        answer.problems.append(Mistake(where, f"{error}", "annotations that can be resolved"))
        return
    if hints.get(parameters[0], Context) is not Context:
        answer.problems.append(
            Mistake(f"{where} {parameters[0]}", f"{hints[parameters[0]]}", "Context")
        )
    sides = [
        _side(hints, parameters[1], f"{where} {parameters[1]}", answer),
        _side(hints, "return", f"{where} return", answer),
    ]
    if sides[0] is not None and sides[1] is not None:
        answer.methods[name] = Described(
            sides[0], sides[1], options.deterministic, options.timeout_ms, options.idempotent
        )


def _side(
    hints: dict[str, object], name: str, where: str, answer: Description
) -> Side | None:
    """Turn one annotation into a payload kind and, for JSON, a schema."""
    if name not in hints:
        answer.problems.append(Mistake(where, "no annotation", "a payload type or a Struct"))
        return None
    wanted = hints[name]
    if wanted is str:
        return Side("text")
    for kind, payload in KINDS.items():
        if wanted is payload:
            return Side(kind)
    try:
        schema = msgspec.json.schema(wanted, schema_hook=_any_json)
    except (TypeError, RecursionError) as error:
        answer.problems.append(
            Mistake(where, str(error).partition("\n")[0], "a payload type or a Struct")
        )
        return None
    _strip_discriminators(schema)
    return Side("json", schema)


def _any_json(wanted: type) -> dict[str, object]:
    """`object` stands for any JSON value; nothing else is a type of JSON's."""
    if wanted is object:
        return _ANY_JSON
    raise TypeError(f"{wanted} has no JSON form")


def _strip_discriminators(schema: object) -> None:
    """Drop a keyword of OpenAPI that JSON Schema does not have."""
    if isinstance(schema, dict):
        schema.pop("discriminator", None)
        for part in schema.values():
            _strip_discriminators(part)
    elif isinstance(schema, list):
        for part in schema:
            _strip_discriminators(part)


def _imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Name every imported module with its line, also those inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom) and not node.level:
            module = node.module or "."
            for alias in node.names:
                # `from urllib import parse` is the module urllib.parse.
                full = f"{module}.{alias.name}"
                yield full if full in VETTED_MODULES else module, node.lineno


def _line_of(error: BaseException, name: str) -> int:
    """Find the last line of the plugin's own file in a traceback."""
    line, step = 0, error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename == name:
            line = step.tb_lineno
        step = step.tb_next
    return line


def main() -> None:
    """Describe the file that the one argument names."""
    with open(sys.argv[1], "rb") as file:
        data = file.read()
    # The plugin's own prints must not mix with the answer.
    answer_to, sys.stdout = sys.stdout, sys.stderr
    try:
        answer = describe(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        where = f"plugin.py line {data.count(10, 0, error.start) + 1}"
        answer = Description(problems=[Mistake(where, f"{error.reason}", "UTF-8 text")])
    answer_to.write(msgspec.json.encode(answer).decode() + "\n")


if __name__ == "__main__":
    main()
