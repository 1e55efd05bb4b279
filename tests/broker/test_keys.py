"""Keys: their files admit nobody else, and each fault is one sentence that names the path."""

from __future__ import annotations

import hashlib
import os
import stat
import tomllib

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey
from zmq.utils import z85

from broker.keys import (
    DETERMINISM_KEY,
    FRONT_ADMIN_KEY,
    FRONT_OMEGA_KEY,
    LEDGER_KEY,
    KeyFileRefused,
    add_client_key,
    create_home_keys,
    curve_bytes,
    curve_key_id,
    curve_pair,
    curve_text,
    flat_toml,
    key_id,
    list_client_keys,
    make_private_directory,
    new_curve_pair,
    new_signing_pair,
    read_curve_pair,
    read_home_keys,
    read_secret,
    remove_client_key,
    signing_pair,
    write_secret,
)
from schemas.profile import ClientProfile
from schemas.refusals import RefusalCode

SECRET = "0123456789abcdef"


@pytest.fixture
def folder(tmp_path):
    """A private folder for key files."""
    path = str(tmp_path / "keys")
    make_private_directory(path)
    return path


def test_a_secret_is_written_for_its_owner_alone_and_read_back(folder):
    """The file has mode 0600 whatever the umask, its folder 0700, and the line comes back."""
    mask = os.umask(0)
    try:
        write_secret(f"{folder}/a.key_secret", SECRET)
    finally:
        os.umask(mask)

    assert stat.S_IMODE(os.stat(f"{folder}/a.key_secret").st_mode) == 0o600
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    assert read_secret(f"{folder}/a.key_secret") == SECRET


def test_a_secret_is_never_overwritten(folder):
    """A second write to a path, also through a dangling link, is refused."""
    write_secret(f"{folder}/a", SECRET)
    os.symlink(f"{folder}/elsewhere", f"{folder}/link")

    for name in ("a", "link"):
        with pytest.raises(KeyFileRefused, match="never overwritten"):
            write_secret(f"{folder}/{name}", "other")
    assert read_secret(f"{folder}/a") == SECRET
    assert not os.path.exists(f"{folder}/elsewhere")


@pytest.mark.parametrize("mode", [0o601, 0o602, 0o604, 0o610, 0o620, 0o640, 0o660, 0o644, 0o777])
def test_every_bit_for_others_on_a_key_file_is_refused(folder, mode):
    """One bit for group or world is enough; the sentence names the path and the mode."""
    write_secret(f"{folder}/a", SECRET)
    os.chmod(f"{folder}/a", mode)

    with pytest.raises(KeyFileRefused, match=f"/a: has mode {mode:04o}.*chmod 600") as refused:
        read_secret(f"{folder}/a")
    assert refused.value.code is RefusalCode.KEY_UNREADABLE
    assert refused.value.path == f"{folder}/a"


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_modes_for_the_owner_alone_are_accepted(folder, mode):
    """What nobody else can use may be stricter or executable."""
    write_secret(f"{folder}/a", SECRET)
    os.chmod(f"{folder}/a", mode)

    assert read_secret(f"{folder}/a") == SECRET


@pytest.mark.parametrize("mode", [0o701, 0o710, 0o720, 0o750, 0o755, 0o777])
def test_a_folder_open_to_others_is_refused(folder, mode):
    """The folder counts as much as the file, for reading, writing and making."""
    write_secret(f"{folder}/a", SECRET)
    os.chmod(folder, mode)

    for attempt in (
        lambda: read_secret(f"{folder}/a"),
        lambda: write_secret(f"{folder}/b", SECRET),
        lambda: make_private_directory(folder),
    ):
        with pytest.raises(KeyFileRefused, match=f"keys: has mode {mode:04o}.*chmod 700"):
            attempt()


def make_link(path: str, folder: str) -> None:
    """Put a symbolic link to a good key at the path."""
    write_secret(f"{folder}/good", SECRET)
    os.symlink(f"{folder}/good", path)


