"""Write the pages of docs/reference from the code, or check that they are fresh.

`python -m scripts.generate_docs_reference --rewrite` writes; alone it compares and exits 1 on a
difference. Commands and options come from click, fields from the structs that read the files, their
sentences from the docstrings' `Attributes`; a field without a sentence is an error. Nothing here is
written by hand, so nothing in those pages is either.
"""

from __future__ import annotations

import inspect as python_inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
import msgspec
from msgspec import inspect

from broker.authoring.main import main as plugin_command
from broker.authoring.source import PluginSource
from broker.cli.main import gateway as gateway_command
from broker.client import AdminClient, Call, OmegaClient, PipelineResult, Result
from broker.client_async import AsyncOmegaClient
from broker.client_errors import (
    GatewayError,
    LedgerForked,
    NotAuthorised,
    Refused,
    TimedOut,
    Unreachable,
)
from broker.client_fake import AsyncFakeOmegaClient, FakeOmegaClient
from broker.config import GatewayConfig
from broker.keys import KeyFileRefused
from sandbox_worker import sdk
from schemas import messages, payloads
from schemas.canonical import InvalidJson
from schemas.policy import Policy
from scripts.wire_types import bounds_of

ROOT: Final = Path(__file__).resolve().parent.parent
FOLDER: Final = ROOT / "docs" / "reference"
CHOICES_MAX: Final = 6
_ATTRIBUTE: Final = re.compile(r"^    (\w+): (.*?)(?=^    \w+: |\Z)", re.MULTILINE | re.DOTALL)
_GENERATED: Final = "Written from the code by `python -m scripts.generate_docs_reference`."
_LIBRARY: Final[dict[str, tuple[type, ...]]] = {
    "Clients": (OmegaClient, AsyncOmegaClient, AdminClient),
    "What calls give": (Call, Result, PipelineResult),
    "What is raised": (
        GatewayError, Refused, Unreachable, NotAuthorised, TimedOut, LedgerForked, KeyFileRefused,
        InvalidJson,
    ),
    "Payloads, from `schemas.payloads`": (
        payloads.TextPayload, payloads.JSONPayload, payloads.BinaryRefPayload,
        payloads.DatasetSlicePayload,
    ),
    "Pipelines, from `schemas.messages`": (
        messages.Step, messages.StepOutput, messages.Budget, messages.StepResult,
    ),
    "Parts of answers, from `schemas.messages`": (
        messages.Receipt, messages.Usage, messages.Progress, messages.Refusal, messages.Cancelled,
        messages.RequestStory, messages.StatusReport, messages.Head, messages.Proof,
        messages.Consistency, messages.Plugins, messages.PluginEntry, messages.Plugin,
        messages.VersionEntry,
    ),
    "For tests, from `broker.client_fake`": (FakeOmegaClient, AsyncFakeOmegaClient),
}


# --- command lines ---


def commands(name: str, root: click.Command, about: str) -> str:
    """Give the page of one program: every command with its arguments and options."""
    lines = [f"# `{name}`", "", about, "", _GENERATED, ""]
    for path, command in _walk(root, (name,)):
        context = click.Context(command, info_name=" ".join(path))
        lines += [f"## `{' '.join(path)}`" if len(path) > 1 else "## All commands", ""]
        lines += _help(command)
        if isinstance(command, click.Group):
            lines += [f"- `{one}`" for one in command.list_commands(context)] + [""]
            continue
        usage = " ".join((*path, *command.collect_usage_pieces(context)))
        lines += ["```", usage, "```", "", *_options(command, context)]
    return "\n".join(lines).rstrip() + "\n"


def _walk(
    command: click.Command, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=path[-1])
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            if found is not None:
                yield from _walk(found, (*path, name))


def _help(command: click.Command) -> list[str]:
    text = python_inspect.cleandoc(command.help or "").replace("\b\n", "")
    return [*text.split("\n"), ""]


def _options(command: click.Command, context: click.Context) -> list[str]:
    rows = [
        record for parameter in command.params
        if isinstance(parameter, click.Option)
        and (record := parameter.get_help_record(context)) is not None
    ]
    if not rows:
        return []
    return ["| option | |", "|---|---|",
            *(f"| `{_cell(option)}` | {_cell(words)} |" for option, words in rows), ""]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


# --- files ---


