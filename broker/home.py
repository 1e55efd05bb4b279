"""A home: the folder in which a gateway keeps what it is, and the run directory of its sockets.

    gateway.toml policy.toml keys/ trust/ registry/ ledger/ anchor/ artifacts/   profiles/

Rules this file keeps:
- A home and its folders are their owner's alone (mode 0700). Everything in it is checked when it is
  loaded, and what is wrong is one sentence with path and field.
- A production home holds no root secret: its trust root is brought by an operator. A development
  home makes its own root key, a publisher key and client profiles, and says so by its domain.
- `gateway.toml` is written last, so that a folder with one is a whole home.
- The run directory lies outside the home, because a socket's path has 107 bytes. It is the folder
  of the fronts' ipc sockets, so that everybody who reads the configuration finds it.

It leaves key files to `broker.keys`, the trust root to `broker.trust`, the policy to
`broker.policy`, and the ledger and its anchor to `broker.ledger`.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from broker.client_profile import write_profile
from broker.config import GatewayConfig
from broker.configured import (
    IPC_PATH_BYTES_MAX,
    HomeRefused,
    config_with_origins,
    read_bounded,
    tcp_port,
)
from broker.effects import Front
from broker.fronts import Served, served
from broker.keys import (
    ClientKey,
    HomeKeys,
    KeyFileRefused,
    add_client_key,
    create_home_keys,
    list_client_keys,
    make_private_directory,
    new_signing_pair,
    read_home_keys,
    sync_directory,
    write_secret,
)
from broker.policy import POLICY_BYTES_MAX, load_policy
from broker.store import check_folders
from broker.trust.errors import TrustRefused
from broker.trust.roots import TRUST_FILE, Root, load_first_root, sign_root
from broker.trust_folder import ENVELOPE_BYTES_MAX
from schemas.names import Domain, Role
from schemas.policy import Policy
from schemas.profile import ClientProfile
from schemas.proof import VerifierKey
from schemas.refusals import RefusalCode
from schemas.trust import Publisher, TrustRoot

__all__ = [
    "Home",
    "HomeRefused",
    "config_with_origins",
    "create_home",
    "find_home",
    "load_home",
    "new_profile",
    "prepare_run_directory",
]

CONFIG_FILE: Final = "gateway.toml"
POLICY_FILE: Final = "policy.toml"
FOLDERS: Final = ("keys", "trust", "registry", "registry/bundles", "ledger", "anchor", "artifacts")
RESTORED: Final = "restored"
"""A folder that is only there while a restored ledger is being put in its place."""
ROOT_KEY: Final = "keys/root.key_secret"
PUBLISHER_KEY: Final = "keys/publisher.key_secret"
CONFORMANCE_KEY: Final = "keys/conformance.key_secret"
"""Only in a development home; `omega-plugin sign --key` and `conform --sign-key` take them."""
DEVELOPMENT_PUBLISHER: Final = "development"
SOCKET_NAME_BYTES_MAX: Final = 24
"""The longest name of a socket in the run directory, its slash included."""

_CONFIG: Final = """\
# How this gateway runs. `omega-gateway config show` lists every line with its origin.
format = "omega-gateway-config/1"
domain = {domain}
log_id = {log_id}

[omega]
endpoint = {omega}

