"""The mistakes of a new author's first hour: each gets one message with what, where and a line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker.authoring.hazards import INSTEAD, hazards
from broker.authoring.local import LocalGateway
from broker.authoring.pack import pack, sign
from broker.authoring.source import read_folder
from broker.authoring.telling import status_of
from broker.authoring.trying import try_once
from broker.client import GatewayError
from broker.home import PUBLISHER_KEY
from broker.keys import read_secret
from schemas.denials import DENIALS
from tests.trust.builders import SEED_B

pytestmark = [pytest.mark.jail, pytest.mark.system, pytest.mark.once]

PLUGIN = """import msgspec

from sandbox_worker.sdk import Context, TextPayload, method
{imports}

class Answer(msgspec.Struct):
    size: int


{decorator}
def measure(context: Context, text: TextPayload) -> {promise}:
    {body}
    return {answer}
"""
FORMS = ("text", "json_text", "file", "artifact", "dataset", "keys", "media_type")


@dataclasses.dataclass
class Mistake:
    """What an author wrote, the words of the message, and the exit code."""

    words: tuple[str, ...]
    status: int
    body: str = "pass"
    imports: str = ""
    modules: str = ""
    decorator: str = "@method()"
    promise: str = "Answer"
    answer: str = "Answer(len(text.text))"

    def write(self, folder: Path, name: str) -> str:
        """Write the plugin's folder."""
        folder.mkdir()
        (folder / "plugin.py").write_text(PLUGIN.format(
            imports=self.imports, decorator=self.decorator, promise=self.promise, body=self.body,
            answer=self.answer,
        ))
        (folder / "plugin.toml").write_text(
            f'id = "{name}"\nversion = "1.0.0"\napi_version = "1.0.0"\npublisher = "development"\n'
            f'description = "Measures."\nmodules = ["msgspec"{self.modules}]\n[limits]\n'
            "cpu_ms = 200\nwall_ms = 3000\noutput_bytes = 4096\n"
        )
        return str(folder)


CALLED = {
    "forgotten decorator": Mistake(
        ("manifest_invalid at plugin.py line 11: found measure() without a decorator",
         "@method() on the line above it"), 5, decorator="",
    ),
    "wrong return type": Mistake(
        ("output_schema_violation", "does not fit its schema at $ (type)",
         "a return of what measure() promises behind its ->"), 1, answer="'a text'",
    ),
    "type without json": Mistake(
        ("manifest_invalid at measure() return", "complex", "a payload type or a Struct"), 5,
        promise="complex",
    ),
    "undeclared module": Mistake(
        ("manifest_invalid at plugin.toml.modules", "imports csv",
         'Write: modules = ["csv", "msgspec"]'), 5, imports="import csv",
    ),
    "network call": Mistake(
        ("module_not_allowed", "found socket", "note socket at plugin.py line 4: import socket",
         "take what you would fetch as the method's input"), 5,
        imports="import socket", modules=', "socket"',
        body="socket.create_connection(('192.0.2.1', 80))",
    ),
    "file open": Mistake(
        ("plugin_error", 'File "plugin.py", line 12, in measure',
         "note file at plugin.py line 12: open", 'resources = ["FILE"]',
         'context.resource("FILE")'), 1, body="open('words.txt')",
    ),
    "clock": Mistake(
        ("plugin_error", 'File "plugin.py", line 12, in measure',
         "note clock at plugin.py line 12: datetime.datetime.now",
         'capabilities = ["clock.read"]'), 1,
        imports="from datetime import datetime", modules=', "datetime"', body="datetime.now()",
    ),
    "thread": Mistake(
        ("module_not_allowed", "note thread at plugin.py line 4: import threading",
         "call the function itself"), 5,
        imports="import threading", modules=', "threading"',
        body="threading.Thread(target=len).start()",
    ),
    "print flood": Mistake(
        ("(printed more than 32768 letters; the rest is dropped, return it instead)",), 0,
        body="print('flood ' * 9_000)",
    ),
    "endless loop": Mistake(
        ("cpu_limit_exceeded", "allowed 200", "an end to what measure() does too long",
         "plugin.toml under [limits]: cpu_ms = 400"), 1, body="while True: pass",
    ),
    "huge output": Mistake(
        ("output_limit_exceeded", "allowed 4096", "[limits]: output_bytes = 8192"), 1,
        promise="TextPayload", answer="TextPayload('x' * 9_000)",
    ),
    "memory": Mistake(
        ("memory_limit_exceeded", "[limits]: memory_mb = 512"), 1, body="bytearray(10 ** 9)",
    ),
    "unclosed bracket": Mistake(
        ("plugin.py line 13", "'(' was never closed"), 5, answer="(",
    ),
}


