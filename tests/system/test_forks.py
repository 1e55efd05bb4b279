"""A real gateway whose ledger was tampered with: every client that saw more raises at once."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import nacl.signing
import pytest

from broker.client import AdminClient, LedgerForked, OmegaClient, Refused
from broker.evidence.verify import verify_directory
from broker.home import load_home
from broker.ledger.commit import Ledger
from schemas.events import FrameIn
from tests.support.gateway import RunningGateway, running_gateway

pytestmark = [pytest.mark.system, pytest.mark.once]

TARGET = "00000000-0000-4000-8000-000000000000"
REQUESTS: dict[str, Callable[[OmegaClient | AdminClient], object]] = {
    "list_plugins": lambda client: client.list_plugins(),
    "get_plugin": lambda client: client.get_plugin("alpha"),
    "status": lambda client: client.status(),
    "ledger_head": lambda client: client.ledger_head(),
    "prove": lambda client: client.prove(0),
    "prove_consistency": lambda client: client.prove_consistency(1),
    "show_request": lambda client: client.show_request(TARGET),
}


def invoke(client: OmegaClient) -> None:
    """Ask for a plugin that is not there: a request of OMEGA's that needs no worker."""
    with pytest.raises(Refused):
        client.invoke("alpha", "m", "x")


def use(gateway: RunningGateway, requests: int) -> int:
    """Let OMEGA and an operator ask; gives how many events both know of at the end."""
    with gateway.omega() as omega, gateway.operator() as operator:
        for _ in range(requests):
            invoke(omega)
        operator.ledger_head()
        omega.ledger_head()
        return omega._session.keeper.known_size


def keep(gateway: RunningGateway, name: str) -> Path:
    """Copy the ledger and its anchor of a stopped gateway."""
    for part in ("ledger", "anchor"):
        shutil.copytree(gateway.home / part, gateway.folder / name / part)
    return gateway.folder / name


class Past(NamedTuple):
    """A stopped gateway, what its clients know of, and copies of an older and the newest ledger."""

    gateway: RunningGateway
    known: int
    older: Path
    newest: Path


@pytest.fixture(scope="module")
def past() -> Iterator[Past]:
    """Let two clients see a ledger grow, over a stop and a start, which are no fork to them."""
    with running_gateway() as gateway:
        use(gateway, 1)
        gateway.stop()
        older = keep(gateway, "older")
        gateway.start()
        known = use(gateway, 5)
        gateway.stop()
        newest = keep(gateway, "newest")
        yield Past(gateway, known, older, newest)
        # What the tests wrote in its place was never this gateway's.
        gateway.stop()
        put_back(gateway, newest)


@pytest.fixture(autouse=True)
def stopped(past: Past) -> Iterator[None]:
    """Stop the gateway that a test has started."""
    yield
    past.gateway.stop()


def put_back(gateway: RunningGateway, copy: Path) -> None:
    """Put a copy in the place of ledger and anchor; the profiles stay."""
    for part in ("ledger", "anchor"):
        shutil.rmtree(gateway.home / part)
        shutil.copytree(copy / part, gateway.home / part)


def head_notes(gateway: RunningGateway) -> list[bytes]:
    return [
        (gateway.home / "profiles" / role / "head.note").read_bytes()
        for role in ("omega", "operator")
    ]


def assert_forked(gateway: RunningGateway) -> None:
    """Whatever OMEGA or an operator asks first is a fork, and what they knew is kept."""
    before = head_notes(gateway)
    with gateway.omega() as omega, pytest.raises(LedgerForked):
        omega.invoke("alpha", "m", "x")
    for name, ask in REQUESTS.items():
        with gateway.operator() as operator:
            try:
                ask(operator)
            except LedgerForked:
                continue
            except Refused as refused:
                raise AssertionError(f"{name} was only refused: {refused}") from None
            raise AssertionError(f"{name} was answered")
    assert head_notes(gateway) == before


@pytest.mark.parametrize("grown", [False, True])
def test_a_restored_backup_is_found_at_the_next_request(past, grown):
    """Ledger and anchor from an older copy start without complaint; clients do not accept them.

    Also not when the copy has grown beyond what they knew before they ask.
    """
    put_back(past.gateway, past.older)
    past.gateway.start()
    if grown:
        with past.gateway.auditor() as auditor:
            while auditor.status().ledger_size <= past.known:
                auditor.list_plugins()

    assert_forked(past.gateway)


def test_a_cut_ledger_is_found_at_the_next_request(past):
    """Events cut off at an older checkpoint, anchor and log with them, leave no trace but here."""
    put_back(past.gateway, past.newest)
    ledger, anchor = past.gateway.home / "ledger", past.gateway.home / "anchor"
    log = (ledger / "checkpoints.log").read_bytes()
    entries = re.findall(rb"[0-9]+\n(?:[^\n]+\n){3}\n[^\n]+\n", log)
    assert b"".join(entries) == log
    kept = entries[: len(entries) // 2]
    note = kept[-1].partition(b"\n")[2]
    size = int(note.splitlines()[1])
    [segment] = (ledger / "segments").iterdir()
    segment.write_bytes(b"".join(segment.read_bytes().splitlines(keepends=True)[:size]))
    (ledger / "checkpoints.log").write_bytes(b"".join(kept))
    (ledger / "checkpoint").write_bytes(note)
    (anchor / "head").write_bytes(note)
    past.gateway.start()

    assert_forked(past.gateway)


def test_a_rewritten_ledger_is_found_at_the_next_request(past):
    """Who has the signing key writes a longer, whole, signed history: it verifies and is a fork."""
    put_back(past.gateway, past.older)
    home = load_home(str(past.gateway.home), environment=past.gateway.environment)
    clock = itertools.count(1_790_000_000_000_000)
    forged = Ledger.open(
        home.ledger, home.anchor, log_id=home.config.log_id, durability="power",
        signing_key=nacl.signing.SigningKey(bytes.fromhex(home.keys.ledger.secret)),
        now=lambda: (next(clock), next(clock)),
    )
    while forged.size < past.known + 10:
        forged.append(FrameIn(plane="front.admin", peer="5e" * 8, type="status", bytes=1))
    forged.commit()
    forged.close()
    report = verify_directory(
        home.ledger, verifier_key=home.verifier_key, anchor_directory=home.anchor
    )
    assert report.ok
    past.gateway.start()

    assert_forked(past.gateway)
