"""`call` and `dev`: a plugin in the real sandbox, answered at once and again after every save.

Rules this file keeps: the answer goes to stdout, all else to stderr; what a call used always stands
beside what it may use; a mistake is told and waited out, since an author is about to mend it.

It leaves the gateway to `broker.authoring.local` and the words of errors to
`broker.authoring.telling`.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final, cast

import click

from broker.authoring.telling import say, status_of

if TYPE_CHECKING:
    from broker.authoring.local import LocalGateway
    from broker.client_session import PayloadLike
    from schemas.manifest import PluginManifest
    from schemas.messages import Usage
    from schemas.payloads import MediaType

_LOOK_S: Final = 0.05
"""How often the folder is looked at."""

_SAMPLES: Final = {
    "text": ('"some text"', "--text 'some text'"),
    "json": ("{}", "--json '{}'"),
    "binary_ref": ("BinaryRefPayload(...)", "--artifact ID"),
    "dataset_slice": ("DatasetSlicePayload(...)", "--dataset ID --keys KEY"),
}
"""An input of each kind, in Python and on a command line."""

_SECOND_RUN: Final = {
    "agreed": "a second run under another hash seed gave the same",
    "unverified": "a second run under another hash seed could not be had",
}

_directory = click.option(
    "-C", "--directory", type=click.Path(exists=True, file_okay=False), default=".",
    metavar="DIR", help="The plugin's folder; else the present one.",
)


@click.command()
@click.argument("method")
@_directory
@click.option("--text", metavar="T", help="A text.")
@click.option("--json", "json_text", metavar="J", help="A JSON document.")
@click.option("--file", metavar="F", help="A file of text, or JSON if its name ends in .json.")
@click.option("--artifact", metavar="F", help="A file that is handed over as an artifact.")
@click.option("--dataset", metavar="ID", help="A reference to a dataset; needs --keys.")
@click.option("--keys", metavar="K,…", help="The dataset's keys, with commas between them.")
@click.option("--media-type", help="Of --text, --file or --artifact.")
@click.option("--watch", is_flag=True, help="Call again whenever a file of the folder is saved.")
def call(method: str, directory: str, watch: bool, **given: str | None) -> None:
    """Call one method in the real sandbox, and show what it used of its limits.

    A gateway is started for it and ended after it. A policy.toml in the plugin's folder is the
    policy that it runs under; without one nothing is granted.
    """
    with _gateway() as gateway:
        before = folder_state(directory)
        status = try_once(gateway, directory, method, given)
        if not watch:
            raise SystemExit(status)
        for _ in saves(directory, before):
            try_once(gateway, directory, method, given)


@click.command()
@_directory
def dev(directory: str) -> None:
    """Serve a plugin on a gateway of its own, and swap it after every save.

    What is called with the printed lines runs in the real sandbox under real signatures, in a
    development home that is gone when this ends. The version before finishes its calls.
    """
    with _gateway() as gateway:
        before = folder_state(directory)
        _swap(gateway, directory)
        for saved in saves(directory, before, always=True):
            _show_printed(gateway)
            if saved:
                _swap(gateway, directory)


def try_once(
    gateway: LocalGateway, directory: str, method: str, given: Mapping[str, str | None]
) -> int:
    """Install what a folder holds, call one method, and show how that ended.

    Args:
        gateway: where it is installed.
        directory: the plugin's folder.
        method: the method's name.
        given: the input as the command line gave it, by the name of its option.

    Returns:
        The exit code.
    """
    from schemas.events import InvokeEnd

    begin = time.monotonic()
    try:
        manifest = gateway.install(directory).manifest
        result = gateway.omega.invoke(manifest.id, method, _payload(gateway, given))
    except Exception as error:
        _show_printed(gateway)
        status = status_of(error, directory, method)
        if status is None:
            raise
        return status
    _show_printed(gateway)
    _show_answer(result.payload)
    _show_usage(f"{result.plugin} {result.version} {method}", result.usage, manifest)
    end = gateway.events()[result.receipt.seq].fields
    if isinstance(end, InvokeEnd) and end.replica is not None:
        say(f"  {_SECOND_RUN[end.replica]}; the processor time is that of both runs")
    say(f"  {1000 * (time.monotonic() - begin):.0f} ms from the file to the answer")
    return 0


def _swap(gateway: LocalGateway, directory: str) -> None:
    """Put what a folder holds in the place of what it held before, or say why not."""
    begin = time.monotonic()
    try:
        installed = gateway.install(directory)
    except Exception as error:
        if status_of(error, directory) is None:
            raise
        say("the version before goes on serving; save again when it is mended")
        return
    if not installed.fresh:
        return
    manifest = installed.manifest
    say(f"{manifest.id} {manifest.version} serves, {1000 * (time.monotonic() - begin):.0f} ms "
        "after the save")
    if gateway.changes == 0:
        click.echo("\n".join(_client_lines(gateway, manifest)))


def _client_lines(gateway: LocalGateway, manifest: PluginManifest) -> Iterator[str]:
    """Write what a client of this gateway would, ready to be pasted."""
    profile = os.path.join(gateway.home, "profiles", "omega")
    name, method = next(iter(sorted(manifest.methods.items())))
    python, words = _SAMPLES[method.input.kind]
    yield "# in Python:"
    yield "from broker.client import OmegaClient"
    yield f"with OmegaClient({profile!r}) as omega:"
    yield f"    print(omega.invoke({manifest.id!r}, {name!r}, {python}).payload)"
    yield "# in a shell:"
    yield f"omega-gateway invoke {manifest.id} {name} {words} --profile {profile}"


@contextlib.contextmanager
def _gateway() -> Iterator[LocalGateway]:
    """Start a gateway, and end it also when this process is told to stop."""
    from broker.authoring.local import LocalGateway

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with LocalGateway() as gateway:
            yield gateway
    except KeyboardInterrupt:
        say("stopped")
    except Exception as error:
        status = status_of(error)
        if status is None:
            raise
        raise SystemExit(status) from None


FolderState = dict[str, tuple[int, int]]


def saves(directory: str, before: FolderState, *, always: bool = False) -> Iterator[bool]:
    """Give True after each change of a folder's files; with `always` also False now and then.

    Args:
        directory: the folder.
        before: what it was when its files were last used, so that no save is missed.
        always: whether to give False when nothing changed.
    """
    while True:
        select.select([], [], [], _LOOK_S)
        now = folder_state(directory)
        if now != before or always:
            yield now != before
        before = now


def folder_state(directory: str) -> FolderState:
    """Note size and time of every file that a bundle may come from."""
    found = {}
    for folder, folders, files in os.walk(directory):
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        for name in files:
            # An editor replaces a file by another one; between them there is none.
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(os.path.join(folder, name))
                found[os.path.join(folder, name)] = (status.st_mtime_ns, status.st_size)
    return found


def _payload(gateway: LocalGateway, given: Mapping[str, str | None]) -> PayloadLike:
    """Make the input of exactly one of its forms; a file becomes an artifact of the gateway's."""
    from broker.cli.inputs import given_payload
    from broker.store import artifact_reference

    path = given["artifact"]
    others = any(given[form] is not None for form in ("text", "json_text", "file", "dataset"))
    if path is None or others:
        return given_payload(given)
    store, name = os.path.join(gateway.home, "artifacts"), os.path.basename(path)
    shutil.copyfile(path, os.path.join(store, name))
    kind = cast("MediaType", given["media_type"] or "application/octet-stream")
    return artifact_reference(store, name, kind)


def _show_printed(gateway: LocalGateway) -> None:
    for line in gateway.printed():
        say(line)


def _show_answer(payload: object) -> None:
    import msgspec

    from schemas.payloads import JSONPayload, TextPayload

    if isinstance(payload, TextPayload):
        click.echo(payload.text)
    elif isinstance(payload, JSONPayload):
        click.echo(payload.data)
    else:
        click.echo(msgspec.json.encode(payload))


def _show_usage(title: str, usage: Usage, manifest: PluginManifest) -> None:
    limits = manifest.limits
    say(title)
    say(f"  processor {usage.cpu_ms} of {limits.cpu_ms} ms, wall {usage.wall_ms} of "
        f"{limits.wall_ms} ms")
    say(f"  memory {usage.max_rss_kb_upper_bound // 1024} of {limits.memory_mb} MiB, output "
        f"{usage.output_bytes} of {limits.output_bytes} bytes")
