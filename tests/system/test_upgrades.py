"""Upgrades on the real thing: under load no call fails, and a version that does not start changes
nothing."""

from __future__ import annotations

import threading

import pytest

from broker.authoring.pack import pack, sign
from broker.authoring.source import read_folder
from broker.client import OmegaClient, Refused
from broker.keys import read_secret
from schemas.events import InvokeAccept, InvokeEnd, PluginEnable, WorkerExit, WorkerProbe
from schemas.refusals import RefusalCode
from tests.support.gateway import ECHO, RunningGateway, running_gateway, wait_for

pytestmark = [pytest.mark.system, pytest.mark.jail, pytest.mark.once]

NEWER = ECHO.replace("return text", 'return TextPayload(f"new {text.text}")')


def register(gateway: RunningGateway, version: str, source: bytes) -> None:
    """Register a version with a source that no author's check would let pass."""
    folder = read_folder(str(gateway.write_plugin("echo-plugin", ECHO, version=version)))
    packed = pack(folder._replace(files={**folder.files, "plugin.py": source}), "development")
    seed = bytes.fromhex(read_secret(str(gateway.home / "keys" / "publisher.key_secret")).strip())
    gateway.operator().register_plugin(sign(packed.data, [seed], "development").data)


class Callers:
    """Some clients of OMEGA's that call without a pause until they are told to end."""

    def __init__(self, gateway: RunningGateway) -> None:
        """Begin to call."""
        self.answers: list[tuple[str, str]] = []
        self.failures: list[Exception] = []
        self._enough = threading.Event()
        self._threads = [
            threading.Thread(target=self._call, args=(gateway, name)) for name in "abc"
        ]
        for thread in self._threads:
            thread.start()

    def _call(self, gateway: RunningGateway, name: str) -> None:
        try:
            with OmegaClient.from_home(str(gateway.home)) as omega:
                while not self._enough.is_set():
                    answer = omega.invoke("echo-plugin", "echo", name, timeout=20)
                    self.answers.append((answer.version, answer.text))
        except Exception as error:  # noqa: BLE001 - whatever failed is what the test is about.
            self.failures.append(error)

    def more(self, version: str) -> None:
        """Wait until a version has answered some calls from now on."""
        begun = len(self.answers)
        wait_for(f"answers of {version}", lambda: self.failures or sum(
            one[0] == version for one in self.answers[begun:]) > 5)

    def end(self) -> None:
        """Stop calling."""
        self._enough.set()
        for thread in self._threads:
            thread.join(20)


def test_no_call_fails_while_versions_are_exchanged_under_load() -> None:
    """Forward, back, and to a version that cannot start: each call has an answer of the version
    that served, which was witnessed before; the one that cannot start is refused with its reason
    and never serves."""
    with running_gateway() as gateway:
        gateway.install(gateway.write_plugin("echo-plugin", ECHO))
        operator = gateway.operator()
        register(gateway, "1.1.0", NEWER.encode())
        register(gateway, "1.2.0", b"def broken(:\n")
        callers = Callers(gateway)
        try:
            callers.more("1.0.0")
            assert operator.enable_plugin("echo-plugin", "1.1.0").previous == "1.0.0"
            callers.more("1.1.0")
            with pytest.raises(Refused) as refused:
                operator.enable_plugin("echo-plugin", "1.2.0")
            callers.more("1.1.0")
            operator.enable_plugin("echo-plugin", "1.0.0")
            callers.more("1.0.0")
        finally:
            callers.end()
        wait_for("the old workers to go", lambda: len(operator.status().workers) == 1)
        fields = [event.fields for event in gateway.events()]

    assert callers.failures == []
    assert {version: text.startswith("new") for version, text in callers.answers} == {
        "1.0.0": False, "1.1.0": True}
    assert refused.value.code is RefusalCode.PLUGIN_LOAD_FAILED
    assert "does not compile" in refused.value.refusal.message
    assert "1.1.0 serves on" in refused.value.refusal.message
    enabled = [one.version for one in fields if isinstance(one, PluginEnable)]
    assert enabled == ["1.0.0", "1.1.0", "1.0.0"]
    for place, one in enumerate(fields):
        if isinstance(one, PluginEnable) and one.previous is not None:
            assert isinstance(fields[place - 1], WorkerProbe), "it switches when it was witnessed"
    accepted = [one.version for one in fields if isinstance(one, InvokeAccept)]
    turns = [version for place, version in enumerate(accepted)
             if not place or accepted[place - 1] != version]
    assert turns == ["1.0.0", "1.1.0", "1.0.0"]
    assert {one.outcome for one in fields if isinstance(one, InvokeEnd)} == {"result"}
    reasons = [one.reason for one in fields if isinstance(one, WorkerExit)]
    assert sorted(reasons[:3]) == ["drained", "drained", "plugin_load_failed"]
