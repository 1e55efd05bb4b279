"""The page on conformance, played as it stands: folder, bundle, signed report, registration."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from broker.evidence.events import read_events
from schemas.events import PluginRegister, PluginReject
from tests.cli.command import ROOT, environment
from tests.cli.test_trust_guide import BLOCK, play
from tests.support.gateway import wait_for

pytestmark = [pytest.mark.system, pytest.mark.jail, pytest.mark.once]

PAGE = ROOT / "docs" / "how-to" / "conformance.md"


def test_the_guide_to_conformance_works_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every command ends as its page says and prints what stands below it; the ledger holds the
    refusal without a report, and who signed the one that was taken."""
    monkeypatch.chdir(tmp_path)
    for name, value in environment(tmp_path / "none").items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("OMEGA_GATEWAY_HOME")
    process: subprocess.Popen[bytes] | None = None
    log, said = tmp_path / "serve.log", ""
    try:
        for kind, word, text in BLOCK.findall(PAGE.read_text("utf-8")):
            if kind == "prints":
                assert [line for line in text.splitlines() if line not in said] == [], said
                continue
            said = ""
            for line in text.splitlines():
                if word == "serves":
                    process = subprocess.Popen(
                        [sys.executable, "-m", "broker.cli.main", *shlex.split(line)[1:]],
                        stdout=subprocess.DEVNULL, stderr=log.open("wb"))
                    wait_for("the gateway", lambda: b'"ready"' in log.read_bytes())
                    continue
                code = play(line)
                said += "".join(capfd.readouterr())
                assert (code != 0) == (word == "fails"), f"{line}\n{said}"
        assert process is not None
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        if process is not None:
            process.kill()
    fields = [event.fields for event in read_events(str(tmp_path / "gateway" / "ledger"))]
    (registered,) = [one for one in fields if isinstance(one, PluginRegister)]
    assert registered.conformance_sha256 is not None
    assert len(registered.conformance_keys) == 1
    assert [one.code for one in fields if isinstance(one, PluginReject)] == ["conformance_required"]
