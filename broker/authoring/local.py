"""An author's own gateway: a development home in a temporary folder and the broker that serves it.

The same code runs as in production: signatures, sandbox, ledger. What differs is the domain, which
is part of the signed bytes, so that nothing signed here is accepted by a production home.

Rules this file keeps: what it makes lies in one folder and is gone when it is closed; every wait
has a bound; a plugin's own words are given apart from the broker's log.

It leaves packing to `broker.authoring.pack` and deciding to the broker that it starts.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, NamedTuple, Self

import msgspec
import semver

from broker.authoring.pack import pack, sign
from broker.authoring.source import own_environment, read_folder
from broker.cli.ends import FAILURE, INVALID, CommandError
from broker.client import AdminClient, OmegaClient
from broker.evidence.events import read_events
from broker.home import (
    CONFIG_FILE,
    DEVELOPMENT_PUBLISHER,
    POLICY_FILE,
    PUBLISHER_KEY,
    create_home,
    new_profile,
)
from broker.keys import make_private_directory, read_secret
from broker.machine import examine
from broker.policy import load_policy, policy_digest
from broker.trust.roots import TRUST_FILE
from broker.trust.signatures import read_envelope
from schemas.events import Event, PolicyChange
from schemas.manifest import PluginManifest
from schemas.messages import Registered
from schemas.names import Domain, Role
from schemas.trust import TRUST_PAYLOAD_TYPES

PATIENCE_S: Final = 20.0
"""How long anything that the broker does is waited for."""

_TURN_S: Final = 0.01
_LOG: Final = "broker.log"
_LOG_LINE: Final = b"{"
"""The broker logs objects; what a plugin prints stands behind the plugin's name."""


class Installed(NamedTuple):
    """A version that takes calls, and whether this installation is what made it do so."""

    manifest: PluginManifest
    fresh: bool


