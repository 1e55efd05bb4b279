"""A ledger in a fresh folder, with a clock and a key that every test shares."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import nacl.signing
import pytest

from broker.ledger.commit import Ledger
from broker.ledger.volume import Volume
from schemas.events import EventFields, FrameIn, LedgerOpen
from schemas.proof import VerifierKey

LOG_ID = "omega-gateway/development/0123456789abcdef"
SIGNING_KEY = nacl.signing.SigningKey(bytes(range(32)))
VERIFIER_KEY = str(VerifierKey(name=LOG_ID, public_key=bytes(SIGNING_KEY.verify_key)))
REQUEST_ID = "3f8a0c52-7a1e-4c3e-9f65-0a1b2c3d4e5f"


def frame(number: int = 0) -> EventFields:
    """An event that differs by its number."""
    return FrameIn(
        plane="front.omega", peer="5e5e5e5e5e5e5e5e", type="invoke", bytes=number,
        request_id=REQUEST_ID,
    )


def opening() -> EventFields:
    """What a gateway appends first."""
    return LedgerOpen(
        gateway_version="0.1.0", api_version="1.0.0", domain="development", durability="power",
        python_version="3.11.7", zmq_version="4.3.5", kernel="6.18.0", verifier_key=VERIFIER_KEY,
        trust_sha256="0" * 64, trust_version=1, policy_sha256="0" * 64,
    )


class Place:
    """A folder with a ledger and its anchor; `open` opens it as the gateway would."""

    def __init__(self, folder: Path) -> None:
        """Remember the folder."""
        self.ledger = folder / "ledger"
        self.anchor = folder / "anchor"
        self.clock_us = itertools.count(1_790_000_000_000_000)
        self.opened: list[Ledger] = []

    def now(self) -> tuple[int, int]:
        """Give times that only rise, a microsecond a call."""
        number = next(self.clock_us)
        return number, number - 1_790_000_000_000_000

    def open(
        self, *, durability: str = "power", volume: Volume | None = None, **more: object
    ) -> Ledger:
        """Open the ledger; the fixture closes it."""
        ledger = Ledger.open(
            str(self.ledger), str(self.anchor), log_id=LOG_ID, signing_key=SIGNING_KEY,
            durability=durability, now=self.now, volume=volume, **more,
        )
        self.opened.append(ledger)
        return ledger

    def fill(self, events: int, *, ledger: Ledger | None = None) -> Ledger:
        """Append and commit frames, `ledger.open` first when the ledger is new."""
        ledger = ledger or self.open()
        for _ in range(events):
            ledger.append(frame(ledger.size) if ledger.size else opening())
        ledger.commit()
        return ledger

    def abandon(self, ledger: Ledger) -> None:
        """Let go of the files as a killed process does: nothing is written."""
        ledger._stack.close()
        ledger._failure = "abandoned"

    def segment(self, number: int = -1) -> Path:
        """Give a segment's path."""
        return sorted((self.ledger / "segments").iterdir())[number]

    def lines(self) -> list[bytes]:
        """Give all lines of all segments."""
        return [
            line for path in sorted((self.ledger / "segments").iterdir())
            for line in path.read_bytes().splitlines(keepends=True)
        ]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """Give a place; whatever was opened there is given free at the end."""
    place = Place(tmp_path)
    yield place
    for ledger in place.opened:
        if ledger._failure != "abandoned":
            ledger._stack.close()
