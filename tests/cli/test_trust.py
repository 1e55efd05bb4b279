"""`omega-gateway trust` without a gateway: drafts, signatures, what is shown, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.cli.main import run
from broker.home import create_home, load_home
from broker.trust.roots import load_next_root
from tests.cli.command import environment

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def trust(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Run:
    """Runs `omega-gateway trust` in a folder with a development home and two more keys, whose
    gateway does not run."""
    monkeypatch.chdir(tmp_path)
    for name, value in environment(tmp_path / "home").items():
        monkeypatch.setenv(name, value)
    create_home(str(tmp_path / "home"), "development", None)
    tmp_path.chmod(0o700)

    def play(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        return run(["trust", *arguments]), *capfd.readouterr()

    for name in ("one", "two"):
        assert play("key", f"{name}.key")[0] == 0
    return play


def test_a_key_is_made_once_and_for_its_owner(trust: Run, tmp_path: Path) -> None:
    """The secret is its owner's alone and never overwritten; the public key stands beside it."""
    assert (tmp_path / "one.key").stat().st_mode & 0o777 == 0o600
    assert len((tmp_path / "one.key.pub").read_text()) == 65
    assert trust("key", "one.key")[0] == 5
    (tmp_path / "open").mkdir(mode=0o755)
    code, out, err = trust("key", "open/three.key")
    assert (code, out) == (5, "")
    assert "open" in err


def test_a_change_is_signed_elsewhere(trust: Run, tmp_path: Path) -> None:
    """A draft that was signed in two places follows the home's root; it is shown before that."""
    assert trust("rotate", load_home("home").trust.trust.roots[0], "one.key.pub",
                 "--unsigned", "2.json")[0] == 0
    assert trust("sign", "2.json", "--root-key", "home/keys/root.key_secret",
                 "--out", "2.dsse.json")[0] == 0
    code, _, err = trust("rotate", "--envelope", "2.dsse.json")
    assert code == 6
    assert "0 of 1 listed keys signed" in err
    code, out, _ = trust("sign", "2.dsse.json", "--root-key", "one.key", "--out", "2.dsse.json",
                         "--output", "json")
    assert json.loads(out)["version"] == 2
    assert code == 0
    signed = load_next_root((tmp_path / "2.dsse.json").read_bytes(), load_home("home").trust.trust)
    code, out, _ = trust("show", "2.dsse.json", "--output", "json")
    shown = json.loads(out)
    assert shown["schema"] == "omega.trust/1"
    assert shown["trust"]["roots"] == list(signed.trust.roots)
    # All is well, and nobody is there to take it.
    assert trust("rotate", "--envelope", "2.dsse.json")[0] == 3


def test_the_root_of_a_home_is_shown(trust: Run) -> None:
    """Version, digest, publishers with globs, thresholds and validity, every key with its id."""
    root = load_home("home").trust
    code, out, _ = trust("show", "--output", "json")
    shown = json.loads(out)
    assert code == 0
    assert (shown["sha256"], shown["pinned"]) == (root.sha256, None)
    assert [(key["role"], key["publisher"], key["public_key"]) for key in shown["keys"]] == [
        ("root", None, root.trust.roots[0]),
        *(("conformance", None, key) for key in root.trust.conformance_keys),
        ("publisher", "development", root.trust.publishers["development"].keys[0]),
    ]
    code, out, _ = trust("show")
    assert code == 0
    for word in (root.sha256, "development", "1 of 1", "for ever", *root.trust.roots):
        assert word in out


def test_times_are_dates_or_seconds(trust: Run) -> None:
    """A date is midnight in UTC, an offset counts, a number is seconds since 1970."""
    for text, seconds in (("2030-01-01", 1893456000), ("2030-01-01T01:00:00+01:00", 1893456000),
                          ("12", 12)):
        assert trust("add", "development", "--valid-until", text, "--unsigned", "t.json")[0] == 0
        shown = json.loads(trust("show", "t.json", "--output", "json")[1])
        assert shown["trust"]["publishers"]["development"]["valid_until_s"] == seconds


MISTAKES: list[tuple[list[str], int, str]] = [
    (["add"], 2, "name a PUBLISHER"),
    (["add", "acme", "--conformance-key", "one.key.pub"], 2, "name a PUBLISHER"),
    (["add", "acme", "--key", "one.key.pub"], 6, "needs keys and plugin ids"),
    (["add", "development", "--valid-until", "soon"], 2, "no time"),
    (["add", "acme", "--key", "one.key", "--plugins", "*"], 2, "one.key: holds no public key"),
    (["rotate", "one.key.pub"], 2, "name OLD and NEW"),
    (["rotate", "one.key.pub", "two.key.pub"], 6, "names no key"),
    (["revoke"], 2, "name a KEY or PUBLISHER"),
    (["revoke", "development", "--at-once"], 2, "takes one KEY and --reason"),
    (["revoke", "development", "--envelope", "one.key.pub"], 2, "the whole change"),
    (["revoke", "--envelope", "one.key.pub"], 6, "DSSE envelope"),
    (["revoke", "development", "--root-key", "one.key"], 6, "0 of 1 listed keys signed"),
    (["revoke", "development", "--root-key", "one.key.pub"], 5, "is a public key's file"),
    (["sign", "home/trust/root.dsse.json", "--out", "x"], 2, "nothing signs"),
    (["new", "--domain", "production", "--root", "one.key.pub", "--threshold", "2", "--unsigned",
      "x"], 6, "2 of 1 keys can never sign"),
    (["show", "home/gateway.toml"], 6, "malformed"),
    (["revoke", "development"], 3, "no gateway answers"),
]


def test_what_cannot_be_done_is_one_sentence(trust: Run) -> None:
    """Each mistake has its exit code and says what is wrong; nothing is printed as data."""
    for arguments, code, words in MISTAKES:
        ended, out, err = trust(*arguments)
        assert (ended, out) == (code, ""), (arguments, err)
        assert words in err, (arguments, err)
        assert "Traceback" not in err


def test_a_home_without_root_keys_says_how_to_sign(trust: Run, tmp_path: Path) -> None:
    """Where no root key lies, as in production, the next step is named."""
    (tmp_path / "home" / "keys" / "root.key_secret").unlink()
    code, out, err = trust("revoke", "development")
    assert (code, out) == (6, "")
    assert "--root-key FILE" in err
    assert "--unsigned FILE" in err
