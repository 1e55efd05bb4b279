"""Versions at hand: what serves is held, the rest comes from its bundle, nothing damaged does."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker import library
from broker.bundles import BundleFolder
from broker.inventory import Inventory
from broker.library import Library
from broker.trust.bundles import read_bundle
from broker.trust.signatures import decode_base64, read_envelope
from schemas.events import PluginEnable, PluginQuarantine, PluginRegister
from tests.support.bundles import signed_bundle


class Shelf:
    """A folder of real bundles, the inventory that registered them, and a library of both."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.inventory = folder, Inventory()
        self.keys = [("alpha", f"1.0.{number}") for number in range(count)]
        for seq, (plugin, version) in enumerate(self.keys):
            data = signed_bundle(plugin, version)
            bundle = read_bundle(data)
            (folder / bundle.sha256).write_bytes(data)
            payload = decode_base64(read_envelope(bundle.envelope).payload, "payload")
            self.inventory.apply(PluginRegister(
                plugin=plugin, version=version, bundle_sha256=bundle.sha256,
                manifest_sha256=library.hashlib.sha256(payload).hexdigest(), publisher="house",
                signing_keys=("0" * 16,), api_version="1.0.0", domain="development",
                capabilities=(), deterministic=(), actor="0" * 16,
            ), seq)
        self.library = Library(lambda: self.inventory, BundleFolder(str(folder)), "development")

    def path(self, number: int) -> Path:
        """Where one version's bundle lies."""
        entry = self.inventory.record(*self.keys[number])
        assert entry is not None
        return self.folder / entry.bundle_sha256


def test_what_serves_is_held_and_of_the_rest_the_most_recent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for two, enabled and started versions outlast their files; others are read again
    from theirs."""
    monkeypatch.setattr(library, "RECENT_MAX", 2)
    shelf = Shelf(tmp_path, 6)
    held = shelf.library
    shelf.inventory.apply(PluginEnable(plugin="alpha", version="1.0.0", actor="0" * 16), 9)
    for key in (shelf.keys[0], shelf.keys[1]):
        assert held[key].manifest.version == key[1]
    for key in shelf.keys[2:]:
        assert key in held
    assert len(held) == 4
    for number in range(6):
        shelf.path(number).unlink()
    assert [key in held for key in shelf.keys] == [True, True, False, False, True, True]
    with pytest.raises(KeyError):
        held[shelf.keys[2]]
    assert held.get(shelf.keys[3], "nothing") == "nothing"


def test_a_version_that_is_enabled_while_it_is_recent_is_held_from_its_next_use_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Registered, enabled, called: from the call on it needs no file."""
    monkeypatch.setattr(library, "RECENT_MAX", 1)
    shelf = Shelf(tmp_path, 3)
    assert shelf.keys[0] in shelf.library
    shelf.inventory.apply(PluginEnable(plugin="alpha", version="1.0.0", actor="0" * 16), 9)
    assert shelf.library.get(shelf.keys[0]) is not None
    assert shelf.keys[1] in shelf.library
    assert shelf.keys[2] in shelf.library
    shelf.path(0).unlink()
    assert shelf.library.get(shelf.keys[0]) is not None


def test_damaged_bundles_are_named_and_are_not_at_hand(tmp_path: Path) -> None:
    """Edited, deleted, swapped: each is named once; what is quarantined is not looked at."""
    shelf = Shelf(tmp_path, 5)
    data = bytearray(shelf.path(0).read_bytes())
    data[len(data) // 2] ^= 1
    shelf.path(0).write_bytes(data)
    shelf.path(1).unlink()
    shelf.path(2).write_bytes(shelf.path(4).read_bytes())
    shelf.path(3).unlink()
    shelf.inventory.apply(
        PluginQuarantine(plugin="alpha", version="1.0.3", reason="bundle_damaged"), 9
    )
    assert list(shelf.library.damaged()) == shelf.keys[:3]
    assert [key in shelf.library for key in shelf.keys] == [False] * 4 + [True]
    assert shelf.library.description(shelf.keys[1]) == ""
    assert shelf.library.description(shelf.keys[4]) == "Answers with what it was given."
    assert shelf.library.description(("gamma", "1.0.0")) == ""


def test_versions_with_the_same_schema_share_its_validator(tmp_path: Path) -> None:
    """However many versions are at hand, one schema is compiled and held once."""
    shelf = Shelf(tmp_path, 3)
    validators = [next(iter(shelf.library[key].validators.values())) for key in shelf.keys]
    assert validators[0] is validators[1] is validators[2]


def test_a_sweep_takes_what_no_event_speaks_of(tmp_path: Path) -> None:
    """Whole or half-written bundles without an event go; registered ones and other files stay."""
    shelf = Shelf(tmp_path, 1)
    stays = {shelf.path(0).name, "README"}
    for name in ("a" * 64, "b" * 64 + ".part", shelf.path(0).name + ".part", "README"):
        (tmp_path / name).write_bytes(b"x")
    BundleFolder(str(tmp_path)).sweep(shelf.inventory.bundles)
    assert {path.name for path in tmp_path.iterdir()} == stays