class LocalGateway:
    """One home and the broker that serves it, from `start` to `close`.

    Attributes:
        home: the home's folder.
        omega: OMEGA's client.
        operator: an operator's client.
        changes: how many times a folder that was installed before was installed changed.
        profile: the folder of OMEGA's client profile.
    """

    home: str
    profile: str
    omega: OmegaClient
    operator: AdminClient

    def __init__(self, *, config: str = "", trust_root: bytes | None = None) -> None:
        """Start nothing yet.

        Args:
            config: lines that are added to gateway.toml.
            trust_root: the envelope of a trust root under which bundles are registered that were
                signed before; without one the home makes its own, and `install` signs.
        """
        self._config = config
        self._trust_root = trust_root
        self._folder = tempfile.mkdtemp(prefix="omega-plugin-")
        self._process: subprocess.Popen[bytes] | None = None
        self._read = 0
        self._installed: dict[str, _Installation] = {}
        self.changes = 0

    def __enter__(self) -> Self:
        """Start, as `start` does."""
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close, as `close` does."""
        self.close()

    def start(self) -> Self:
        """Make a home and serve it.

        Raises:
            CommandError: this machine cannot build the sandbox, or the broker did not come up.
        """
        lacking = unsupported()
        if lacking:
            self.close()
            raise CommandError(INVALID, lacking, "`omega-gateway doctor` shows every feature")
        try:
            environment = {**own_environment(), "XDG_RUNTIME_DIR": self._folder}
            self.home = os.path.join(self._folder, "home")
            self._make_home(environment)
            with open(os.path.join(self._folder, _LOG), "wb") as log:
                # -P keeps the author's folder from standing in for a module of ours.
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "broker.cli.main", "serve", "--home", self.home],
                    env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                )
            self._wait("the broker to serve", lambda: b'"ready"' in self._log())
            self.omega = OmegaClient(self.profile)
            self.operator = AdminClient.from_home(self.home)
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """End the broker and remove everything; doing it again does nothing."""
        for client in (getattr(self, "omega", None), getattr(self, "operator", None)):
            if client is not None:
                client.close()
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def install_bundle(self, bundle: bytes, policy: str | None) -> Registered:
        """Register and enable a bundle as it was signed.

        Args:
            bundle: its bytes.
            policy: the path of the policy it is tried under; None grants nothing.

        Raises:
            Refused: the gateway does not take it.
            CommandError: the policy cannot be read.
        """
        if policy is not None:
            self.take_policy(policy)
        registered = self.operator.register_plugin(bundle)
        self.operator.enable_plugin(registered.plugin, registered.version)
        return registered

    def install(self, directory: str) -> Installed:
        """Pack, sign, register and enable what a plugin's folder holds now.

        A version can be registered once, so that a folder which changed under the same version is
        registered as a pre-release of the next one: 1.0.0 becomes 1.0.1-dev.1.

        Args:
            directory: the plugin's folder; a `policy.toml` in it is the policy it is tried under.

        Raises:
            SourceRefused: with everything that is wrong in the folder.
            Refused: the gateway does not take it.
            CommandError: the policy cannot be read.
        """
        policy = os.path.join(directory, POLICY_FILE)
        if os.path.exists(policy):
            self.take_policy(policy)
        folder = read_folder(directory)
        packed = pack(folder, "development", DEVELOPMENT_PUBLISHER)
        known = self._installed.get(packed.manifest.id)
        if known is not None and known.source == packed.data:
            return Installed(known.manifest, fresh=False)
        source = packed.data
        if known is not None:
            self.changes += 1
            version = version_after(known.manifest.version, folder.source.version, self.changes)
            renamed = msgspec.structs.replace(folder.source, version=version)
            packed = pack(folder._replace(source=renamed), "development", DEVELOPMENT_PUBLISHER)
        seed = bytes.fromhex(read_secret(os.path.join(self.home, PUBLISHER_KEY)))
        bundle = sign(packed.data, [seed], "development").data
        registered = self.operator.register_plugin(bundle)
        found = self.operator.get_plugin(registered.plugin, version=registered.version)
        if found.pending_diff_digest is not None:
            # Here the author is the operator: what the folder asks for is what it may.
            self.operator.approve(
                registered.plugin, registered.version, found.pending_diff_digest
            )
        self.operator.enable_plugin(registered.plugin, registered.version)
        self._installed[packed.manifest.id] = _Installation(packed.manifest, source)
        return Installed(packed.manifest, fresh=True)

    def printed(self) -> list[str]:
        """Give the lines that plugins have printed since the last time."""
        with open(os.path.join(self._folder, _LOG), "rb") as log:
            log.seek(self._read)
            data = log.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        return [
            line.decode(errors="replace")
            for line in whole.splitlines() if not line.startswith(_LOG_LINE)
        ]

    def events(self) -> list[Event]:
        """Give every event that is in the ledger now, oldest first."""
        return list(read_events(os.path.join(self.home, "ledger")))

    def take_policy(self, path: str) -> None:
        """Make a policy the home's, and wait until the broker has it in its ledger."""
        target = os.path.join(self.home, POLICY_FILE)
        with open(path, "rb") as file:
            wanted = file.read()
        with open(target, "rb") as file:
            if file.read() == wanted:
                return
        digest = policy_digest(load_policy(wanted))
        with open(target, "wb") as file:
            file.write(wanted)
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)
        self._wait("the broker to take the policy", lambda: any(
            isinstance(event.fields, PolicyChange) and event.fields.sha256 == digest
            for event in self.events()
        ))

    def _make_home(self, environment: dict[str, str]) -> None:
        """Make the home, of the domain and with the trust root that were asked for."""
        root = self._trust_root
        domain = "development" if root is None else domain_of(root)
        home = create_home(
            self.home, domain, root if domain == "production" else None, environment=environment
        )
        self.profile = os.path.join(self.home, "profiles", "omega")
        if root is not None and domain == "development":
            with open(os.path.join(self.home, TRUST_FILE), "wb") as file:
                file.write(root)
        if domain == "production":
            make_private_directory(os.path.join(self.home, "profiles"))
            roles: tuple[Role, ...] = ("omega", "operator")
            for role in roles:
                new_profile(home, role, os.path.join(self.home, "profiles", role), role)
        with open(os.path.join(self.home, CONFIG_FILE), "a", encoding="utf-8") as file:
            file.write(self._config)

    def _log(self) -> bytes:
        with open(os.path.join(self._folder, _LOG), "rb") as log:
            return log.read()

    def _wait(self, what: str, is_so: Callable[[], bool]) -> None:
        assert self._process is not None
        end = time.monotonic() + PATIENCE_S
        while not is_so():
            if self._process.poll() is not None or time.monotonic() > end:
                said = self._log().decode(errors="replace").strip()
                raise CommandError(FAILURE, f"waited in vain for {what}", said[-2000:])
            select.select([], [], [], _TURN_S)


class _Installation(NamedTuple):
    """What was registered last for one plugin, and the unsigned bundle that it was made from."""

    manifest: PluginManifest
    source: bytes


def domain_of(trust_root: bytes) -> Domain:
    """Say of which domain the envelope of a trust root is.

    Raises:
        TrustRefused: the bytes are no envelope.
    """
    kind = read_envelope(trust_root).payloadType
    return "development" if kind == TRUST_PAYLOAD_TYPES["development"] else "production"


def unsupported() -> str:
    """Say in one sentence what this machine lacks for the sandbox; empty when it lacks nothing."""
    return next((finding.sentence() for finding in examine() if not finding.ok), "")


def version_after(last: str, own: str, change: int) -> str:
    """Give the version under which a changed folder is registered.

    Args:
        last: the version that was registered before.
        own: what plugin.toml says; it stands when it is higher.
        change: how many changes there were, for a name that was not used before.
    """
    version = semver.Version.parse(own)
    if version > semver.Version.parse(last):
        return own
    if version.prerelease:
        return f"{own}.dev.{change}"
    return f"{version.bump_patch()}-dev.{change}"
