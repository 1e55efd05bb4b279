"""Close a whole jail on this machine, as a worker does before it serves, and say what came of it.

    python -m sandbox_worker.trial

starts a zygote with a plugin of ours that does nothing, attests and rehearses it, ends it, and
writes one JSON object: empty, or the `feature`, `errno` and `hint` of what did not hold. `doctor`
runs it, so that it finds whatever a worker would. Rules: the worker's own start and nothing else;
it serves no call and opens no socket.
"""

from __future__ import annotations

import json
import sys

from sandbox_worker import forker, seal
from sandbox_worker.bundle import Bundle
from sandbox_worker.jail.linux import SandboxUnavailable
from schemas.launch import LaunchDocument
from schemas.manifest import BundleFile, Limits, Method, PayloadSpec, PluginManifest
from schemas.names import API_VERSION

_LIMITS = Limits(cpu_ms=1000, wall_ms=1000, memory_mb=256, output_bytes=1024, concurrency=1)
_LAUNCH = LaunchDocument(
    format="omega-launch/1", incarnation="0" * 32, plugin="trial", version="1.0.0",
    plugin_digest="0" * 64, bundle="/", endpoint="ipc:///", server_key="0" * 40,
    worker_secret_key="0" * 40, limits=_LIMITS, grants=(), expires_at_us=0,
)  # fmt: skip
_MANIFEST = PluginManifest(
    format="omega-manifest/1", id="trial", version="1.0.0", api_version=API_VERSION,
    domain="development", publisher="trial", description="", entry="plugin.py",
    methods={"main": Method(PayloadSpec("text"), PayloadSpec("text"))}, schemas={},
    capabilities=(), limits=_LIMITS, modules=(), resources=(),
    files=(BundleFile("plugin.py", 0, "0" * 64),),
)  # fmt: skip


def attempt() -> dict[str, object]:
    """Do what a worker does up to its socket; this process is sealed afterwards.

    Returns:
        Nothing when the jail holds, else what does not.
    """
    try:
        seal.close_outside()
        started = forker.start(_LAUNCH, Bundle(_MANIFEST, "", {}))
        try:
            seal.close_files()
        finally:
            started.close()
    except SandboxUnavailable as error:
        return {"feature": error.feature, "errno": error.errno, "hint": error.hint}
    return {}


if __name__ == "__main__":
    json.dump(attempt(), sys.stdout)
