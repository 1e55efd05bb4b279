"""The operators' page on trust, played as it stands against a production gateway."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from broker.authoring.main import main as plugin
from broker.cli.main import run
from broker.home import load_home
from tests.cli.command import ROOT, environment
from tests.support.gateway import wait_for

pytestmark = [pytest.mark.system, pytest.mark.jail, pytest.mark.once]

PAGE = ROOT / "docs" / "how-to" / "trust-root.md"
BLOCK = re.compile(r"^```(\w+) ?(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SECRETS = {"front.omega", "front.admin", "ledger", "determinism"}
"""What a production home's own secret keys are for; none signs a trust root or a bundle."""


def play(line: str) -> int:
    """Run one command line as a shell would; ours without a new interpreter for each."""
    program, *arguments = shlex.split(line)
    if program == "omega-gateway":
        return run(arguments)
    if program != "omega-plugin":
        return subprocess.run(line, shell=True, check=False).returncode
    try:
        plugin.main(arguments, standalone_mode=False)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0


def no_root_secret(home: Path, offline: Path) -> None:
    """The home holds its own four secrets, and none of the keys' holders in any spelling."""
    names = {path.name.removesuffix(".key_secret") for path in (home / "keys").glob("*_secret")}
    assert names == SECRETS
    seeds = [path.read_text().strip() for path in offline.glob("*.key")]
    assert len(seeds) == 4
    for path in home.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            for seed in seeds:
                assert seed.encode() not in data, path
                assert bytes.fromhex(seed) not in data, path


def test_the_guide_to_trust_works_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every command ends as its page says and prints what stands below it; at the end the ledger
    pins the last root, and no secret of a root or publisher ever came into the home."""
    monkeypatch.chdir(tmp_path)
    for name, value in environment(tmp_path / "none").items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("OMEGA_GATEWAY_HOME")
    process: subprocess.Popen[bytes] | None = None
    log, said, played = tmp_path / "serve.log", "", 0
    try:
        for kind, word, text in BLOCK.findall(PAGE.read_text("utf-8")):
            if kind == "prints":
                assert [line for line in text.splitlines() if line not in said] == [], said
                continue
            said = ""
            for line in text.replace("\\\n", " ").splitlines():
                if word == "serves":
                    process = subprocess.Popen(
                        [sys.executable, "-m", "broker.cli.main", *shlex.split(line)[1:]],
                        stdout=subprocess.DEVNULL, stderr=log.open("wb"))
                    wait_for("the gateway", lambda: b'"ready"' in log.read_bytes())
                    continue
                code = play(line)
                said += "".join(capfd.readouterr())
                assert (code != 0) == (word == "fails"), f"{line}\n{said}"
                played += 1
        assert process is not None
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        if process is not None:
            process.kill()
    assert played > 30
    assert load_home(str(tmp_path / "gateway")).trust.trust.version == 5
    no_root_secret(tmp_path / "gateway", tmp_path / "offline")
