"""Keys of clients, with real sockets: what each may ask, and how one comes, changes and goes."""

from __future__ import annotations

import json
import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import zmq

from broker.cli.main import run
from broker.client import AdminClient, Call, NotAuthorised, OmegaClient, Refused, Result
from broker.client_link import Link
from broker.client_profile import Profile, read_profile
from broker.home import load_home, new_profile
from broker.keys import new_curve_pair
from schemas import codec
from schemas.events import FrameDrop, InvokeAccept, KeyChange, Revoke
from schemas.messages import Refusal, Status
from schemas.names import Role
from tests.broker.test_lifecycle import ALLOWED, REQUESTS
from tests.schemas.samples import FROM_ADMIN, FROM_OMEGA, tag_of
from tests.support import gateway as support
from tests.support.gateway import RunningGateway, held, running_gateway, wait_for
from tests.support.raw import RawClient

pytestmark = [pytest.mark.system, pytest.mark.once]

PATIENT = "\n[limits]\nbad_frames_per_s_max = 1000\n[times]\nabort_ms = 20000\n"
"""The walk below is many bad frames in a second; each is to be answered. A worker that is held may
be late to end a call."""
FRONTS = {
    "front.omega": {tag_of(message): message for message in FROM_OMEGA},
    "front.admin": {tag_of(message): message for message in FROM_ADMIN},
}
WRONG_CELL = (
    "import broker.core; broker.core.MAY_SEND |= {('auditor', 'enable_plugin')}; " + support.SERVE
)


@pytest.fixture(scope="module")
def gateway() -> Iterator[RunningGateway]:
    """One gateway that answers every bad frame."""
    with running_gateway(PATIENT) as running:
        yield running


def reread(gateway: RunningGateway) -> None:
    """Let the gateway read its settings and keys again."""
    told = gateway.log.read_bytes().count(b"settings read again")
    os.kill(gateway.pid, signal.SIGHUP)
    wait_for("the log line", lambda: gateway.log.read_bytes().count(
        b"settings read again") > told)


def added(gateway: RunningGateway, role: Role, name: str) -> tuple[Path, str]:
    """Make a client's profile, which the running gateway admits; gives folder and key id."""
    directory = gateway.folder / f"profile-{name}"
    home = load_home(str(gateway.home), environment=gateway.environment)
    key_id = new_profile(home, role, str(directory), name)
    reread(gateway)
    gateway.wait_for_event("the key's event", lambda event: event.fields == KeyChange(
        action="added", role=role, key_id=key_id, actor="home"))
    return directory, key_id


def expected(role: str, front: str, request: str) -> str:
    """What becomes of a request by its kind alone, in the words of the design."""
    if request not in FRONTS[front]:
        return "message_unknown"
    if role == "revoked":
        return "key_revoked"
    return "taken" if request in ALLOWED[role] else "role_not_allowed"


def outcomes(raw: RawClient) -> dict[str, str]:
    """Send every request there is on one connection, and give what becomes of each."""
    found = {}
    for request, message in {**FRONTS["front.omega"], **FRONTS["front.admin"]}.items():
        raw.send(codec.encode(msgspec.structs.replace(message, request_id=str(uuid.uuid4()))))
        reply = raw.reply()
        code = str(reply.code) if isinstance(reply, Refusal) else ""
        by_kind = code in ("message_unknown", "role_not_allowed", "key_revoked")
        found[request] = code if by_kind else "taken"
    return found


def wrong_cells(gateway: RunningGateway, role: str) -> list[tuple[str, str, str]]:
    """Walk the requests of one role, and give request, found and expected where they differ."""
    front = "front.omega" if role == "omega" else "front.admin"
    with RawClient(gateway.home / "profiles" / role) as raw:
        found = outcomes(raw)
    assert found.keys() == REQUESTS
    return [
        (request, outcome, expected(role, front, request))
        for request, outcome in found.items() if outcome != expected(role, front, request)
    ]