[admin]
endpoint = {admin}
"""
_POLICY: Final = """\
# What plugins may do. Everything absent is refused. Read at the start and by SIGHUP.
#
# [grants."text-*"]
# capabilities = ["clock.read", "env.read:LANG", "fs.read:corpus", "artifact.read"]
# [env]
# LANG = "fr"
# [roots]
# corpus = "/srv/corpus"
"""


class Home(NamedTuple):
    """A home that was loaded and checked."""

    path: str
    config: GatewayConfig
    policy: Policy
    trust: Root
    keys: HomeKeys
    clients: dict[str, ClientKey]
    run_directory: str
    fronts: dict[Front, tuple[Served, ...]]

    @property
    def ledger(self) -> str:
        """The ledger's folder."""
        return os.path.join(self.path, "ledger")

    @property
    def anchor(self) -> str:
        """The folder of the ledger's anchor."""
        return self.config.ledger.anchor or os.path.join(self.path, "anchor")

    @property
    def bundles(self) -> str:
        """The folder of registered bundles, one file a digest."""
        return os.path.join(self.path, "registry", "bundles")

    @property
    def states(self) -> str:
        """The folder of the folded states that the ledger vouches for."""
        return os.path.join(self.path, "registry")

    @property
    def artifacts(self) -> str:
        """The folder of the operator's artifact store, one file an artifact id."""
        return os.path.join(self.path, "artifacts")

    @property
    def omega_endpoint(self) -> str:
        """Where front.omega listens."""
        return self.fronts["front.omega"][0].endpoint

    @property
    def admin_endpoint(self) -> str:
        """Where front.admin listens."""
        return self.fronts["front.admin"][0].endpoint

    @property
    def _endpoints(self) -> list[str]:
        """Everywhere that a front listens."""
        return [door.endpoint for doors in self.fronts.values() for door in doors]

    @property
    def tcp_ports(self) -> tuple[int, ...]:
        """The TCP ports the fronts listen on, for the seal."""
        return tuple(port for port in map(tcp_port, self._endpoints) if port is not None)

    @property
    def writable(self) -> tuple[str, ...]:
        """The folders the broker writes beneath, for the seal; each exists before it."""
        sockets = [
            os.path.dirname(endpoint.removeprefix("ipc://"))
            for endpoint in self._endpoints if endpoint.startswith("ipc://")
        ]
        return tuple(dict.fromkeys([self.path, self.anchor, self.run_directory, *sockets]))

    @property
    def verifier_key(self) -> str:
        """The ledger's C2SP verifier key."""
        return str(VerifierKey(self.config.log_id, bytes.fromhex(self.keys.ledger.public)))


def find_home(option: str | None, environment: Mapping[str, str] = os.environ) -> str:
    """The home's absolute path: `--home`, `$OMEGA_GATEWAY_HOME`, or `~/.omega-gateway`."""
    named = option or environment.get("OMEGA_GATEWAY_HOME") or "~/.omega-gateway"
    return os.path.realpath(os.path.expanduser(named))


def load_home(
    path: str,
    *,
    environment: Mapping[str, str] = os.environ,
    overrides: Mapping[str, str] | None = None,
) -> Home:
    """Load a home and check every file of it.

    Args:
        path: the home's folder.
        environment: may change configuration lines, see `broker.configured`.
        overrides: the command line's configuration values by `section.key`.

    Raises:
        HomeRefused: `home_invalid`, `config_invalid`, `key_unreadable` or a code of the trust root.
    """
    path = os.path.realpath(path)
    config_path = os.path.join(path, CONFIG_FILE)
    if not os.path.lexists(config_path):
        raise HomeRefused(
            RefusalCode.HOME_INVALID,
            f"{path}: is no home, it holds no {CONFIG_FILE}; make one with `omega-gateway init`",
        )
    if os.path.lexists(os.path.join(path, RESTORED)):
        raise HomeRefused(
            RefusalCode.HOME_INVALID,
            f"{path}: `omega-gateway ledger restore` was interrupted; run it again, it finishes",
        )
    with _refusals():
        for folder in ("", *FOLDERS):
            _require_private(os.path.join(path, folder) if folder else path)
    config = config_with_origins(
        config_path, environment=environment, overrides=overrides or {}
    ).config
    if config.ledger.anchor:
        _require_private(config.ledger.anchor)
    policy_path, trust_path = os.path.join(path, POLICY_FILE), os.path.join(path, TRUST_FILE)
    policy_bytes = read_bounded(policy_path, POLICY_BYTES_MAX, RefusalCode.CONFIG_INVALID)
    envelope = read_bounded(trust_path, ENVELOPE_BYTES_MAX, RefusalCode.HOME_INVALID)
    with _refusals(policy_path):
        policy = load_policy(policy_bytes)
    with _refusals(trust_path):
        trust = load_first_root(envelope, config.domain)
    with _refusals():
        keys, clients = read_home_keys(path), list_client_keys(path)
    run_directory = _run_directory(config, environment)
    with _refusals():
        fronts: dict[Front, tuple[Served, ...]] = {
            "front.omega": served(path, "front.omega", config.omega.endpoint
                                  or f"ipc://{run_directory}/omega", keys.front_omega),
            "front.admin": served(path, "front.admin", config.admin.endpoint
                                  or f"ipc://{run_directory}/admin", keys.front_admin),
        }
    home = Home(path, config, policy, trust, keys, clients, run_directory, fronts)
    check_folders(policy, home.writable)
    return home


