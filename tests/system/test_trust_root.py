"""The trust root of a gateway that is stopped and started again, with real files and processes."""

from __future__ import annotations

import signal
import subprocess
import sys

import msgspec
import pytest

from broker.client_errors import Refused
from broker.home import ROOT_KEY, load_home
from broker.keys import new_signing_pair, read_secret
from broker.trust.roots import KEPT_TRUST_FILE, TRUST_FILE, sign_root
from broker.trust.signatures import key_id
from broker.trust_folder import UNFINISHED
from schemas.events import InvokeEnd, LedgerOpen, TrustChange, WorkerExit
from schemas.refusals import RefusalCode
from tests.support.gateway import ROOT, RunningGateway, running_gateway, wait_for
from tests.system.test_life import alive, descendants, slow_gateway_call

pytestmark = [pytest.mark.system, pytest.mark.jail, pytest.mark.once]


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


def test_a_root_is_taken_while_a_call_runs() -> None:
    """`set_trust` that revokes the publisher's key ends the running call and its worker's
    processes at once; file and ledger agree after kill -9, also when the kill came between them."""
    with running_gateway() as gateway:
        path = gateway.home / TRUST_FILE
        first = path.read_bytes()
        document = load_home(str(gateway.home), environment={}).trust.trust
        root = bytes.fromhex(read_secret(str(gateway.home / ROOT_KEY)).strip())
        publisher = bytes.fromhex(document.publishers["development"].keys[0])
        asked = slow_gateway_call(gateway)
        launcher = descendants(gateway.pid)
        revoking = sign_root(msgspec.structs.replace(
            document, version=2, revoked_keys=(key_id(publisher),)), [root])

        told = gateway.operator().set_trust(revoking)

        outcome = asked.finish()
        assert isinstance(outcome, Refused)
        assert outcome.refusal.code is RefusalCode.REVOKED
        # Of all that ran below the broker only the launcher is left.
        wait_for("the worker's processes to end", lambda: len(alive(launcher)) <= 1)
        assert (told.version, told.publishers) == (2, ("development",))
        with pytest.raises(Refused) as again:
            gateway.operator().set_trust(revoking)
        assert again.value.refusal.code is RefusalCode.TRUST_VERSION_NOT_RAISED
        events = [event.fields for event in gateway.events()]
        places = {type(event): place for place, event in enumerate(events)}
        assert places[TrustChange] < places[InvokeEnd] < places[WorkerExit]

        gateway.stop(signal.SIGKILL)
        assert path.read_bytes() == (
            gateway.home / KEPT_TRUST_FILE.format(version=2)).read_bytes() == revoking
        # As it lies there when the kill comes after the ledger's write and before the file's.
        path.rename(f"{path}{UNFINISHED}")
        path.write_bytes(first)
        gateway.start()
        assert gateway.auditor().status().trust_version == 2
        assert path.read_bytes() == revoking
        with pytest.raises(Refused) as refused:
            gateway.omega().invoke("slow-plugin", "dawdle", "1")
        assert refused.value.refusal.code is RefusalCode.REVOKED