@pytest.mark.parametrize("role", ALLOWED)
def test_each_role_gets_through_with_exactly_its_requests(
    gateway: RunningGateway, role: str
) -> None:
    """Every request type there is, sent over a real connection, ends as the role table says."""
    assert wrong_cells(gateway, role) == []


def test_a_wrong_cell_is_seen_by_the_walk() -> None:
    """A broker whose table lets an auditor enable plugins is found out, by that cell alone."""
    before, support.SERVE = support.SERVE, WRONG_CELL
    try:
        with running_gateway(PATIENT) as gateway:
            assert wrong_cells(gateway, "auditor") == [
                ("enable_plugin", "taken", "role_not_allowed")
            ]
            # What the audit says of such a ledger is its own test's matter.
            (gateway.home / "ledger").rename(gateway.folder / "ledger")
    finally:
        support.SERVE = before


def at(profile: Profile, other: Profile) -> Profile:
    """The first one's key at the second one's front."""
    return profile._replace(settings=other.settings)


def test_a_front_lets_in_its_own_keys_alone(gateway: RunningGateway) -> None:
    """A key of another front, and one that nobody added, get no connection on either front."""
    profiles = gateway.home / "profiles"
    omega, operator, auditor = (
        read_profile(profiles / role) for role in ("omega", "operator", "auditor")
    )
    unknown = omega._replace(pair=new_curve_pair())
    for stranger in (
        at(omega, operator), at(operator, omega), at(auditor, omega), unknown,
        at(unknown, operator),
    ):
        with pytest.raises(NotAuthorised):
            Link(stranger, 5.0).open()


@pytest.mark.parametrize("role", ["omega", "operator"])
def test_a_revoked_key_is_refused_at_its_next_frame(gateway: RunningGateway, role: Role) -> None:
    """Its open connection stays, since ZAP is asked once for each, and no request gets through."""
    directory, key_id = added(gateway, role, f"revoked-{role}")
    with RawClient(directory) as raw:
        raw.send(codec.encode(Status(request_id=str(uuid.uuid4()))))
        assert not isinstance(raw.reply(), Refusal)

        gateway.operator().revoke("client_key", key_id, "lost")

        # Who is refused does not learn what the front understands.
        assert set(outcomes(raw).values()) == {"key_revoked"}
    drops = [event.fields for event in gateway.events() if isinstance(event.fields, FrameDrop)
             and event.fields.peer == key_id]
    assert {drop.code for drop in drops} == {"key_revoked"}
    assert sum(drop.count for drop in drops) == len(REQUESTS)
    with pytest.raises(NotAuthorised):
        Link(read_profile(directory), 5.0).open()


def test_a_revocation_lets_no_earlier_one_in_again(gateway: RunningGateway) -> None:
    """Of two keys revoked one after the other, neither gets a connection."""
    first, second = (added(gateway, "auditor", f"twice-{number}") for number in range(2))
    for _, key_id in (first, second):
        gateway.operator().revoke("client_key", key_id, "lost")
    for directory, _ in (first, second):
        with pytest.raises(NotAuthorised):
            Link(read_profile(directory), 5.0).open()


