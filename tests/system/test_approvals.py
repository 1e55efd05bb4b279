"""Approvals by several operators, with real keys, a real policy and a broker that is killed."""

from __future__ import annotations

import json
import signal
import tempfile
from pathlib import Path

import pytest

from broker.cli.main import run
from broker.client import AdminClient
from broker.client_errors import Refused
from broker.home import load_home, new_profile
from schemas.refusals import RefusalCode
from tests.support.gateway import DEFAULT_LIMITS, ECHO, RunningGateway

pytestmark = [pytest.mark.system, pytest.mark.jail, pytest.mark.once]

WIDER = DEFAULT_LIMITS.replace("memory_mb = 256", "memory_mb = 512")


def test_two_operators_approve_and_one_does_not(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where policy asks for two, the first approval is kept through kill -9 and is shown, one
    operator alone enables nothing however often it approves, and the second makes it whole."""
    monkeypatch.delenv("OMEGA_GATEWAY_HOME", raising=False)
    with tempfile.TemporaryDirectory(prefix="og-") as folder:
        gateway = RunningGateway(Path(folder))
        policy = gateway.home / "policy.toml"
        policy.write_text(f"operators_required = 2\n{policy.read_text()}")
        second = str(gateway.home / "profiles" / "second")
        home = load_home(str(gateway.home), environment=gateway.environment)
        new_profile(home, "operator", second, "second")

        def shown(*arguments: str) -> tuple[dict[str, object], str]:
            profile = ("--profile", str(gateway.home / "profiles" / "operator"))
            told = []
            for output in ("json", "table"):
                capfd.readouterr()
                assert run(["plugins", *arguments, *profile, "--output", output]) == 0
                told.append(capfd.readouterr().out)
            return json.loads(told[0]), told[1]

        try:
            gateway.start()
            operator = gateway.operator()
            gateway.install(gateway.write_plugin("echo-plugin", ECHO), operator)
            operator.register_plugin(gateway.bundle(gateway.write_plugin(
                "echo-plugin", ECHO, version="1.1.0", limits=WIDER)))
            document, table = shown("approve", "echo-plugin@1.1.0")
            digest = str(document["digest"])
            assert (document["waits"], document["approvals"], document["required"]) == (True, 1, 2)
            assert "1 of 2 operators approved it" in table

            gateway.stop(signal.SIGKILL)
            gateway.start()
            document, table = shown("show", "echo-plugin")
            assert document["pending"] == {
                "digest": digest, "required": 2,
                "approved_by": [key_id for key_id, key in home.clients.items()
                                if (key.role, key.name) == ("operator", "operator")],
            }
            assert f"{digest}, 1 of 2" in table
            with pytest.raises(Refused, match="approved by 1 of 2 operators") as refused:
                gateway.operator().enable_plugin("echo-plugin", "1.1.0")
            assert refused.value.refusal.code is RefusalCode.APPROVAL_REQUIRED

            with AdminClient(second) as other:
                told = other.approve("echo-plugin", "1.1.0", digest)
            assert (told.approvals, told.required) == (2, 2)
            assert gateway.operator().enable_plugin("echo-plugin", "1.1.0").previous == "1.0.0"
        finally:
            gateway.stop()
        gateway.audit()
