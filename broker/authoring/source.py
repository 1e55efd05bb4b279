"""A plugin's folder: `plugin.toml` for people, `plugin.py`, and the files it names.

Rules this file keeps: every mistake of the folder is found before anything is written; only
`plugin.py` and the listed resources go into a bundle; the source is imported in a process of its
own by `sandbox_worker.sdk.describe`, never here.

It leaves the manifest to `broker.authoring.pack`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta

import broker
from broker.trust.errors import printable
from broker.trust.manifests import problem
from broker.trust.mistakes import mistakes
from schemas.manifest import BUNDLE_BYTES_MAX
from schemas.messages import Problem
from schemas.names import (
    CapabilityName,
    FilePath,
    MethodName,
    ModuleName,
    Name,
    PayloadKind,
    PluginId,
    RootedPath,
    TimeoutMs,
    VersionText,
)
from schemas.payloads import MediaType
from schemas.refusals import RefusalCode

SOURCE_FILE: Final = "plugin.toml"
ENTRY_FILE: Final = "plugin.py"
DESCRIBE_SECONDS_MAX: Final = 30


class SourceLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[limits]`: what one call is held to; units are in the names.

    Attributes:
        cpu_ms: processor time of one call, in ms.
        wall_ms: elapsed time of one call, in ms.
        memory_mb: address space of one call process, in MiB.
        output_bytes: one output, in bytes.
        concurrency: calls at the same time.
    """

    cpu_ms: int = 5_000
    wall_ms: int = 10_000
    memory_mb: int = 256
    output_bytes: int = 262_144
    concurrency: int = 4


