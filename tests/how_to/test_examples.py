"""The examples' own pages: what they tell a reader to type works as it stands."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from broker.home import PUBLISHER_KEY
from tests.support.gateway import running_gateway
from tests.support.pages import ROOT, blocks, commands, play

EXAMPLES = ROOT / "examples"
FROM_ELSEWHERE = {"principal-components"}
"""Pages with commands that fetch from the network; tests/sandbox_worker tries what they come to."""


@pytest.mark.once
def test_the_commands_of_every_example_work(tmp_path: Path) -> None:
    """Checked, packed, signed, registered, enabled and called by a reader with one gateway."""
    pages = [page for page in sorted(EXAMPLES.glob("*/README.md"))
             if page.parent.name not in FROM_ELSEWHERE]
    assert len(pages) == 6
    with running_gateway() as gateway:
        environment = commands(gateway.folder / "bin")
        environment["OMEGA_GATEWAY_HOME"] = str(gateway.home)
        shutil.copytree(EXAMPLES, tmp_path / "examples")
        for page in pages:
            played = play(page, tmp_path, environment, {"KEY": str(gateway.home / PUBLISHER_KEY)})
            assert played == sum(block.kind == "sh" for block in blocks(page)) > 0
