"""A zygote without the rest of a worker: for what happens while one starts."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from sandbox_worker import forker
from sandbox_worker.bundle import LaunchRefusedError, read_bundle
from schemas.launch import LaunchDocument
from schemas.manifest import Method
from tests.sandbox_worker.harness import LIMITS, make_bundle, text_to_json


def launch_of(
    folder: Path, source: str, methods: dict[str, Method], modules: tuple[str, ...] = ()
) -> LaunchDocument:
    """Write the bundle of one source and say what a launcher would."""
    bundle = make_bundle(folder, source, methods=methods, modules=modules)
    return LaunchDocument(
        format="omega-launch/1", incarnation="0" * 32, plugin="plugin-under-test", version="1.0.0",
        plugin_digest=hashlib.sha256(bundle.read_bytes()).hexdigest(), bundle=str(bundle),
        endpoint="ipc:///nowhere", server_key="0" * 40, worker_secret_key="0" * 40, limits=LIMITS,
        grants=(), expires_at_us=0,
    )  # fmt: skip


def refusal_of(
    folder: Path, source: str, *, modules: tuple[str, ...] = (),
    changes: dict[str, object] | None = None,
) -> LaunchRefusedError | None:
    """Start a zygote for one source, to its rehearsal, and end it.

    Args:
        folder: where the bundle is written.
        source: the plugin's.
        modules: what the manifest names.
        changes: replace fields of the launch document.

    Returns:
        Why the plugin was refused, or None when it was not.
    """
    launch = launch_of(folder, source, text_to_json(), modules)
    launch = msgspec.structs.replace(launch, **(changes or {}))
    try:
        forker.start(launch, read_bundle(launch)).close()
    except LaunchRefusedError as error:
        return error
    return None
