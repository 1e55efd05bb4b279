"""The trust root of a gateway that is stopped and started again, with real files and processes."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest

from broker.home import ROOT_KEY, load_home
from broker.keys import new_signing_pair, read_secret
from broker.trust.roots import TRUST_FILE, sign_root
from schemas.events import LedgerOpen, TrustChange
from tests.support.gateway import ROOT, RunningGateway, running_gateway

pytestmark = [pytest.mark.system, pytest.mark.jail]


def refused_start(gateway: RunningGateway) -> str:
    """Try to serve; gives what the command line says when it refuses, without touching the
    ledger."""
    before = len(gateway.events())
    done = subprocess.run(
        [sys.executable, "-c", "from broker.cli.main import main; main()", "serve",
         "--home", str(gateway.home)],
        cwd=ROOT, env=gateway.environment, capture_output=True, text=True, timeout=20, check=False,
    )
    assert done.returncode == 6, done.stderr
    assert len(gateway.events()) == before
    return done.stderr


def test_a_trust_root_goes_forward_only() -> None:
    """A successor is taken; the old root and one of other keys end the start, exit 6."""
    with running_gateway() as gateway:
        gateway.stop()
        path = gateway.home / TRUST_FILE
        first = path.read_bytes()
        document = load_home(str(gateway.home), environment={}).trust.trust
        root = bytes.fromhex(read_secret(str(gateway.home / ROOT_KEY)).strip())
        path.write_bytes(sign_root(msgspec.structs.replace(document, version=2), [root]))
        gateway.start()
        assert gateway.auditor().status().trust_version == 2
        gateway.stop()
        path.write_bytes(first)
        assert "the ledger has seen version 2" in refused_start(gateway)
        other = new_signing_pair()
        usurped = msgspec.structs.replace(document, version=3, roots=(other.public,))
        path.write_bytes(sign_root(usurped, [bytes.fromhex(other.secret)]))
        assert "keys signed these bytes" in refused_start(gateway)
        events = [event.fields for event in gateway.events()]
    assert [event.version for event in events if isinstance(event, TrustChange)] == [1, 2]
    assert [event.trust_version for event in events if isinstance(event, LedgerOpen)] == [1, 2]
