"""The command line without a gateway: help, usage, homes, keys, explanations, the machine."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from broker.cli.ends import CommandError
from broker.cli.main import COMMANDS, run
from broker.cli.main import gateway as group
from broker.cli.options import Session, output_option
from broker.cli.output import show
from broker.cli.problems import Ending, ending_of, tell
from broker.policy import load_policy
from sandbox_worker.jail import policy
from tests.cli.command import PATIENCE_S, ROOT, environment, gateway

HEAVY = {
    "zmq", "nacl", "msgspec", "structlog", "jsonschema_rs", "semver", "rfc8785", "rich", "asyncio",
    "importlib.metadata", "subprocess", "broker.client", "broker.home", "broker.cli.plugins",
}
MODULES_MAX = 260
"""What click and the standard library need; a command's module would bring hundreds more."""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A development home."""
    path = tmp_path / "home"
    assert gateway("init", "--domain", "development", home=path).code == 0
    return path


def loaded_by(*arguments: str) -> set[str]:
    """Give the names of all modules that a command line loads."""
    code = (
        "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); "
        "from broker.cli.main import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment(), capture_output=True, text=True,
        timeout=PATIENCE_S, check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


def test_help_loads_no_more_than_click():
    """`--help` names every command and loads neither transport nor schemas nor tables."""
    loaded = loaded_by("--help")
    assert loaded.isdisjoint(HEAVY)
    assert len(loaded) < MODULES_MAX, f"{len(loaded)} modules"
    shown = gateway("--help").out
    for name, entry in COMMANDS.items():
        assert f"  {name} " in shown
        assert entry.help in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_a_commands_help_is_light_and_agrees_with_the_table(name: str):
    """Each command explains itself without loading a gateway, in the table's own words."""
    assert loaded_by(name, "--help").isdisjoint(HEAVY - {"broker.cli.plugins"})
    command = group.get_command(click.Context(group), name)
    assert command is not None
    assert (command.help or "").splitlines()[0].startswith(COMMANDS[name].help.rstrip("."))


def test_a_version_is_printed():
    """`--version` says the program's name and the package's version."""
    done = gateway("--version")
    assert done.code == 0
    assert done.out.startswith("omega-gateway ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["frobnicate"], ["status", "--frobnicate"], ["plugins", "enable"], ["plugins", "revoke"],
        ["plugins", "revoke", "x", "--reason", "y"], ["status", "--output", "xml"],
        ["keys", "new", "--role", "king", "--profile", "x"], ["init"], ["explain"],
        ["explain", "no_such_code"], ["serve", "--set", "x"], ["ledger", "tail", "-n", "-1"],
        ["ledger", "tail", "-f", "--output", "json"],
        ["init", "--domain", "production"], ["keys", "new", "--role", "omega", "--profile", "x",
                                             "--name", "Not A Name"],
        ["invoke", "x", "y"], ["invoke", "x", "y", "--text", "a", "--json", "1"],
        ["invoke", "x", "y", "--json", "{"], ["invoke", "x", "y", "--artifact", "a"],
        ["invoke", "x", "y", "--dataset", "a"], ["invoke", "x", "y", "--text", "a", "--media-type",
                                                  "text/fancy"],
        ["invoke", "x", "y", "--text", "a", "--timeout", "0"],
        ["ledger", "verify", ".", "--vkey", "nonsense"],
    ],
    ids=" ".join,
)
def test_wrong_use_is_two_and_one_sentence(arguments: list[str], tmp_path: Path):
    """Wrong use ends with 2; stdout is empty unless JSON was asked for, and stderr has a
    sentence and no traceback."""
    done = gateway(*arguments, home=tmp_path / "none")
    assert done.code == 2
    assert bool(done.out) == ("json" in arguments)
    assert "Traceback" not in done.err
    assert len(done.err.splitlines()) <= 2
    assert done.sentence()


