"""Keys: how they are made, named, kept in files and read back.

Rules this file keeps:
- A secret lies in a regular file of its owner with mode 0600, one link, in a folder of the same
  owner with mode 0700. Anything else is refused with one sentence that names the path.
- A secret file is created, never overwritten, and durable before the call returns.
- Only public keys of clients enter the home: `keys/clients/KEY_ID.toml`.
- A key is named by its id, the first 16 hex digits of the SHA-256 of its raw public key.

CURVE keys are Z85 text (RFC 32 of ZeroMQ), Ed25519 keys hex. Pairs come from libsodium through
pynacl, because libzmq's generator may not be used while a context closes. What a key may do is left
to `broker.trust` and the ZAP handler. Source: open(2); RFC 7748; RFC 8032; ZeroMQ RFC 26 and 32.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tomllib
from collections.abc import Callable
from typing import Annotated, Final, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import Meta
from nacl.public import PrivateKey
from nacl.signing import SigningKey

from schemas.launch import CurveKey
from schemas.names import Name, Role
from schemas.refusals import RefusalCode

FRONT_OMEGA_KEY: Final = "front.omega.key_secret"
FRONT_ADMIN_KEY: Final = "front.admin.key_secret"
LEDGER_KEY: Final = "ledger.key_secret"
DETERMINISM_KEY: Final = "determinism.key_secret"
KEY_FILE_BYTES_MAX: Final = 4096
"""Largest key or profile file that is read, in bytes."""

_Z85: Final = (
    "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
)
_Z85_VALUES: Final = {character: value for value, character in enumerate(_Z85)}
# Windows has neither flag nor owner bits; there a client's folder is guarded by its access list.
_NOFOLLOW: Final[int] = getattr(os, "O_NOFOLLOW", 0)
_DIRECTORY: Final[int] = getattr(os, "O_DIRECTORY", 0)
_POSIX: Final = os.name == "posix"


PairT = TypeVar("PairT")


class KeyFileRefused(Exception):
    """A key file cannot be used; the sentence names the path and what to change."""

    code: Final = RefusalCode.KEY_UNREADABLE

    def __init__(self, path: str, sentence: str) -> None:
        """Remember the path; `sentence` says what was found."""
        super().__init__(f"{path}: {sentence}")
        self.path = path


class CurvePair(NamedTuple):
    """A CURVE key pair, both halves as 40 characters of Z85."""

    public: str
    secret: str


class SigningPair(NamedTuple):
    """An Ed25519 key pair, both halves as 64 hex digits; `secret` is the seed."""

    public: str
    secret: str


class HomeKeys(NamedTuple):
    """The secrets of a home. `determinism` is 32 bytes that only fingerprints use."""

    front_omega: CurvePair
    front_admin: CurvePair
    ledger: SigningPair
    determinism: bytes


class ClientKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`keys/clients/KEY_ID.toml`: one client's public key, its role and a name for people.

    `replaces` is the id of the key that this one follows, empty for a client's first.
    """

    format: Literal["omega-client-key/1"]
    role: Role
    public_key: CurveKey
    name: Annotated[Name, Meta(max_length=64)]
    replaces: Annotated[str, Meta(pattern=r"^([0-9a-f]{16})?$")] = ""


# --- Pairs and names ---


def key_id(public_key: bytes) -> str:
    """Name a raw public key: the first 16 hex digits of its SHA-256."""
    return hashlib.sha256(public_key).hexdigest()[:16]


def curve_key_id(public_key: str) -> str:
    """Name a CURVE public key given as Z85.

    Raises:
        ValueError: the text is not 40 characters of Z85.
    """
    return key_id(curve_bytes(public_key))


def curve_bytes(key: str) -> bytes:
    """Give the 32 raw bytes of a CURVE key in Z85.

    Raises:
        ValueError: the text is not 40 characters of Z85.
    """
    if len(key) != 40 or not set(key) <= _Z85_VALUES.keys():
        raise ValueError("a CURVE key is 40 characters of Z85")
    raw = b""
    for start in range(0, 40, 5):
        group = 0
        for character in key[start : start + 5]:
            group = group * 85 + _Z85_VALUES[character]
        if group > 0xFFFFFFFF:
            raise ValueError("five characters of the CURVE key exceed four bytes")
        raw += group.to_bytes(4, "big")
    return raw


