"""The client library: what OMEGA, operators and auditors use to speak to a gateway.

    with OmegaClient("~/omega-profile") as omega:
        answer = omega.invoke("word-count", "count", "some text")
        print(answer.json(), answer.receipt.seq)

Rules this file keeps:
- Needs pyzmq, msgspec and pynacl only, on any platform; imports nothing of the gateway's own.
- Every wait has an end, and an unauthorised key is an exception within two seconds.
- Every answer's evidence is held against what this client knows: `broker.client_head`.
- A client belongs to the thread that uses it first. For asyncio there is `AsyncOmegaClient`.

It leaves requests and replies to `broker.client_session`, the connection to `broker.client_link`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from broker.client_errors import (
    GatewayError,
    LedgerForked,
    NotAuthorised,
    Refused,
    TimedOut,
    Unreachable,
)
from broker.client_head import verify_event
from broker.client_link import Link
from broker.client_profile import PathText
from broker.client_session import (
    Call,
    OnProgress,
    Outcome,
    PayloadLike,
    PipelineResult,
    ReplyT,
    Result,
    Session,
    deadline_after,
    expect,
)
from schemas import messages
from schemas.canonical import InvalidJson
from schemas.names import Role

if TYPE_CHECKING:
    from broker.client_async import AsyncOmegaClient

__all__ = [
    "AdminClient",
    "AsyncOmegaClient",
    "Call",
    "GatewayError",
    "LedgerForked",
    "NotAuthorised",
    "OmegaClient",
    "PipelineResult",
    "Refused",
    "Result",
    "TimedOut",
    "Unreachable",
]


class _Client:
    """What every synchronous client can do: wait for replies, and read."""

    ROLES: tuple[Role, ...] = ()

    def __init__(self, profile: PathText, *, connect_timeout: float = 5.0) -> None:
        """Read a profile; the connection is made by the first request.

        Args:
            profile: the profile's folder.
            connect_timeout: the longest handshake, in seconds.

        Raises:
            KeyFileRefused: the profile cannot be used.
            GatewayError: the profile is of another role.
        """
        self._session = Session(os.path.expanduser(profile), self.ROLES)
        self._link = Link(self._session.profile, connect_timeout)
        self._arrived: dict[str, Outcome] = {}
        self._thread = 0

    def __enter__(self) -> Self:
        """Connect. Raises Unreachable or NotAuthorised."""
        self._open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connection."""
        self.close()

    def close(self) -> None:
        """Close the connection; requests in flight get no answer."""
        self._link.close()
        self._session.waiting.clear()
        self._arrived.clear()

    def list_plugins(self, *, after: str | None = None, limit: int = 200) -> messages.Plugins:
        """List registered plugins, a page at a time."""
        return self._ask(
            messages.ListPlugins(**self._session.common(), after=after, limit=limit),
            messages.Plugins,
        )

    def get_plugin(self, plugin: str, *, version: str | None = None) -> messages.Plugin:
        """Show one plugin with its versions, methods, grants and pending difference."""
        return self._ask(
            messages.GetPlugin(**self._session.common(), plugin=plugin, version=version),
            messages.Plugin,
        )

    def status(self) -> messages.StatusReport:
        """Ask how the gateway is."""
        return self._ask(messages.Status(**self._session.common()), messages.StatusReport)

    def ledger_head(self) -> messages.Head:
        """Ask for the newest checkpoint, and accept it if it continues the last one.

        Raises:
            LedgerForked: it does not.
        """
        return self._ask(messages.LedgerHead(**self._session.common()), messages.Head)

    def prove(self, seq: int, *, size: int | None = None) -> messages.Proof:
        """Ask for one event with its inclusion proof, which is checked.

        Args:
            seq: the event's position.
            size: how many events the checkpoint covers that it is proven against; one must have
                been signed over exactly so many. None takes the newest, which is accepted and
                shown to continue the one accepted before; it is shown to continue an older one too.

        Raises:
            LedgerForked: the proof does not hold.
        """
        request = messages.Prove(**self._session.common(), seq=seq, size=size)
        proof = self._ask(request, messages.Proof)
        verify_event(proof, seq)
        if size is not None:
            self._continued(proof.checkpoint, size)
        return proof

    def prove_consistency(
        self, old_size: int, *, size: int | None = None
    ) -> messages.Consistency:
        """Ask for the proof that a checkpoint continues what the ledger was at `old_size` events.

        Whoever holds the checkpoint of the old size checks the proof; which checkpoint continues
        it, and what is checked of that here, is as with `prove`.

        Raises:
            LedgerForked: it does not hold.
        """
        request = messages.ProveConsistency(
            **self._session.common(), old_size=old_size, size=size
        )
        step = self._ask(request, messages.Consistency)
        if size is not None:
            self._continued(step.checkpoint, size)
        return step

    def _continued(self, note: str, size: int) -> None:
        """Have it shown that the newest checkpoint continues an older one."""
        if not self._session.keeper.continues(note):
            self._session.keeper.check_older(note, self.prove_consistency(size))

    def show_request(self, target: str) -> messages.RequestStory:
        """Ask for all events of one request."""
        return self._ask(
            messages.ShowRequest(**self._session.common(), target=target), messages.RequestStory
        )

    # --- Sending and waiting ---

    def _ask(
        self, request: messages.FromOmega | messages.FromAdmin, kind: type[ReplyT]
    ) -> ReplyT:
        timeout_s = self._session.timeout_s(None)
        return expect(self._exchange(self._session.request(request), timeout_s), kind)

    def _exchange(self, request: tuple[str, bytes], timeout_s: float) -> Outcome:
        """Send one request and wait for its end."""
        try:
            self._send(request)
            return self._wait(request[0], timeout_s, deadline_after(time.monotonic(), timeout_s))
        finally:
            # Also when on_progress raised or somebody pressed Ctrl-C: nobody waits for it now.
            self._session.waiting.pop(request[0], None)

    def _send(self, request: tuple[str, bytes]) -> None:
        try:
            self._open()
            self._link.send(request[1], in_flight=len(self._session.waiting) > 1)
        except GatewayError:
            self._session.waiting.pop(request[0], None)
            raise

    def _wait(self, request_id: str, timeout_s: float, deadline: float) -> Outcome:
        while True:
            outcome = self._arrived.pop(request_id, None)
            if outcome is not None:
                return outcome
            if time.monotonic() > deadline:
                self._session.waiting.pop(request_id, None)
                raise TimedOut(request_id, timeout_s)
            self._receive()

    def _receive(self) -> None:
        """Take one frame, or none when none comes for a while."""
        try:
            frame = self._link.receive()
        except GatewayError:
            # The connection is gone, and the requests in flight with it.
            self._session.waiting.clear()
            raise
        ended = None if frame is None else self._session.accept(frame)
        if ended is not None:
            self._arrived[ended[0]] = ended[1]

    def _open(self) -> None:
        # libzmq ends the process when two threads use one socket.
        if self._thread != threading.get_ident():
            if self._thread:
                raise GatewayError("a client belongs to the thread that used it first")
            self._thread = threading.get_ident()
        self._link.open()