@pytest.mark.parametrize("arguments", [[], ["plugins"], ["ledger"]], ids=str)
def test_a_group_alone_shows_its_help_on_stderr(arguments: list[str]):
    """Without a command the help is shown as what it is: a hint after wrong use."""
    done = gateway(*arguments)
    assert (done.code, done.out) == (2, "")
    assert "Commands:" in done.err


def test_a_home_is_made_once(tmp_path: Path):
    """`init` makes a home and says where; a second one in its place is refused with 5."""
    path = tmp_path / "home"
    done = gateway("init", "--domain", "development", "--output", "json", home=path)
    assert done.code == 0
    document = done.document()
    assert document["schema"] == "omega.home/1"
    assert document["home"] == str(path)
    assert str(document["omega_endpoint"]).startswith("ipc://")
    assert "valid nowhere else" in done.err
    again = gateway("init", "--domain", "development", home=path)
    assert (again.code, again.out) == (5, "")
    assert str(path) in again.sentence()


def test_a_production_home_needs_a_real_trust_root(tmp_path: Path):
    """A file that is no trust root ends with 6 and leaves no home behind."""
    root = tmp_path / "root.json"
    root.write_text("{}")
    path = tmp_path / "home"
    done = gateway("init", "--domain", "production", "--trust-root", str(root), home=path)
    assert (done.code, done.out) == (6, "")
    assert not (path / "gateway.toml").exists()


def test_the_home_comes_from_option_environment_or_user(home: Path, tmp_path: Path):
    """`--home` before or after the command wins over the variable, which wins over the user's."""
    other = tmp_path / "other"
    for arguments in (["--home", str(home), "config", "check"],
                      ["config", "check", "--home", str(home)]):
        done = gateway(*arguments, "--output", "json", OMEGA_GATEWAY_HOME=str(other))
        assert done.document()["home"] == str(home)
    user = home.rename(tmp_path / ".omega-gateway")
    done = gateway("config", "check", "--output", "json", HOME=str(tmp_path))
    assert done.document()["home"] == str(user)


def test_configuration_is_shown_with_origins(home: Path):
    """Each line tells whether it comes from the file, a variable or the defaults."""
    done = gateway("config", "show", "--origin", "--output", "json", home=home,
                   OMEGA_GATEWAY__LIMITS__IN_FLIGHT_MAX="7")
    document = done.document()
    assert document["schema"] == "omega.config/1"
    config, origins = document["config"], document["origins"]
    assert isinstance(config, dict)
    assert isinstance(origins, dict)
    assert config["limits"]["in_flight_max"] == 7
    assert origins["limits.in_flight_max"] == "OMEGA_GATEWAY__LIMITS__IN_FLIGHT_MAX"
    assert origins["domain"] == str(home / "gateway.toml")
    assert origins["log.level"] == "default"
    table = gateway("config", "show", home=home).out
    assert "limits.in_flight_max" in table
    assert "origin" not in table.splitlines()[0]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("limits = 7\n", ["gateway.toml", "$.limits"]),
        ("[limits]\nin_flight = 7\n", ["gateway.toml", "$.limits.in_flight"]),
        ("[limits]\nin_flight_max = 'x'\n", ["gateway.toml", "$.limits.in_flight_max"]),
        ("[limits\n", ["gateway.toml", "line"]),
    ],
    ids=["section", "unknown line", "wrong type", "no TOML"],
)
def test_a_wrong_configuration_line_is_named(home: Path, damage: str, words: list[str]):
    """`config check`, `serve` and `worker` end with 5 and name file and field."""
    path = home / "gateway.toml"
    path.write_text(damage + path.read_text() if damage == "limits = 7\n"
                    else path.read_text() + damage)
    for command in (["config", "check"], ["serve"], ["worker", "some-plugin"]):
        done = gateway(*command, home=home)
        assert (done.code, done.out) == (5, "")
        assert [word for word in words if word not in done.sentence()] == []


