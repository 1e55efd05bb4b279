"""The soak's faults: killed processes, upgrades, revocations, policy reloads, frames of nonsense.

Rules this file keeps: which fault comes next is drawn from a seeded generator; a fault that the
gateway refuses, because another one came first, is counted and tried again later. Versions only
rise. It leaves judging to `benchmarks.soak`.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Callable
from typing import Final

import msgspec
import zmq

from benchmarks.plain import client_socket
from benchmarks.soak_clients import PLUGIN, Pause, Tally
from broker.authoring.pack import pack, sign
from broker.authoring.source import Folder, read_folder
from broker.client import AdminClient, Refused
from broker.client_profile import read_profile
from broker.home import PUBLISHER_KEY
from broker.keys import read_secret

ROLES: Final = ("broker", "launcher", "supervisor", "stub", "zygote", "call")
"""By how many parents lie between a process and the broker."""
PACE_S: Final = 1.0


def family(broker: int) -> dict[str, list[int]]:
    """Give the broker's processes by their role, zombies too."""
    children: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", encoding="ascii") as file:
            fields = file.read().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(name))
    found, generation = {}, [broker]
    for role in ROLES:
        found[role] = generation
        generation = [child for pid in generation for child in children.get(pid, [])]
    return found


class Faults:
    """Breaks things, one a second."""

    def __init__(self, root: str, home: str, broker: int, seed: int, tally: Tally) -> None:
        """Read the plugin's folder; nothing is broken yet."""
        self._home = home
        self._broker = broker
        self._chance = random.Random(seed)
        self._tally = tally
        self._folder: Folder = read_folder(f"{root}/scripts/benchmarks/plugin_soak")
        self._key = bytes.fromhex(read_secret(os.path.join(home, PUBLISHER_KEY)))
        self._number = 0
        self._versions: list[str] = []

    def run(self, pause: Pause) -> None:
        """Break things until the end."""
        faults: dict[str, tuple[int, Callable[[AdminClient], None]]] = {
            "kill a call process": (40, lambda _: self._kill("call")),
            "kill a zygote": (6, lambda _: self._kill("zygote")),
            "kill a stub": (2, lambda _: self._kill("stub")),
            "kill a supervisor": (6, lambda _: self._kill("supervisor")),
            "upgrade": (8, self.upgrade),
            "revoke an old version": (4, self._revoke_old),
            "revoke the enabled version": (2, self._revoke_enabled),
            "disable and enable": (3, self._toggle),
            "register twice": (4, self._register_twice),
            "register a broken bundle": (6, self._register_broken),
            "reload": (6, lambda _: os.kill(self._broker, signal.SIGHUP)),
            "nonsense": (8, lambda _: self._nonsense()),
        }
        names, weights = list(faults), [weight for weight, _ in faults.values()]
        with AdminClient.from_home(self._home) as operator:
            while pause.turns(PACE_S):
                name = self._chance.choices(names, weights)[0]
                try:
                    faults[name][1](operator)
                    self._tally.count(f"fault: {name}", "ok")
                except Refused as refused:
                    self._tally.count(f"fault: {name}", str(refused.code))

    def _kill(self, role: str) -> None:
        victims = family(self._broker)[role]
        if victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._chance.choice(victims), signal.SIGKILL)

    def upgrade(self, operator: AdminClient) -> None:
        """Register the next version and enable it."""
        registered = operator.register_plugin(self._bundle())
        self._tally.versions += 1
        self._versions.append(registered.version)
        operator.enable_plugin(PLUGIN, registered.version)

    def _bundle(self) -> bytes:
        self._number += 1
        source = msgspec.structs.replace(self._folder.source, version=f"1.0.{self._number}")
        return sign(pack(self._folder._replace(source=source), "development").data,
                    [self._key]).data

    def _revoke_old(self, operator: AdminClient) -> None:
        if len(self._versions) > 1:
            version = self._versions.pop(0)
            operator.revoke("plugin_version", f"{PLUGIN}@{version}", "the soak's")

    def _revoke_enabled(self, operator: AdminClient) -> None:
        """Take back what runs; nothing serves until another version does."""
        operator.revoke("plugin_version", f"{PLUGIN}@{self._versions.pop()}", "the soak's")
        self.upgrade(operator)

    def _toggle(self, operator: AdminClient) -> None:
        operator.disable_plugin(PLUGIN)
        operator.enable_plugin(PLUGIN, self._versions[-1])

    def _register_twice(self, operator: AdminClient) -> None:
        bundle = self._bundle()
        self._versions.insert(0, operator.register_plugin(bundle).version)
        self._tally.versions += 1
        operator.register_plugin(bundle)

    def _register_broken(self, operator: AdminClient) -> None:
        bundle = bytearray(self._bundle())
        for _ in range(self._chance.randrange(1, 20)):
            bundle[self._chance.randrange(len(bundle))] ^= 1 << self._chance.randrange(8)
        operator.register_plugin(bytes(bundle))

    def _nonsense(self) -> None:
        """Send what is no request, from a key that may send requests."""
        profile = read_profile(f"{self._home}/profiles/omega")
        pair = (profile.pair.public.encode(), profile.pair.secret.encode())
        with zmq.Context() as context, client_socket(
            context, profile.settings.endpoint, profile.settings.server_key.encode(), pair
        ) as socket:
            for _ in range(50):
                frames = [
                    self._chance.choice((b"", b"OPG1", b"OPG1\x81\xa4type"))
                    + self._chance.randbytes(self._chance.choice((0, 10, 1000)))
                    for _ in range(self._chance.choice((1, 1, 2, 20)))
                ]
                socket.send_multipart(frames)
