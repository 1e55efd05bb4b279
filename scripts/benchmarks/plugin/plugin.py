"""Gives a JSON document back as it came, or never."""

from __future__ import annotations

from sandbox_worker.sdk import Context, JSONPayload, method


@method()
def echo(_context: Context, document: JSONPayload) -> JSONPayload:
    """Answer with the input."""
    return document


@method()
def spin(context: Context, document: JSONPayload) -> JSONPayload:
    """Say that it runs, and never answer."""
    context.progress(0.5)
    while True:
        document = JSONPayload(document.data)
