"""Gives a JSON document back as it came."""

from __future__ import annotations

from sandbox_worker.sdk import Context, JSONPayload, method


@method()
def echo(_context: Context, document: JSONPayload) -> JSONPayload:
    """Answer with the input."""
    return document
