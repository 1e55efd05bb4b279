"""A result and its payload as the command line shows them.

Rules this file keeps: a JSON document stands in a result as itself, byte for byte; digests and the
commitment key are hexadecimal.

It leaves writing them out to `broker.cli.output`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from broker.client import Result
    from schemas.payloads import Payload


def usage_words(result: Result) -> str:
    """Say what a call used."""
    used = result.usage
    return (f"{used.cpu_ms} ms of processor, {used.wall_ms} ms in all, at most "
            f"{used.max_rss_kb_upper_bound} KiB of memory, {used.output_bytes} bytes of answer")


def result_document(result: Result) -> dict[str, object]:
    """Give a result as JSON."""
    import msgspec

    return {
        "plugin": result.plugin,
        "version": result.version,
        "request_id": result.request_id,
        "payload": payload_document(result.payload),
        "receipt": msgspec.to_builtins(result.receipt),
        "usage": msgspec.to_builtins(result.usage),
        "output_sha256": result.output_sha256,
        "commitment_key": result.commitment_key.hex(),
    }


def payload_document(payload: Payload) -> Mapping[str, object]:
    """Give a payload as JSON; a JSON document stands in it as itself."""
    import msgspec

    from schemas.payloads import JSONPayload

    document: dict[str, object] = msgspec.to_builtins(payload)
    if isinstance(payload, JSONPayload):
        document["data"] = msgspec.Raw(payload.data)
    return document
