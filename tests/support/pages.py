"""Playing a page of the documentation: its commands run, and print what stands below them.

A page's blocks are played in order. `sh` runs in the folder that the block before ended in, with
what it exported; with the word `fails` it must end with another status than 0. `prints` gives lines
that the command before must have printed. `python NAME` writes a file; `python` alone runs. Any
other kind is for people.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tests.authoring.folders import ENVIRONMENT, ROOT

PATIENCE_S = 60
BLOCK = re.compile(r"^```(\w+) ?([\w.-]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """One fenced block: its kind, the word behind it, its lines."""

    kind: str
    word: str
    text: str


def blocks(page: Path) -> list[Block]:
    """Read a page's blocks."""
    return [Block(*found) for found in BLOCK.findall(page.read_text("utf-8"))]


def commands(folder: Path) -> dict[str, str]:
    """Make an environment in which both commands are those of this source tree."""
    folder.mkdir()
    for name, module in (
        ("omega-plugin", "broker.authoring.main"), ("omega-gateway", "broker.cli.main"),
    ):
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m {module} "$@"\n')
        path.chmod(0o755)
    return {
        **ENVIRONMENT, "PATH": f"{folder}{os.pathsep}{ENVIRONMENT['PATH']}",
        "XDG_RUNTIME_DIR": str(folder), "PYTEST_ADDOPTS": "-p no:cacheprovider",
    }


def play(
    page: Path, folder: Path, environment: Mapping[str, str],
    places: Mapping[str, str] | None = None,
) -> int:
    """Play a page and end what it left running; gives how many blocks ran.

    Args:
        page: the page.
        folder: where it begins.
        environment: of its commands, see `commands`.
        places: what stands in this test for paths that the page names.
    """
    where, kept, said, played = folder / "where", folder / "exported", "", 0
    kept.touch()
    groups: list[int] = []
    try:
        for kind, word, written in blocks(page):
            text = written
            for name, place in (places or {}).items():
                text = text.replace(name, place)
            if kind == "sh" or (kind == "python" and not word):
                runs = ["bash", "-ec", f". {kept}\n{text}\npwd > {where}\nexport -p > {kept}"]
                process = subprocess.Popen(
                    runs if kind == "sh" else [sys.executable, "-c", text], cwd=folder,
                    env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                    start_new_session=True,
                )
                groups.append(process.pid)
                said, _ = process.communicate(timeout=PATIENCE_S)
                assert (process.returncode != 0) == (word == "fails"), f"{text}\n{said}"
                if kind == "sh" and process.returncode == 0:
                    folder = Path(where.read_text().strip())
                played += 1
            elif kind == "python":
                (folder / word).write_text(text)
            elif kind == "prints":
                missing = [line for line in text.splitlines() if line not in said]
                assert missing == [], said
    finally:
        for group in groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
    return played


__all__ = ["ROOT", "Block", "blocks", "commands", "play"]