def test_an_open_key_file_is_refused(home: Path):
    """A secret that others may read ends every command that needs it with 5 and names the file."""
    secret = home / "keys" / "ledger.key_secret"
    secret.chmod(0o640)
    for command in (["serve"], ["config", "check"], ["ledger", "verify"]):
        done = gateway(*command, home=home)
        assert done.code == 5
        assert str(secret) in done.sentence()
    key = home / "profiles" / "operator" / "client.key_secret"
    key.chmod(0o604)
    done = gateway("status", home=home)
    assert done.code == 5
    assert str(key) in done.sentence()


def test_a_worker_is_started_only_for_plugins_that_operators_start(home: Path):
    """For any other plugin `worker` ends with 5 and says which line to write."""
    done = gateway("worker", "text-statistics", home=home)
    assert done.code == 5
    assert "$.workers.external" in done.sentence()
    assert 'external = ["text-statistics"]' in done.err


def test_keys_are_made_listed_and_taken_out(home: Path, tmp_path: Path):
    """A new key's secret lies in the profile alone, and the home knows its public half."""
    profile = tmp_path / "auditor"
    done = gateway("keys", "new", "--role", "auditor", "--profile", str(profile), "--name",
                   "jane", "--output", "json", home=home)
    assert done.code == 0
    assert "at its next start" in done.err
    key_id = done.document()["key_id"]
    secret = (profile / "client.key_secret").read_text().strip()
    assert [path for path in home.rglob("*") if path.is_file() and secret in path.read_text(
        errors="replace")] == []
    listed = gateway("keys", "list", "--output", "ndjson", home=home).documents()
    assert {"schema": "omega.key/1", "key_id": key_id, "role": "auditor", "name": "jane"}.items(
    ) <= next(one for one in listed if one["key_id"] == key_id).items()
    assert gateway("keys", "new", "--role", "auditor", "--profile", str(profile),
                   home=home).code == 5
    revoked = gateway("keys", "revoke", str(key_id), "--output", "json", home=home)
    assert revoked.code == 0
    assert revoked.document()["removed_from_home"] is True
    assert len(gateway("keys", "list", "--output", "ndjson", home=home).documents()) == 3
    again = gateway("keys", "revoke", str(key_id), home=home)
    assert again.code == 1
    assert str(key_id) in again.sentence()


def test_a_gateway_that_is_not_there_is_three(home: Path):
    """Every command that needs a gateway ends with 3 and says how to start one."""
    done = gateway("status", home=home)
    assert (done.code, done.out) == (3, "")
    assert "no gateway answers at ipc://" in done.sentence()
    assert "omega-gateway serve" in done.err


def test_a_missing_profile_is_five(tmp_path: Path):
    """A home without profiles and a profile that is not there name the folder."""
    for more in ([], ["--profile", str(tmp_path / "nowhere")]):
        done = gateway("status", *more, home=tmp_path / "none")
        assert done.code == 5
        assert "there is no such profile" in done.sentence()


def test_a_profile_of_the_wrong_role_is_four(home: Path):
    """An operator's profile is not sent to invoke, nor OMEGA's to manage plugins."""
    for arguments, role in (
        (["invoke", "x-plugin", "y", "--text", "a"], "operator"),
        (["plugins", "disable", "x-plugin"], "omega"),
        (["plugins", "disable", "x-plugin"], "auditor"),
    ):
        done = gateway(*arguments, "--profile", str(home / "profiles" / role), home=home)
        assert (done.code, done.out) == (4, "")
        assert f"of role {role}" in done.sentence()


BAD_ENDS: dict[str, tuple[list[str], int]] = {
    "no gateway": (["status"], 3),
    "no home": (["status", "--home", "nowhere"], 5),
    "no profile": (["status", "--profile", "nowhere"], 5),
    "a file that is not there": (["ledger", "prove", "0", "--since", "nowhere"], 2),
    "no such file, not UTF-8": (["plugins", "register", "\udcff"], 2),
    "an argument too few": (["plugins", "show"], 2),
    "a wrong number": (["ledger", "prove", "x"], 2),
    "no ledger": (["ledger", "prove", "99"], 1),
}
FORMS = ("json", "ndjson", "table")


