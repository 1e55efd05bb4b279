"""Requests and replies of one client, without its sockets.

Rules this file keeps:
- Every request has a fresh UUIDv4 and names the log size its client knows.
- A reply belongs to a request that waits, or it is ignored: late ones, unknown types and unknown
  fields never hurt. What is no reply at all is an error.
- A receipt is held against the checkpoint that was known when its request was sent.

It leaves sending and waiting to `broker.client` and `broker.client_async`.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Sequence
from typing import Final, Literal, NamedTuple, TypedDict, TypeVar

import msgspec

from broker.client_errors import GatewayError, Refused
from broker.client_head import HeadKeeper
from broker.client_profile import PathText, Profile, read_profile
from schemas import messages
from schemas.canonical import JsonValue, document_bytes
from schemas.codec import WireError, decode_reply, encode
from schemas.messages import Progress, Receipt, Refusal, Reply, Usage
from schemas.names import FRAME_BYTES_MAX_ADMIN, FRAME_BYTES_MAX_OMEGA, READ_BYTES_MAX, Role
from schemas.payloads import (
    BinaryRefPayload,
    DatasetSlicePayload,
    JSONPayload,
    Payload,
    TextPayload,
)
from schemas.pipelines import step_commitment_key, step_request_id
from schemas.proof import Checkpoint

GRACE_S: Final = 2.0
"""How much longer than the gateway a client waits, so that a typed refusal can arrive."""

_BYTES_MAX: Final[dict[Role, int]] = {
    "omega": FRAME_BYTES_MAX_OMEGA, "operator": FRAME_BYTES_MAX_ADMIN, "auditor": READ_BYTES_MAX,
}

PayloadLike = Payload | JsonValue
OnProgress = Callable[[Progress], None]
ReplyT = TypeVar("ReplyT", bound=msgspec.Struct)


class Call(NamedTuple):
    """One invocation; `timeout` in seconds, None means the profile's.

    With `keep_alive` the gateway gives signs of life and ends the call when this client is gone.
    """

    plugin: str
    method: str
    payload: PayloadLike
    version: str | None = None
    timeout: float | None = None
    keep_alive: bool = False


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of one invocation, its evidence, and the key that opens its commitments."""

    payload: Payload
    receipt: Receipt
    usage: Usage
    commitment_key: bytes
    request_id: str
    plugin: str
    version: str
    output_sha256: str

    @property
    def text(self) -> str:
        """The answer's text. Raises TypeError when the answer is no text."""
        if not isinstance(self.payload, TextPayload):
            raise TypeError(f"the answer is a {type(self.payload).__name__}")
        return self.payload.text

    def json(self) -> JsonValue:
        """Decode the answer's JSON document. Raises TypeError when the answer is no JSON."""
        if not isinstance(self.payload, JSONPayload):
            raise TypeError(f"the answer is a {type(self.payload).__name__}")
        value: JsonValue = msgspec.json.decode(self.payload.data)
        return value


