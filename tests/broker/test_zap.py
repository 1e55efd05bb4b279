"""The doorkeeper decides about any frames at all, and only one shape is ever admitted."""

from __future__ import annotations

import os

import zmq
from hypothesis import given
from hypothesis import strategies as st

from broker.zap import Doorkeeper, FrontDoor, WorkerDoor

KEY = bytes(range(32))
PIECES = st.one_of(
    st.binary(max_size=64),
    st.sampled_from(
        [b"", b"1.0", b"CURVE", b"NULL", b"PLAIN", b"front.omega", b"worker", KEY,
         b"localhost:0:0:1", b"localhost:1:1:99999999999999999999", b"127.0.0.1"]
    ),
)


def keeper() -> Doorkeeper:
    """Make a doorkeeper with a front and a worker's door."""
    made = Doorkeeper(zmq.Context())
    made.register("front.omega", FrontDoor({KEY: "0123456789abcdef"}, 10))
    door = WorkerDoor("worker", KEY)
    door.expect(1, 0)
    made.register("worker", door)
    return made


DOORKEEPER = keeper()
GOOD = [b"", b"1.0", b"7", b"front.omega", b"localhost:0:0:1", b"", b"CURVE", KEY]


@given(st.lists(PIECES, max_size=12))
def test_any_frames_get_a_verdict(frames):
    """Whatever the frames are, there is a status, and only the exact request is admitted."""
    door = DOORKEEPER._doors[b"worker"]
    assert isinstance(door, WorkerDoor)
    door._used = True
    verdict = DOORKEEPER.decide(frames)

    assert verdict is not None
    assert verdict[0] in {b"300", b"400", b"500"} or (
        frames[:2] == GOOD[:2] and frames[3] == GOOD[3] and frames[6:] == GOOD[6:]
    )


@given(st.integers(0, 7), PIECES)
def test_one_wrong_part_is_refused(position, piece):
    """Version, domain, mechanism and key must each be right; the rest does not decide."""
    frames = [*GOOD[:position], piece, *GOOD[position + 1 :]]
    admitted = DOORKEEPER.decide(frames) == (b"200", b"", b"0123456789abcdef")

    assert admitted == (piece == GOOD[position] or position in {2, 4, 5})


@given(st.lists(PIECES, max_size=12))
def test_answering_any_frames_raises_nothing(frames):
    """The socket's side is total too: a reply to nobody is dropped."""
    DOORKEEPER._answer([os.urandom(5), *frames], [])
