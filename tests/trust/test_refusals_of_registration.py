"""Every refusal that registering, enabling or approving a plugin can end in, by its English name.

A row plays what leads there and holds the code that is answered against the one of the row. A code
of layers 1 and 2 without a row, here, among the reasons of `test_validation` or in a table that is
named here, fails.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.refusals import REFUSALS, RefusalCode
from tests.scenarios.stage import Stage
from tests.trust import test_validation

ROOT = Path(__file__).parents[2]
PREPARED = ("register alpha 1.0.0", "enable alpha 1.0.0")
PLAYED: dict[str, tuple[str, tuple[str, ...]]] = {
    "the plugin was never registered": ("unknown_plugin", ("enable gamma 1.0.0",)),
    "the version was never registered": ("unknown_version", ("enable alpha 7.0.0",)),
    "the very same bundle comes again": ("already_registered", ("register alpha 1.0.0",)),
    "the version does not rise": (
        "version_not_raised", ("register delta 1.0.5", "register delta 1.0.4")),
    "its publisher's key was taken back": (
        "signature_invalid", ("revoke-publisher house", "register delta 1.0.0")),
    "the version was revoked": (
        "revoked", ("revoke alpha@1.0.0", "enable alpha 1.0.0")),
    "what it asks for was never granted": ("capability_not_granted", ("register beta 1.0.0",)),
    "what is granted is always refused": ("capability_refused", ("grant alpha net.connect",)),
    "the publisher's key is not known": ("key_unknown", (f"revoke-publisher {'f' * 16}",)),
    "its schema is found slow": (
        "schema_not_admitted", ("probers slow", "register delta 1.0.0", "tried trouble")),
    "the prober was killed at its limit": (
        "schema_not_admitted", ("probers slow", "register delta 1.0.0", "tried signal=24")),
    "the prober could not be sealed or crashed": (
        "sandbox_unavailable", ("probers slow", "register delta 1.0.0", "tried signal=11")),
    "the prober was late": (
        "worker_start_failed", ("probers slow", "register delta 1.0.0", "tried signal=14")),
    "too many bundles wait for their trial": (
        "queue_full", ("probers slow", *(f"register delta 1.0.{n}" for n in range(9)))),
    "the gateway stops meanwhile": (
        "draining", ("probers slow", "register delta 1.0.0", "terminate", "terminate")),
    "room became short meanwhile": (
        "low_space", ("probers slow", "register delta 1.0.0", "room short", "tried fits")),
    "room is short": ("low_space", ("room short", "register delta 1.0.0")),
}


@pytest.mark.parametrize("name", PLAYED)
def test_each_refusal_has_its_code(name: str) -> None:
    """What leads to the refusal gives exactly its code, to the operator and, where a bundle was
    refused, in the ledger; nothing was registered or enabled by the last command."""
    code, commands = PLAYED[name]
    stage = Stage()
    for command in PREPARED:
        stage.play(command)
    lines = [stage.play(command) for command in commands][-1]
    told = [line for line in lines if line.startswith("-> operator: refusal")]
    assert len(told) == 1, lines
    assert told[0].split()[4] == code
    assert not any(line.startswith(("plugin.register", "plugin.enable")) for line in lines)
    assert REFUSALS[RefusalCode(code)].remedy


ELSEWHERE = {
    "bundle_too_large": "tests/trust/test_bundles.py",
    "signature_threshold": "tests/trust/test_signatures.py",
    "approval_required": "tests/scenarios",
    "approval_mismatch": "tests/scenarios",
    "trust_invalid": "tests/trust/test_roots.py",
    "trust_version_not_raised": "tests/trust/test_roots.py",
    "conformance_required": "tests/trust",
    "upgrade_withdrawn": "tests/scenarios",
}
"""Codes whose rows stand in another table, and where."""


def test_every_code_of_the_registry_and_the_validator_has_a_row() -> None:
    """No code between `bundle_malformed` and `seq_unknown` is without a test that names it."""
    codes = list(RefusalCode)
    layers = codes[codes.index(RefusalCode.BUNDLE_MALFORMED) : codes.index(RefusalCode.SEQ_UNKNOWN)]
    rows = {code for code, _ in PLAYED.values()}
    rows |= {str(code) for _, _, expected in test_validation.CASES.values()
             for code, *_ in expected}
    for code, place in ELSEWHERE.items():
        files = [ROOT / place] if place.endswith(".py") else (ROOT / place).iterdir()
        texts = [file.read_text() for file in files if file.suffix in (".py", ".txt")
                 and file != Path(__file__)]
        assert any(code in text or f"RefusalCode.{code.upper()}" in text for text in texts), code
    assert {str(code) for code in layers} <= rows | ELSEWHERE.keys()
