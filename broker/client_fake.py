"""OMEGA's clients for integrators' own tests: no gateway, no key, answers that a test lays down.

    fake = FakeOmegaClient()
    fake.answer("word-count", "count", {"words": 2})
    fake.refuse("word-count", "count", RefusalCode.QUEUE_FULL, retry_after_ms=50)
    assert code_under_test(fake) == 2      # the second call would be refused
    assert fake.calls[0].payload == TextPayload("one two")

`AsyncFakeOmegaClient` is the same for asyncio. Both stand where the connection is: what is above,
from canonical JSON to typed errors, is the real client. Receipts are typed and rise, but there is
no ledger: what asks for checkpoints and proofs raises GatewayError. What is not laid down is
refused as a gateway would.

Rules this file keeps: nothing waits, and a call that is never answered times out at once. It leaves
everything that a client does to `broker.client`.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Final, NamedTuple, Self

import msgspec

from broker.client import OmegaClient
from broker.client_async import AsyncOmegaClient
from broker.client_errors import GatewayError, TimedOut
from broker.client_head import HeadKeeper
from broker.client_link import Link
from broker.client_profile import Profile
from broker.client_session import Outcome, PayloadLike, Result, Session, as_payload
from broker.keys import CurvePair
from schemas import messages
from schemas.codec import WireError, encode, from_omega
from schemas.messages import Invoke, InvokePipeline, Progress, Receipt, Refusal, Step, Usage
from schemas.names import API_VERSION
from schemas.payloads import JSONPayload, Payload, preimage
from schemas.pipelines import graph_flaw, resolve_pointer
from schemas.profile import ClientProfile
from schemas.refusals import REFUSALS, RefusalCode
from schemas.request_ids import request_id_of

LOG_ID: Final = f"omega-gateway/development/{0:016x}"
_NO_USAGE: Final = Usage(cpu_ms=0, wall_ms=0, max_rss_kb_upper_bound=0, output_bytes=0)

Answerer = Callable[[Payload], PayloadLike]


class _Plan(NamedTuple):
    """What one call gets: an answer or how to make one, a refusal, or neither, which is silence."""

    answer: Answerer | None
    refusal: Refusal | None
    usage: Usage
    notes: tuple[tuple[int, str], ...]


class _FakeGateway:
    """A table in the place of a gateway, for either client.

    Attributes:
        calls: every invocation that was sent, oldest first.
        requests: every request that was sent, oldest first.
    """

    def __init__(self, *, timeout: float = 30.0, version: str = "1.0.0") -> None:
        """Know no plugin yet.

        Args:
            timeout: what a profile would say, in seconds.
            version: the version that every plugin answers with.
        """
        self._version = version
        self._plans: dict[tuple[str, str], deque[_Plan]] = {}
        self._seq = 0
        self.requests: list[messages.FromOmega] = []
        self._session: Session = _Session(timeout)
        self._fake = _FakeLink(self._session.profile, self._replies)
        self._link: Link = self._fake
        self._arrived: dict[str, Outcome] = {}

    @property
    def calls(self) -> list[Invoke]:
        """Give every invocation that was sent, oldest first."""
        return [request for request in self.requests if isinstance(request, Invoke)]

    def answer(
        self,
        plugin: str,
        method: str,
        answer: PayloadLike | Answerer,
        *,
        usage: Usage = _NO_USAGE,
        notes: tuple[tuple[int, str], ...] = (),
    ) -> None:
        """Lay down what the next call gets; the last thing laid down is for all that follow.

        Args:
            plugin, method: what is called.
            answer: a payload, a str as text, anything else as JSON, or a function that makes one
                of these from the call's payload.
            usage: what the call is said to have used.
            notes: progress that comes before: permille and text.

        Raises:
            InvalidJson: the answer has no RFC 8785 form.
        """
        if not callable(answer):
            payload = as_payload(answer)
            self._plan(plugin, method, _Plan(lambda _input: payload, None, usage, notes))
        else:
            self._plan(plugin, method, _Plan(answer, None, usage, notes))

    def refuse(
        self,
        plugin: str,
        method: str,
        code: RefusalCode,
        *,
        where: str = "",
        hint: str = "",
        retry_after_ms: int | None = None,
        plugin_message: str | None = None,
    ) -> None:
        """Lay down a refusal, in the words of its code, as `answer` lays down an answer."""
        refusal = msgspec.structs.replace(
            _refusal(code), where=where, hint=hint or REFUSALS[code].remedy,
            retry_after_ms=retry_after_ms, plugin_message=plugin_message,
        )
        self._plan(plugin, method, _Plan(None, refusal, _NO_USAGE, ()))

    def silence(self, plugin: str, method: str) -> None:
        """Lay down that no answer comes: the call raises TimedOut, without waiting."""
        self._plan(plugin, method, _Plan(None, None, _NO_USAGE, ()))

    # --- In the place of a gateway ---

    def _plan(self, plugin: str, method: str, plan: _Plan) -> None:
        self._plans.setdefault((plugin, method), deque()).append(plan)

    def _replies(self, request: messages.FromOmega) -> Iterator[msgspec.Struct]:
        """Answer one request as the table says."""
        self.requests.append(request)
        request_id = request.request_id
        if isinstance(request, Invoke):
            yield from self._invoked(request)
        elif isinstance(request, InvokePipeline):
            yield self._piped(request)
        elif isinstance(request, messages.Cancel):
            known = any(one.request_id == request.target for one in self.requests)
            yield messages.Cancelled(
                request_id=request_id, receipt=self._receipt(), outcome="too_late",
                reached="answered",
            ) if known else self._refused(request_id, _refusal(RefusalCode.REQUEST_UNKNOWN))
        elif isinstance(request, messages.ListPlugins):
            yield messages.Plugins(request_id=request_id, plugins=tuple(
                messages.PluginEntry(name, "", self._version, self._version, 1, 1)
                for name in sorted({plugin for plugin, _ in self._plans})
            ))
        elif isinstance(request, messages.Status):
            yield self._status(request_id)
        else:
            raise GatewayError(f"a fake has no ledger and no registry for {type(request).__name__}")

    def _invoked(self, request: Invoke) -> Iterator[msgspec.Struct]:
        plan = self._next_plan(request.plugin, request.method)
        for permille, note in plan.notes:
            yield Progress(request_id=request.request_id, permille=permille, note=note)
        if plan.refusal is not None:
            yield self._refused(request.request_id, plan.refusal)
        elif plan.answer is not None:
            payload = as_payload(plan.answer(request.payload))
            yield messages.Result(
                request_id=request.request_id, receipt=self._receipt(), payload=payload,
                usage=plan.usage, output_sha256=hashlib.sha256(preimage(payload)).hexdigest(),
                plugin=request.plugin, version=self._version,
            )

    def _piped(self, request: InvokePipeline) -> msgspec.Struct:
        """Run the steps in an order in which each finds what it takes."""
        flaw = graph_flaw(request.steps)
        if flaw is not None:
            refusal = _refusal(RefusalCode.PIPELINE_INVALID, flaw.sentence)
            return self._refused(
                request.request_id, msgspec.structs.replace(refusal, where=flaw.where)
            )
        done: dict[str, messages.StepResult] = {}
        while len(done) < len(request.steps):
            for step in request.steps:
                needed = step.input.step if isinstance(step.input, messages.StepOutput) else None
                if step.name in done or (needed is not None and needed not in done):
                    continue
                done[step.name] = ended = self._step(step, done)
                if ended.outcome == "refused" and request.on_error == "abort":
                    refusal = _refusal(RefusalCode.PIPELINE_STEP_FAILED, step.name)
                    return self._refused(request.request_id, refusal)
        return messages.PipelineResult(
            request_id=request.request_id, receipt=self._receipt(), usage=_NO_USAGE,
            steps=tuple(done[step.name] for step in request.steps),
        )

    def _step(self, step: Step, done: dict[str, messages.StepResult]) -> messages.StepResult:
        payload = step.input
        if isinstance(payload, messages.StepOutput):
            source = done[payload.step].payload
            if source is None:
                return messages.StepResult(step=step.name, outcome="skipped")
            try:
                payload = _part(source, payload.pointer)
            except LookupError as error:
                refusal = _refusal(RefusalCode.PIPELINE_INVALID, str(error))
                return messages.StepResult(step=step.name, outcome="refused", refusal=refusal)
        plan = self._next_plan(step.plugin, step.method)
        if plan.answer is None:
            refusal = plan.refusal or _refusal(RefusalCode.DEADLINE_EXCEEDED)
            return messages.StepResult(step=step.name, outcome="refused", refusal=refusal)
        output = as_payload(plan.answer(payload))
        return messages.StepResult(
            step=step.name, outcome="result", payload=output, usage=plan.usage,
            output_sha256=hashlib.sha256(preimage(output)).hexdigest(),
        )

    def _next_plan(self, plugin: str, method: str) -> _Plan:
        plans = self._plans.get((plugin, method))
        if plans is None:
            known = any(name == plugin for name, _ in self._plans)
            code = RefusalCode.UNKNOWN_METHOD if known else RefusalCode.UNKNOWN_PLUGIN
            return _Plan(None, _refusal(code), _NO_USAGE, ())
        return plans.popleft() if len(plans) > 1 else plans[0]

    def _refused(self, request_id: str, refusal: Refusal) -> Refusal:
        return msgspec.structs.replace(refusal, request_id=request_id, receipt=self._receipt())

    def _receipt(self) -> Receipt:
        self._seq += 1
        digest = hashlib.sha256(f"{LOG_ID} {self._seq}".encode()).hexdigest()
        return Receipt(log_id=LOG_ID, seq=self._seq, event_hash=digest)

    def _status(self, request_id: str) -> messages.StatusReport:
        plugins = len({plugin for plugin, _ in self._plans})
        return messages.StatusReport(
            request_id=request_id, state="serving", domain="development", gateway_version="fake",
            api_version=API_VERSION, log_id=LOG_ID, ledger_size=self._seq, uptime_us=0, in_flight=0,
            in_flight_max=1, plugins=plugins, enabled=plugins, workers=(), trust_version=1,
            policy_sha256=hashlib.sha256(b"").hexdigest(),
        )


class FakeOmegaClient(_FakeGateway, OmegaClient):
    """An `OmegaClient` whose gateway is a table."""

    def __init__(self, *, timeout: float = 30.0, version: str = "1.0.0") -> None:
        """Know no plugin yet; `timeout` in seconds, `version` is what every plugin answers with."""
        super().__init__(timeout=timeout, version=version)
        self._thread = 0

    def _wait(self, request_id: str, timeout_s: float, deadline: float) -> Outcome:
        while request_id not in self._arrived:
            if not self._fake.frames:
                self._session.waiting.pop(request_id, None)
                raise TimedOut(request_id, timeout_s)
            self._receive()
        return super()._wait(request_id, timeout_s, deadline)

    def _next_of(
        self, window: dict[str, tuple[int, float, float]], *, ordered: bool
    ) -> tuple[int, Result | GatewayError]:
        # The order of the calls is one of those in which they may end.
        del ordered
        return super()._next_of(window, ordered=True)


class AsyncFakeOmegaClient(_FakeGateway, AsyncOmegaClient):
    """An `AsyncOmegaClient` whose gateway is a table."""

    async def __aenter__(self) -> Self:
        """Connect to nobody."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Forget what was not received."""
        self._fake.close()

    async def _exchange(self, request: tuple[str, bytes], timeout_s: float) -> Outcome:
        request_id, frame = request
        try:
            self._fake.send(frame, in_flight=False)
            # Other tasks run here, as they do while a gateway is waited for.
            await asyncio.sleep(0)
            while (reply := self._fake.receive()) is not None:
                ended = self._session.accept(reply)
                if ended is not None:
                    self._arrived[ended[0]] = ended[1]
            outcome = self._arrived.pop(request_id, None)
            if outcome is None:
                raise TimedOut(request_id, timeout_s)
            return outcome
        finally:
            self._session.waiting.pop(request_id, None)


