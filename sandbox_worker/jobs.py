"""What a call process is told about its call: one job, as plain values for marshal.

It leaves writing them to a socket to the supervisor, and reading them to `sandbox_worker.method`.
"""

from __future__ import annotations

import marshal
from collections.abc import Mapping

import msgspec

from sandbox_worker.method import MARSHAL_VERSION
from schemas.manifest import Method
from schemas.messages import Run
from schemas.payloads import (
    PAYLOAD_KINDS,
    BinaryRefPayload,
    JSONPayload,
    Payload,
    TextPayload,
)

Job = tuple[object, ...]


def run_job(order: Run, method: Method, env: Mapping[str, str]) -> Job:
    """The job of a call, but for what it is handed, which comes last.

    Raises:
        msgspec.MsgspecError, UnicodeDecodeError, RecursionError: its JSON cannot be decoded.
    """
    kind = PAYLOAD_KINDS[type(order.payload)]
    fields = _fields(order.payload)
    return ("run", order.request_id, order.method, kind, fields, method.output.kind, env)


def job_bytes(job: Job) -> bytes:
    """A job as a call process reads it: its length, marshalled, and itself."""
    data = marshal.dumps(job, MARSHAL_VERSION)  # type: ignore[arg-type]  # Plain values only.
    return marshal.dumps(len(data), MARSHAL_VERSION) + data


def _fields(payload: Payload) -> tuple[object, ...]:
    """A payload's fields as plain values, in the order of the SDK's constructors."""
    if isinstance(payload, TextPayload):
        return (payload.text, payload.media_type)
    if isinstance(payload, JSONPayload):
        return (msgspec.json.decode(payload.data), payload.schema)
    if isinstance(payload, BinaryRefPayload):
        return (payload.artifact_id, payload.sha256, payload.size, payload.media_type)
    return (payload.dataset_id, payload.keys)
