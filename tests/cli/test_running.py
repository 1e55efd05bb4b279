"""The commands that speak with a gateway, against one real `omega-gateway serve`."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.command import PATIENCE_S, ROOT, Done, environment, gateway
from tests.support.gateway import wait_for

pytestmark = [pytest.mark.system, pytest.mark.jail]

PLUGIN = '''
from sandbox_worker.sdk import CannotAnswer, Context, TextPayload, method


@method()
def echo(context: Context, text: TextPayload) -> TextPayload:
    """Give the text back."""
    if text.text == "nothing":
        raise CannotAnswer("nothing to \\x1b[31msay")
    return text


@method()
def spin(context: Context, text: TextPayload) -> TextPayload:
    """Never end."""
    while True:
        pass
'''
SOURCE = '''
id = "echo-plugin"
version = "VERSION"
api_version = "1.0.0"
publisher = "development"
description = "Gives a text back."
modules = []
CAPABILITIES
[limits]
cpu_ms = 5000
wall_ms = 5000
memory_mb = 128
output_bytes = 1048576
concurrency = 2
'''


def bundle(home: Path, version: str, *, key: Path | None = None, capabilities: str = "",
           memory_mb: int = 128) -> Path:
    """Pack and sign one version of the plugin as an author would."""
    folder = home.parent / f"echo-{version}"
    folder.mkdir(exist_ok=True)
    (folder / "plugin.py").write_text(PLUGIN)
    (folder / "plugin.toml").write_text(
        SOURCE.replace("VERSION", version).replace("CAPABILITIES", capabilities)
        .replace("memory_mb = 128", f"memory_mb = {memory_mb}")
    )
    path = home.parent / f"echo-{version}.omegaplugin"
    for arguments in (
        ["pack", str(folder), "-o", str(path)],
        ["sign", str(path), "--key", str(key or home / "keys" / "publisher.key_secret")],
    ):
        subprocess.run(
            [sys.executable, "-m", "broker.authoring.main", *arguments], env=environment(home),
            check=True, capture_output=True, timeout=PATIENCE_S,
        )
    return path


@contextlib.contextmanager
def serving(home: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run `omega-gateway serve` until the block ends, and stop it as an operator would."""
    with (home.parent / "serve.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "broker.cli.main", "serve", *arguments], cwd=ROOT,
            env=environment(home), stdout=log, stderr=log,
        )
        try:
            wait_for("the gateway", lambda: process.poll() is not None
                     or gateway("status", home=home).code == 0)
            assert process.poll() is None, (home.parent / "serve.log").read_text()
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(PATIENCE_S)
            finally:
                process.kill()


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A development home that is served, with the echo plugin enabled."""
    with tempfile.TemporaryDirectory(prefix="og-") as folder:
        path = Path(folder) / "home"
        assert gateway("init", "--domain", "development", home=path).code == 0
        with (path / "policy.toml").open("a") as policy:
            policy.write('[env]\nLANG = "fr"\n[roots]\ncorpus = "/usr/share"\n')
        with serving(path):
            file = bundle(path, "1.0.0")
            assert gateway("plugins", "register", str(file), home=path).code == 0
            assert gateway("plugins", "enable", "echo-plugin", home=path).code == 0
            yield path


def invoke(home: Path, *arguments: str, method: str = "echo", stdin: bytes = b"") -> Done:
    """Invoke the echo plugin."""
    return gateway("invoke", "echo-plugin", method, *arguments, home=home, stdin=stdin)


def test_status_is_said_to_every_role(home: Path):
    """Each profile of the home may read, in each form of output."""
    for role in ("omega", "operator", "auditor"):
        done = gateway("status", "--profile", str(home / "profiles" / role), "--output", "json",
                       home=home)
        assert done.code == 0
        document = done.document()
        assert document["schema"] == "omega.status/1"
        assert (document["state"], document["domain"]) == ("serving", "development")
    assert gateway("status", "--output", "ndjson", home=home).out.count("\n") == 1
    assert "serving" in gateway("status", home=home).out


def test_an_answer_is_all_of_stdout(home: Path):
    """stdout has the answer's bytes; receipt, usage and the commitment key stand on stderr."""
    done = invoke(home, "--text", "a\ttext\nwith lines\x07")
    assert (done.code, done.out) == (0, "a\ttext\nwith lines\x07")
    for words in ("receipt", "usage", "commitment key", "event hash"):
        assert words in done.err
    assert re.search(r"\b[0-9a-f]{64} \(kept nowhere else\)", done.err)