def create_home(
    path: str,
    domain: Domain,
    trust_root: bytes | None,
    *,
    environment: Mapping[str, str] = os.environ,
) -> Home:
    """Make a home in a folder that is missing or empty.

    Args:
        path: the folder; its parent exists.
        domain: `production` needs a trust root, `development` makes its own.
        trust_root: the envelope of a production home's trust root.
        environment: decides where the sockets will be.

    Raises:
        HomeRefused: the folder is not empty or not its owner's alone, or the trust root is refused.
    """
    path = os.path.realpath(path)
    if (trust_root is None) == (domain == "production"):
        needed = "needs a trust root: name its envelope with --trust-root FILE"
        own = "makes its own trust root; --trust-root is for production"
        sentence = f"a {domain} home {needed if trust_root is None else own}"
        raise HomeRefused(RefusalCode.TRUST_INVALID, sentence)
    with _refusals(path):
        if trust_root is not None:
            load_first_root(trust_root, domain)
        make_private_directory(path)
        if os.listdir(path):
            raise HomeRefused(RefusalCode.HOME_INVALID, f"{path}: is not empty")
    try:
        with _refusals(path):
            return _fill(path, domain, trust_root, environment)
    except BaseException:
        # Nothing but what was made just now lies there; a half-made home would only be in the way.
        for entry in os.scandir(path):
            (shutil.rmtree if entry.is_dir(follow_symlinks=False) else os.unlink)(entry.path)
        raise


def _fill(
    path: str, domain: Domain, trust_root: bytes | None, environment: Mapping[str, str]
) -> Home:
    """Put everything into an empty home, `gateway.toml` last."""
    log_id = f"omega-gateway/{domain}/{secrets.token_hex(8)}"
    run_directory = _default_run_directory(log_id, environment)
    create_home_keys(path)
    for folder in FOLDERS:
        make_private_directory(os.path.join(path, folder))
    if trust_root is None:
        trust_root = _development_root(path)
    _write_new(os.path.join(path, TRUST_FILE), trust_root)
    _write_new(os.path.join(path, POLICY_FILE), _POLICY.encode())
    # A JSON string without escapes beyond these is a TOML basic string.
    quoted = {
        name: json.dumps(text, ensure_ascii=False)
        for name, text in (
            ("domain", domain), ("log_id", log_id),
            ("omega", f"ipc://{run_directory}/omega"), ("admin", f"ipc://{run_directory}/admin"),
        )
    }  # fmt: skip
    _write_new(os.path.join(path, CONFIG_FILE), _CONFIG.format(**quoted).encode())
    home = load_home(path, environment={})
    if domain == "development":
        make_private_directory(os.path.join(path, "profiles"))
        roles: tuple[Role, ...] = ("omega", "operator", "auditor")
        for role in roles:
            new_profile(home, role, os.path.join(path, "profiles", role), role)
        home = load_home(path, environment={})
    return home


def new_profile(home: Home, role: Role, directory: str, name: str) -> str:
    """Make a client profile with a fresh key and admit its public key to a home.

    Args:
        home: the gateway's home.
        role: what the client may do.
        directory: the profile's folder, made if it is missing.
        name: a name for people.

    Returns:
        The key's id.

    Raises:
        KeyFileRefused: there is a profile already, or a folder is open to others.
        ValueError: the name is malformed.
    """
    door = home.fronts["front.omega" if role == "omega" else "front.admin"][0]
    settings = ClientProfile(
        format="omega-profile/1",
        endpoint=door.endpoint,
        server_key=door.pair.public,
        role=role,
        log_id=home.config.log_id,
        verifier_key=home.verifier_key,
    )
    public_key = write_profile(directory, settings)
    return add_client_key(home.path, role=role, public_key=public_key, name=name)


