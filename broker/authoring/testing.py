"""What a test of a plugin is handed: calls in the real sandbox, the ledger, kept answers.

Rules this file keeps: a call is a call of OMEGA's on a real gateway; what a plugin prints appears
in the test's own stderr; an answer is kept only of a method that is deterministic.

It leaves when a gateway lives, and how long, to `broker.authoring.pytest_plugin`.
"""

from __future__ import annotations

import os
import sys
from typing import TypeVar

import msgspec

from broker.authoring.local import LocalGateway
from broker.client import Result
from broker.client_session import OnProgress, PayloadLike
from schemas import payloads
from schemas.canonical import document_bytes
from schemas.events import Event, EventFields
from schemas.manifest import PluginManifest
from schemas.payloads import JSONPayload, Payload, TextPayload

FieldsT = TypeVar("FieldsT", bound=EventFields)


class Call:
    """Calls methods of one plugin: `call("count", "one two")`.

    Attributes:
        gateway: the gateway that answers.
        manifest: the plugin's, as it was signed.
    """

    def __init__(self, gateway: LocalGateway, manifest: PluginManifest) -> None:
        """Call nothing yet."""
        self.gateway = gateway
        self.manifest = manifest

    def __call__(
        self,
        method: str,
        payload: PayloadLike,
        *,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> Result:
        """Run one method in the sandbox.

        Args:
            method: the method's name.
            payload: a payload; a str is sent as text, a dict or list as JSON.
            timeout: in seconds.
            on_progress: called with each progress note.

        Raises:
            Refused: the gateway refused, or the call failed; `code` tells why.
        """
        try:
            return self.gateway.omega.invoke(
                self.manifest.id, method, _sendable(payload), version=self.manifest.version,
                timeout=timeout, on_progress=on_progress,
            )
        finally:
            for line in self.gateway.printed():
                sys.stderr.write(f"{line}\n")


def _sendable(payload: PayloadLike) -> PayloadLike:
    """Give a payload of the SDK, which tests have from their plugin, as the client's own."""
    if type(payload).__module__ != "sandbox_worker.sdk.payloads":
        return payload
    kind: type[Payload] = getattr(payloads, type(payload).__name__)
    fields = {name: getattr(payload, name) for name in kind.__struct_fields__}
    if kind is JSONPayload:
        fields["data"] = document_bytes(fields["data"])
    return kind(**fields)


class LedgerView:
    """The events of a gateway since a test began."""

    def __init__(self, gateway: LocalGateway) -> None:
        """Begin behind what is there now."""
        self._gateway = gateway
        self._begin = len(gateway.events())

    def events(self) -> list[Event]:
        """Give every event since the test began, oldest first."""
        return self._gateway.events()[self._begin :]

    def of(self, kind: type[FieldsT]) -> list[FieldsT]:
        """Give the fields of the events of one kind, as `schemas.events.InvokeEnd`."""
        return [event.fields for event in self.events() if isinstance(event.fields, kind)]

    def event(self, result: Result) -> Event:
        """Give the event that an answer's receipt names.

        Raises:
            AssertionError: the ledger does not hold it.
        """
        event = self._gateway.events()[result.receipt.seq]
        assert event.event_hash == result.receipt.event_hash, "the receipt is of another ledger"
        return event


class Snapshot:
    """Holds answers of deterministic methods against those of the last time."""

    def __init__(self, call: Call, path: str, *, rewrite: bool) -> None:
        """Keep answers in the file `path`; with `rewrite` whatever is answered is kept."""
        self._call = call
        self._path = path
        self._rewrite = rewrite
        self._number = 0

    def __call__(self, method: str, payload: PayloadLike) -> Result:
        """Call a method and hold its answer against the kept one.

        Raises:
            AssertionError: the answer is another one, or none is kept, or the method does not
                promise the same answer.
            Refused: as for a call.
        """
        known = self._call.manifest.methods.get(method)
        assert known is None or known.deterministic, (
            f"{method} does not promise the same answer: write @method(deterministic=True)"
        )
        result = self._call(method, payload)
        found = _readable(result)
        path = f"{self._path}-{self._number}.txt" if self._number else f"{self._path}.txt"
        self._number += 1
        if self._rewrite:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w", encoding="utf-8") as file:
                file.write(found)
        again = "to keep what is answered now: omega-plugin test --rewrite-snapshots"
        assert os.path.exists(path), f"no answer is kept in {path}; {again}"
        with open(path, encoding="utf-8") as file:
            kept = file.read()
        assert found == kept, f"{method} answered something else than {path} holds; {again}"
        return result


def _readable(result: Result) -> str:
    payload = result.payload
    if isinstance(payload, TextPayload):
        return payload.text
    data = payload.data if isinstance(payload, JSONPayload) else msgspec.json.encode(payload)
    return msgspec.json.format(data, indent=2).decode() + "\n"