@pytest.mark.jail
def test_disconnect_ends_the_key_s_connections_and_nobody_else_notices(
    gateway: RunningGateway,
) -> None:
    """The revoked peer is gone, with the call that ran for it; ten others see no error, half of
    whom had said nothing yet; a good client's call in flight is answered."""
    gateway.install(gateway.write_plugin("echo-plugin", support.ECHO))
    directory, key_id = added(gateway, "omega", "taken")
    good = [OmegaClient.from_home(gateway.home) for _ in range(10)]
    caller, own, taken = gateway.omega(), str(uuid.uuid4()), str(uuid.uuid4())
    call = Call("echo-plugin", "echo", "x", timeout=20)
    assert isinstance(caller.invoke("echo-plugin", "echo", "x", timeout=20), Result)
    worker = gateway.operator().status().workers[0].pid
    assert worker is not None
    with RawClient(directory) as raw, held(worker):
        seen = raw.socket.get_monitor_socket(
            zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_AUTH)
        for number, client in enumerate(good):
            if number % 2:
                client.__enter__()
            else:
                assert client.status().state == "serving"
        caller._send(caller._session.invoke(call, own, None))
        raw.send(caller._session.invoke(call, taken, None)[1])
        for request_id in (own, taken):
            gateway.wait_for_event("the call", lambda event, asked=request_id: isinstance(
                event.fields, InvokeAccept) and event.fields.request_id == asked)

        assert gateway.operator().revoke("client_key", key_id, "lost", disconnect=True).ended == 1

        events: list[int] = []
        while zmq.EVENT_HANDSHAKE_FAILED_AUTH not in events:
            assert seen.poll(20_000)
            events.append(int.from_bytes(seen.recv_multipart()[0][:2], "little"))
        assert events[0] == zmq.EVENT_DISCONNECTED
    for client in good:
        assert client.status().state == "serving"
        client.close()
    assert isinstance(caller._wait(own, 20, 1e12), Result)
    assert any(event.fields.disconnect for event in gateway.events()
               if isinstance(event.fields, Revoke) and event.fields.id == key_id)


def test_only_a_client_s_key_has_connections_to_end(gateway: RunningGateway) -> None:
    """Asking to disconnect a grant is refused, and says where."""
    with pytest.raises(Refused, match=r"\$.disconnect"):
        gateway.operator().revoke("grant", "echo-plugin clock.read", "lost", disconnect=True)


def rotate(
    gateway: RunningGateway, capsys: pytest.CaptureFixture[str], profile: Path
) -> tuple[int, dict[str, str]]:
    """Run `keys rotate` once; gives its exit status and what it said."""
    status = run(["keys", "rotate", "--home", str(gateway.home), "--profile", str(profile),
                  "--output", "json"])
    said = capsys.readouterr().out
    return status, json.loads(said) if status == 0 else {}


def test_a_client_s_key_is_rotated_in_three_steps(
    gateway: RunningGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both keys work, then the profile has the new one, then the old one is revoked; a step that
    comes too early or was cut short changes nothing and is done again."""
    directory, old = added(gateway, "auditor", "rotated")
    before = read_profile(directory)

    status, said = rotate(gateway, capsys, directory)
    assert (status, said["step"], said["replaces"]) == (0, "begin", old)
    assert "HUP" in said["next"]
    new = said["key_id"]
    too_early, _ = rotate(gateway, capsys, directory)
    assert (too_early, read_profile(directory).pair) == (4, before.pair)
    # Cut short between its two files, the first step is done again with the same key.
    (gateway.home / "keys" / "clients" / f"{new}.toml").unlink()
    assert rotate(gateway, capsys, directory)[1] == said
    reread(gateway)

    status, said = rotate(gateway, capsys, directory)
    assert (status, said["step"], said["key_id"]) == (0, "switch", new)
    for profile in (before, read_profile(directory)):
        link = Link(profile, 5.0)
        link.open()
        link.close()
    # A gateway that is started in the middle knows both.
    gateway.stop()
    gateway.start()
    Link(before, 5.0).open()

    status, said = rotate(gateway, capsys, directory)
    assert (status, said["step"], said["replaces"]) == (0, "finish", old)
    with pytest.raises(NotAuthorised):
        Link(before, 5.0).open()
    with AdminClient(directory) as client:
        assert client.status().state == "serving"
    reread(gateway)
    changes = [event.fields for event in gateway.events() if isinstance(event.fields, KeyChange)
               and event.fields.key_id in (old, new)]
    assert [(one.action, one.key_id) for one in changes] == [
        ("added", old), ("rotated", new), ("removed", old)]
    assert sorted(path.name for path in directory.iterdir()) == [
        "client.key_secret", "head.note", "profile.toml"]
