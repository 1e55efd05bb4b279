"""Upgrades from an operator's shell, against one real `omega-gateway serve`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.command import gateway
from tests.cli.test_running import bundle, home

__all__ = ["home"]

pytestmark = [pytest.mark.system, pytest.mark.jail, pytest.mark.once]


def test_what_widens_is_shown_and_approved_by_its_digest(home: Path):
    """A version with more memory waits; exactly the difference that was shown is approved."""
    show = ("plugins", "show", "echo-plugin", "--diff")
    waits = "echo-plugin@2.2.0"
    for version, memory_mb in (("2.0.0", 128), ("2.2.0", 256)):
        file = bundle(home, version, memory_mb=memory_mb)
        assert gateway("plugins", "register", str(file), home=home).code == 0
    refused = gateway("plugins", "enable", waits, home=home)
    assert refused.code == 4
    document = gateway(*show, "--output", "json", home=home).document()
    digest = document["digest"]
    assert f"plugins approve {waits} --digest {digest}" in refused.err
    assert document["waits"]
    assert [(one["where"], one["change"], one["before"], one["after"])
            for one in document["difference"]["changes"]] == [
        ("$.limits.memory_mb", "wider", 128, 256)]
    assert "waits for approval" in gateway(*show, home=home).out

    assert gateway("plugins", "approve", "echo-plugin", home=home).code == 2
    other = gateway("plugins", "approve", waits, "--digest", "0" * 64, home=home)
    assert (other.code, digest in other.out) == (1, True)
    approved = gateway("plugins", "approve", waits, "--output", "json", home=home).document()
    assert (approved["digest"], approved["waits"]) == (digest, False)
    assert approved["receipt"]["seq"] > 0
    assert gateway("plugins", "enable", waits, home=home).code == 0
    assert "none to a version enabled before" in gateway(*show, home=home).out
    assert gateway("plugins", "enable", "echo-plugin@1.0.0", home=home).code == 0
    nothing = gateway("plugins", "approve", "echo-plugin@2.0.0", home=home)
    assert "nothing of echo-plugin@2.0.0 waits" in nothing.err
