"""The version rules of OMEGA_PLUGIN_API_VERSION, of invoke.version and of order."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import semver

from broker.authoring import source as authoring
from broker.trust.versions import api_compatible, is_higher, parse, version_request_matches
from schemas.names import API_VERSION

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


LADDER = ("0.1.0", "0.1.7", "0.2.0", "1.0.0-rc.1", "1.0.0", "1.2.0-rc.1", "1.2.0", "1.2.9",
          "1.10.0", "2.0.0-rc.1", "2.0.0-rc.2", "2.0.0")


@pytest.mark.parametrize(("plugin", "gateway"), list(itertools.product(LADDER, LADDER)))
def test_the_contract_holds_for_every_pair(plugin: str, gateway: str):
    """Each API version of a plugin against each of a gateway, by the rule written out once more;
    what does not fit begins with the one side that must move."""
    built, offered = semver.Version.parse(plugin), semver.Version.parse(gateway)
    early = bool(built.prerelease or offered.prerelease)
    fits = plugin == gateway or (not early and built.major == offered.major and (
        built.minor == offered.minor or (built.major > 0 and offered.minor > built.minor)))
    behind = not early and (built.major, built.minor) > (offered.major, offered.minor)
    side = api_compatible(plugin, gateway)
    assert (side is None) == fits
    if side is not None:
        assert side.startswith(f"the {'gateway' if behind else 'plugin'} must move: ")
        assert plugin in side
        assert gateway in side


def test_the_version_of_the_api_stands_in_one_place():
    """No other file names it as a value, and what the project itself brings was built for it."""
    root = Path(authoring.__file__).parents[2]
    named = [
        path.relative_to(root).as_posix()
        for package in ("broker", "schemas", "sandbox_worker")
        for path in root.glob(f"{package}/**/*.py")
        if re.search(r'api_version(: \w+)? ?= ?"\d', path.read_text(), re.IGNORECASE)
    ]
    assert named == ["schemas/names.py"]
    manifests = [*root.glob("examples/*/plugin.toml"),
                 *root.glob("broker/authoring/template/*.toml.txt")]
    assert len(manifests) > 4
    for path in manifests:
        found = re.search(r'^api_version = "(.*)"$', path.read_text(), re.MULTILINE)
        assert found is not None
        assert api_compatible(found[1], API_VERSION) is None


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