def prepare_run_directory(path: str) -> None:
    """Make the run directory, and the folder it lies in, if they are missing; check them.

    Raises:
        HomeRefused: it is not its owner's alone, or somebody else could replace it.
    """
    parent = os.path.dirname(path)
    with _refusals(path):
        if not os.path.lexists(parent):
            make_private_directory(parent)
        status = os.lstat(parent)
        shared = status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX
        if status.st_uid not in (0, os.geteuid()) or shared:
            raise HomeRefused(
                RefusalCode.HOME_INVALID, f"{parent}: others may replace what lies in it"
            )
        make_private_directory(path)


def _run_directory(config: GatewayConfig, environment: Mapping[str, str]) -> str:
    for endpoint in (config.omega.endpoint, config.admin.endpoint):
        if endpoint.startswith("ipc://"):
            return os.path.dirname(endpoint.removeprefix("ipc://"))
    return _default_run_directory(config.log_id, environment)


def _default_run_directory(log_id: str, environment: Mapping[str, str]) -> str:
    """The first base that this user owns or can make, and a folder for this ledger in it.

    `/tmp` comes last: its sticky bit keeps others from replacing a folder, and the folder's owner
    and mode are checked like those of the other bases.

    Raises:
        HomeRefused: none can be used.
    """
    name = log_id.rpartition("/")[2]
    user = environment.get("XDG_RUNTIME_DIR", "")
    bases = [os.path.join(user, "omega-gateway")] if os.path.isabs(user) else []
    bases += ["/run/omega-gateway", f"/tmp/omega-gateway-{os.geteuid()}"]  # noqa: S108  Checked.
    reasons = []
    for base in bases:
        path = os.path.join(base, name)
        if len(os.fsencode(path)) > IPC_PATH_BYTES_MAX - SOCKET_NAME_BYTES_MAX:
            reasons.append(f"{base}: the path is too long for a socket")
            continue
        try:
            prepare_run_directory(path)
        except HomeRefused as error:
            reasons.append(str(error))
        else:
            return path
    raise HomeRefused(RefusalCode.HOME_INVALID, "no folder for sockets: " + "; ".join(reasons))


def _development_root(path: str) -> bytes:
    """Make a development home's own signing keys and the trust root that names them."""
    root, publisher, conformance = (new_signing_pair() for _ in range(3))
    write_secret(os.path.join(path, ROOT_KEY), root.secret)
    write_secret(os.path.join(path, PUBLISHER_KEY), publisher.secret)
    write_secret(os.path.join(path, CONFORMANCE_KEY), conformance.secret)
    trust = TrustRoot(
        format="omega-trust/1",
        domain="development",
        version=1,
        roots=(root.public,),
        root_threshold=1,
        publishers={
            DEVELOPMENT_PUBLISHER: Publisher(keys=(publisher.public,), threshold=1, plugins=("*",))
        },
        conformance_keys=(conformance.public,),
    )
    return sign_root(trust, [bytes.fromhex(root.secret)])


def _write_new(path: str, data: bytes) -> None:
    """Create a file of mode 0600, durable when this returns."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    sync_directory(os.path.dirname(path))


def _require_private(path: str) -> None:
    """Refuse a folder of a home that is missing, a link, of another owner or open to others."""
    try:
        status = os.lstat(path)
    except OSError as error:
        raise HomeRefused(
            RefusalCode.HOME_INVALID, f"{path}: cannot be used ({error.strerror})"
        ) from None
    if not stat.S_ISDIR(status.st_mode):
        raise HomeRefused(RefusalCode.HOME_INVALID, f"{path}: is not a folder")
    if status.st_uid != os.geteuid():
        found = f"belongs to user {status.st_uid}, this is user {os.geteuid()}"
        raise HomeRefused(RefusalCode.HOME_INVALID, f"{path}: {found}")
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise HomeRefused(
            RefusalCode.HOME_INVALID, f"{path}: has mode {mode:04o}, open to others; chmod 700 it"
        )


@contextlib.contextmanager
def _refusals(path: str = "") -> Iterator[None]:
    """Turn what the parts of a home refuse into the one sentence of this module."""
    try:
        yield
    except KeyFileRefused as error:
        raise HomeRefused(error.code, str(error)) from None
    except TrustRefused as error:
        where = f"{error.where}: " if error.where else ""
        raise HomeRefused(error.code, f"{path}: {where}{error.sentence}") from None
    except OSError as error:
        raise HomeRefused(
            RefusalCode.HOME_INVALID, f"{error.filename or path}: {error.strerror}"
        ) from None
