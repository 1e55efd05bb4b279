"""References made from a store of artifacts."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from broker.store import artifact_reference
from schemas.payloads import BinaryRefPayload


def test_a_reference_is_made_from_the_bytes_that_lie_there(tmp_path: Path):
    """Size and digest are those of the file, whatever its length."""
    for data in (b"", b"x", os.urandom((1 << 20) + 17)):
        (tmp_path / "scan:1").write_bytes(data)

        reference = artifact_reference(str(tmp_path), "scan:1", "image/png")

        digest = hashlib.sha256(data).hexdigest()
        assert reference == BinaryRefPayload("scan:1", digest, len(data), "image/png")


@pytest.mark.parametrize("name", ["", "../secret", "a/b", ".hidden", "link", "fifo", "folder"])
def test_what_is_no_artifact_has_no_reference(tmp_path: Path, name: str):
    """A climbing id, a link, a pipe and a folder are refused; nothing waits for a writer."""
    store = tmp_path / "store"
    store.mkdir()
    (tmp_path / "secret").write_text("x")
    (store / "link").symlink_to("../secret")
    os.mkfifo(store / "fifo")
    (store / "folder").mkdir()

    with pytest.raises((ValueError, OSError)):
        artifact_reference(str(store), name, "text/plain")