def make_hard_link(path: str, folder: str) -> None:
    """Give a good key a second name."""
    write_secret(f"{folder}/good", SECRET)
    os.link(f"{folder}/good", path)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (make_link, "cannot be opened"),
        (make_hard_link, "has 2 links"),
        (lambda path, _: os.mkdir(path, 0o700), "is not a regular file"),
        (lambda path, _: os.mkfifo(path, 0o600), "is not a regular file"),
        (lambda path, _: None, "cannot be opened"),
    ],
    ids=["symbolic link", "hard link", "folder", "pipe", "missing"],
)
def test_what_is_no_plain_file_of_one_name_is_refused(folder, make, sentence):
    """Links, folders and pipes are no keys, and none of them makes the reader wait."""
    make(f"{folder}/a", folder)

    with pytest.raises(KeyFileRefused, match=sentence):
        read_secret(f"{folder}/a")


def test_a_linked_or_missing_folder_is_refused(folder, tmp_path):
    """The folder itself may not be a link."""
    write_secret(f"{folder}/a", SECRET)
    os.symlink(folder, tmp_path / "link")

    with pytest.raises(KeyFileRefused, match="is not a folder"):
        read_secret(str(tmp_path / "link" / "a"))
    with pytest.raises(KeyFileRefused, match="cannot be opened"):
        read_secret(str(tmp_path / "nowhere" / "a"))


def test_a_file_of_another_owner_is_refused(folder):
    """Even root takes no key that belongs to somebody else; others cannot even make the case."""
    write_secret(f"{folder}/a", SECRET)
    if os.geteuid() == 0:
        os.chown(f"{folder}/a", 65534, -1)
        with pytest.raises(KeyFileRefused, match="belongs to user 65534, expected user 0"):
            read_secret(f"{folder}/a")
    else:
        with pytest.raises(KeyFileRefused, match="belongs to user 0, expected user"):
            read_secret("/etc/hostname")


@pytest.mark.parametrize("text", ["", "\n", "a", "a\nb\n", "a\n\n", "a\x00\n", "ä\n", "a" * 5000])
def test_a_file_that_is_not_one_line_is_refused(folder, text):
    """A half-written or foreign file is no key."""
    with open(
        f"{folder}/a", "w", encoding="utf-8", opener=lambda p, f: os.open(p, f, 0o600)
    ) as file:
        file.write(text)

    with pytest.raises(KeyFileRefused):
        read_secret(f"{folder}/a")


@given(st.binary(min_size=32, max_size=32))
def test_z85_is_that_of_the_library(raw):
    """Our Z85 agrees with pyzmq's in both directions."""
    text = curve_text(raw)

    assert text == z85.encode(raw).decode()
    assert curve_bytes(text) == raw


@pytest.mark.parametrize("text", ["", "a" * 39, "a" * 41, "a" * 39 + " ", "#" * 40, "ä" * 40])
def test_what_is_no_z85_key_is_refused(text):
    """Length, alphabet and the size of each group are checked."""
    with pytest.raises(ValueError, match="CURVE key"):
        curve_bytes(text)


def test_pairs_are_what_the_libraries_expect():
    """A CURVE pair completes as libzmq completes it, an Ed25519 pair as libsodium does."""
    curve, signing = new_curve_pair(), new_signing_pair()

    assert zmq.curve_public(curve.secret.encode()).decode() == curve.public
    assert curve_pair(curve.secret) == curve
    assert bytes(SigningKey(bytes.fromhex(signing.secret)).verify_key).hex() == signing.public
    assert signing_pair(signing.secret) == signing
    with pytest.raises(ValueError):
        signing_pair(signing.secret.upper() + "g")


def test_a_key_id_is_the_beginning_of_a_digest():
    """The id is 16 hex digits of the SHA-256 of the raw key."""
    pair = new_curve_pair()

    assert key_id(b"\x00" * 32) == hashlib.sha256(bytes(32)).hexdigest()[:16]
    assert curve_key_id(pair.public) == key_id(curve_bytes(pair.public))


