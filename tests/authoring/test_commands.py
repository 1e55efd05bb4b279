"""`omega-plugin` as an author types it: files, sentences, exit codes, and how soon help comes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest

from broker.authoring.main import COMMANDS, main
from broker.trust.roots import TRUST_FILE, sign_root
from schemas.denials import DENIALS, denied_hint
from schemas.refusals import RefusalCode
from tests.authoring.folders import ENVIRONMENT, PLUGIN, TOML, key_file, plugin_folder
from tests.support.timing import children_s
from tests.trust.builders import SEED_A, SEED_B, SEED_C, public, trust_root


def run(*arguments: object, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder of its own."""
    return subprocess.run(
        [sys.executable, "-m", "broker.authoring.main", *map(str, arguments)],
        cwd=folder, capture_output=True, text=True, check=False, timeout=60,
        env={**ENVIRONMENT, "HOME": str(folder), **environment},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a plugin and a key."""
    plugin_folder(tmp_path / "plugin")
    key_file(tmp_path)
    return tmp_path


def test_pack_sign_and_verify(folder: Path):
    """The three commands in a row give a bundle that verifies by key and by trust root."""
    done = run("pack", "plugin", folder=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("word-count-1.2.3.omegaplugin: word-count 1.2.3, development")
    bundle = "word-count-1.2.3.omegaplugin"
    assert run("sign", bundle, "--key", "keys/publisher.key", folder=folder).returncode == 0
    done = run("verify", bundle, "--public-key", public(SEED_A).hex(), folder=folder)
    assert done.returncode == 0, done.stderr
    home = folder / "home"
    (home / TRUST_FILE).parent.mkdir(parents=True)
    (home / TRUST_FILE).write_bytes(sign_root(trust_root(), [SEED_C]))
    done = run("verify", bundle, "--home", home, folder=folder)
    assert done.returncode == 0, done.stderr
    done = run("verify", bundle, folder=folder, OMEGA_GATEWAY_HOME=str(home))
    assert "publisher acme, signed by" in done.stdout
    assert sorted(path.name for path in folder.iterdir()) == ["home", "keys", "plugin", bundle]


def test_packing_twice_writes_the_same_bytes(folder: Path):
    """Output goes where -o says, and the same folder gives the same file."""
    for name in ("one", "two"):
        assert run("pack", "plugin", "-o", name, folder=folder).returncode == 0
    assert (folder / "one").read_bytes() == (folder / "two").read_bytes()


def test_verify_never_passes_what_it_could_not_verify(folder: Path):
    """Unsigned, signed by another key, of an unknown home or with another byte: exit 5 or 6."""
    run("pack", "plugin", "-o", "bundle", folder=folder)
    done = run("verify", "bundle", "--public-key", public(SEED_A).hex(), folder=folder)
    assert (done.returncode, "omega-plugin sign" in done.stderr) == (5, True)
    run("sign", "bundle", "--key", "keys/publisher.key", folder=folder)
    done = run("verify", "bundle", folder=folder)
    assert (done.returncode, "there is no trust root" in done.stderr) == (6, True)
    done = run("verify", "bundle", "--public-key", public(SEED_B).hex(), folder=folder)
    assert (done.returncode, "signature_invalid" in done.stderr) == (6, True)
    done = run("verify", "bundle", "--public-key", "abc", folder=folder)
    assert (done.returncode, "64 lower-case hex digits" in done.stderr) == (6, True)
    data = bytearray((folder / "bundle").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "bundle").write_bytes(data)
    done = run("verify", "bundle", "--public-key", public(SEED_A).hex(), folder=folder)
    assert (done.returncode, "bundle_malformed" in done.stderr) == (5, True)


def test_a_key_that_others_may_read_is_refused(folder: Path):
    """A key file with group or world bits is named with what to do, and nothing is signed."""
    run("pack", "plugin", "-o", "bundle", folder=folder)
    before = (folder / "bundle").read_bytes()
    (folder / "keys" / "publisher.key").chmod(0o640)
    done = run("sign", "bundle", "--key", "keys/publisher.key", folder=folder)
    assert done.returncode == 5
    assert "chmod 600" in done.stderr
    assert (folder / "bundle").read_bytes() == before


def test_a_file_that_is_no_key_is_refused(folder: Path):
    """A key file with something else in it is refused in one sentence."""
    path = key_file(folder, name="other.key")
    path.write_text("hello\n")
    run("pack", "plugin", "-o", "bundle", folder=folder)
    done = run("sign", "bundle", "--key", path, folder=folder)
    assert done.returncode == 5
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_a_bundle_of_another_domain_is_not_signed(folder: Path):
    """--domain says which domain is meant; another one is a refusal, not a conversion."""
    run("pack", "plugin", "-o", "bundle", "--domain", "production", folder=folder)
    done = run("sign", "bundle", "--key", "keys/publisher.key", "--domain", "development",
               folder=folder)
    assert (done.returncode, "domain_mismatch" in done.stderr) == (6, True)


def test_mistakes_are_printed_and_nothing_is_written(folder: Path):
    """Each mistake has code, place and remedy on stderr; exit 5; stdout stays empty."""
    plugin_folder(folder / "bad", "import socket\n" + PLUGIN, TOML.replace("1.2.3", "01.2"))
    for command in ("pack", "check"):
        done = run(command, "bad", folder=folder)
        assert (done.returncode, done.stdout) == (5, "")
        assert "manifest_invalid at plugin.toml.version" in done.stderr
    plugin_folder(folder / "bad", "import socket\n" + PLUGIN)
    done = run("check", "bad", folder=folder)
    assert 'Write: modules = ["msgspec", "socket"]' in done.stderr
    assert not list(folder.glob("*.omegaplugin"))
    assert not list(folder.glob("*.part"))


def test_check_says_when_there_is_nothing_to_mend(folder: Path):
    """A good folder passes and stays as it is."""
    before = sorted(path.name for path in (folder / "plugin").iterdir())
    done = run("check", "plugin", folder=folder)
    assert (done.returncode, "nothing to mend" in done.stdout) == (0, True)
    assert sorted(path.name for path in (folder / "plugin").iterdir()) == before


def test_explain_knows_every_code(folder: Path):
    """A code is explained with reason and remedy, a note and a rule too; a misspelt one gets the
    near ones, exit 2."""
    done = run("explain", RefusalCode.SIGNATURE_THRESHOLD.value, folder=folder)
    assert done.returncode == 0
    assert "Remedy:" in done.stdout
    done = run("explain", "signature_treshold", folder=folder)
    assert (done.returncode, "signature_threshold" in done.stderr) == (2, True)
    for code in ("CON-11", "top_level", "print"):
        done = run("explain", code, folder=folder)
        assert (done.returncode, done.stdout.startswith(f"{code}: ")) == (0, True)


@pytest.mark.parametrize("denied", sorted(DENIALS))
def test_explain_says_of_a_denied_class_what_a_refusals_hint_says(folder: Path, denied: str):
    """What would cover it and the line to add stand in the command's answer as in the hint."""
    done = run("explain", denied, folder=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert denied_hint(denied).endswith(done.stdout.strip())


def test_usage_mistakes_end_with_two(folder: Path):
    """Unknown commands, missing arguments and missing files are usage mistakes."""
    for arguments in (
        ["sing"], ["sign", "nothing"], ["call"], ["pack", "nowhere"], ["new", "No Name"],
        ["new", "plugin"],
    ):
        assert run(*arguments, folder=folder).returncode == 2, arguments


def test_the_table_of_commands_is_complete():
    """Every command of the table exists, with the help that the table says."""
    for name, text in COMMANDS.items():
        command = main.get_command(click.Context(main), name)
        assert isinstance(command, click.Command)
        assert (command.help or "").partition("\n")[0] == text


def test_help_comes_at_once(folder: Path):
    """`--help` takes less than 150 ms beyond an empty Python, and imports no gateway part."""
    def seconds(*arguments: str) -> float:
        # Processor time: others on the machine take from the rest.
        begin = children_s()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True,
                       cwd=folder, env=ENVIRONMENT)
        return children_s() - begin

    helps = [seconds("-m", "broker.authoring.main", "--help") for _ in range(5)]
    empty = [seconds("-c", "pass") for _ in range(5)]
    assert min(helps) - min(empty) < 0.150
    loaded = subprocess.run(
        [sys.executable, "-c",
         "import sys, broker.authoring.main; print(*sys.modules)"],
        check=True, capture_output=True, text=True, cwd=folder, env=ENVIRONMENT,
    ).stdout.split()
    assert not {"msgspec", "zmq", "nacl", "jsonschema_rs", "rich"}.intersection(loaded)
