"""What in a plugin's source the sandbox will deny, with its line and what to write instead.

It reads names and believes them: `clock = time.time; clock()` is not seen, and the sandbox does not
depend on it. So what is found is a note and never a refusal.

Rules this file keeps: pure; a class that a capability of the plugin covers is no note. It leaves
what is really denied to the kernel, and the classes to `schemas.denials`.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator
from typing import Final, NamedTuple

from schemas.modules import FREE_MODULES, VETTED_MODULES


class Hazard(NamedTuple):
    """One place: its class (of `schemas.denials`, or `print`), line, name, and what to write."""

    kind: str
    line: int
    name: str
    instead: str


INSTEAD: Final[dict[str, str]] = {
    "clock": 'take the time as input, or write in plugin.toml: capabilities = ["clock.read"]',
    "environment": 'write in plugin.toml: capabilities = ["env.read:NAME"], and in plugin.py: '
                   'context.env["NAME"]',
    "file": 'put the file beside plugin.py and write in plugin.toml: resources = ["FILE"], and in '
            'plugin.py: context.resource("FILE")',
    "module": "do without it, or ask an operator to approve it in policy.toml: [modules.allowed] "
              '"PLUGIN" = ["MODULE"]',
    "print": "print reaches nobody in production: return it, or write context.progress(0.5, text)",
    "process": "nothing starts processes here: do it in Python, in this method",
    "random": 'write random.Random(0), or in plugin.toml: capabilities = ["random.read"]',
    "socket": "nothing connects here: take what you would fetch as the method's input",
    "thread": "nothing starts threads here: call the function itself; calls run side by side",
}
"""What to write, by class."""

_NAMES: Final[dict[str, str]] = {
    "open": "file", "io.open": "file", "os.open": "file", "os.listdir": "file",
    "pathlib.Path": "file", "input": "file",
    "time.time": "clock", "time.monotonic": "clock", "time.perf_counter": "clock",
    "time.sleep": "clock", "time.localtime": "clock", "datetime.datetime.now": "clock",
    "datetime.datetime.utcnow": "clock", "datetime.datetime.today": "clock",
    "datetime.date.today": "clock",
    "os.environ": "environment", "os.getenv": "environment",
    "os.system": "process", "os.fork": "process", "os.urandom": "random",
    "random.SystemRandom": "random", "uuid.uuid4": "random", "uuid.uuid1": "random",
    "print": "print",
}
_MODULES: Final[dict[str, str]] = {
    "socket": "socket", "ssl": "socket", "http.client": "socket", "urllib.request": "socket",
    "requests": "socket", "httpx": "socket",
    "threading": "thread", "_thread": "thread", "concurrent.futures": "thread",
    "multiprocessing": "process", "subprocess": "process", "secrets": "random",
}
_TAKEN: Final = VETTED_MODULES | FREE_MODULES
_COVERS: Final = {"clock": "clock.read", "random": "random.read", "environment": "env.read:",
                  "file": "fs.read:"}


def hazards(source: str, capabilities: Collection[str]) -> list[Hazard]:
    """Find what the sandbox will deny, in the order of lines.

    Args:
        source: the text of plugin.py; text that does not compile has none.
        capabilities: what the plugin asks for.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return []
    covered = {
        kind for kind, name in _COVERS.items()
        if any(one.startswith(name) for one in capabilities)
    }
    aliases = dict(_aliases(tree))
    found = {
        Hazard(kind, line, name, INSTEAD[kind])
        for kind, line, name in _found(tree, aliases) if kind not in covered
    }
    return sorted(found, key=lambda one: (one.line, one.name))


def _found(tree: ast.AST, aliases: dict[str, str]) -> Iterator[tuple[str, int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                full = f"{module}.{alias.name}" if module else alias.name
                known = [name for name in (module, full) if name in _MODULES]
                for name in known:
                    yield _MODULES[name], node.lineno, f"import {name}"
                if not known and _TAKEN.isdisjoint((module, full)):
                    yield "module", node.lineno, f"import {module or full}"
        elif isinstance(node, ast.Name | ast.Attribute):
            full = _dotted(node, aliases)
            if full in _NAMES:
                yield _NAMES[full], node.lineno, full


def _aliases(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Say for each name that an import binds what it stands for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.asname, alias.name) for alias in node.names if alias.asname)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def _dotted(node: ast.expr, aliases: dict[str, str]) -> str:
    if isinstance(node, ast.Name):
        return aliases.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value, aliases)}.{node.attr}"
    return ""
