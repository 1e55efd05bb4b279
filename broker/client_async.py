"""The client for asyncio: the same requests, the same checks, one reader callback.

Rules this file keeps: the plain socket is watched by the event loop, and asked again after every
send, because its descriptor tells of changes only. A cancelled task cancels its call at the
gateway. The loop must be able to watch descriptors (on Windows: the selector event loop).

It leaves requests and replies to `broker.client_session`, the connection to `broker.client_link`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Sequence
from types import TracebackType
from typing import Final, Literal, Self

from broker.client_errors import GatewayError, Refused, TimedOut, Unreachable
from broker.client_head import verify_event
from broker.client_link import Link
from broker.client_profile import PathText
from broker.client_session import (
    GRACE_S,
    Call,
    OnProgress,
    Outcome,
    PayloadLike,
    PipelineResult,
    ReplyT,
    Result,
    Session,
    expect,
)
from schemas import messages

_FULL_WAIT_S: Final = 0.005


class AsyncOmegaClient:
    """OMEGA's client for asyncio; use it as an asynchronous context manager, in one loop."""

    def __init__(self, profile: PathText, *, connect_timeout: float = 5.0) -> None:
        """Read a profile; see `OmegaClient`."""
        self._session = Session(os.path.expanduser(profile), ("omega",))
        self._link = Link(self._session.profile, connect_timeout)
        self._futures: dict[str, asyncio.Future[Outcome]] = {}

    @classmethod
    def from_home(cls, home: PathText) -> Self:
        """Use the profile that a development home keeps for OMEGA."""
        return cls(os.path.join(os.path.expanduser(home), "profiles", "omega"))

    async def __aenter__(self) -> Self:
        """Connect. Raises Unreachable or NotAuthorised."""
        # The handshake may take its whole time; the loop has other things to do.
        await asyncio.to_thread(self._link.open)
        loop = asyncio.get_running_loop()
        loop.add_reader(self._link.socket.fileno(), self._drain)
        loop.add_reader(self._link.monitor.fileno(), self._drain)
        self._drain()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connection; requests in flight end as unreachable."""
        self._close(Unreachable("the client was closed"))

    async def invoke(
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
        """Run one method of one plugin; see `OmegaClient.invoke`."""
        call = Call(plugin, method, payload, version, timeout, keep_alive)
        request = self._session.invoke(call, request_id, on_progress)
        outcome = await self._cancellable(request, self._session.timeout_s(timeout))
        return expect(outcome, Result)

    async def invoke_many(
        self, calls: Iterable[Call], *, in_flight: int = 32
    ) -> AsyncIterator[tuple[int, Result | GatewayError]]:
        """Run many calls with a window in flight; gives index and outcome in the calls' order."""
        window: list[tuple[int, asyncio.Task[Result]]] = []
        source = enumerate(calls)
        more = True
        try:
            while window or more:
                while more and len(window) < in_flight:
                    index, call = next(source, (-1, None))
                    if call is None:
                        more = False
                        break
                    window.append((index, asyncio.ensure_future(self._invoke_call(call))))
                if window:
                    index, task = window.pop(0)
                    try:
                        yield index, await task
                    except (Refused, TimedOut) as error:
                        yield index, error
        finally:
            for _, task in window:
                task.cancel()
            await asyncio.gather(*(task for _, task in window), return_exceptions=True)

    async def invoke_pipeline(
        self,
        steps: Sequence[messages.Step],
        *,
        budget: messages.Budget,
        timeout: float | None = None,
        on_error: Literal["abort", "skip_dependents"] = "abort",
        request_id: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> PipelineResult:
        """Run a graph of steps under one deadline and one budget; see `OmegaClient`."""
        timeout_s = self._session.timeout_s(timeout)
        request = self._session.pipeline(
            steps, timeout_s, budget, on_error, request_id, on_progress
        )
        return expect(await self._cancellable(request, timeout_s), PipelineResult)

    async def _cancellable(self, request: tuple[str, bytes], timeout_s: float) -> Outcome:
        """Exchange; when nobody waits any more, the gateway is told that it need not go on."""
        try:
            return await self._exchange(request, timeout_s)
        except asyncio.CancelledError:
            target = messages.Cancel(**self._session.common(), target=request[0])
            self._link.send_now(self._session.request(target)[1])
            self._session.waiting.pop(target.request_id, None)
            raise

    async def cancel(self, request_id: str) -> messages.Cancelled:
        """End one call or pipeline of this key, wherever it is."""
        request = messages.Cancel(**self._session.common(), target=request_id)
        return await self._ask(request, messages.Cancelled)

    async def list_plugins(self, *, after: str | None = None, limit: int = 200) -> messages.Plugins:
        """List registered plugins, a page at a time."""
        request = messages.ListPlugins(**self._session.common(), after=after, limit=limit)
        return await self._ask(request, messages.Plugins)

    async def get_plugin(self, plugin: str, *, version: str | None = None) -> messages.Plugin:
        """Show one plugin with its versions, methods, grants and pending difference."""
        request = messages.GetPlugin(**self._session.common(), plugin=plugin, version=version)
        return await self._ask(request, messages.Plugin)

    async def status(self) -> messages.StatusReport:
        """Ask how the gateway is."""
        return await self._ask(
            messages.Status(**self._session.common()), messages.StatusReport
        )

    async def ledger_head(self) -> messages.Head:
        """Ask for the newest checkpoint, and accept it if it continues the last one."""
        return await self._ask(messages.LedgerHead(**self._session.common()), messages.Head)

    async def prove(self, seq: int, *, size: int | None = None) -> messages.Proof:
        """Ask for one event with its inclusion proof, which is checked; see `OmegaClient`."""
        request = messages.Prove(**self._session.common(), seq=seq, size=size)
        proof = await self._ask(request, messages.Proof)
        verify_event(proof, seq)
        if size is not None:
            await self._continued(proof.checkpoint, size)
        return proof

    async def prove_consistency(
        self, old_size: int, *, size: int | None = None
    ) -> messages.Consistency:
        """Ask for the proof that a checkpoint continues what the ledger was at `old_size` events.

        See `OmegaClient`.
        """
        request = messages.ProveConsistency(
            **self._session.common(), old_size=old_size, size=size
        )
        step = await self._ask(request, messages.Consistency)
        if size is not None:
            await self._continued(step.checkpoint, size)
        return step

    async def _continued(self, note: str, size: int) -> None:
        """Have it shown that the newest checkpoint continues an older one."""
        if not self._session.keeper.continues(note):
            self._session.keeper.check_older(note, await self.prove_consistency(size))

    async def show_request(self, target: str) -> messages.RequestStory:
        """Ask for all events of one request."""
        request = messages.ShowRequest(**self._session.common(), target=target)
        return await self._ask(request, messages.RequestStory)

    # --- Sending and waiting ---

    async def _invoke_call(self, call: Call) -> Result:
        return await self.invoke(
            call.plugin, call.method, call.payload, version=call.version, timeout=call.timeout
        )

    async def _ask(self, request: messages.FromOmega, kind: type[ReplyT]) -> ReplyT:
        timeout_s = self._session.timeout_s(None)
        return expect(await self._exchange(self._session.request(request), timeout_s), kind)

    async def _exchange(self, request: tuple[str, bytes], timeout_s: float) -> Outcome:
        request_id, frame = request
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._futures[request_id] = future
        sent = False
        try:
            if not self._link.is_open:
                raise GatewayError("the client is not open; use it inside `async with`")
            async with asyncio.timeout(timeout_s + GRACE_S):
                while not (sent := self._link.send_now(frame)) and not future.done():
                    await asyncio.sleep(_FULL_WAIT_S)
                self._drain()
                return await future
        except TimeoutError:
            if not sent:
                raise Unreachable(
                    f"{self._link.nobody_sentence()}; the request was not sent"
                ) from None
            raise TimedOut(request_id, timeout_s) from None
        except Unreachable as error:
            if not sent:
                raise Unreachable(f"{error}; the request was not sent") from None
            raise
        finally:
            self._futures.pop(request_id, None)
            self._session.waiting.pop(request_id, None)

    def _drain(self) -> None:
        """Take every frame that is there, then look at the connection."""
        try:
            while (frame := self._link.receive_now()) is not None:
                ended = self._session.accept(frame)
                future = self._futures.get(ended[0]) if ended is not None else None
                if ended is not None and future is not None and not future.done():
                    future.set_result(ended[1])
            self._link.look()
            if self._link.lost:
                self._link.lost = False
                self._fail(Unreachable(self._link.lost_sentence()))
        except GatewayError as error:
            self._fail(error)

    def _fail(self, error: GatewayError) -> None:
        """End every request in flight."""
        for future in self._futures.values():
            if not future.done():
                future.set_exception(error)

    def _close(self, error: GatewayError) -> None:
        self._fail(error)
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._link.socket.fileno())
        loop.remove_reader(self._link.monitor.fileno())
        self._link.close()
