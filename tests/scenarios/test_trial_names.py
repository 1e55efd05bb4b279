"""A trial and a worker are ended by name: no request id may be a worker's."""

from __future__ import annotations

import uuid

from schemas.messages import ValidateBundle, Validation
from tests.scenarios.stage import Stage
from tests.simulation.clients import bundle

WORKER = uuid.UUID("11111111-1111-4111-8111-111111111111")


class _OneWorker(Stage):
    """Its workers' incarnation happens to be a request id, as one in 64 is."""

    def new_worker(self) -> str:
        """Give the incarnation."""
        self.names[WORKER.hex] = "w1"
        return WORKER.hex


def test_a_request_that_bears_a_workers_name_tries_nothing() -> None:
    """A validation with a running worker's incarnation for its id starts no prober: a late trial is
    ended by its name, and that would be the worker's end."""
    stage = _OneWorker()
    for line in ("register alpha 1.0.0", "enable alpha 1.0.0", "invoke r1 alpha", "ready w1",
                 "ready w1", "probers slow"):
        stage.play(line)
    stage.names[str(WORKER)] = "named"

    stage.gateway.turn([stage.from_operator(
        ValidateBundle(request_id=str(WORKER), bundle=bundle("delta", "1.0.0")))])

    (_, answer), = stage.transport.replies
    assert isinstance(answer, Validation)
    assert answer.problems[-1].code == "duplicate_request"
    assert not stage.launcher.trials
    assert WORKER.hex in stage.core.state.fleet.by_incarnation
