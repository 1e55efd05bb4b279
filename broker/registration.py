"""Registrations that wait for the trial of their schemas. Pure.

Rules this file keeps:
- Schemas that no trial has shown to be harmless are compiled nowhere in this process. They go to a
  prober, and the request waits; everything else goes on.
- What was true when the request came is asked again when the trial ends: trust, policy, versions
  and the key that asked may be others by then.
- How many wait is bounded, and a trial that does not end is ended. One runs after the other.

It leaves the checks of a bundle to `broker.trust`, and events and replies to
`broker.administration`. Source: docs/decisions/0029.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from broker.effects import Append, Effect, Kill, Origin, Send, StoreBundle, TrySchemas
from broker.state import State, refusal
from broker.trust.bounds import TRIAL_WALL_S
from broker.trust.manifests import problem
from broker.trust.trials import ALARM, trial_problem
from broker.trust.validation import Validated
from schemas.events import PluginReject
from schemas.messages import Problem, Registered, RegisterPlugin, ValidateBundle
from schemas.refusals import RefusalCode

WAITING_MAX: Final = 8
"""How many bundles are held in memory until their schemas were tried."""
TRIED_MAX: Final = 65_536
"""How many schemas are remembered as harmless; beyond, all are forgotten and tried again."""
_TRIAL_US: Final = TRIAL_WALL_S * 1_500_000
"""From when on a trial with nobody before it is late: half as long again as a prober gives itself.
"""

Request = RegisterPlugin | ValidateBundle
Conclude = Callable[[Origin, Request, Validated], None]


class _Waiting(NamedTuple):
    origin: Origin
    request: Request
    schemas: dict[str, bytes]


class Registrations:
    """Requests with a bundle, from arrival to conclusion."""

    def __init__(
        self, state: State, validate: Callable[[Request], Validated], conclude: Conclude
    ) -> None:
        """Share the core's memory; `validate` says what no trial is needed for, `conclude` answers.
        """
        self._state = state
        self._validate = validate
        self._conclude = conclude
        self._tried: set[str] = set()
        self._waiting: dict[str, _Waiting] = {}
        self._late: set[str] = set()

    def ask(self, origin: Origin, request: Request) -> None:
        """Conclude a request at once if all of its schemas are known, or begin to have them tried.

        A registration that is refused anyway has nothing tried; a validation tells everything.
        """
        validated = self._validate(request)
        untried = self._untried(validated)
        refused = bool(validated.problems) and isinstance(request, RegisterPlugin)
        if not untried or refused:
            self._conclude(origin, request, validated)
        elif request.request_id.replace("-", "") in self._state.fleet.by_incarnation:
            # The launcher knows both by such a name, and nobody may choose a worker's.
            self._conclude(origin, request, _with(validated, problem(
                RefusalCode.DUPLICATE_REQUEST, "$.request_id", "a worker's incarnation",
                "a fresh id", "Send it again under another request id.",
            )))
        elif len(self._waiting) >= WAITING_MAX:
            self._conclude(origin, request, _with(validated, problem(
                RefusalCode.QUEUE_FULL, "$.schemas", f"{WAITING_MAX} bundles that wait",
                "room for one more", "Send it again when the others are answered.",
            )))
        else:
            trial = request.request_id.replace("-", "")
            self._waiting[trial] = _Waiting(origin, request, untried)
            self._state.do(TrySchemas(trial, untried))
            due_us = self._state.now + _TRIAL_US * len(self._waiting)
            self._state.later(due_us, "trial", trial)

    def tried(self, trial: str, status: int, number: int, said: bytes) -> None:
        """A prober ended, as `trial_problem` takes it; one nobody waits for changes nothing."""
        if trial in self._waiting:
            ended = ALARM if trial in self._late else number
            self._end(trial, trial_problem(status, ended, said))

    def failed(self, trial: str, reason: str) -> bool:
        """A prober could not be started; False when the name is not that of a trial."""
        if trial not in self._waiting:
            return False
        self._end(trial, problem(RefusalCode.WORKER_START_FAILED, "$.schemas",
                                 f"no prober for the schemas ({reason})", "a verdict"))
        return True

    def due(self, trial: str) -> None:
        """A trial takes too long: its prober is ended, and its report will say so."""
        if trial in self._waiting:
            self._late.add(trial)
            self._state.do(Kill(trial))

    def stop(self) -> None:
        """Answer everything that waits: nothing is tried any more."""
        for trial in list(self._waiting):
            self._end(trial, problem(RefusalCode.DRAINING, "$.schemas", "a gateway that stops",
                                     "one that serves"))

    def _untried(self, validated: Validated) -> dict[str, bytes]:
        """Name the schemas of a bundle that are neither known nor refused already."""
        if validated.manifest is None:
            return {}
        refused = {one.where.removeprefix("$.schemas.")[:71] for one in validated.problems}
        return {
            name: bytes(schema) for name, schema in validated.manifest.schemas.items()
            if name not in self._tried and name not in refused
        }

    def _end(self, trial: str, found: Problem | None) -> None:
        """Take up a request again; what its trial found counts beside what is true by now."""
        origin, request, schemas = self._waiting.pop(trial)
        self._late.discard(trial)
        if found is None:
            if len(self._tried) + len(schemas) > TRIED_MAX:
                self._tried.clear()
            self._tried.update(schemas)
        validated, state = self._validate(request), self._state
        if not state.holds(origin.key_id, "operator"):
            # Whoever may not ask any more is told that, and nothing of the bundle.
            validated = validated._replace(problems=())
            found = problem(RefusalCode.KEY_REVOKED, "", "a key that is no operator's any more", "")
        elif RefusalCode.LOW_SPACE in state.degraded and isinstance(request, RegisterPlugin):
            found = problem(RefusalCode.LOW_SPACE, "", "a volume that is nearly full", "")
        self._conclude(origin, request, validated if found is None else _with(validated, found))


def not_stored(state: State, effects: list[Effect], error: OSError) -> list[Effect]:
    """Refuse instead what a volume does not take, and forget that it was accepted.

    Args:
        state: the core's memory.
        effects: what was decided with the bundle; none of it has happened.
        error: what the volume said.
    """
    instead: list[Effect] = []
    for stored in effects:
        for reply in effects:
            if (
                isinstance(stored, StoreBundle) and isinstance(reply, Send)
                and isinstance(reply.message, Registered)
            ):
                told = reply.message
                state.plugins.pop((told.plugin, told.version), None)
                instead.append(Append(PluginReject(
                    bundle_sha256=stored.bundle_sha256, code=RefusalCode.LOW_SPACE,
                    plugin=told.plugin, version=told.version, actor=reply.to.key_id,
                )))
                instead.append(msgspec.structs.replace(reply, message=refusal(
                    told.request_id, RefusalCode.LOW_SPACE,
                    f"the bundle cannot be stored ({error.strerror})",
                )))
    return instead


def _with(validated: Validated, found: Problem) -> Validated:
    return validated._replace(problems=(*validated.problems, found))