@pytest.fixture(scope="module")
def gateway() -> Iterator[LocalGateway]:
    """One gateway for all mistakes."""
    with LocalGateway() as running:
        yield running


@pytest.mark.parametrize("name", CALLED)
def test_a_mistake_is_one_message_with_its_place_and_the_line_to_write(
    name: str, gateway: LocalGateway, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    """`omega-plugin call` says what happened, where, and what to write."""
    mistake = CALLED[name]
    folder = mistake.write(tmp_path / "plugin", name.replace(" ", "-"))
    status = try_once(gateway, folder, "measure", {**dict.fromkeys(FORMS), "text": "some text"})
    said = capfd.readouterr().err
    assert (status, [words for words in mistake.words if words not in said]) == (
        mistake.status, []
    ), said
    assert said.count("refused: ") + said.count("_invalid at ") <= 1, said


def test_a_method_that_is_not_decorated_among_others(
    gateway: LocalGateway, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    """Where other methods exist, the call of the forgotten one says what is missing above it."""
    folder = Mistake((), 0).write(tmp_path / "plugin", "another-method")
    status = try_once(gateway, folder, "weigh", {**dict.fromkeys(FORMS), "text": "x"})
    said = capfd.readouterr().err
    assert status == 1
    assert "unknown_method" in said
    assert "@method() on the line above def weigh(context: ...)" in said


REGISTERED: dict[str, tuple[Callable[[bytes, bytes], bytes], tuple[str, ...], int]] = {
    "unsigned bundle": (
        lambda data, _seed: data,
        ("bundle_malformed", "not signed", "omega-plugin sign FILE --key KEY"), 5,
    ),
    "wrong key": (
        lambda data, _seed: sign(data, [SEED_B], "development").data,
        ("signature_invalid", "0 of 1 listed keys", "omega-plugin sign FILE --key KEY"), 6,
    ),
    "version not raised": (
        lambda data, seed: sign(data, [seed], "development").data,
        ("version_not_raised", "found 1.0.0", 'in plugin.toml: version = "1.0.1"'), 5,
    ),
}


@pytest.mark.parametrize("name", REGISTERED)
def test_a_bundle_that_is_refused_says_what_to_do_with_it(
    name: str, gateway: LocalGateway, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    """Registering says which of signature, key and version is wrong, and what mends it."""
    make, words, status = REGISTERED[name]
    folder = Mistake((), 0).write(tmp_path / "plugin", "to-register")
    gateway.install(folder)
    changed = Mistake((), 0, body="1 + 1").write(tmp_path / "changed", "to-register")
    seed = bytes.fromhex(read_secret(f"{gateway.home}/{PUBLISHER_KEY}"))
    data = make(pack(read_folder(changed), "development").data, seed)
    with pytest.raises(GatewayError) as caught:
        gateway.operator.register_plugin(data)
    assert status_of(caught.value) == status
    said = capfd.readouterr().err
    assert [word for word in words if word not in said] == [], said


@pytest.mark.parametrize(("source", "capabilities", "found"), [
    ("import time as t\nt.sleep(1)\n", (), [("clock", 2, "time.sleep")]),
    ("import time as t\nt.sleep(1)\n", ("clock.read",), []),
    ("from os import environ\nenviron['A']\n", (),
     [("module", 1, "import os"), ("environment", 2, "os.environ")]),
    ("def f():\n    from urllib import request\n", (), [("socket", 2, "import urllib.request")]),
    ("import secrets, subprocess\n", (),
     [("random", 1, "import secrets"), ("process", 1, "import subprocess")]),
    ("import ctypes, json\nfrom urllib import parse\nfrom os.path import join\n", (),
     [("module", 1, "import ctypes"), ("module", 3, "import os.path")]),
    ("print(1)\n", (), [("print", 1, "print")]),
    ("self.open()\nopened = 1\n", (), []),
    ("def (", (), []),
])
def test_what_will_be_denied_is_found_in_the_source(
    source: str, capabilities: tuple[str, ...], found: list[tuple[str, int, str]]
):
    """By the names that imports gave, with its line, unless a capability covers it."""
    assert [one[:3] for one in hazards(source, capabilities)] == found


def test_every_class_of_denial_says_what_to_write():
    """But an import, for which `check` writes the line itself."""
    assert {*DENIALS, "module", "print"} - {"import"} == set(INSTEAD)