class PipelineResult(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of a pipeline: its steps in declared order, its evidence, and the key it ran
    under."""

    steps: tuple[messages.StepResult, ...]
    usage: Usage
    receipt: Receipt
    commitment_key: bytes
    request_id: str

    def step(self, name: str) -> messages.StepResult:
        """Give what became of one step. Raises KeyError when there was no such step."""
        for step in self.steps:
            if step.step == name:
                return step
        raise KeyError(name)

    def request_id_of(self, step: str) -> str:
        """Give the request id under which the ledger knows one step."""
        return step_request_id(self.request_id, step)

    def commitment_key_of(self, step: str) -> bytes:
        """Give the key that opens one step's commitments and no other's."""
        return step_commitment_key(self.commitment_key, step)


Outcome = Result | PipelineResult | Reply
"""How a request ended: a reply, or what was made from one."""


class Common(TypedDict):
    """The fields that every request carries."""

    request_id: str
    known_size: int


class _Waiting(NamedTuple):
    """A request in flight: checkpoint and size known when it was sent, and what it brings along.

    `size` is that of the checkpoint that it asks a proof against.
    """

    base: Checkpoint | None
    seen: int
    commitment_key: bytes
    on_progress: OnProgress | None
    size: int | None


class Session:
    """The requests of one client that wait for their replies."""

    def __init__(self, profile: PathText, roles: Sequence[Role]) -> None:
        """Read a profile, whose role must be one of `roles`.

        Raises:
            KeyFileRefused: the profile cannot be used.
            GatewayError: it is of another role, or its kept checkpoint is damaged.
        """
        self.profile: Profile = read_profile(profile)
        role = self.profile.settings.role
        if role not in roles:
            raise GatewayError(
                f"{self.profile.directory}: is a profile of role {role}, needed is "
                f"{' or '.join(roles)}"
            )
        self.keeper = HeadKeeper(self.profile)
        self.waiting: dict[str, _Waiting] = {}

    def timeout_s(self, timeout: float | None) -> float:
        """Take the profile's timeout for None; seconds."""
        return self.profile.settings.timeout_ms / 1000 if timeout is None else timeout

    def invoke(
        self, call: Call, request_id: str | None, on_progress: OnProgress | None
    ) -> tuple[str, bytes]:
        """Write an invocation; gives its request id and frame."""
        key = secrets.token_bytes(32)
        return self._waits(
            messages.Invoke(
                request_id=request_id or new_request_id(),
                known_size=self.keeper.known_size,
                plugin=call.plugin,
                method=call.method,
                payload=as_payload(call.payload),
                timeout_ms=_milliseconds(self.timeout_s(call.timeout)),
                commitment_key=key,
                version=call.version,
                keep_alive=call.keep_alive,
            ),
            key,
            on_progress,
        )

    def pipeline(
        self,
        steps: Sequence[messages.Step],
        timeout_s: float,
        budget: messages.Budget,
        on_error: Literal["abort", "skip_dependents"],
        request_id: str | None,
        on_progress: OnProgress | None,
    ) -> tuple[str, bytes]:
        """Write a pipeline; gives its request id and frame."""
        key = secrets.token_bytes(32)
        request = messages.InvokePipeline(
            request_id=request_id or new_request_id(), known_size=self.keeper.known_size,
            steps=tuple(steps), timeout_ms=_milliseconds(timeout_s),
            budget=budget, commitment_key=key, on_error=on_error,
        )
        return self._waits(request, key, on_progress)

    def request(self, request: messages.FromOmega | messages.FromAdmin) -> tuple[str, bytes]:
        """Write any other request."""
        return self._waits(request, b"")

    def common(self) -> Common:
        """Make the fields that every request carries."""
        return {"request_id": new_request_id(), "known_size": self.keeper.known_size}

    def accept(self, frame: bytes) -> tuple[str, Outcome] | None:
        """Read one frame of the gateway; None when it ends no request that waits.

        Raises:
            LedgerForked: its receipt belongs to another history.
            Refused: the gateway could not read a request of ours at all.
            GatewayError: the frame is no reply.
        """
        try:
            reply = decode_reply(frame)
        except WireError as error:
            raise GatewayError(f"the gateway sent what is no reply: {error}") from None
        if reply is None:
            return None
        request_id = reply.request_id
        if request_id is None:
            if isinstance(reply, Refusal):
                raise Refused(reply)
            return None
        waiting = self.waiting.get(request_id)
        if waiting is None:
            return None
        if isinstance(reply, Progress):
            if waiting.on_progress is not None:
                waiting.on_progress(reply)
            return None
        if isinstance(reply, messages.KeepAlive):
            return None
        del self.waiting[request_id]
        if reply.receipt is not None:
            self.keeper.check_receipt(reply.receipt, waiting.base, waiting.seen)
        if isinstance(reply, messages.Head | messages.Proof | messages.Consistency):
            self.keeper.check_shown(reply, waiting.base, waiting.size)
        if not isinstance(reply, messages.Result | messages.PipelineResult):
            return request_id, reply
        if reply.receipt is None:
            raise GatewayError(f"the result of request {request_id} has no receipt")
        if isinstance(reply, messages.PipelineResult):
            return request_id, PipelineResult(
                steps=reply.steps, usage=reply.usage, receipt=reply.receipt,
                commitment_key=waiting.commitment_key, request_id=request_id,
            )
        return request_id, Result(
            payload=reply.payload, receipt=reply.receipt, usage=reply.usage,
            commitment_key=waiting.commitment_key, request_id=request_id, plugin=reply.plugin,
            version=reply.version, output_sha256=reply.output_sha256,
        )

    def _waits(
        self,
        request: messages.FromOmega | messages.FromAdmin,
        commitment_key: bytes,
        on_progress: OnProgress | None = None,
    ) -> tuple[str, bytes]:
        try:
            frame = encode(request)
        except (UnicodeEncodeError, OverflowError, TypeError, RecursionError) as error:
            raise GatewayError(
                f"the request cannot be written as a message: {error}; nothing was sent"
            ) from error
        role = self.profile.settings.role
        allowed = _BYTES_MAX[role]
        if len(frame) > allowed:
            # Sent, it would end the connection, and with it every other call in flight; or be
            # refused as too large where what is wrong is the role.
            raise GatewayError(
                f"the request has {len(frame)} bytes, a gateway takes at most {allowed} from a "
                f"client of role {role}; nothing was sent"
            )
        self.waiting[request.request_id] = _Waiting(
            self.keeper.head, self.keeper.seen, commitment_key, on_progress,
            request.size
            if isinstance(request, messages.Prove | messages.ProveConsistency) else None,
        )
        return request.request_id, frame


def new_request_id() -> str:
    """Make a UUIDv4 (RFC 9562, section 5.4) at a third of the standard library's price."""
    digits = secrets.token_hex(16)
    variant = "89ab"[int(digits[16], 16) & 3]
    return (
        f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"
    )


def as_payload(value: PayloadLike) -> Payload:
    """Make a payload: a payload is itself, a str is text, anything else a JSON document.

    Raises:
        InvalidJson: the value has no RFC 8785 form.
    """
    if isinstance(value, TextPayload | JSONPayload | BinaryRefPayload | DatasetSlicePayload):
        return value
    if isinstance(value, str):
        return TextPayload(value)
    return JSONPayload(document_bytes(value))


def expect(outcome: Outcome, kind: type[ReplyT]) -> ReplyT:
    """Give an outcome as what was asked for.

    Raises:
        Refused: the gateway refused.
        GatewayError: it answered something else.
    """
    if isinstance(outcome, kind):
        return outcome
    if isinstance(outcome, Refusal):
        raise Refused(outcome)
    raise GatewayError(f"expected {kind.__name__}, the gateway sent {type(outcome).__name__}")


def _milliseconds(seconds: float) -> int:
    if not math.isfinite(seconds):
        raise GatewayError(
            f"the request cannot be written as a message: a timeout of {seconds} s; expected a "
            "number of seconds; nothing was sent"
        )
    return max(1, math.ceil(seconds * 1000))


def deadline_after(now: float, timeout_s: float) -> float:
    """Say when waiting ends: a little after the gateway's own deadline."""
    return now + timeout_s + GRACE_S
