"""A zygote loads what its plugin's manifest names and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.modules import VETTED_MODULES
from tests.sandbox_worker.harness import worker

pytestmark = [pytest.mark.jail, pytest.mark.system]

PLUGIN = '''
import sys

from sandbox_worker.sdk import method


@method()
def main(ctx, text):
    return sorted(sys.modules)
'''

EVERYWHERE = {
    "abc", "codecs", "collections", "collections.abc", "io", "itertools", "keyword", "operator",
    "reprlib", "struct", "time", "types",
}
"""Vetted modules that a call process may have unasked: the interpreter or our code needs them."""

LOADED_MAX = 75
"""Modules of a call process whose plugin names none, each of which costs every fork."""


def _loaded(folder: Path, *modules: str) -> set[str]:
    with worker(folder, PLUGIN, modules=modules, pool_size=1) as one:
        found = one.value()
    assert isinstance(found, list)
    return set(found)


def test_a_plugin_that_names_nothing_gets_nothing(tmp_path: Path) -> None:
    """Of the vetted modules only those are there that interpreter or jail cannot do without."""
    found = _loaded(tmp_path)

    assert found & VETTED_MODULES <= EVERYWHERE
    assert found.isdisjoint({"ctypes", "_ctypes", "_socket", "socket", "threading", "logging"})
    assert len(found) <= LOADED_MAX, sorted(found)


def test_a_plugin_gets_what_it_names_with_what_that_needs(tmp_path: Path) -> None:
    """`datetime` comes with what it would import late, and nothing that was not named comes too."""
    nothing = _loaded(tmp_path)
    found = _loaded(tmp_path, "bisect", "datetime")

    assert {"bisect", "datetime", "_strptime"} <= found - nothing
    assert found.isdisjoint({"json", "msgspec", "random", "decimal", "uuid", "csv", "tomllib"})
