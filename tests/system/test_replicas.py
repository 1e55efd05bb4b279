"""The determinism oracle with real processes: a second zygote under another hash seed.

A method that promises determinism and depends on the order of a set, or on `hash()`, is caught by
its first call; an honest one is not, and neither is one whose second run could not be had.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import msgspec
import pytest

from broker.client_errors import Refused
from schemas.events import DeterminismMismatch, FrameOut, InvokeEnd
from schemas.payloads import JSONPayload
from schemas.refusals import RefusalCode
from tests.cli.command import gateway as command
from tests.support.gateway import RunningGateway, running_gateway

pytestmark = [pytest.mark.system, pytest.mark.jail]

WORDS = "one two three four five six seven eight nine ten eleven twelve"
METHODS = '''
from msgspec import Struct
from sandbox_worker.sdk import Context, TextPayload, method


class Words(Struct):
    words: list[str]


class Number(Struct):
    number: int


@method(deterministic=True)
def honest(context: Context, text: TextPayload) -> Words:
    """Give each word once, in an order of their own."""
    return Words(sorted(set(text.text.split())))


@method(deterministic=True)
def set_order(context: Context, text: TextPayload) -> Words:
    """Give each word once, as they come out of a set."""
    return Words(list(set(text.text.split())))


@method(deterministic=True)
def hashed(context: Context, text: TextPayload) -> Number:
    """Give a number that is another one under another seed."""
    return Number(hash(text.text) % 1_000_000_007)


@method(deterministic=True)
def starved(context: Context, text: TextPayload) -> Number:
    """Ask for more memory than there is, but under the seed of a first run."""
    return Number(1 if hash("a") == SEEDED else len(bytearray(10**12)))


@method()
def free(context: Context, text: TextPayload) -> Number:
    """Promise nothing."""
    return Number(hash(text.text) % 1_000_000_007)
'''


@pytest.fixture(scope="module")
def gateway() -> Iterator[RunningGateway]:
    """A gateway with one plugin of several methods, of each of which two answers are compared."""
    seeded = subprocess.run(
        [sys.executable, "-c", "print(hash('a'))"], env={"PYTHONHASHSEED": "0"},
        capture_output=True, text=True, check=True,
    ).stdout
    with running_gateway("[determinism]\nfirst_calls = 2\nshare_permille = 1\n") as running:
        source = METHODS.replace("SEEDED", seeded.strip())
        running.install(running.write_plugin(
            "seed-teller", source, modules='["msgspec"]'))
        yield running


def runs_of(gateway: RunningGateway, request_id: str | None) -> list[tuple[str | None, str]]:
    """Give as what a request ran, and in which incarnation."""
    return [(event.fields.purpose, event.fields.peer) for event in gateway.events()
            if isinstance(event.fields, FrameOut) and event.fields.type == "run"
            and event.fields.request_id == request_id]


@pytest.mark.parametrize("method", ["set_order", "hashed"])
def test_what_depends_on_the_hash_seed_is_caught_by_its_first_call(
    gateway: RunningGateway, method: str
) -> None:
    """Neither answer leaves; the difference is in the ledger, its breaker is open in the status."""
    with pytest.raises(Refused) as refused:
        gateway.omega().invoke("seed-teller", method, WORDS)

    told = refused.value.refusal
    assert told.code is RefusalCode.NONDETERMINISTIC_OUTPUT
    (first, primary), (second, other) = runs_of(gateway, told.request_id)
    assert (first, second) == ("primary", "replica")
    assert primary != other
    mismatch, = (event.fields for event in gateway.events()
                 if isinstance(event.fields, DeterminismMismatch)
                 and event.fields.request_id == told.request_id)
    assert mismatch.against == "replica"
    assert mismatch.output_fingerprint != mismatch.other_output_fingerprint
    end = gateway.events()[told.receipt.seq].fields
    assert isinstance(end, InvokeEnd)
    assert (end.outcome, end.replica) == ("refused", "differed")
    breakers = gateway.operator().status().breakers
    assert ("seed-teller", method, "open") in {
        (one.plugin, one.method, one.state) for one in breakers}


def test_the_evidence_is_shown_and_the_audit_holds(gateway: RunningGateway) -> None:
    """`status` tells whose worker is whose, `ledger show` both runs and the difference; `ledger
    audit` finds nothing wrong."""
    end = next(event.fields for event in gateway.events()
               if isinstance(event.fields, InvokeEnd) and event.fields.replica == "differed")
    workers = {one.role for one in gateway.operator().status().workers}
    status = command("status", home=gateway.home)
    shown = command("ledger", "show", end.request_id, home=gateway.home)
    audited = command("ledger", "audit", "--output", "json", home=gateway.home)

    assert workers == {"primary", "replica"}
    assert {"primary", "replica"} <= set(status.out.split()), status.out
    assert shown.code == 0, shown.err
    for words in ("as replica", "determinism.mismatch", "the second run differed"):
        assert words in " ".join(shown.out.split()), shown.out
    assert audited.code == 0, audited.err


def test_an_honest_method_is_answered_after_its_second_run(gateway: RunningGateway) -> None:
    """Its first two answers were compared and agreed; what both runs used is told together."""
    for _ in range(2):
        result = gateway.omega().invoke("seed-teller", "honest", WORDS)
        assert isinstance(result.payload, JSONPayload)
        assert msgspec.json.decode(result.payload.data) == {"words": sorted(WORDS.split())}
        end = gateway.events()[result.receipt.seq].fields
        assert isinstance(end, InvokeEnd)
        assert (end.replica, end.cpu_ms) == ("agreed", result.usage.cpu_ms)
        assert len(runs_of(gateway, result.request_id)) == 2


def test_a_second_run_that_fails_for_want_of_something_proves_nothing(
    gateway: RunningGateway,
) -> None:
    """It passes a limit that the first did not: the answer leaves, recorded as unverified."""
    result = gateway.omega().invoke("seed-teller", "starved", WORDS)
    end = gateway.events()[result.receipt.seq].fields

    assert isinstance(end, InvokeEnd)
    assert end.replica == "unverified"
    assert [purpose for purpose, _ in runs_of(gateway, result.request_id)] == [
        "primary", "replica"]


def test_a_method_that_promises_nothing_runs_once(gateway: RunningGateway) -> None:
    """Nothing is compared and nothing held up."""
    result = gateway.omega().invoke("seed-teller", "free", WORDS)
    end = gateway.events()[result.receipt.seq].fields

    assert isinstance(end, InvokeEnd)
    assert end.replica is None
    assert [purpose for purpose, _ in runs_of(gateway, result.request_id)] == ["primary"]
