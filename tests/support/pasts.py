"""Events of a past, for tests that need one without the calls that made it."""

from __future__ import annotations

from schemas.events import PluginDisable, PluginEnable, PluginRegister

ACTOR = "c" * 16


def request_id(number: int) -> str:
    """Give the request id of a number."""
    return f"00000000-0000-4000-a000-{number:012d}"


def register(plugin: str, version: str) -> PluginRegister:
    """A version that entered the inventory."""
    return PluginRegister(
        plugin=plugin, version=version, bundle_sha256=f"{plugin}{version}".encode().hex().zfill(64),
        manifest_sha256="2" * 64, publisher="development", signing_keys=("e" * 16,),
        api_version="1.0.0", domain="development", actor=ACTOR,
    )


def enable(plugin: str, version: str, previous: str | None = None) -> PluginEnable:
    """A version that serves from here on."""
    return PluginEnable(plugin=plugin, version=version, previous=previous, actor=ACTOR)


def disable(plugin: str, version: str) -> PluginDisable:
    """A plugin that serves no more."""
    return PluginDisable(plugin=plugin, version=version, actor=ACTOR)