class _Session(Session):
    """A session whose profile is no folder."""

    def __init__(self, timeout_s: float) -> None:
        nowhere = os.path.join(os.curdir, f"no-profile-{secrets.token_hex(16)}")
        settings = ClientProfile(
            format="omega-profile/1", endpoint="ipc://nowhere", server_key="0" * 40, role="omega",
            log_id=LOG_ID, timeout_ms=int(timeout_s * 1000),
        )
        self.profile = Profile(nowhere, settings, CurvePair("", ""))
        self.keeper = HeadKeeper(self.profile)
        self.waiting = {}


class _FakeLink(Link):
    """A connection to nobody: each request that is sent leaves its replies to be received."""

    def __init__(
        self, profile: Profile, replies: Callable[[messages.FromOmega], Iterator[msgspec.Struct]]
    ) -> None:
        super().__init__(profile, 0.0)
        self._replies = replies
        self.frames: deque[bytes] = deque()

    def open(self) -> None:
        """Connect to nobody."""

    def send(self, frame: bytes, *, in_flight: bool) -> None:
        """Take a request and keep its replies; what no gateway could read is refused as there."""
        del in_flight
        try:
            request = from_omega.decode(frame)
        except WireError as error:
            refusal = msgspec.structs.replace(
                _refusal(error.code, str(error)), where=error.where,
                request_id=request_id_of(frame),
            )
            self.frames.append(encode(refusal))
            return
        self.frames.extend(encode(reply) for reply in self._replies(request))

    def send_now(self, frame: bytes) -> bool:
        """Take a request, as `send` does."""
        self.send(frame, in_flight=False)
        return True

    def receive(self) -> bytes | None:
        """Give the oldest reply that was not received."""
        return self.frames.popleft() if self.frames else None

    def close(self) -> None:
        """Forget what was not received."""
        self.frames.clear()


def _part(payload: Payload, pointer: str) -> Payload:
    """Give what a pointer names in an output: a text for a string, else a JSON document."""
    if not pointer or not isinstance(payload, JSONPayload):
        return payload
    return as_payload(resolve_pointer(msgspec.json.decode(payload.data), pointer))


def _refusal(code: RefusalCode, sentence: str = "") -> Refusal:
    page = REFUSALS[code]
    return Refusal(
        code=code, hint=page.remedy,
        message=f"{page.title}: {sentence}" if sentence else f"{page.title}. {page.reason}",
    )