def settings(title: str, about: str, root: type[msgspec.Struct]) -> str:
    """Give the page of one TOML file: every table and line with type, bounds and default."""
    lines = [f"# {title}", "", about, "", _GENERATED, ""]
    for name, cls in _tables(root, ""):
        lines += [f"## `[{name}]`" if name else "## At the top", "", *_sentences(cls), ""]
        lines += ["| line | type | default | |", "|---|---|---|---|"]
        told = attributes(cls)
        for field in inspect.type_info(cls).fields:
            if _inner(field.type) is not None:
                continue
            if field.encode_name not in told:
                sys.exit(f"{cls.__name__}.{field.name} has no sentence under Attributes")
            lines.append(f"| `{field.encode_name}` | {_kind(field.type)} | {_default(field)} "
                         f"| {_cell(told[field.encode_name])} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _tables(
    cls: type[msgspec.Struct], name: str
) -> Iterator[tuple[str, type[msgspec.Struct]]]:
    yield name, cls
    for field in inspect.type_info(cls).fields:
        inner = _inner(field.type)
        if inner is not None:
            keyed = isinstance(_bare(field.type), inspect.DictType)
            own = f"{field.encode_name}.NAME" if keyed else field.encode_name
            yield from _tables(inner, f"{name}.{own}" if name else own)


def _bare(kind: inspect.Type) -> inspect.Type:
    return kind.type if isinstance(kind, inspect.Metadata) else kind


def _inner(kind: inspect.Type) -> type[msgspec.Struct] | None:
    """The struct of a table, or of each table beneath one."""
    kind = _bare(kind)
    if isinstance(kind, inspect.DictType):
        kind = _bare(kind.value_type)
    return kind.cls if isinstance(kind, inspect.StructType) else None


def _sentences(cls: type[msgspec.Struct]) -> list[str]:
    text = python_inspect.cleandoc(cls.__doc__ or "")
    return text.partition("\nAttributes:\n")[0].rstrip().split("\n")


def attributes(cls: type) -> dict[str, str]:
    """Give the sentences under `Attributes` of a class and those it comes from, by name."""
    found: dict[str, str] = {}
    for one in reversed(cls.__mro__):
        text = python_inspect.cleandoc(one.__doc__ or "").partition("\nAttributes:\n")[2]
        found |= {match[1]: " ".join(match[2].split()) for match in _ATTRIBUTE.finditer(text)}
    return found


def _kind(kind: inspect.Type) -> str:
    kind = _bare(kind)
    words = {
        inspect.IntType: "integer", inspect.StrType: "text", inspect.BoolType: "true or false",
        inspect.NoneType: "nothing", inspect.BytesType: "bytes",
    }.get(type(kind), "")
    if isinstance(kind, inspect.StructType | inspect.EnumType):
        words = f"`{kind.cls.__name__}`"
    if isinstance(kind, inspect.LiteralType):
        words = " or ".join(f"`{value}`" for value in kind.values)
        if len(kind.values) > CHOICES_MAX:
            words = f"one of {len(kind.values)} words that [the wire](../WIRE.md) lists"
    elif isinstance(kind, inspect.VarTupleType):
        words = f"list of {_kind(kind.item_type)}"
    elif isinstance(kind, inspect.DictType):
        words = f"table of {_kind(kind.value_type)}"
    elif isinstance(kind, inspect.UnionType):
        words = " or ".join(_kind(one) for one in kind.types
                            if not isinstance(one, inspect.NoneType))
    if not words:
        sys.exit(f"there are no words for {kind}")
    return _cell((isinstance(kind, inspect.IntType) and bounds_of(kind)) or words)


def _default(field: inspect.Field) -> str:
    if field.required:
        return "required"
    value = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
    written = {True: "true", False: "false", None: "none"}.get(value) if isinstance(
        value, bool | None) else None
    return f"`{written}`" if written else f"`{value!r}`" if value else "none"


# --- the SDK ---


def kit() -> str:
    """Give the page of what plugins import."""
    lines = ["# The SDK", "", "`from sandbox_worker.sdk import …`: what a plugin is written with.",
             "", _GENERATED, ""]
    for name in sorted(sdk.__all__):
        thing = getattr(sdk, name)
        lines += [f"## `{name}`", ""]
        if isinstance(thing, type):
            lines += _class(name, thing)
        else:
            lines += [*_signature(name, thing), *_prose(thing)]
    return "\n".join(lines).rstrip() + "\n"


def _class(name: str, cls: type) -> list[str]:
    lines = _prose(cls)
    if issubclass(cls, msgspec.Struct):
        lines += ["| field | type | default |", "|---|---|---|", *(
            f"| `{field.name}` | {_kind(field.type)} | {_default(field)} |"
            for field in inspect.type_info(cls).fields
        ), ""]
    elif not issubclass(cls, Exception):
        lines = [*_signature(name, cls), *lines]
    for attribute, member in _members(cls):
        if isinstance(member, property):
            lines += [f"### `.{attribute}`", "", *_prose(member)]
        elif callable(member):
            lines += [f"### `.{attribute}()`", "", *_signature(attribute, member),
                      *_prose(member)]
    return lines