def test_an_answer_as_json_has_everything(home: Path):
    """One object has payload, receipt, usage and commitment key, and stderr is empty."""
    done = invoke(home, "--text", "a text", "--output", "json", "--version", "^1.0", "--timeout",
                  "20000")
    assert (done.code, done.err) == (0, "")
    document = done.document()
    assert document["schema"] == "omega.result/1"
    assert document["payload"] == {"type": "text", "text": "a text", "media_type": "text/plain"}
    assert (document["plugin"], document["version"]) == ("echo-plugin", "1.0.0")
    assert isinstance(document["usage"], dict)
    assert isinstance(document["receipt"], dict)
    assert len(bytes.fromhex(str(document["commitment_key"]))) == 32


def test_a_file_and_stdin_are_inputs(home: Path, tmp_path: Path):
    """A text comes from a file or from stdin; a large one arrives whole."""
    text = "wörter " * 60_000
    path = tmp_path / "text.txt"
    path.write_text(text, "utf-8")
    assert invoke(home, "--file", str(path)).out == text
    assert invoke(home, "--file", "-", stdin=text.encode()).out == text
    path.write_bytes(b"\xff\xfe")
    done = invoke(home, "--file", str(path))
    assert done.code == 2
    assert done.sentence() == f"{path}: is not UTF-8 text at byte 0"
    path.write_bytes(b"x" * (1024 * 1024 + 1))
    assert invoke(home, "--file", str(path)).code == 1
    assert "No such file" in invoke(home, "--file", str(tmp_path / "none")).sentence()


