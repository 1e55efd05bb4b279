"""The tables, cell by cell: what is in them, and that everything else is refused."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest

from broker import lifecycle
from schemas.messages import FromAdmin, FromOmega

# Written out a second time on purpose: who may ask for what, in the words of the design.
READS = {"list_plugins", "get_plugin", "status", "ledger_head", "prove", "prove_consistency",
         "show_request"}
CHANGES = {"register_plugin", "validate_bundle", "enable_plugin", "disable_plugin", "approve",
           "grant", "revoke", "set_trust"}
ALLOWED = {
    "omega": {"invoke", "invoke_pipeline", "cancel"} | READS,
    "operator": READS | CHANGES,
    "auditor": READS,
}
REQUESTS = {kind.__struct_config__.tag for kind in get_args(FromOmega) + get_args(FromAdmin)}


@pytest.mark.parametrize(("role", "request_type"),
                         sorted(itertools.product(ALLOWED, REQUESTS)))
def test_each_role_may_send_exactly_its_requests(role: str, request_type: str) -> None:
    """Every role against every request type: allowed is what the design allows, nothing else."""
    may = (role, request_type) in lifecycle.MAY_SEND

    assert may == (request_type in ALLOWED[role]), f"an {role} may not send {request_type}"


def test_the_role_table_names_no_request_that_does_not_exist() -> None:
    """A cell for an unknown request or role would be dead and hide a mistake."""
    assert {request for _, request in lifecycle.MAY_SEND} <= REQUESTS
    assert {role for role, _ in lifecycle.MAY_SEND} == set(ALLOWED)


@pytest.mark.parametrize(
    ("name", "end"),
    [("call", "ended"), ("pipeline", "ended"), ("step", "ended"), ("worker", "gone"),
     ("version", "revoked"), ("upgrade", "ended"), ("gateway", "stopped")],
)
def test_nothing_leaves_a_last_state(name: str, end: str) -> None:
    """What has ended stays ended: no table has a cell that begins in its last state."""
    table = lifecycle.TRANSITIONS[name]

    assert end in table.values()
    assert not [cell for cell in table if cell[0] == end]


@pytest.mark.parametrize("name", lifecycle.TRANSITIONS)
def test_every_state_can_be_reached_and_left(name: str) -> None:
    """No state is dead: each but the first is somebody's outcome, each but the last has a way
    on."""
    table = lifecycle.TRANSITIONS[name]
    states = {state for state, _ in table} | set(table.values())
    first = next(iter(table))[0]

    assert states - set(table.values()) <= {first}
    # A breaker closes again; everything else ends.
    assert len(states - {state for state, _ in table}) == (name != "breaker")
