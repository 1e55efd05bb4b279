"""Plugin folders on a real disk, each with one thing changed on request."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from broker.keys import make_private_directory, write_secret
from tests.trust.builders import SEED_A

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
    "PYTHONDONTWRITEBYTECODE": "1",
}
"""For processes that are to find what this one finds."""

PLUGIN = '''
"""Counts words."""
import msgspec

from sandbox_worker.sdk import Context, TextPayload, method


class Answer(msgspec.Struct):
    words: int


@method(deterministic=True, timeout_ms=20_000)
def count(context: Context, text: TextPayload) -> Answer:
    return Answer(len(text.text.split()))
'''
TOML = """
id = "word-count"
version = "1.2.3"
api_version = "1.0.0"
publisher = "acme"
description = "Counts words."
modules = ["msgspec"]
"""


def plugin_folder(folder: Path, source: str = PLUGIN, toml: str = TOML, **files: str) -> Path:
    """Write a plugin's folder; other files are given by name with `__` for the dot."""
    folder.mkdir(exist_ok=True)
    (folder / "plugin.py").write_bytes(source.encode(errors="surrogateescape"))
    (folder / "plugin.toml").write_text(toml)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def key_file(folder: Path, seed: bytes = SEED_A, name: str = "publisher.key") -> Path:
    """Write a signing key as a home keeps one."""
    keys = folder / "keys"
    make_private_directory(str(keys))
    write_secret(str(keys / name), seed.hex())
    return keys / name