class OmegaClient(_Client):
    """OMEGA's client: it may invoke."""

    ROLES = ("omega",)

    @classmethod
    def from_home(cls, home: PathText) -> Self:
        """Use the profile that a development home keeps for OMEGA."""
        return cls(os.path.join(os.path.expanduser(home), "profiles", "omega"))

    def invoke(
        self,
        plugin: str,
        method: str,
        payload: PayloadLike,
        *,
        version: str | None = None,
        timeout: float | None = None,
        keep_alive: bool = False,
        request_id: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> Result:
        """Run one method of one plugin.

        Args:
            plugin: the plugin's id.
            method: the method's name.
            payload: a payload; a str is sent as text, a dict or list as JSON.
            version: an exact version or `^X.Y`; None takes the enabled one.
            timeout: in seconds; None takes the profile's.
            keep_alive: whether the call ends when this client is gone.
            request_id: a fresh UUIDv4 of the caller's, so that another client can cancel it.
            on_progress: called with each progress note.

        Raises:
            Refused: the gateway refused, or the call failed.
            Unreachable, NotAuthorised, TimedOut: there is no answer.
            LedgerForked: the answer's evidence contradicts what this client knows.
            InvalidJson: the payload has no RFC 8785 form.
            GatewayError: the request cannot be written, as with a lone surrogate, or is too large.
        """
        call = Call(plugin, method, payload, version, timeout, keep_alive)
        request = self._session.invoke(call, request_id, on_progress)
        return expect(self._exchange(request, self._session.timeout_s(timeout)), Result)

    def invoke_many(
        self, calls: Iterable[Call], *, in_flight: int = 32, ordered: bool = True
    ) -> Iterator[tuple[int, Result | GatewayError]]:
        """Run many calls with a window of requests in flight.

        Args:
            calls: the invocations.
            in_flight: how many wait for their answers at once.
            ordered: whether answers are given in the order of the calls or as they come.

        Yields:
            The call's index, and its result, or the `Refused` or `TimedOut` it ended with.

        Raises:
            Unreachable, NotAuthorised, LedgerForked: nothing more can come.
            GatewayError, InvalidJson: a call cannot be sent; those before it are answered first.
        """
        window: dict[str, tuple[int, float, float]] = {}
        source = enumerate(calls)
        more, wrong = True, None
        try:
            while window or more:
                while more and len(window) < in_flight:
                    index, call = next(source, (-1, None))
                    if call is None:
                        more = False
                        break
                    timeout_s = self._session.timeout_s(call.timeout)
                    try:
                        request = self._session.invoke(call, None, None)
                    except (GatewayError, InvalidJson) as error:
                        more, wrong = False, error
                        break
                    self._send(request)
                    deadline = deadline_after(time.monotonic(), timeout_s)
                    window[request[0]] = (index, timeout_s, deadline)
                if window:
                    yield self._next_of(window, ordered=ordered)
            if wrong is not None:
                raise wrong
        finally:
            for request_id in window:
                self._session.waiting.pop(request_id, None)
                self._arrived.pop(request_id, None)

    def _next_of(
        self, window: dict[str, tuple[int, float, float]], *, ordered: bool
    ) -> tuple[int, Result | GatewayError]:
        """Wait for the oldest of a window, or for any of it, and take it out."""
        request_id = oldest = next(iter(window))
        while not ordered:
            found = next((one for one in self._arrived if one in window), None)
            if found is not None or time.monotonic() > window[oldest][2]:
                request_id = found or oldest
                break
            self._receive()
        index, timeout_s, deadline = window.pop(request_id)
        try:
            return index, expect(self._wait(request_id, timeout_s, deadline), Result)
        except (Refused, TimedOut) as error:
            return index, error

    def invoke_pipeline(
        self,
        steps: Sequence[messages.Step],
        *,
        budget: messages.Budget,
        timeout: float | None = None,
        on_error: Literal["abort", "skip_dependents"] = "abort",
        request_id: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> PipelineResult:
        """Run a graph of steps under one deadline, in seconds, and one budget.

        Args:
            steps: what runs; a step takes a literal input or another step's output.
            budget: what all steps together may use.
            timeout: how long the whole may take; None means the profile's time.
            on_error: whether the first failed step ends all, or only what waits for it.
            request_id: a UUIDv4 made before, so that it can be cancelled by somebody else.
            on_progress: is told when a step begins (0) and ends (1000), and what it says between.

        Raises:
            Refused: the gateway refused the pipeline as a whole, or a step failed under `abort`.
        """
        timeout_s = self._session.timeout_s(timeout)
        request = self._session.pipeline(
            steps, timeout_s, budget, on_error, request_id, on_progress
        )
        return expect(self._exchange(request, timeout_s), PipelineResult)

    def cancel(self, request_id: str) -> messages.Cancelled:
        """End one call or pipeline of this key, wherever it is.

        Raises:
            Refused: the gateway does not know the request.
        """
        return self._ask(
            messages.Cancel(**self._session.common(), target=request_id), messages.Cancelled
        )


class AdminClient(_Client):
    """An operator's or auditor's client: it may manage the registry or read, never invoke."""

    ROLES = ("operator", "auditor")

    @classmethod
    def from_home(
        cls, home: PathText, *, role: Literal["operator", "auditor"] = "operator"
    ) -> Self:
        """Use the profile that a development home keeps for `role`."""
        return cls(os.path.join(os.path.expanduser(home), "profiles", role))

    def register_plugin(
        self, bundle: bytes, conformance: bytes | None = None
    ) -> messages.Registered:
        """Register the version that a signed bundle holds, with a signed report about it."""
        request = messages.RegisterPlugin(
            **self._session.common(), bundle=bundle, conformance=conformance
        )
        return self._ask(request, messages.Registered)

    def validate_bundle(
        self, bundle: bytes, conformance: bytes | None = None
    ) -> messages.Validation:
        """Hear everything that would hinder a registration."""
        request = messages.ValidateBundle(
            **self._session.common(), bundle=bundle, conformance=conformance
        )
        return self._ask(request, messages.Validation)

    def enable_plugin(self, plugin: str, version: str) -> messages.Enabled:
        """Let one registered version serve calls."""
        return self._ask(
            messages.EnablePlugin(**self._session.common(), plugin=plugin, version=version),
            messages.Enabled,
        )

    def disable_plugin(self, plugin: str) -> messages.Disabled:
        """Let no version of a plugin serve new calls."""
        return self._ask(
            messages.DisablePlugin(**self._session.common(), plugin=plugin), messages.Disabled
        )

    def approve(self, plugin: str, version: str, diff_digest: str) -> messages.Approved:
        """Approve exactly one difference between two versions."""
        request = messages.Approve(
            **self._session.common(), plugin=plugin, version=version, diff_digest=diff_digest
        )
        return self._ask(request, messages.Approved)

    def grant(self, plugin: str, capability: str) -> messages.Granted:
        """Grant one capability to one plugin."""
        return self._ask(
            messages.Grant(**self._session.common(), plugin=plugin, capability=capability),
            messages.Granted,
        )

    def revoke(
        self,
        kind: Literal["plugin_version", "publisher_key", "client_key", "grant"],
        identifier: str,
        reason: str,
        *,
        disconnect: bool = False,
    ) -> messages.Revoked:
        """Take back a version, a publisher's key, a client's key or a grant.

        With `disconnect`, for a client's key, its open connections end too.
        """
        request = messages.Revoke(
            **self._session.common(), kind=kind, id=identifier, reason=reason,
            disconnect=disconnect,
        )
        return self._ask(request, messages.Revoked)

    def set_trust(self, envelope: bytes) -> messages.Trust:
        """Replace the trust root by a newer one that the present one signed."""
        return self._ask(
            messages.SetTrust(**self._session.common(), envelope=envelope), messages.Trust
        )


def __getattr__(name: str) -> object:
    """Load the asyncio client only when it is asked for."""
    if name == "AsyncOmegaClient":
        from broker.client_async import AsyncOmegaClient

        return AsyncOmegaClient
    raise AttributeError(name)
