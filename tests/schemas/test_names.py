"""Names and numbers: what the patterns let through, to the last character."""

from __future__ import annotations

import re
from typing import get_args

import msgspec
import pytest

from schemas import names
from tests.schemas import samples

_RIGHT: dict[str, tuple[str, ...]] = {
    "RequestId": (samples.REQUEST,),
    "TraceParent": (samples.TRACE,),
    "PluginId": ("abc", "a-1", "a" * 64),
    "MethodName": ("a", "word_count2", "a" * 64),
    "VersionText": ("1.2.3", "0.0.0", "1.0.0-rc.1"),
    "VersionRequest": ("1.2.3", "^1.2", "1.0.0-rc.1"),
    "Sha256": ("0" * 64,),
    "KeyId": ("0123456789abcdef",),
    "SchemaId": ("sha256:" + "0" * 64,),
    "CapabilityName": (
        "clock.read", "random.read", "artifact.read", "net.connect", "process.spawn",
        "env.read:LANG", "fs.read:corpus",
    ),
    "EnvironmentName": ("A", "LANG_2"),
    "RootedPath": ("corpus/a", "corpus/en/words.txt", "c-2/A/b.c/_d/x-y"),
    "StepName": ("a", "first-step_2"),
    "Incarnation": ("0" * 32,),
    "LogId": (samples.LOG_ID,),
    "ArtifactId": ("A", "scan:17.b_c-d"),
    "Name": ("a", "acme-tools"),
    "FilePath": ("plugin.py", "data/words.txt"),
    "ModuleName": ("json", "xml.etree.ElementTree"),
    "ShortText": ("", "A sentence."),
    "PluginText": ("", "Grüße, 世界"),
    "Commitment": ("0" * 64,),
}
_WRONG: dict[str, tuple[str, ...]] = {
    "RequestId": ("", samples.REQUEST[:-1], "{" + samples.REQUEST + "}"),
    "TraceParent": ("ff" + samples.TRACE[2:],),
    "PluginId": ("ab", "Abc", "1bc", "a" * 65, "a_b", "a/b", "../x", "a\u0430bc"),
    "MethodName": ("", "_x", "X", "a-b", "a" * 65, "__init__"),
    "VersionText": ("1.2", "v1.2.3", "1.2.3+build", "1.2.x", "1.2.3-", "\u0661.0.0"),
    "VersionRequest": ("^1", "^1.2.3", ">=1.2.0", "*", "~1.2"),
    "Sha256": ("0" * 63, "A" * 64, "g" * 64),
    "KeyId": ("0" * 15, "0" * 17),
    "SchemaId": ("0" * 64, "md5:" + "0" * 32),
    "CapabilityName": ("clock", "clock.write", "env.read", "env.read:lang", "fs.read:../x",
                       "fs.read:", "fs.write:corpus"),
    "EnvironmentName": ("", "lang", "_A", "2A", "A-B", "A" * 65),
    "RootedPath": ("", "corpus", "corpus/", "/corpus/a", "corpus/../a", "corpus/.a", "corpus//a",
                   "Corpus/a", "corpus/a b", "corpus/" + "/".join("abcdefghi")),
    "StepName": ("", "-a", "A"),
    "Incarnation": ("0" * 31,),
    "LogId": ("omega-gateway/test/0123456789abcdef", "x" + samples.LOG_ID),
    "ArtifactId": ("", ".hidden", "a/b", "a" * 129),
    "Name": ("", "a.b"),
    "FilePath": ("", "/x", "../x", "a/../b", "a//b", ".x", "a/", "a\\b", "-x",
                 "/".join("abcdefghi")),
    "ModuleName": ("", ".x", "a..b", "a b", "1a"),
    "ShortText": ("\x1b[31m", "é", "tab\t", "x" * 1025),
    "PluginText": ("\x1b[31m", "two\nlines", "\x9b", "x" * 1025),
    "Commitment": ("0" * 65,),
}


def _accepts(name: str, value: object) -> bool:
    try:
        msgspec.convert(value, getattr(names, name))
    except msgspec.ValidationError:
        return False
    return True


@pytest.mark.parametrize("name", sorted(_RIGHT))
def test_right_names_pass(name: str) -> None:
    """Each example of a right name is accepted."""
    for value in _RIGHT[name]:
        assert _accepts(name, value), value


@pytest.mark.parametrize("name", sorted(_RIGHT))
def test_a_newline_at_the_end_is_refused(name: str) -> None:
    """No pattern lets a name through that a line-based reader would read as another."""
    for value in _RIGHT[name]:
        assert not _accepts(name, value + "\n"), value


@pytest.mark.parametrize("name", sorted(_WRONG))
def test_wrong_names_are_refused(name: str) -> None:
    """Each example of a wrong name is refused, and every pattern has such examples."""
    assert set(_WRONG) == set(_RIGHT)
    for value in _WRONG[name]:
        assert not _accepts(name, value), value


def test_every_pattern_is_whole_and_tested() -> None:
    """Each pattern is anchored at both ends, and each has examples here."""
    for name, kind in vars(names).items():
        for meta in get_args(kind)[1:]:
            pattern = getattr(meta, "pattern", None)
            if pattern is not None:
                assert pattern.startswith("^"), name
                assert pattern.endswith(r"$(?!\n)"), name
                assert re.compile(pattern)
                assert name in _RIGHT


@pytest.mark.parametrize("name", ["Count", "Milliseconds", "Microseconds"])
def test_numbers_are_exact_in_json(name: str) -> None:
    """Every number fits RFC 8785's exact integers and none is negative."""
    assert _accepts(name, 0)
    assert _accepts(name, 2**53 - 1)
    for value in (-1, 2**53, True, 1.0, "1"):
        assert not _accepts(name, value), value


def test_times_are_bounded() -> None:
    """A timeout is between a millisecond and an hour."""
    assert [_accepts("TimeoutMs", value) for value in (0, 1, 3_600_000, 3_600_001)] == [
        False, True, True, False,
    ]


def test_sizes_are_those_of_the_design() -> None:
    """The bounds that clients rely on are the published ones."""
    assert names.FRAME_BYTES_MAX_OMEGA == 2 * 2**20
    assert names.FRAME_BYTES_MAX_ADMIN == 16 * 2**20
    assert names.JSON_BYTES_MAX == 256 * 2**10
    assert names.JSON_SLOW_BYTES_MAX == 64 * 2**10
    assert names.TEXT_BYTES_MAX == 2**20
    assert names.INTEGER_MAX == 2**53 - 1
