"""The one place for version rules: compatibility of the plugin API, requests, and order.

Rules this file keeps:
- A plugin is compatible when the majors are equal and the gateway's minor is at least the plugin's;
  with major 0 the minors must be equal.
- A pre-release is compatible with itself only. There are no ranges: an order of pre-releases inside
  a range lets `2.0.0-rc.1` pass for less than `2.0.0`.
- Order is that of Semantic Versioning; build metadata has no spelling here.

Source: specification INV-PNP-09; Semantic Versioning 2.0.0, sections 2, 9 and 11.
"""

from __future__ import annotations

import functools

from semver import Version


def parse(text: str) -> Version | None:
    """Read one semantic version without build metadata; None when it is not one."""
    try:
        version = Version.parse(text)
    except (ValueError, TypeError):
        return None
    return None if version.build is not None or str(version) != text else version


@functools.lru_cache(maxsize=256)
def api_compatible(plugin: str, gateway: str) -> str | None:
    """Say whether a plugin built for one API version runs on this gateway's.

    Args:
        plugin: the manifest's `api_version`.
        gateway: the gateway's OMEGA_PLUGIN_API_VERSION.

    Returns:
        None when compatible, else the sentence that says which side must move.
    """
    if plugin == gateway:
        return None
    wanted, offered = parse(plugin), parse(gateway)
    if wanted is None or offered is None:
        return f"{plugin if wanted is None else gateway} is not a semantic version"
    if wanted.prerelease or offered.prerelease:
        return ("the plugin must move: a pre-release matches only itself, build it for API "
                f"{gateway}, it was built for {plugin}")
    if _covers(wanted.major, wanted.minor, offered):
        return None
    if (wanted.major, wanted.minor) > (offered.major, offered.minor):
        return f"the gateway must move: it offers API {gateway}, the plugin needs {plugin}"
    return f"the plugin must move: build it for API {gateway}, it was built for {plugin}"


def version_request_matches(request: str, version: str) -> bool:
    """Say whether a version satisfies `invoke.version`: exact, or `^X.Y` by the same rule."""
    if not request.startswith("^"):
        return request == version
    found = parse(version)
    major, _, minor = request[1:].partition(".")
    if found is None or found.prerelease or not (major.isdecimal() and minor.isdecimal()):
        return False
    return _covers(int(major), int(minor), found)


def is_higher(candidate: str, than: str) -> bool:
    """Say whether one version is higher than another; what is no version is never higher."""
    left, right = parse(candidate), parse(than)
    return left is not None and right is not None and left > right


def _covers(major: int, minor: int, offered: Version) -> bool:
    """Say whether `offered` serves what needs `major.minor`."""
    if major != offered.major:
        return False
    return minor == offered.minor if major == 0 else minor <= offered.minor
