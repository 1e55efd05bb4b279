"""What an audit holds against a gateway that accepts a request id again, and what it does not."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from broker.config import LimitsConfig
from broker.evidence.accepted import USUAL_ENTRIES, USUAL_WINDOW_MS, AcceptedRequests
from broker.orchestrator.windows import RequestWindow, request_key
from schemas.events import Event, InvokeAccept, LedgerOpen
from tests.evidence.stories import accepted, opening, request

START_US = 1_790_000_000_000_000


def at(event_fields: LedgerOpen | InvokeAccept, mono_us: int, offset_us: int = START_US) -> Event:
    """An event of a moment, of a process that began when its clock was at zero."""
    return Event(seq=0, log_id="", ts_us=offset_us + mono_us, mono_us=mono_us, prev_hash="",
                 event_hash="", fields=event_fields)


def pinned(entries: int | None, window_ms: int | None) -> LedgerOpen:
    """A start under a window."""
    return msgspec.structs.replace(
        opening(), request_window=entries, request_window_ms=window_ms
    )


def began(entries: int | None, window_ms: int | None) -> AcceptedRequests:
    """What is remembered of a ledger that begins so."""
    requests, fields = AcceptedRequests(), pinned(entries, window_ms)
    requests.open(fields, at(fields, 0))
    return requests


def use(requests: AcceptedRequests, number: int, mono_us: int) -> None:
    """Ask for an invocation that is accepted."""
    requests.asked()
    requests.accept(accepted(number), at(accepted(number), mono_us))


def knows(requests: AcceptedRequests, number: int, mono_us: int) -> bool:
    """Ask under an id once more, and say whether the gateway must refuse it."""
    requests.asked()
    return requests.remembers(request(number), at(accepted(number), mono_us))


Steps = st.lists(st.tuples(st.integers(0, 1), st.integers(1, 6), st.integers(0, 400)), max_size=60)


@given(Steps, st.integers(1, 6), st.integers(1, 1000))
def test_what_a_gateway_accepts_again_is_never_held_against_it(
    steps: list[tuple[int, int, int]], entries: int, window_ms: int
) -> None:
    """Two keys ask again and again under few ids and a small window: no honest accept is judged."""
    requests, mono_us = began(entries, window_ms), 0
    windows = [RequestWindow(entries_max=entries, window_us=window_ms * 1000) for _ in range(2)]
    for peer, number, wait_ms in steps:
        mono_us += wait_ms * 1000
        requests.asked()
        key = request_key(request(number))
        if key in windows[1 - peer]:
            continue
        if windows[peer].admit(key, START_US + mono_us):
            assert not requests.remembers(request(number), at(accepted(number), mono_us))
            requests.accept(accepted(number), at(accepted(number), mono_us))


def test_an_id_is_known_until_as_many_others_were_used() -> None:
    """Nine others leave it known under a window of eleven, ten do not."""
    requests = began(11, 1000)
    use(requests, 0, 0)
    for number in range(1, 10):
        use(requests, number, number)

    assert knows(requests, 0, 20)
    assert not knows(requests, 0, 20)


def test_an_id_is_known_for_half_of_the_windows_time() -> None:
    """Up to there it is known, whatever the wall clock does meanwhile; a start keeps count."""
    requests = began(100, 1000)
    use(requests, 0, 0)

    assert knows(requests, 0, 499_999)
    fields = pinned(100, 1000)
    requests.open(fields, at(fields, 7, START_US + 499_900))
    assert knows(requests, 0, 99)
    assert not knows(requests, 0, 100)


def test_what_a_smaller_window_forgot_stays_forgotten() -> None:
    """A larger window of the next run does not bring it back, a smaller one counts at once."""
    requests = began(2, 1000)
    for number in range(4):
        use(requests, number, 0)
    fields = pinned(1000, 1_000_000)
    requests.open(fields, at(fields, 0))

    assert not knows(requests, 0, 0)
    assert knows(requests, 3, 0)
    smaller = pinned(1, 1_000_000)
    requests.open(smaller, at(smaller, 0))
    assert not knows(requests, 3, 0)


def test_an_id_that_was_wrongly_accepted_again_is_known_from_then_on() -> None:
    """Also when nobody asked for it; and it is forgotten in its turn."""
    requests = began(3, 1000)
    use(requests, 0, 0)
    requests.accept(accepted(0), at(accepted(0), 0))
    requests.asked()
    use(requests, 0, 0)

    assert knows(requests, 0, 0)
    assert knows(requests, 0, 0)
    assert not knows(requests, 0, 0)


def test_a_ledger_that_pins_no_window_is_judged_by_the_usual_one() -> None:
    """That is the configuration's own, and for half a day an id is known."""
    usual = LimitsConfig()
    assert (usual.request_window, usual.request_window_ms) == (USUAL_ENTRIES, USUAL_WINDOW_MS)
    requests = began(None, None)
    use(requests, 0, 0)

    assert knows(requests, 0, 43_199_999_999)
    assert not knows(requests, 0, 43_200_000_000)