def test_a_bad_end_is_one_document_where_json_was_asked_for(home: Path, capfd):
    """Whatever went wrong, a program reads its exit code and sentence; a table stays empty."""
    for (words, exit_code), form in itertools.product(BAD_ENDS.values(), FORMS):
        where = [] if "--home" in words else ["--home", str(home)]
        # Behind what is wrong: it counts all the same.
        assert run([*words, *where, "--output", form]) == exit_code, words
        out, err = capfd.readouterr()
        if form == "table":
            assert out == ""
            continue
        document = json.loads(out)
        assert (out.count("\n") == 1) == (form == "ndjson")
        assert document["schema"] == "omega.error/1"
        assert document["exit_code"] == exit_code
        assert document["message"] == err.splitlines()[0]
        assert f"  next: {document['next_step']}\n" in err or not document["next_step"]


def test_nothing_follows_a_document(capfd):
    """A command that failed after it had printed its data says so on stderr alone."""
    ending = Ending("it broke", "mend it", 1)
    tell(ending, "json", printed=True)
    assert capfd.readouterr() == ("", "it broke\n  next: mend it\n")
    tell(Ending("", "", 8), "json")
    assert capfd.readouterr() == ("", "")


def test_a_command_line_knows_whether_it_printed(capfd):
    """A command that prints and then fails gives its one document, and its exit code."""

    @click.command()
    @output_option
    def fail() -> None:
        show("omega.test/1", {"a": 1})
        raise CommandError(7, "and then it failed")

    session = Session()
    with pytest.raises(CommandError) as raised:
        fail.main(["--output", "json"], standalone_mode=False, obj=session)
    ending = ending_of(raised.value)
    assert ending is not None
    tell(ending, session.output, printed=session.printed)
    out, err = capfd.readouterr()
    assert json.loads(out) == {"schema": "omega.test/1", "a": 1}
    assert err == "and then it failed\n"


def test_bytes_reach_stdout_in_two_places_only():
    """What `put` did not write would not count as printed."""
    for path in (ROOT / "broker" / "cli").glob("*.py"):
        written = path.read_text().count("stdout.buffer.write")
        assert written == (path.name in ("output.py", "problems.py")), path


def test_a_code_is_explained():
    """`explain` says what a code means and what to do; a near miss is told."""
    done = gateway("explain", "unknown_plugin", "--output", "json")
    document = done.document()
    assert document["schema"] == "omega.explanation/1"
    assert (document["code"], document["exit_code"]) == ("unknown_plugin", 1)
    assert document["remedy"]
    assert "unknown_plugin" in gateway("explain", "unknown_plugins").err


@pytest.mark.jail
def test_the_doctor_finds_this_machine_well():
    """Each feature that the sandbox stands on is listed as enough, in a table and as data."""
    done = gateway("doctor", "--output", "json")
    assert (done.code, done.err) == (0, "")
    document = done.document()
    assert (document["schema"], document["ok"]) == ("omega.doctor/1", True)
    findings = document["findings"]
    assert isinstance(findings, list)
    assert {one["feature"] for one in findings} >= {"Landlock", "seccomp", "user namespaces"}
    assert all(one["ok"] for one in findings)
    assert "Landlock" in gateway("doctor").out


