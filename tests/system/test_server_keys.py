"""A front's key is replaced while its clients are served, with real sockets."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from broker import fronts
from broker.cli.main import run
from broker.client import OmegaClient, Unreachable
from broker.client_profile import read_profile
from broker.home import create_home, load_home
from schemas.events import KeyChange
from tests.support.gateway import RunningGateway, running_gateway
from tests.system.test_keys import reread


def server_changes(gateway: RunningGateway) -> list[tuple[str, str]]:
    """What the ledger says about server keys."""
    return [(event.fields.action, event.fields.key_id) for event in gateway.events()
            if isinstance(event.fields, KeyChange) and event.fields.role == "server"]


def both_are_served(*profiles: Path) -> None:
    """Each endpoint answers its own clients, at the same time."""
    clients = [OmegaClient(profile) for profile in profiles for _ in range(3)]
    for _ in range(5):
        for client in clients:
            assert client.status().state == "serving"
    for client in clients:
        client.close()


def test_two_endpoints_are_served_until_the_old_one_ends(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Old profiles work beside those that learned, also after a restart in the middle; the end is
    in the ledger, and only the new endpoint and key are left."""
    with running_gateway() as gateway:
        def rotate(*arguments: str) -> dict[str, str]:
            status = run(["keys", "rotate", "--home", str(gateway.home), "--server", "omega",
                          "--output", "json", *arguments])
            said = capsys.readouterr()
            assert status == 0, said.err
            found = json.loads(said.out)
            assert isinstance(found, dict)
            return found

        own, elsewhere = gateway.home / "profiles" / "omega", gateway.folder / "elsewhere"
        shutil.copytree(own, elsewhere)
        keys = sorted(door[0].key_id for door in load_home(str(gateway.home)).fronts.values())
        assert server_changes(gateway) == [("added", key_id) for key_id in keys]

        began = rotate()
        assert began["step"] == "begin"
        # Before the next start nothing but the old one is served, and settings are read as ever.
        reread(gateway)
        for early in ((), ("--finish",)):
            status = run(["keys", "rotate", "--home", str(gateway.home), "--server", "omega",
                          *early])
            assert (status, "is not served" in capsys.readouterr().err) == (3, True)
        both_are_served(own)
        gateway.stop()
        gateway.start()
        assert rotate()["step"] == "teach"
        settings = read_profile(own).settings
        assert (settings.endpoint, settings.server_key) == (began["endpoint"], began["server_key"])
        both_are_served(own, elsewhere)
        gateway.stop()
        gateway.start()
        both_are_served(own, elsewhere)

        assert rotate("--finish")["old_endpoint"] is None
        with OmegaClient(own) as omega, OmegaClient(elsewhere) as other:
            other.status()
            reread(gateway)
            ended = KeyChange(
                action="removed", role="server", key_id=began["old_key_id"], actor="home")
            gateway.wait_for_event("the old key's end", lambda event: event.fields == ended)
            assert omega.status().state == "serving"
        with pytest.raises(Unreachable):
            OmegaClient(elsewhere, connect_timeout=0.5).status()
        assert [door.key_id for door in load_home(str(gateway.home)).fronts["front.omega"]] == [
            began["key_id"]]
        assert server_changes(gateway)[2:] == [
            ("rotated", began["key_id"]), ("removed", began["old_key_id"])]


def test_an_endpoint_that_no_profile_could_learn_is_refused_before_anything_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every address of the machine is one to listen on and none to connect to."""
    home = str(tmp_path / "home")
    create_home(home, "development", None, environment={"XDG_RUNTIME_DIR": str(tmp_path)})
    rotate = ["keys", "rotate", "--home", home, "--server", "omega", "--endpoint"]
    assert run([*rotate, "tcp://*:5777"]) == 2
    assert "tcp://*:5777: no client can connect to this" in capsys.readouterr().err
    assert [len(doors) for doors in load_home(home).fronts.values()] == [1, 1]
    assert run([*rotate, "tcp://127.0.0.1:5777"]) == 0


def test_an_old_endpoint_whose_time_is_over_is_not_served_again() -> None:
    """A start after the stated time has the new endpoint alone, and says so in the ledger."""
    with running_gateway() as gateway:
        home = load_home(str(gateway.home))
        gateway.stop()
        endpoint = fronts.beside(home.omega_endpoint, "beef")
        assert endpoint is not None
        fronts.begin(str(gateway.home), "front.omega", endpoint, time.time_ns() // 1000)
        gateway.start()
        new, old = load_home(str(gateway.home)).fronts["front.omega"]
        assert not Path(old.endpoint.removeprefix("ipc://")).exists()
        assert fronts.teach(str(gateway.home / "profiles" / "omega"), (new, old))
        assert gateway.omega().status().state == "serving"
        assert server_changes(gateway)[2:] == [("removed", old.key_id), ("rotated", new.key_id)]
