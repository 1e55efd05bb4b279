"""The how-to pages for operators and integrators: every command runs, every snippet holds."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.cli import ends
from broker.home import ROOT_KEY
from broker.keys import new_signing_pair
from broker.trust.roots import sign_root
from schemas.trust import Publisher, TrustRoot
from tests.support.gateway import running_gateway
from tests.support.pages import ROOT, blocks, commands, play
from tests.support.simulated_home import simulated_home

HOW_TO = ROOT / "docs" / "how-to"
OPERATE = HOW_TO / "operate-a-gateway.md"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="og-") as name:
        yield Path(name)


def trust_root() -> bytes:
    """A production trust root, as an organisation would bring it."""
    root, publisher = new_signing_pair(), new_signing_pair()
    return sign_root(TrustRoot(
        format="omega-trust/1", domain="production", version=1, roots=(root.public,),
        root_threshold=1,
        publishers={"house": Publisher(keys=(publisher.public,), threshold=1, plugins=("*",))},
    ), [bytes.fromhex(root.secret)])


def test_a_production_gateway_is_run_as_the_page_says(folder: Path) -> None:
    """From `doctor` to the stop, each command ends and prints as it stands."""
    (folder / "trust-root.json").write_bytes(trust_root())
    environment = commands(folder / "bin")
    (folder / "state").mkdir(mode=0o700)

    played = play(OPERATE, folder, environment, {"/var/lib/omega-gateway": f"{folder}/state"})

    assert played == OPERATE.read_text().count("```sh")
    assert not (folder / "state" / "home" / ROOT_KEY).exists()


def test_keys_come_change_and_go_as_the_page_says(folder: Path) -> None:
    """Adding, replacing and revoking end as they stand, with a real gateway."""
    played = play(HOW_TO / "keys.md", folder, commands(folder / "bin"))

    assert played == (HOW_TO / "keys.md").read_text().count("```sh")


def test_backups_are_restored_and_archived_as_the_page_says(folder: Path) -> None:
    """A copy that is put back is refused, restored it serves, and what is archived still proves."""
    page = HOW_TO / "back-up-and-restore.md"
    simulated_home(folder / "months")

    places = {"/srv/omega-gateway": f"{folder}/months"}
    played = play(page, folder, commands(folder / "bin"), places)

    assert played == page.read_text().count("```sh")


def test_an_integrator_s_page_works_as_it_stands() -> None:
    """The snippets run against a real gateway, and the tests it shows pass."""
    with running_gateway() as gateway:
        environment = commands(gateway.folder / "bin")
        (gateway.folder / "profiles").symlink_to(gateway.home / "profiles")
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"

        page = HOW_TO / "integrate-omega.md"
        assert play(page, gateway.folder, environment) == 2


def test_a_plugin_is_upgraded_as_the_page_says() -> None:
    """What widens waits for its approval, the switch loses nothing, and the way back is open."""
    with running_gateway() as gateway:
        environment = commands(gateway.folder / "bin")
        environment["OMEGA_GATEWAY_HOME"] = str(gateway.home)

        page = HOW_TO / "upgrade-a-plugin.md"
        assert play(page, gateway.folder, environment) == page.read_text().count("```sh")


def test_the_unit_is_one_that_systemd_takes(folder: Path) -> None:
    """Sections and lines are known ones; it stops no longer than told, and not again on 74."""
    unit = next(block.text for block in blocks(OPERATE) if block.kind == "ini")
    parsed = configparser.ConfigParser(interpolation=None, strict=True)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]  # systemd's own spelling.
    parsed.read_string(unit)
    service = parsed["Service"]
    never_again = {int(code) for code in service["RestartPreventExitStatus"].split()}
    assert {ends.UNWRITABLE, ends.LEDGER, ends.TRUST, ends.INVALID} == never_again
    verifier = shutil.which("systemd-analyze")
    if verifier is not None:
        path = folder / "omega-gateway.service"
        path.write_text(unit.replace("/opt/omega-gateway/bin/omega-gateway", sys.executable)
                        .replace("User=omega-gateway", "User=root"))
        done = subprocess.run([verifier, "verify", str(path)], capture_output=True, text=True,
                              timeout=60, check=False)
        assert "omega-gateway.service" not in done.stderr, done.stderr


def test_the_page_s_exit_codes_are_all_there_are() -> None:
    """Each exit code that a gateway or its commands may end with has its line."""
    rows = {int(line.split("|")[1]) for line in OPERATE.read_text().splitlines()
            if line.startswith("| ") and line.split("|")[1].strip().isdecimal()}
    codes = {value for value in vars(ends).values() if isinstance(value, int)}
    assert rows == {0} | codes - {ends.FAILURE, ends.USAGE}


@pytest.mark.parametrize("page", [
    "```sh\nfalse\n```\n", "```sh fails\ntrue\n```\n", "```python\nraise SystemExit(1)\n```\n",
    "```sh\necho one two\n```\n\n```prints\nthree\n```\n",
])
def test_a_page_that_does_not_hold_is_seen(folder: Path, page: str) -> None:
    """A command that fails, one that should and does not, and other words than it prints."""
    (folder / "page.md").write_text(page)

    with pytest.raises(AssertionError):
        play(folder / "page.md", folder, commands(folder / "bin"))