def test_the_doctor_lists_the_filters():
    """Each filter is told call by call, with the digests that the ledger names, in each form."""
    done = gateway("doctor", "--filters", "--output", "json")
    assert (done.code, done.err) == (0, "")
    document = done.document()
    assert document["schema"] == "omega.filters/1"
    programs, filters = document["programs"], document["filters"]
    assert isinstance(programs, list)
    assert isinstance(filters, list)
    digest = hashlib.sha256(policy.base_filter()).hexdigest()
    assert {"program": "zygote", "sha256": digest,
            "instructions": len(policy.base_filter()) // 8} in programs
    row = {"number": 101, "call": "ptrace", "arguments": "", "action": "EPERM", "otherwise": ""}
    supervisor = next(one for one in filters if one["filter"] == "supervisor")
    assert row in supervisor["rows"]
    table = gateway("doctor", "--filters").out
    assert digest in table
    assert "argument 0 (32 bits) is 3" in table
    lines = gateway("doctor", "--filters", "--output", "ndjson").out.splitlines()
    assert len(lines) == len(filters)


def test_the_doctor_ends_with_five_on_another_machine():
    """A missing feature is one sentence on stderr, still a row of the table, and exit code 5."""
    done = subprocess.run(
        ["setarch", "--uname-2.6", sys.executable, "-m", "broker.cli.main", "doctor", "--output",
         "json"], env=environment(), capture_output=True, text=True, timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 5
    assert done.stderr.count("\n") == 1
    assert "required is Linux 6.12 or later" in done.stderr
    assert '"ok": false' in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed(shell: str):
    """Each shell gets a script that names the program, and the program completes its commands."""
    done = gateway("completion", shell)
    assert done.code == 0
    assert "omega-gateway" in done.out
    asked = gateway(_OMEGA_GATEWAY_COMPLETE="bash_complete", COMP_WORDS="omega-gateway pl",
                    COMP_CWORD="1")
    assert "plugins" in asked.out


def test_json_has_no_colour_even_on_a_terminal(home: Path):
    """On a terminal a table may be coloured, JSON never is, and NO_COLOR ends both."""
    colours = {}
    for name, arguments, more in (
        ("table", ["keys", "list"], {}),
        ("json", ["keys", "list", "--output", "json"], {}),
        ("plain", ["keys", "list"], {"NO_COLOR": "1"}),
    ):
        reader, writer = os.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "broker.cli.main", *arguments], stdout=writer, stderr=writer,
            env=environment(home, TERM="xterm-256color", **more), cwd=ROOT,
        )
        os.close(writer)
        data = b""
        # The last reader's error is how a closed terminal ends.
        while chunk := _read(reader):
            data += chunk
        os.close(reader)
        assert process.wait(PATIENCE_S) == 0
        assert b"auditor" in data
        colours[name] = b"\x1b[" in data
    assert colours == {"table": True, "json": False, "plain": False}


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError:
        return b""


def test_a_reader_that_leaves_is_no_traceback(home: Path):
    """`omega-gateway … | head` ends quietly when the pipe closes."""
    command = f"{sys.executable} -m broker.cli.main config show --output json | head -c 1"
    done = subprocess.run(
        ["bash", "-c", command], env=environment(home), capture_output=True, text=True,
        timeout=PATIENCE_S, check=False,
    )
    assert done.stdout == "{"
    assert done.stderr == ""


def test_a_folder_of_packages_is_locked_and_approved_by_what_is_printed(tmp_path: Path):
    """The lock lies in the folder, the lines are TOML; a link in the folder ends with 5."""
    folder = tmp_path / "packages"
    (folder / "one").mkdir(parents=True)
    (folder / "one" / "__init__.py").write_text("x = 1\n")
    done = gateway("plugins", "lock", "word-*", str(folder))
    assert (done.code, done.err) == (0, "")
    approved = load_policy(done.out.encode()).modules
    assert approved.allowed == {"word-*": ("one",)}
    assert approved.packages["word-*"].folder == str(folder)
    told = gateway("plugins", "lock", "word-*", str(folder), "--output", "json").document()
    assert told["lock_sha256"] == approved.packages["word-*"].lock_sha256

    (folder / "link").symlink_to("one")
    done = gateway("plugins", "lock", "word-*", str(folder))
    assert (done.code, "link is neither a file nor a folder" in done.sentence()) == (5, True)
    assert gateway("plugins", "lock", "word-*", str(tmp_path / "nowhere")).code == 2
