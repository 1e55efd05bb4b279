"""Which version serves a call: the enabled one or none, and what the refusal says."""

from __future__ import annotations

import pytest

from broker.orchestrator.selection import serving_version
from schemas.refusals import RefusalCode
from tests.scenarios.stage import Stage

CODE = RefusalCode.UNKNOWN_VERSION


@pytest.fixture
def stage() -> Stage:
    """A gateway with two versions, of which the higher one is enabled."""
    stage = Stage()
    for line in ("register alpha 1.0.0", "register alpha 1.1.0", "enable alpha 1.1.0"):
        stage.play(line)
    return stage


@pytest.mark.parametrize("wanted", [None, "1.1.0", "^1.1", "^1.0"])
def test_a_request_that_the_enabled_version_satisfies_is_served_by_it(
    stage: Stage, wanted: str | None
) -> None:
    """No version, the exact one, and a caret whose minor is not above it."""
    version, loaded, _ = serving_version(stage.core.state, "alpha", wanted, "work")
    assert (version, loaded.manifest.version) == ("1.1.0", "1.1.0")


@pytest.mark.parametrize(("wanted", "sentence"), [
    ("^1.2", "1.1.0 is enabled, asked for was ^1.2"),
    ("^2.0", "1.1.0 is enabled, asked for was ^2.0"),
    ("1.0.0", "1.1.0 is enabled, asked for was 1.0.0, which is registered"),
    ("9.9.9", "1.1.0 is enabled, asked for was 9.9.9"),
])
def test_any_other_version_is_refused_and_told_which_one_is_enabled(
    stage: Stage, wanted: str, sentence: str
) -> None:
    """A version that is registered and not enabled serves nothing, whoever asks for it."""
    assert serving_version(stage.core.state, "alpha", wanted, "work")[:3] == (
        CODE, sentence, "$.version")


def test_after_an_upgrade_a_caret_goes_along_and_an_exact_version_does_not(stage: Stage) -> None:
    """What names the version before is refused from the switch on."""
    for line in ("enable alpha 1.0.0", "ready w1"):
        stage.play(line)
    state = stage.core.state
    assert serving_version(state, "alpha", "1.0.0", "work")[0] is CODE
    stage.play("ready w1")
    assert serving_version(state, "alpha", "^1.0", "work")[0] == "1.0.0"
    assert serving_version(state, "alpha", "1.0.0", "work")[0] == "1.0.0"
    assert serving_version(state, "alpha", "1.1.0", "work")[1].endswith("which is disabled")


@pytest.mark.parametrize(("built_for", "side"), [
    ("2.0.0", "the gateway must move"), ("0.9.0", "the plugin must move"),
])
def test_a_gateway_of_another_api_neither_calls_nor_enables(
    stage: Stage, built_for: str, side: str
) -> None:
    """What an earlier gateway registered is held against the API of the one that runs."""
    versions = stage.core.state.inventory.plugins["alpha"].versions
    for entry in versions.values():
        entry.api_version = built_for
    refused = serving_version(stage.core.state, "alpha", None, "work")
    assert refused[0] is RefusalCode.API_VERSION_INCOMPATIBLE
    assert refused[1].startswith(side)
    assert refused[3].startswith(side)
    assert any("api_version_incompatible" in line for line in stage.play("enable alpha 1.0.0"))