def curve_text(raw: bytes) -> str:
    """Write 32 raw bytes as 40 characters of Z85."""
    groups = [int.from_bytes(raw[at : at + 4], "big") for at in range(0, 32, 4)]
    return "".join(_Z85[group // 85**power % 85] for group in groups for power in (4, 3, 2, 1, 0))


def new_curve_pair() -> CurvePair:
    """Make a CURVE pair."""
    return _curve_pair(PrivateKey.generate())


def curve_pair(secret: str) -> CurvePair:
    """Complete a CURVE pair from its secret half in Z85.

    Raises:
        ValueError: the text is not a key.
    """
    return _curve_pair(PrivateKey(curve_bytes(secret)))


def _curve_pair(private: PrivateKey) -> CurvePair:
    return CurvePair(
        public=curve_text(bytes(private.public_key)),
        secret=curve_text(bytes(private)),
    )


def new_signing_pair() -> SigningPair:
    """Make an Ed25519 pair."""
    return _signing_pair(SigningKey.generate())


def signing_pair(secret: str) -> SigningPair:
    """Complete an Ed25519 pair from its seed in hex.

    Raises:
        ValueError: the text is not 64 lower-case hex digits.
    """
    seed = bytes.fromhex(secret)
    if len(seed) != 32 or seed.hex() != secret:
        raise ValueError("an Ed25519 seed is 64 lower-case hex digits")
    return _signing_pair(SigningKey(seed))


def _signing_pair(key: SigningKey) -> SigningPair:
    return SigningPair(public=bytes(key.verify_key).hex(), secret=bytes(key).hex())


# --- Files ---


def write_secret(path: str, text: str) -> None:
    """Create a secret file with one line, durable when this returns.

    Args:
        path: where; the folder must exist with mode 0700 and the file must not.
        text: printable ASCII without a newline.

    Raises:
        KeyFileRefused: the folder is open to others or the file exists.
        OSError: the volume refused.
    """
    write_private(path, text + "\n")


def read_secret(path: str) -> str:
    """Read a secret file's one line.

    Raises:
        KeyFileRefused: the file or its folder is missing, open to others, of another owner, a link
            or not one line.
    """
    text = read_private(path)
    line = text.removesuffix("\n")
    if not line or len(line) + 1 != len(text) or not line.isascii() or not line.isprintable():
        raise KeyFileRefused(path, "expected one line of printable characters")
    return line


def make_private_directory(path: str) -> None:
    """Make a folder of mode 0700, or check that the one there is such a folder.

    Raises:
        KeyFileRefused: it is open to others, of another owner, a link or not a folder.
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    _check_directory(path)


def write_private(path: str, text: str) -> None:
    """Create a file of mode 0600 in a folder of mode 0700; see `write_secret`."""
    path = os.path.abspath(path)
    _check_directory(os.path.dirname(path))
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW, 0o600)
    except FileExistsError:
        raise KeyFileRefused(path, "exists already and is never overwritten") from None
    with os.fdopen(fd, "w", encoding="ascii", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(fd)
    sync_directory(os.path.dirname(path))


def read_private(path: str) -> str:
    """Read a small text file that only its owner may read; see `read_secret`."""
    path = os.path.abspath(path)
    _check_directory(os.path.dirname(path))
    try:
        fd = os.open(path, os.O_RDONLY | _NOFOLLOW | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        # ELOOP is how the kernel says that the last part is a symbolic link.
        raise KeyFileRefused(path, f"cannot be opened ({error.strerror})") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise KeyFileRefused(path, "is not a regular file")
        if status.st_nlink != 1:
            raise KeyFileRefused(path, f"has {status.st_nlink} links, expected one")
        _check_owner(path, status, "chmod 600")
        data = os.read(fd, KEY_FILE_BYTES_MAX + 1)
    finally:
        os.close(fd)
    if len(data) > KEY_FILE_BYTES_MAX or not data.isascii():
        raise KeyFileRefused(path, f"is not ASCII text of at most {KEY_FILE_BYTES_MAX} bytes")
    return data.decode("ascii")


def sync_directory(path: str) -> None:
    """Make names in a folder durable; a volume without that notion (Windows) needs nothing."""
    if _POSIX:
        fd = os.open(path, os.O_RDONLY | _DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _check_directory(path: str) -> None:
    try:
        status = os.lstat(path)
    except OSError as error:
        raise KeyFileRefused(path, f"cannot be opened ({error.strerror})") from None
    if not stat.S_ISDIR(status.st_mode):
        raise KeyFileRefused(path, "is not a folder")
    _check_owner(path, status, "chmod 700")


def _check_owner(path: str, status: os.stat_result, remedy: str) -> None:
    """Refuse an entry that belongs to somebody else or that somebody else may use."""
    if not _POSIX:
        return
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != os.geteuid():
        raise KeyFileRefused(
            path, f"belongs to user {status.st_uid}, expected user {os.geteuid()}"
        )
    if mode & 0o077:
        raise KeyFileRefused(path, f"has mode {mode:04o}, open to others; {remedy} it")


# --- What lies in a home ---


def create_home_keys(home: str) -> HomeKeys:
    """Make `keys/` and `keys/clients/` in a home, with the four secrets of a gateway.

    Raises:
        KeyFileRefused: a file exists already, or a folder is open to others.
    """
    keys = HomeKeys(
        new_curve_pair(), new_curve_pair(), new_signing_pair(), bytes(PrivateKey.generate())
    )
    make_private_directory(os.path.join(home, "keys"))
    make_private_directory(os.path.join(home, "keys", "clients"))
    for name, secret in (
        (FRONT_OMEGA_KEY, keys.front_omega.secret),
        (FRONT_ADMIN_KEY, keys.front_admin.secret),
        (LEDGER_KEY, keys.ledger.secret),
        (DETERMINISM_KEY, keys.determinism.hex()),
    ):
        write_secret(os.path.join(home, "keys", name), secret)
    return keys


def read_home_keys(home: str) -> HomeKeys:
    """Read the four secrets of a gateway.

    Raises:
        KeyFileRefused: one of them cannot be used.
    """
    return HomeKeys(
        read_curve_pair(os.path.join(home, "keys", FRONT_OMEGA_KEY)),
        read_curve_pair(os.path.join(home, "keys", FRONT_ADMIN_KEY)),
        _read_key(os.path.join(home, "keys", LEDGER_KEY), signing_pair),
        bytes.fromhex(_read_key(os.path.join(home, "keys", DETERMINISM_KEY), signing_pair).secret),
    )


def read_curve_pair(path: str) -> CurvePair:
    """Read a CURVE secret and complete its pair.

    Raises:
        KeyFileRefused: the file cannot be used or is not a CURVE key.
    """
    return _read_key(path, curve_pair)


def _read_key(path: str, complete: Callable[[str], PairT]) -> PairT:
    try:
        return complete(read_secret(path))
    except ValueError as error:
        raise KeyFileRefused(path, str(error)) from None


def list_client_keys(home: str) -> dict[str, ClientKey]:
    """Read every client key of a home, by key id.

    Raises:
        KeyFileRefused: a file cannot be used, is not a client key, or bears another key's id.
    """
    directory = os.path.join(home, "keys", "clients")
    _check_directory(directory)
    keys = {}
    for name in sorted(os.listdir(directory)):
        path = os.path.join(directory, name)
        try:
            key = msgspec.convert(tomllib.loads(read_private(path)), ClientKey)
            identifier = curve_key_id(key.public_key)
        except (msgspec.ValidationError, tomllib.TOMLDecodeError, ValueError) as error:
            raise KeyFileRefused(path, f"is not a client key: {error}") from None
        if name != f"{identifier}.toml":
            raise KeyFileRefused(path, f"holds key {identifier}; a file bears its key's id")
        keys[identifier] = key
    return keys


def add_client_key(
    home: str, *, role: Role, public_key: str, name: str, replaces: str = ""
) -> str:
    """Let a public key into a home, durably.

    Args:
        home: the home's folder.
        role: what the key may ask for.
        public_key: the CURVE public key in Z85.
        name: a name for people.
        replaces: the id of the client's present key, if it has one.

    Returns:
        The key's id.

    Raises:
        KeyFileRefused: the key is already there.
        ValueError: the key or the name is malformed.
    """
    identifier = curve_key_id(public_key)
    key = ClientKey("omega-client-key/1", role, public_key, name, replaces)
    msgspec.convert(msgspec.to_builtins(key), ClientKey)
    write_private(os.path.join(home, "keys", "clients", f"{identifier}.toml"), flat_toml(key))
    return identifier


def remove_client_key(home: str, identifier: str) -> None:
    """Take a client key out of a home, durably.

    Raises:
        KeyFileRefused: there is no such key.
    """
    directory = os.path.join(home, "keys", "clients")
    path = os.path.join(directory, f"{identifier}.toml")
    if identifier not in list_client_keys(home):
        raise KeyFileRefused(path, "there is no such client key")
    os.unlink(path)
    sync_directory(directory)


def flat_toml(value: msgspec.Struct) -> str:
    """Write a struct of texts and integers as TOML, one line for each field that is set.

    Raises:
        ValueError: a text holds something besides printable ASCII.
    """
    lines = []
    for name, item in msgspec.to_builtins(value).items():
        if isinstance(item, str):
            if not (item.isascii() and (item.isprintable() or not item)):
                raise ValueError(f"{name} may hold printable ASCII only")
            escaped = item.replace("\\", "\\\\").replace('"', '\\"')
            lines.append(f'{name} = "{escaped}"\n')
        elif item is not None:
            lines.append(f"{name} = {int(item)}\n")
    return "".join(lines)