def test_a_home_has_four_secrets_of_its_own(tmp_path):
    """They are made once, all different, private, and read back equal."""
    home = str(tmp_path)
    keys = create_home_keys(home)

    assert read_home_keys(home) == keys
    assert keys.front_omega != keys.front_admin
    assert len(keys.determinism) == 32
    for name in (FRONT_OMEGA_KEY, FRONT_ADMIN_KEY, LEDGER_KEY, DETERMINISM_KEY):
        assert stat.S_IMODE(os.stat(f"{home}/keys/{name}").st_mode) == 0o600
    with pytest.raises(KeyFileRefused, match="never overwritten"):
        create_home_keys(home)


def test_a_secret_that_is_no_key_is_refused_with_its_path(folder):
    """A key file with another text is one sentence."""
    write_secret(f"{folder}/a", "not a key")

    with pytest.raises(KeyFileRefused, match="/a: a CURVE key is 40 characters"):
        read_curve_pair(f"{folder}/a")


def test_client_keys_come_and_go(tmp_path):
    """A public key enters under its id, is listed with its role and name, and can be taken out."""
    home = str(tmp_path)
    create_home_keys(home)
    pair = new_curve_pair()
    identifier = add_client_key(home, role="operator", public_key=pair.public, name="anna")

    assert list(list_client_keys(home)) == [identifier] == [curve_key_id(pair.public)]
    assert list_client_keys(home)[identifier].role == "operator"
    assert list_client_keys(home)[identifier].name == "anna"
    with pytest.raises(KeyFileRefused, match="never overwritten"):
        add_client_key(home, role="omega", public_key=pair.public, name="anna")
    remove_client_key(home, identifier)
    assert list_client_keys(home) == {}
    with pytest.raises(KeyFileRefused, match="no such client key"):
        remove_client_key(home, identifier)


@pytest.mark.parametrize(
    "change",
    [
        ("omega-client-key/1", "omega-client-key/2"),
        ('role = "omega"', 'role = "root"'),
        ('name = "anna"', 'name = "Anna"'),
        ('name = "anna"', 'name = "anna"\nextra = 1'),
        ('public_key = "', 'public_key = "x'),
        ("role", "= role"),
    ],
)
def test_a_client_key_file_with_a_wrong_line_is_refused_with_its_path(tmp_path, change):
    """Every line is checked, and an unknown one is refused."""
    home = str(tmp_path)
    create_home_keys(home)
    identifier = add_client_key(
        home, role="omega", public_key=new_curve_pair().public, name="anna"
    )
    path = f"{home}/keys/clients/{identifier}.toml"
    with open(path, encoding="ascii") as file:
        text = file.read()
    assert change[0] in text
    with open(path, "w", encoding="ascii") as file:
        file.write(text.replace(*change))

    with pytest.raises(KeyFileRefused, match=f"{identifier}.toml: is not a client key"):
        list_client_keys(home)


def test_a_client_key_under_another_name_is_refused(tmp_path):
    """A file bears its key's id, so a key cannot be listed twice or hidden."""
    home = str(tmp_path)
    create_home_keys(home)
    identifier = add_client_key(
        home, role="omega", public_key=new_curve_pair().public, name="anna"
    )
    os.rename(f"{home}/keys/clients/{identifier}.toml", f"{home}/keys/clients/other.toml")

    with pytest.raises(KeyFileRefused, match="bears its key's id"):
        list_client_keys(home)


@pytest.mark.parametrize(("key", "name"), [("short", "anna"), (None, "Anna"), (None, "a\nb")])
def test_a_malformed_client_key_never_enters_the_home(tmp_path, key, name):
    """Key and name are checked before a file is made."""
    home = str(tmp_path)
    create_home_keys(home)

    with pytest.raises(ValueError):
        add_client_key(home, role="omega", public_key=key or new_curve_pair().public, name=name)
    assert os.listdir(f"{home}/keys/clients") == []


def test_flat_toml_keeps_quotes_and_backslashes():
    """A Z85 key or a path with quotes and backslashes reads back equal, and control bytes never."""
    profile = ClientProfile("omega-profile/1", 'ipc:///a"b\\c', "x" * 40, "omega")
    assert tomllib.loads(flat_toml(profile))["endpoint"] == 'ipc:///a"b\\c'
    with pytest.raises(ValueError, match="printable ASCII"):
        flat_toml(ClientProfile("omega-profile/1", "ipc://\n", "x" * 40, "omega"))
