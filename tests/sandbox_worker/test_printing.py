"""What a plugin prints: to the author's terminal in a development domain, else to nobody."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from sandbox_worker.printing import TEXT_LETTERS_MAX
from schemas.messages import CallFailure, CallResult
from schemas.names import Domain
from tests.sandbox_worker.harness import LIMITS, Worker, make_bundle, text_to_json
from tests.support.gateway import wait_for

pytestmark = [pytest.mark.jail, pytest.mark.system]

PLUGIN = '''
import os
import sys

from sandbox_worker.sdk import method


@method()
def main(ctx, text):
    return eval(text.text)


def fail():
    raise ValueError("on purpose")


def hang():
    print("before it hangs")
    while True:
        pass


def forge(text):
    body = b"\\x92\\xa5wrote" + bytes([0xd9, len(text)]) + text
    os.write(3, len(body).to_bytes(4, "big") + body)
'''


class Author:
    """A worker and the pipe that stands for the terminal of its plugin's author."""

    def __init__(self, folder: Path, domain: Domain, *, reads: bool = True) -> None:
        """Start the worker with the pipe as its stderr."""
        self._read, write = os.pipe()
        self._text, self._marks = "", 0
        limits = msgspec.structs.replace(LIMITS, cpu_ms=500)
        bundle = make_bundle(
            folder, PLUGIN, methods=text_to_json(), limits=limits, domain=domain
        )
        self.worker = Worker(folder, bundle, limits=limits, stderr=write)
        os.close(write)
        try:
            self.worker.ready()
        except AssertionError:
            self.worker.close()
            raise
        self._reader = threading.Thread(target=self._follow)
        if reads:
            self._reader.start()

    def _follow(self) -> None:
        while data := os.read(self._read, 1 << 16):
            self._text += data.decode()

    def fill(self) -> None:
        """Make the pipe small, so that what nobody reads fills it."""
        fcntl.fcntl(self._read, fcntl.F_SETPIPE_SZ, 4096)

    def seen(self) -> str:
        """What the terminal shows since this was last asked, calls that have ended included."""
        self._marks += 1
        mark = f"mark {self._marks}"
        self.worker.value(f"print({mark!r})")
        wait_for(mark, lambda: mark in self._text)
        seen, self._text = self._text, ""
        return seen[: seen.rindex("\n", 0, seen.rindex(mark)) + 1]

    def close(self) -> str:
        """End the worker, and give what the terminal showed to its end."""
        self.worker.close()
        if self._reader.is_alive():
            self._reader.join()
        os.close(self._read)
        return self._text


@pytest.fixture(scope="module")
def author(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Author]:
    """An author's worker in a development domain."""
    one = Author(tmp_path_factory.mktemp("author"), "development")
    yield one
    one.close()


def test_an_author_sees_what_the_plugin_prints_line_by_line(author: Author) -> None:
    """stdout, stderr and the log arrive as lines behind plugin and call, also without an end."""
    author.worker.value('[print("one", 2), print("three", file=sys.stderr), ctx.log("four")]')
    author.worker.value('[sys.stdout.write("no "), sys.stdout.write("end"), sys.stdout.flush()]')
    lines = author.seen().splitlines()

    assert [line.partition("| ")[2] for line in lines] == ["one 2", "three", "four", "no end"]
    assert {line.split()[0] for line in lines} == {"plugin-under-test"}
    assert len({line.partition("|")[0] for line in lines}) == 2


def test_an_author_sees_the_last_words_of_a_call_that_hangs(author: Author) -> None:
    """What was printed before the limit struck is there although nothing came after."""
    end = author.worker.call("hang()")

    assert isinstance(end, CallFailure)
    assert end.code == "cpu_limit_exceeded"
    assert "| before it hangs\n" in author.seen()


def test_an_author_sees_the_traceback_and_omega_the_sentence(author: Author) -> None:
    """The traceback begins in the plugin's file and names no path of the machine."""
    end = author.worker.call("fail()")

    assert isinstance(end, CallFailure)
    assert (end.plugin_message, end.denied) == ("ValueError: on purpose", None)
    text = author.seen()
    assert 'File "plugin.py", line ' in text
    assert text.count("File ") == text.count('File "plugin.py"') + text.count('File "<string>"')
    assert "| ValueError: on purpose\n" in text


def test_nothing_but_printable_lines_reaches_a_terminal(author: Author) -> None:
    """Escape sequences, carriage returns and lone surrogates come out harmless."""
    author.worker.value(r'print("\x1b]0;title\x07\rgone\x9b2J\u202e\ud800 ok")')
    text = author.seen()

    assert text.endswith(" ok\n")
    assert all(letter.isprintable() or letter == "\n" for letter in text)


def test_a_line_cannot_pass_for_another_calls(author: Author) -> None:
    """Whatever a plugin writes, each line on the terminal begins with our own words."""
    author.worker.value(r'print("x\nother-plugin 99| forged\n" * 3)')

    assert all(line.startswith("plugin-under-test ") for line in author.seen().splitlines())


def test_a_flood_is_cut_and_ends_nothing(author: Author) -> None:
    """Ten megabytes cost their call nothing; forged beyond it, they are dropped; both are told."""
    assert author.worker.value('[print("x" * 10_000_000), 7][1]') == 7
    end = author.worker.call('[forge(b"z" * 200) for _ in range(1_000)] and 8')
    text = author.seen()

    assert isinstance(end, CallResult)
    assert text.count("the rest is dropped, return it instead)") == 2
    assert text.count("x") == TEXT_LETTERS_MAX
    assert text.count("z") == TEXT_LETTERS_MAX


def test_a_terminal_that_does_not_read_holds_up_nobody(tmp_path: Path) -> None:
    """With the pipe full the lines are lost and calls are answered as ever."""
    one = Author(tmp_path, "development", reads=False)
    try:
        one.fill()
        for _ in range(4):
            assert one.worker.value('[print("x" * 30_000), 7][1]') == 7
    finally:
        one.close()


def test_in_production_nobody_hears_and_writing_is_a_broken_protocol(tmp_path: Path) -> None:
    """Prints, log and traceback go nowhere; a forged frame ends its call and is not shown."""
    one = Author(tmp_path, "production")
    try:
        assert one.worker.value('[print("secret" * 100_000), ctx.log("secret"), 7][2]') == 7
        assert isinstance(one.worker.call("fail()"), CallFailure)
        forged = one.worker.call('forge(b"secret")')
    finally:
        seen = one.close()

    assert isinstance(forged, CallFailure)
    assert forged.code == "output_invalid"
    assert seen == ""
