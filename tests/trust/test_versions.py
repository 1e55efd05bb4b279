"""The version rules of OMEGA_PLUGIN_API_VERSION, of invoke.version and of order."""

from __future__ import annotations

import pytest

from broker.trust.versions import api_compatible, is_higher, parse, version_request_matches

COMPATIBILITY = {
    "the same version": ("1.4.2", "1.4.2", None),
    "the gateway's minor is higher": ("1.2.0", "1.4.0", None),
    "only patches differ, plugin higher": ("1.4.9", "1.4.0", None),
    "the plugin needs a higher minor": ("1.5.0", "1.4.9", "gateway"),
    "the plugin needs a higher major": ("2.0.0", "1.9.9", "gateway"),
    "the plugin is of an older major": ("1.9.9", "2.0.0", "plugin"),
    "major zero, same minor": ("0.3.1", "0.3.9", None),
    "major zero, gateway's minor higher": ("0.3.0", "0.4.0", "plugin"),
    "major zero, plugin's minor higher": ("0.5.0", "0.4.0", "gateway"),
    "the same pre-release": ("2.0.0-rc.1", "2.0.0-rc.1", None),
    "a pre-release below the gateway": ("2.0.0-rc.1", "2.0.0", "pre-release"),
    "a pre-release that sorts inside a range": ("1.9.0-rc.1", "1.9.5", "pre-release"),
    "the gateway is a pre-release": ("1.4.0", "1.5.0-rc.1", "pre-release"),
    "a number with a leading zero": ("01.0.0", "1.0.0", "not a semantic version"),
}


@pytest.mark.parametrize("name", COMPATIBILITY)
def test_compatibility_says_which_side_must_move(name: str):
    """Compatible pairs give nothing; for others the sentence names the side that must move."""
    plugin, gateway, side = COMPATIBILITY[name]
    hint = api_compatible(plugin, gateway)
    if side is None:
        assert hint is None
    else:
        assert hint is not None
        assert side in hint


@pytest.mark.parametrize(
    ("request_text", "version", "matches"),
    [
        ("1.2.3", "1.2.3", True),
        ("1.2.3", "1.2.4", False),
        ("1.2.3-rc.1", "1.2.3-rc.1", True),
        ("^1.2", "1.2.0", True),
        ("^1.2", "1.9.7", True),
        ("^1.2", "1.1.9", False),
        ("^1.2", "2.2.0", False),
        ("^1.2", "1.3.0-rc.1", False),
        ("^0.2", "0.2.9", True),
        ("^0.2", "0.3.0", False),
        ("^1", "1.0.0", False),
        ("^1.x", "1.0.0", False),
        ("^1.2", "no version", False),
    ],
)
def test_a_request_is_exact_or_the_same_rule(request_text: str, version: str, matches: bool):
    """`^X.Y` follows the compatibility rule; all else, and every pre-release, is exact."""
    assert version_request_matches(request_text, version) is matches


@pytest.mark.parametrize(
    ("candidate", "than", "higher"),
    [
        ("1.0.1", "1.0.0", True),
        ("1.10.0", "1.9.0", True),
        ("1.0.0", "1.0.0", False),
        ("1.0.0", "1.0.0-rc.1", True),
        ("1.0.0-rc.2", "1.0.0-rc.10", False),
        ("1.0.0-rc.1", "1.0.0", False),
        ("2.0.0+build", "1.0.0", False),
        ("nothing", "1.0.0", False),
    ],
)
def test_order_is_that_of_semantic_versioning(candidate: str, than: str, higher: bool):
    """Numbers count as numbers, pre-releases come before, build metadata has no spelling."""
    assert is_higher(candidate, than) is higher


@pytest.mark.parametrize("text", ["1.0", "v1.0.0", "01.0.0", "1.0.0+b", "1.0.0-", "1.0.0-..", ""])
def test_what_is_no_version_is_none(text: str):
    """Only the one spelling of a semantic version is read."""
    assert parse(text) is None