def _members(cls: type) -> Iterator[tuple[str, object]]:
    """Give what a class and those of its module that it comes from have for others."""
    for one in cls.__mro__:
        if one.__module__ != cls.__module__:
            continue
        for attribute in vars(one):
            if not attribute.startswith("_") and attribute not in ("hand", "ROLES"):
                yield attribute, _member(cls, attribute)


def _member(cls: type, attribute: str) -> object:
    """Give a member as it was written, and a class's own method as it is called."""
    member = python_inspect.getattr_static(cls, attribute)
    return getattr(cls, attribute) if isinstance(member, classmethod) else member


# --- the client library ---


def library() -> str:
    """Give the page of what OMEGA's integrators import."""
    lines = [
        "# The client library", "", "`from broker.client import …`: how OMEGA, operators and "
        "auditors use a gateway. [How it goes together](../how-to/integrate-omega.md).", "",
        _GENERATED, "",
    ]
    for about, things in _LIBRARY.items():
        lines += [f"## {about}", ""]
        for thing in things:
            name = thing.__name__
            lines += [f"### `{name}`", "", *(
                line.replace("### ", "#### ", 1) if line.startswith("### ") else line
                for line in _class(name, thing)
            )]
    return "\n".join(lines).rstrip() + "\n"


def _signature(name: str, thing: object) -> list[str]:
    if not callable(thing):
        return []
    words = str(python_inspect.signature(thing))
    words = words.replace("(self, ", "(").replace("(self)", "()")
    words = re.sub(r"(: |-> )'([^']*)'", r"\1\2", words).removesuffix(" -> None")
    words = re.sub(r"ForwardRef\('([^']*)'\)", r"\1", words)
    words = re.sub(r': "(Literal[^"]*)"', r": \1", words)
    return ["```python", f"{name}{words}", "```", ""]


def _prose(thing: object) -> list[str]:
    """Give a docstring; its parts `Args`, `Raises` and the like as lists."""
    lines = []
    for line in python_inspect.cleandoc(thing.__doc__ or "").split("\n"):
        if re.fullmatch(r"(Args|Raises|Attributes|Returns|Yields):", line):
            lines.append(f"{line}\n")
        elif line.startswith("        "):
            lines[-1] += f" {line.strip()}"
        elif line.startswith("    "):
            name, colon, rest = line.strip().partition(": ")
            lines.append(f"- `{name}`: {rest}" if colon else f"- {name}")
        else:
            lines.append(line)
    return [*lines, ""]


def build() -> dict[Path, str]:
    """Give the wanted content of every page."""
    return {
        FOLDER / "omega-gateway.md": commands(
            "omega-gateway", gateway_command, "For operators, auditors and OMEGA's people. What "
            "the exit codes ask for stands in [Operate a gateway](../how-to/operate-a-gateway.md).",
        ),
        FOLDER / "omega-plugin.md": commands(
            "omega-plugin", plugin_command, "For authors of plugins."
        ),
        FOLDER / "gateway-toml.md": settings(
            "gateway.toml", "How a gateway runs. It lies in the home; an unknown line is refused "
            "with its path. `omega-gateway config show` prints what is in effect and where each "
            "value comes from; an environment variable `OMEGA_GATEWAY__TABLE__LINE` stands above "
            "the file.",
            GatewayConfig,
        ),
        FOLDER / "policy-toml.md": settings(
            "policy.toml", "What plugins may do. Everything absent is refused. It is read at the "
            "start and by SIGHUP; each change is an event, with the digest of the whole.", Policy,
        ),
        FOLDER / "plugin-toml.md": settings(
            "plugin.toml", "What a plugin says of itself beside its code. `omega-plugin pack` "
            "makes the manifest from it ([its JSON Schema](../manifest.schema.json)).",
            PluginSource,
        ),
        FOLDER / "client.md": library(),
        FOLDER / "sdk.md": kit(),
    }


def main(arguments: list[str]) -> int:
    """Rewrite or compare; the exit status says whether all pages are fresh."""
    stale = [
        (path, text) for path, text in build().items()
        if not path.exists() or path.read_text("utf-8") != text
    ]
    for path, text in stale:
        if "--rewrite" in arguments:
            FOLDER.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        print(f"{'written' if '--rewrite' in arguments else 'stale'}: {path.relative_to(ROOT)}")
    return 0 if "--rewrite" in arguments or not stale else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
