"""Counts the bytes of an artifact that it is handed."""

from __future__ import annotations

from sandbox_worker.sdk import BinaryRefPayload, Context, method


@method()
def count(context: Context, _artifact: BinaryRefPayload) -> int:
    """Answer with how many bytes could be read."""
    return len(context.artifact.read())