@pytest.mark.parametrize(
    ("arguments", "code", "exit_code"),
    [
        (["echo-plugin", "echo", "--json", '{"a":1}'], "payload_kind_not_accepted", 1),
        (["echo-plugin", "echo", "--artifact", "a1", "--sha256", "0" * 64, "--size", "1",
          "--media-type", "image/png"], "payload_kind_not_accepted", 1),
        (["echo-plugin", "echo", "--dataset", "d1", "--keys", "a,b"], "payload_kind_not_accepted",
         1),
        (["echo-plugin", "sing", "--text", "a"], "unknown_method", 1),
        (["other-plugin", "echo", "--text", "a"], "unknown_plugin", 1),
        (["echo-plugin", "echo", "--text", "a", "--version", "2.0.0"], "unknown_version", 1),
        (["echo-plugin", "echo", "--text", "nothing"], "cannot_answer", 1),
        (["echo-plugin", "spin", "--text", "a", "--timeout", "1500"], "deadline_exceeded", 3),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_refusal_is_a_sentence_a_step_and_an_exit_code(
    home: Path, arguments: list[str], code: str, exit_code: int
):
    """stderr has the code in its first line and the next step; JSON output has all of it."""
    done = gateway("invoke", *arguments, home=home)
    assert (done.code, done.out) == (exit_code, "")
    assert done.sentence().startswith(f"refused: {code}: ")
    assert done.err.splitlines()[1].startswith("  next: ")
    assert "\x1b" not in done.err
    again = gateway("invoke", *arguments, "--output", "json", home=home)
    assert again.code == exit_code
    document = again.document()
    assert (document["schema"], document["code"]) == ("omega.refusal/1", code)
    assert document["exit_code"] == exit_code
    assert isinstance(document["receipt"], dict)
    assert again.sentence().startswith(f"refused: {code}: ")


def test_plugins_are_listed_and_shown(home: Path):
    """The registered version is listed with its state, and shown with methods and manifest."""
    listed = gateway("plugins", "list", "--output", "ndjson", home=home).documents()
    assert [(one["schema"], one["plugin"], one["enabled_version"]) for one in listed] == [
        ("omega.plugin_entry/1", "echo-plugin", "1.0.0")
    ]
    shown = gateway("plugins", "show", "echo-plugin", "--output", "json", home=home).document()
    manifest = shown["manifest"]
    assert isinstance(manifest, dict)
    assert set(manifest["methods"]) == {"echo", "spin"}
    table = gateway("plugins", "show", "echo-plugin", home=home).out
    assert "spin" in table
    done = gateway("plugins", "show", "no-such-plugin", home=home)
    assert (done.code, done.out) == (1, "")


def test_what_hinders_a_registration_is_told(home: Path):
    """`validate` names code, place and remedy, and ends as `register` would."""
    assert gateway("plugins", "validate", str(bundle(home, "1.4.0")), home=home).code == 0
    wide = bundle(home, "1.5.0", memory_mb=2048,
                  capabilities='capabilities = ["clock.read", "net.connect"]')
    done = gateway("plugins", "validate", str(wide), "--output", "json", home=home)
    assert done.code == 5
    problems = done.document()["problems"]
    assert isinstance(problems, list)
    assert [one["code"] for one in problems] == [
        "capability_not_granted", "capability_refused", "limit_not_allowed"]
    assert all(one["found"] and one["expected"] and one["remedy"] for one in problems)
    assert gateway("plugins", "register", str(wide), home=home).code == 5
    stranger = home.parent / "stranger"
    stranger.mkdir(mode=0o700, exist_ok=True)
    key = stranger / "key"
    key.write_text("11" * 32 + "\n")
    key.chmod(0o600)
    foreign = bundle(home, "1.6.0", key=key)
    for command in ("validate", "register"):
        assert gateway("plugins", command, str(foreign), home=home).code == 6
    half = home.parent / "half.omegaplugin"
    half.write_bytes(wide.read_bytes()[:1000])
    for command in ("validate", "register"):
        assert gateway("plugins", command, str(half), home=home).code == 5


def test_a_grant_makes_a_capability_registrable(home: Path):
    """After `grant` of each kind the version that asks for it has nothing against it; taken back,
    it has again."""
    names = ["artifact.read", "clock.read", "env.read:LANG", "fs.read:corpus", "random.read"]
    asked = ", ".join(f'"{name}"' for name in names)
    wide = bundle(home, "1.7.0", capabilities=f"capabilities = [{asked}]")
    told = gateway("plugins", "validate", str(wide), "--output", "json", home=home)
    assert told.code == 5
    problems = told.document()["problems"]
    assert isinstance(problems, list)
    assert [(one["code"], one["found"]) for one in problems] == [
        ("capability_not_granted", name) for name in names
    ]
    for name in names:
        done = gateway("plugins", "grant", "echo-plugin", name, "--output", "json", home=home)
        assert (done.code, done.document()["schema"]) == (0, "omega.granted/1"), name
    assert gateway("plugins", "validate", str(wide), home=home).code == 0
    done = gateway("plugins", "revoke", "echo-plugin", "fs.read:corpus", "--reason", "a test",
                   "--output", "json", home=home)
    assert (done.code, done.document()["kind"]) == (0, "grant")
    assert gateway("plugins", "validate", str(wide), home=home).code == 5
    again = gateway("plugins", "revoke", "echo-plugin", "fs.read:corpus", "--reason", "x",
                    home=home)
    assert (again.code, "capability_not_granted" in again.err) == (5, True)


@pytest.mark.parametrize(
    ("capability", "sentence"),
    [
        ("net.connect", "network connections and processes are always refused in this version"),
        ("process.spawn", "network connections and processes are always refused in this version"),
        ("env.read:HOME", '[env] HOME = "VALUE"'),
        ("fs.read:other", '[roots] other = "/ABSOLUTE/PATH"'),
    ],
)
def test_what_no_grant_gives_is_not_granted(home: Path, capability: str, sentence: str):
    """What is always refused, or has no value or folder, is refused with the reason or the line."""
    done = gateway("plugins", "grant", "echo-plugin", capability, home=home)
    assert (done.code, done.out) == (5, "")
    assert sentence in done.err


def test_versions_are_enabled_disabled_and_revoked(home: Path):
    """The highest usable version is taken without @VERSION; a revoked one never again."""
    for version in ("2.0.0", "2.1.0"):
        file = bundle(home, version)
        assert gateway("plugins", "register", str(file), home=home).code == 0
    enabled = gateway("plugins", "enable", "echo-plugin", "--output", "json", home=home).document()
    assert (enabled["version"], enabled["previous"]) == ("2.1.0", "1.0.0")
    revoked = gateway("plugins", "revoke", "echo-plugin@2.1.0", "--reason", "a test", "--output",
                      "json", home=home)
    assert revoked.code == 0
    enabled = gateway("plugins", "enable", "echo-plugin", "--output", "json", home=home).document()
    assert enabled["version"] == "2.0.0"
    assert invoke(home, "--text", "a").out == "a"
    assert gateway("plugins", "disable", "echo-plugin", home=home).code == 0
    assert "plugin_not_enabled" in invoke(home, "--text", "a").sentence()
    assert gateway("plugins", "enable", "echo-plugin@1.0.0", home=home).code == 0
    assert gateway("plugins", "enable", "echo-plugin@2.1.0", home=home).code == 1


def test_the_ledger_is_read_and_verified_while_it_grows(home: Path):
    """Head, tail and verification agree with one another on a ledger that is being written."""
    assert invoke(home, "--text", "for the ledger").code == 0
    head = gateway("ledger", "head", "--output", "json", home=home).document()
    assert head["schema"] == "omega.ledger_head/1"
    lines = gateway("ledger", "tail", "-n", "30", "--output", "ndjson", home=home).documents()
    assert [one["event_type"] for one in lines].count("invoke.end") >= 1
    numbers = [int(str(one["seq"])) for one in lines]
    assert numbers == list(range(numbers[0], numbers[0] + 30))
    assert gateway("ledger", "tail", "-n", "0", home=home).out == ""
    tail = gateway("ledger", "tail", "-n", "2", "--output", "json", home=home).document()
    assert tail["schema"] == "omega.ledger_tail/1"
    assert gateway("ledger", "tail", "-n", "2", home=home).out.count("\n") == 2
    report = gateway("ledger", "verify", "--output", "json", home=home)
    assert report.code == 0
    document = report.document()
    assert (document["ok"], document["key_given"], document["anchored"]) == (True, True, True)
    assert int(str(document["events"])) >= int(str(head["size"]))


def test_a_request_is_shown_as_a_timeline(home: Path):
    """From the files and from the gateway the same story comes, in its order, with durations."""
    assert invoke(home, "--text", "for a story").code == 0
    lines = gateway("ledger", "tail", "-n", "60", "--output", "ndjson", home=home).documents()
    accepts = [one["f"] for one in lines if one["event_type"] == "invoke.accept"]
    assert isinstance(accepts[-1], dict)
    request = str(accepts[-1]["request_id"])
    story = gateway("ledger", "show", request, "--output", "json", home=home).document()
    assert story["schema"] == "omega.request_story/1"
    events = story["events"]
    assert isinstance(events, list)
    assert [one["event_type"] for one in events] == [
        "frame.in", "invoke.accept", "frame.out", "frame.in", "invoke.end", "frame.out"
    ]
    took = story["durations"]
    assert isinstance(took, dict)
    assert 0 < took["worker_us"] <= took["total_us"] == events[-1]["after_us"]
    assert sum(one["since_us"] for one in events) == took["total_us"]
    table = gateway("ledger", "show", request, home=home)
    assert (table.code, table.err) == (0, "")
    assert "echo-plugin@" in table.out
    assert "invoke.accept" in table.out
    profile = str(home / "profiles" / "auditor")
    asked = gateway("ledger", "show", request, "--profile", profile, "--output", "ndjson",
                    home=home).documents()
    assert [one["seq"] for one in asked] == [one["seq"] for one in events]
    unknown = request[:-4] + ("0000" if not request.endswith("0000") else "1111")
    assert gateway("ledger", "show", unknown, home=home).code == 1
    assert gateway("ledger", "show", unknown, "--profile", profile, home=home).code == 1
    assert gateway("ledger", "show", "yesterday", home=home).code == 2


def test_the_ledger_is_audited_while_it_grows(home: Path):
    """Every invariant holds in what this gateway did; the report names them one by one."""
    done = gateway("ledger", "audit", "--output", "json", home=home)
    assert (done.code, done.err) == (0, "")
    report = done.document()
    assert (report["schema"], report["ok"], report["key_given"]) == ("omega.audit/1", True, True)
    verdicts = report["verdicts"]
    assert isinstance(verdicts, list)
    assert verdicts[0]["name"] == "AUD-01"
    table = gateway("ledger", "audit", home=home).out
    assert all(one["sentence"] in table for one in verdicts)


def test_the_tail_follows(home: Path):
    """`tail -f` prints an event that happens while it runs, and Ctrl-C ends it with 0."""
    process = subprocess.Popen(
        [sys.executable, "-m", "broker.cli.main", "ledger", "tail", "-n", "1", "-f", "--output",
         "ndjson"], env=environment(home), stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first
        assert gateway("status", home=home).code == 0
        assert b'"type":"status"' in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()


def test_a_flipped_byte_ends_with_seven(home: Path, tmp_path: Path):
    """In a copy of the ledger one changed byte is found, and its file and place are named."""
    copy = tmp_path / "ledger"
    subprocess.run(["cp", "-r", str(home / "ledger"), str(copy)], check=True)
    done = gateway("ledger", "verify", str(copy), home=home)
    assert done.code == 0
    assert "no key was given" in done.err
    segment = next((copy / "segments").iterdir())
    data = bytearray(segment.read_bytes())
    data[200] ^= 1
    segment.write_bytes(data)
    done = gateway("ledger", "verify", str(copy), "--output", "json", home=home)
    assert done.code == 7
    assert done.document()["ok"] is False
    assert f"{segment} at byte 0" in done.err
    done = gateway("ledger", "audit", str(copy), home=home)
    assert (done.code, done.out) == (7, "")
    assert f"{segment} at byte 0" in done.err


def test_a_key_is_revoked_at_once(home: Path, tmp_path: Path):
    """A key of the running gateway stops working with `keys revoke`; 4 is what it gets."""
    keys = gateway("keys", "list", "--output", "ndjson", home=home).documents()
    auditor = next(one["key_id"] for one in keys if one["role"] == "auditor")
    profile = str(home / "profiles" / "auditor")
    assert gateway("status", "--profile", profile, home=home).code == 0
    done = gateway("keys", "revoke", str(auditor), "--output", "json", home=home)
    assert done.code == 0
    assert done.document()["revoked"] is True
    assert gateway("status", "--profile", profile, home=home).code == 4
    new = tmp_path / "new"
    assert gateway("keys", "new", "--role", "auditor", "--profile", str(new), home=home).code == 0
    refused = gateway("status", "--profile", str(new), home=home)
    assert refused.code == 4
    assert "at its next start" in refused.err


def test_a_second_gateway_is_refused(home: Path):
    """Serving a home that is served ends with 5 and names the socket."""
    done = gateway("serve", home=home)
    assert done.code == 5
    assert "another process serves this endpoint" in done.sentence()
    assert gateway("status", home=home).code == 0


def test_a_full_life_ends_with_zero(tmp_path: Path):
    """`serve --set` takes a line of configuration, SIGTERM drains, and the exit code is 0."""
    with tempfile.TemporaryDirectory(prefix="og-") as folder:
        path = Path(folder) / "home"
        assert gateway("init", "--domain", "development", home=path).code == 0
        with serving(path, "--set", "limits.in_flight_max=7") as process:
            status = gateway("status", "--output", "json", home=path).document()
            assert status["in_flight_max"] == 7
        assert process.returncode == 0
        assert gateway("ledger", "verify", home=path).code == 0
        # What the broker left behind is files; no socket of it answers.
        assert gateway("status", home=path).code == 3


def test_an_external_worker_serves(tmp_path: Path):
    """`worker PLUGIN` waits, becomes the worker that the gateway asked for, and answers a call."""
    with tempfile.TemporaryDirectory(prefix="og-") as folder:
        path = Path(folder) / "home"
        assert gateway("init", "--domain", "development", home=path).code == 0
        with (path / "gateway.toml").open("a") as file:
            file.write('\n[workers]\nexternal = ["echo-plugin"]\n')
        with serving(path), open(os.devnull, "wb") as null:
            bundled = bundle(path, "1.0.0")
            assert gateway("plugins", "register", str(bundled), home=path).code == 0
            assert gateway("plugins", "enable", "echo-plugin", home=path).code == 0
            worker = subprocess.Popen(
                [sys.executable, "-m", "broker.cli.main", "worker", "echo-plugin"],
                env=environment(path), stdout=null, stderr=null,
            )
            try:
                assert invoke(path, "--text", "from outside", "--timeout", "30000").out == (
                    "from outside"
                )
                status = gateway("status", "--output", "json", home=path).document()
                assert isinstance(status["workers"], list)
                assert len(status["workers"]) == 1
            finally:
                worker.terminate()
                worker.wait(PATIENCE_S)


def test_a_ledger_that_cannot_be_written_ends_with_seventy_four():
    """Under a limit on the size of files the gateway stops with 74 and says what failed."""
    with tempfile.TemporaryDirectory(prefix="og-") as folder:
        path = Path(folder) / "home"
        assert gateway("init", "--domain", "development", home=path).code == 0
        with open(Path(folder) / "said", "wb") as said:
            process = subprocess.Popen(
                ["prlimit", f"--fsize={16 * 1024}", sys.executable, "-m", "broker.cli.main",
                 "serve"], env=environment(path), stdout=said, stderr=said,
            )
        try:
            wait_for("the end", lambda: process.poll() is not None
                     or gateway("status", home=path).code not in (0, 3))
            assert process.wait(PATIENCE_S) == 74
        finally:
            process.kill()
            process.wait()
        text = (Path(folder) / "said").read_text()
        assert "Traceback" not in text
        assert "next: Mend the volume" in text
