"""Registering, interrupted at every step; and a thousand versions in a running gateway."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

import pytest

from broker.client import AdminClient, GatewayError, Refused
from broker.keys import read_secret
from schemas.events import PluginQuarantine
from tests.support import gateway as support
from tests.support.bundles import signed_bundle
from tests.support.gateway import ECHO, RunningGateway, running_gateway

pytestmark = [pytest.mark.system, pytest.mark.jail, pytest.mark.once]

DIE = """
import os, signal
from broker import bundles, durable
from broker.launchers.local import LocalLauncher
from broker.ledger.commit import Ledger
from broker.transport import Transport
stored = []
def around(owner, name, before=False, after=False, when=lambda *_: True):
    inner = getattr(owner, name)
    def outer(*arguments, **named):
        at = when(*arguments)
        if before and at:
            os.kill(os.getpid(), signal.SIGKILL)
        result = inner(*arguments, **named)
        if after and at:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(owner, name, outer)
def is_bundle(path, *_):
    return "/bundles/" in str(path)
def is_stored(*_):
    return bool(stored)
around(bundles.BundleFolder, "store", when=lambda *_: stored.append(1))
"""
STEPS = {
    "while its schemas are tried": ('around(LocalLauncher, "try_schemas", after=True)', False),
    "when its bundle is written beside its place": (
        'around(os, "rename", before=True, when=is_bundle)', False),
    "when its bundle lies in its place": (
        'around(os, "rename", after=True, when=is_bundle)', False),
    "when its bundle is durable": (
        'around(bundles.BundleFolder, "store", after=True)', False),
    "before its event is committed": (
        'around(Ledger, "commit", before=True, when=is_stored)', False),
    "when its event is durable": ('around(Ledger, "commit", after=True, when=is_stored)', True),
    "when its reply has left": ('around(Transport, "send", after=True, when=is_stored)', True),
}
"""Where the broker kills itself, and whether the version is registered afterwards."""


def bundle_of(gateway: RunningGateway, plugin: str, version: str, variant: int) -> bytes:
    """Sign a version with the home's key; each variant has a schema of its own."""
    seed = bytes.fromhex(read_secret(str(gateway.home / "keys" / "publisher.key_secret")))
    return signed_bundle(plugin, version, seed=seed, publisher="development",
                         schema={"type": "object", "title": f"variant {variant}"})


def listed(gateway: RunningGateway, limit: int, versions: int = 1) -> list[str]:
    """List page by page the plugins with so many versions."""
    found: list[str] = []
    after = None
    with AdminClient(str(gateway.home / "profiles" / "operator")) as operator:
        while True:
            page = operator.list_plugins(after=after, limit=limit)
            assert len(page.plugins) <= limit
            found += [entry.plugin for entry in page.plugins if entry.versions == versions]
            after = page.next_after
            if after is None:
                return found


def test_a_registration_that_is_killed_at_any_step_leaves_all_or_nothing(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    """After kill -9 at each step the next start knows the version whole or not at all and has
    nothing half-written; registering the same again goes on, or says that it is registered."""
    serve = support.SERVE
    with running_gateway() as gateway:
        folder = gateway.home / "registry" / "bundles"
        gateway.stop()
        plugins = 0
        for name, (step, there) in STEPS.items():
            bundle = bundle_of(gateway, f"step-{plugins}", "1.0.0", plugins)
            monkeypatch.setattr(support, "SERVE", DIE + step + "\n" + serve)
            process = gateway.start().process
            assert process is not None
            assert len(listed(gateway, 10)) == len(list(folder.iterdir())) == plugins, name
            with contextlib.suppress(GatewayError):
                # Where the reply has left, it may or may not arrive.
                gateway.operator().register_plugin(bundle)
            assert process.wait(support.PATIENCE_S) == -signal.SIGKILL, name
            plugins += there
        monkeypatch.setattr(support, "SERVE", serve)
        gateway.start()

        operator = gateway.operator()
        assert listed(gateway, 10) == [f"step-{number}" for number in range(plugins)]
        for number in range(plugins):
            with pytest.raises(Refused) as refused:
                operator.register_plugin(bundle_of(gateway, f"step-{number}", "1.0.0", number))
            assert refused.value.code == "already_registered"
            operator.enable_plugin(f"step-{number}", "1.0.0")
        assert len(list(folder.iterdir())) == plugins


def test_a_thousand_versions_are_registered_listed_and_found_again() -> None:
    """A thousand real signed bundles with ten schemas: registered one by one, listed in pages,
    found again after a restart, where one was deleted meanwhile; the broker stays small."""
    with running_gateway('\n[ledger]\ndurability = "process"\n') as gateway:
        operator = gateway.operator()
        bundles = [(f"scale-{number // 4:03d}", f"1.{number % 4}.0", number % 10)
                   for number in range(1000)]
        for plugin, version, variant in bundles:
            operator.register_plugin(bundle_of(gateway, plugin, version, variant))

        names = sorted({plugin for plugin, _, _ in bundles})
        assert listed(gateway, 60, versions=4) == names
        lost = operator.get_plugin("scale-007").versions[2]
        gateway.stop()
        (gateway.home / "registry" / "bundles" / lost.bundle_sha256).unlink()
        gateway.start()
        assert listed(gateway, 60, versions=4) == names
        status = Path(f"/proc/{gateway.pid}/status").read_text()
        assert int(status.partition("VmRSS:")[2].split()[0]) < 200 * 1024
        quarantined = [event.fields for event in gateway.events()
                       if isinstance(event.fields, PluginQuarantine)]
        assert [(one.plugin, one.version) for one in quarantined] == [("scale-007", "1.2.0")]
        gateway.operator().enable_plugin("scale-249", "1.3.0")
        with pytest.raises(Refused) as refused:
            gateway.operator().enable_plugin("scale-007", "1.2.0")
        assert refused.value.code == "plugin_quarantined"


def test_plugins_called_in_turn_share_a_bounded_number_of_workers() -> None:
    """Five enabled plugins called in turn where two workers may be: each is served, two at most."""
    config = "\n[limits]\nworkers_max = 2\nwarm_processes_max = 2\n"
    with running_gateway(config) as gateway:
        for number in range(5):
            gateway.install(gateway.write_plugin(f"turn-{number}", ECHO))
        omega, operator = gateway.omega(), gateway.operator()
        for number in (0, 1, 2, 3, 4, 0):
            assert omega.invoke(f"turn-{number}", "echo", "x", timeout=20).text == "x"
            assert len(operator.status().workers) <= 2
