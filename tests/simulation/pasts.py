"""The two ways to begin with a ledger's past, and that they come to the same.

A start takes the newest vouched state and the events after it; the fold of all events from the
first on is what it must equal.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from broker.core import Core
from broker.folded import Folded, picture
from broker.gateway import Gateway
from broker.orchestrator.windows import KeptRequests
from schemas.events import InvokeAccept
from tests.simulation.fakes import FakeLedger, require
from tests.simulation.states import FakeStates


def begin_with_past(
    make: Callable[[], Gateway], ledger: FakeLedger, states: FakeStates
) -> tuple[Gateway, str]:
    """Make a gateway that has taken in its ledger's past; say what state it began with.

    That is one that was vouched for at once, one that was vouched for later, or none ("").
    """
    whole = make()
    for event in ledger.events:
        whole.restore(event)
    folded = states.newest(ledger)
    if folded is None:
        return whole, ""
    gateway = make()
    gateway.take_up(folded)
    for event in ledger.events[folded.seq :]:
        gateway.restore(event)
    calls = {
        event.fields.request_id.replace("-", "") for event in ledger.events
        if isinstance(event.fields, InvokeAccept)
    }
    for name, value in everything(gateway).items():
        require(value == everything(whole)[name], f"inventory.{name}: {value} is not the fold's")
    other = remembered(whole, calls)
    for name, value in msgspec.structs.asdict(remembered(gateway, calls)).items():
        expected = getattr(other, name)
        require(value == expected, f"{name}: the vouched state and what follows give {value}, "
                                   f"the fold of all events {expected}")
    at_once = getattr(ledger.events[folded.seq].fields, "state_sha256", None) is not None
    return gateway, "at once" if at_once else "later"


def everything(gateway: Gateway) -> dict[str, object]:
    """Give every attribute of the inventory, so that none can be left out of a state file."""
    facts = dict(vars(gateway._core.state.inventory))
    del facts["_handlers"]
    history = dict(vars(facts["history"]))
    del history["_pictured"]
    return facts | {"history": history}


def remembered(gateway: Gateway, calls: set[str] | None = None) -> Folded:
    """Give all that a gateway has folded, but two things that only a running gateway knows.

    When a request id was used, without the wall clock's steps; and which event was the last of a
    pipeline, which has no end of its own: with `calls` only the ends of those are given.
    """
    core: Core = gateway._core
    parts = picture(core.state, gateway._answers.stories(), "", 0).written()
    folded = msgspec.json.decode(b"".join(parts), type=Folded)
    requests = {
        key: KeptRequests([], kept.ids, [
            end if calls is None or kept.ids[place * 32 : place * 32 + 32] in calls else None
            for place, end in enumerate(kept.ends)
        ])
        for key, kept in folded.requests.items()
    }
    return msgspec.structs.replace(folded, requests=requests)