class SourceMethod(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[methods.NAME]`: what the signature in plugin.py cannot say.

    `files` are files of named roots that `ctx.files` opens, ROOT/PATH by the name used there.
    `input_schema` and `output_schema` name JSON Schema files, for methods that take or give a
    `JSONPayload`.

    Attributes:
        timeout_ms: the longest run of one call, in ms; the decorator may say it instead.
        idempotent: whether running it twice has the effect of running it once.
        input_schema: a JSON Schema file for a `JSONPayload` that it takes.
        output_schema: a JSON Schema file for a `JSONPayload` that it gives.
        input_media_types: what a text or artifact that it takes may be; none means any.
        output_media_types: what a text or artifact that it gives may be; none means any.
        files: ROOT/PATH by the name that `ctx.files` has.
    """

    timeout_ms: TimeoutMs | None = None
    idempotent: bool = False
    input_schema: FilePath | None = None
    output_schema: FilePath | None = None
    input_media_types: tuple[MediaType, ...] = ()
    output_media_types: tuple[MediaType, ...] = ()
    files: dict[Name, RootedPath] = {}


class PluginSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`plugin.toml`. `modules` are what plugin.py imports; `resources` are files beside it.

    Attributes:
        id: 3 to 64 characters: a letter, then letters, digits and hyphens.
        version: a semantic version; it must rise with every registration.
        api_version: the contract it was written for, `X.Y.Z`.
        publisher: who signs it, as the trust root names them.
        description: one sentence for people.
        limits: what one call is held to.
        capabilities: what it asks for; policy must grant each.
        modules: every module that plugin.py imports.
        resources: files beside it, read by `ctx.resource(NAME)`.
        methods: what the signatures in plugin.py cannot say.
    """

    id: PluginId
    version: VersionText
    api_version: VersionText
    publisher: Name
    description: Annotated[str, Meta(max_length=1024)]
    limits: SourceLimits = SourceLimits()
    capabilities: tuple[CapabilityName, ...] = ()
    modules: tuple[ModuleName, ...] = ()
    resources: tuple[FilePath, ...] = ()
    methods: dict[MethodName, SourceMethod] = {}


class Side(msgspec.Struct, frozen=True):
    """One payload of a method as plugin.py declares it."""

    kind: PayloadKind
    schema: dict[str, object] | None = None


class Described(msgspec.Struct, frozen=True):
    """One method as plugin.py declares it."""

    input: Side
    output: Side
    deterministic: bool
    timeout_ms: int | None
    idempotent: bool


class Mistake(msgspec.Struct, frozen=True):
    """One mistake in plugin.py."""

    where: str
    found: str
    expected: str


class Description(msgspec.Struct, frozen=True):
    """What `sandbox_worker.sdk.describe` prints."""

    methods: dict[str, Described]
    modules: tuple[str, ...]
    problems: tuple[Mistake, ...]
    top_level_us: int = 0


class Folder(NamedTuple):
    """A plugin's folder that was read whole: its declarations, and its bundle's files by name."""

    source: PluginSource
    description: Description
    files: dict[str, bytes]
    schemas: dict[str, bytes]


class SourceRefused(Exception):
    """The folder has mistakes; all of them are in `problems`."""

    def __init__(self, problems: list[Problem]) -> None:
        """Keep the problems; there is at least one."""
        super().__init__(f"{len(problems)} problems")
        self.problems = problems


def read_folder(directory: str) -> Folder:
    """Read and describe a plugin's folder.

    Raises:
        SourceRefused: with everything that is wrong with it.
    """
    source = read_source(directory)
    problems: list[Problem] = []
    named = [ENTRY_FILE, *source.resources]
    files = {name: _read_file(directory, name, problems) for name in named}
    schema_files = {
        name
        for method in source.methods.values()
        for name in (method.input_schema, method.output_schema)
        if name is not None
    }
    schemas = {name: _read_file(directory, name, problems) for name in sorted(schema_files)}
    description = Description({}, (), ())
    if not problems:
        description = _describe(os.path.join(directory, ENTRY_FILE), problems)
        problems += _compare(source, description)
    if problems:
        raise SourceRefused(problems)
    return Folder(source, description, files, schemas)


def own_environment() -> dict[str, str]:
    """Give the environment in which another Python finds the modules that this one runs."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(broker.__file__)))
    search = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(search)}


def _mistake(where: str, found: str, expected: str, remedy: str = "") -> Problem:
    return problem(
        RefusalCode.MANIFEST_INVALID, where, found, expected,
        remedy or "Correct the place that `where` names.",
    )


def read_source(directory: str) -> PluginSource:
    """Read a folder's plugin.toml.

    Raises:
        SourceRefused: with everything that is wrong with it.
    """
    problems: list[Problem] = []
    data = _read_file(directory, SOURCE_FILE, problems)
    if problems:
        raise SourceRefused(problems)
    try:
        document = msgspec.toml.decode(data)
        return msgspec.convert(document, PluginSource)
    except msgspec.ValidationError:
        found = [_mistake(*one) for one in mistakes(document, PluginSource, SOURCE_FILE)]
        raise SourceRefused(found) from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SourceRefused([_mistake(SOURCE_FILE, str(error), "TOML")]) from None


def _read_file(directory: str, name: str, problems: list[Problem]) -> bytes:
    try:
        with open(os.path.join(directory, name), "rb") as file:
            data = file.read(BUNDLE_BYTES_MAX + 1)
    except OSError as error:
        problems.append(_mistake(name, error.strerror or "unreadable", "a readable file"))
        return b""
    if len(data) > BUNDLE_BYTES_MAX:
        problems.append(_mistake(name, "a larger file", f"at most {BUNDLE_BYTES_MAX} bytes"))
    return data


def _describe(path: str, problems: list[Problem]) -> Description:
    """Import the source in a process of its own and read what it declares."""
    environment = {**own_environment(), "PYTHONHASHSEED": "0"}
    try:
        # -P keeps the author's folder from standing in for a module of ours.
        done = subprocess.run(
            [sys.executable, "-P", "-m", "sandbox_worker.sdk.describe", path],
            env=environment, stdout=subprocess.PIPE, timeout=DESCRIBE_SECONDS_MAX, check=False,
        )
        description = msgspec.json.decode(done.stdout, type=Description)
    except subprocess.TimeoutExpired:
        problems.append(_mistake(
            ENTRY_FILE, f"importing it takes more than {DESCRIBE_SECONDS_MAX} s",
            "a module whose top level only defines things",
        ))
    except msgspec.MsgspecError:
        problems.append(_mistake(
            ENTRY_FILE, f"importing it ended the process with status {done.returncode}",
            "a module whose top level only defines things",
        ))
    else:
        problems += [_mistake(one.where, one.found, one.expected) for one in description.problems]
        return description
    return Description({}, (), ())


def _compare(source: PluginSource, description: Description) -> list[Problem]:
    """Hold plugin.toml against what plugin.py imports and defines."""
    declared, imported = set(source.modules), set(description.modules)
    names = ", ".join(f'"{name}"' for name in sorted(imported))
    problems = [
        _mistake(
            f"{SOURCE_FILE}.modules", f"{ENTRY_FILE} imports {printable(name)}",
            "every module that it imports", f"Write: modules = [{names}]",
        )
        for name in sorted(imported - declared)
    ]
    problems += [
        _mistake(f"{SOURCE_FILE}.methods.{name}", "no such method", "a method of plugin.py")
        for name in sorted(source.methods.keys() - description.methods.keys())
        if not description.problems
    ]
    return problems
