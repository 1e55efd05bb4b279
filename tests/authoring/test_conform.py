"""The conformance suite finds each thing that a plugin can do wrong, by its rule."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from broker.authoring.conform_cases import MARK, SAMPLE_BYTES_MAX, Case, Inputs
from broker.authoring.conform_schemas import Documents, pattern_sample
from broker.authoring.main import main
from broker.authoring.pack import pack
from broker.authoring.source import read_folder
from broker.cli.ends import CommandError
from broker.trust.json_schemas import compile_schema
from schemas.canonical import canonical_bytes, check_canonical, struct_bytes
from schemas.conformance import RULES, ConformanceReport, suite_digest
from schemas.names import JSON_BYTES_MAX, JSON_DEPTH_MAX
from schemas.payloads import DatasetSlicePayload

BAD = '''
import sys
import msgspec

from sandbox_worker.sdk import Context, DatasetSlicePayload, InvalidInput, JSONPayload
from sandbox_worker.sdk import TextPayload, method

system = sys.modules["os"]


class Tree(msgspec.Struct):
    tree: object


@method()
def con_01(context: Context, data: DatasetSlicePayload) -> str:
    raise InvalidInput("never")


@method()
def con_02(context: Context, data: DatasetSlicePayload) -> str:
    return {("a", "b"): []}.get(data.keys, ["x"])[0]


@method()
def con_03(context: Context, data: DatasetSlicePayload) -> str:
    return data.keys[0][:1]


@method()
def con_04(context: Context, data: DatasetSlicePayload) -> str:
    assert len(data.keys) < 5_000
    return "x"


def depth(tree: object) -> int:
    inner = tree if isinstance(tree, list) else tree.values() if isinstance(tree, dict) else ()
    return 1 + max(map(depth, inner), default=0)


@method()
def con_05(context: Context, document: Tree) -> str:
    assert depth(document.tree) < 20
    return "x"


@method()
def con_06(context: Context, data: DatasetSlicePayload) -> str:
    return "".join(data.keys)[:100].encode("ascii").decode()


@method()
def con_07(context: Context, document: JSONPayload) -> str:
    return str(document.data.get("n"))


@method()
def con_08(context: Context, document: JSONPayload) -> str:
    found = document.data
    return str(found["n"] + found["m"])


@method()
def con_09(context: Context, document: JSONPayload) -> str:
    (found,) = document.data.values()
    return str(found)


@method()
def con_10(context: Context, text: TextPayload) -> str:
    assert text.media_type != "text/html"
    return "x"


@method()
def con_11(context: Context, data: DatasetSlicePayload) -> str:
    while data.keys == ("a", "b"):
        pass
    return "x"


@method(timeout_ms=1200)
def con_12(context: Context, data: DatasetSlicePayload) -> str:
    if data.keys == ("a", "b"):
        system.read(3, 1)
    return "x"


@method()
def con_13(context: Context, data: DatasetSlicePayload) -> str:
    return str(len(bytearray(10 ** 9 if data.keys == ("a", "b") else 1)))


@method()
def con_14(context: Context, data: DatasetSlicePayload) -> str:
    return "x" * (9_000 if data.keys == ("a", "b") else 1)


@method()
def con_15(context: Context, data: DatasetSlicePayload) -> Tree:
    return 7 if data.keys == ("a", "b") else Tree(None)


@method()
def con_16(context: Context, data: DatasetSlicePayload) -> str:
    if data.keys == ("a", "b"):
        system.abort()
    return "x"


@method(deterministic=True)
def con_17(context: Context, data: DatasetSlicePayload) -> str:
    return context.request_id


@method()
def con_19(context: Context, data: DatasetSlicePayload) -> str:
    return "MARK"


@method()
def con_20(context: Context, data: DatasetSlicePayload) -> str:
    if data.keys == ("a", "b"):
        context.progress(0.9)
        # No two notes of one call go out within 100 ms, and there is no clock to wait by: of many
        # one will be late enough.
        for _ in range(12):
            sum(range(3_000_000))
            context.progress(0.1)
    return "x"
'''.replace("MARK", MARK)
TOML = """
id = "bad-plugin"
version = "1.0.0"
api_version = "1.0.0"
publisher = "development"
description = "Breaks every rule, each in one method."
modules = ["msgspec"]
[limits]
cpu_ms = 1000
wall_ms = 20000
memory_mb = 256
output_bytes = 8192
[methods.con_07]
input_schema = "loose.json"
[methods.con_08]
input_schema = "one.json"
[methods.con_09]
input_schema = "open.json"
"""
UNSTEADY = dict.fromkeys(RULES, ()) | dict.fromkeys(("CON-17", "CON-18", "CON-19"), ("con_17",))
"""An answer that is never the same is no answer as before, either. That a request's id is in it is
what the gateway's own second run cannot see: it is of the same request."""
FILES = {
    "plugin.py": BAD,
    "plugin.toml": TOML,
    "loose.json": '{"properties": {"n": {"type": "integer"}}}',
    "one.json": '{"type": "object", "minProperties": 1, "properties": {"n": {"type": "integer"}, '
                '"m": {"type": "integer"}}, "additionalProperties": false}',
    "open.json": '{"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}',
}


@pytest.mark.jail
@pytest.mark.system
@pytest.mark.once
def test_each_rule_is_broken_by_a_method_that_breaks_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    """A plugin whose methods do one thing wrong each: every rule names its own method, on the
    terminal and in the report, and the command ends with 1."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    written = tmp_path / "report.json"
    with pytest.raises(SystemExit) as ended:
        main(["conform", str(tmp_path), "-o", str(written)])
    assert ended.value.code == 1
    report = msgspec.json.decode(written.read_bytes(), type=ConformanceReport)
    said = capfd.readouterr().out
    found = {
        one.rule: {shown.method for shown in one.evidence}
        for one in report.rules if one.verdict == "broken"
    }
    for one in report.rules:
        for shown in one.evidence:
            assert one.verdict != "broken" or shown.request_id in said
    assert found == {
        rule: {rule.lower().replace("-", "_"), *UNSTEADY[rule]} - {"con_18"} for rule in RULES
    }
    assert (report.plugin, report.suite_sha256) == ("bad-plugin", suite_digest())
    assert struct_bytes(report) == written.read_bytes()


@pytest.mark.parametrize(("arguments", "status", "words"), [
    (("bundle", "--home", "none"), 6, "name one with --trust-root FILE"),
    (("bundle", "--trust-root", "bundle"), 5, "not a DSSE envelope"),
    ((".", "--policy", "policy.toml"), 5, "wants the report that this makes"),
    ((".", "--sign-key", "open.key"), 5, "chmod 600"),
    (("nowhere",), 2, "does not exist"),
])
def test_what_cannot_be_tried_is_one_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    arguments: tuple[str, ...], status: int, words: str,
):
    """No trust root, none that is one, a policy that wants what is made, a key open to others."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bundle").write_bytes(b"bundle")
    (tmp_path / "policy.toml").write_text('conformance_required = ["word-*"]\n')
    (tmp_path / "open.key").write_text("00" * 32)
    (tmp_path / "open.key").chmod(0o644)
    with pytest.raises(SystemExit) as ended:
        main(["conform", *arguments])
    said = capfd.readouterr()
    assert (ended.value.code, said.out, words in said.err) == (status, "", True), said.err
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize(("name", "data", "words"), [
    ("con_02.txt", b"a b c", None),
    ("con_02-caf\u00e9.txt", b"a b c", None),
    ("con_02-more.txt", b"\xff", "is no dataset_slice"),
    ("con_05.json", b'{"tree": ', "is no json"),
    ("unknown.txt", b"", "names no method"),
    ("con_10.txt", b"a" * (SAMPLE_BYTES_MAX + 1), "has more than"),
])
def test_samples_are_inputs_or_one_refusal(
    tmp_path: Path, name: str, data: bytes, words: str | None
):
    """An author's own input is sent first; what is none is named with its file."""
    source, samples = tmp_path / "source", tmp_path / "samples"
    for folder in (source, samples):
        folder.mkdir()
    for file_name, text in FILES.items():
        (source / file_name).write_text(text)
    (samples / name).write_bytes(data)
    manifest = pack(read_folder(str(source)), "development").manifest

    def first(method: str) -> Case:
        return Inputs(manifest, str(tmp_path), str(samples)).cases(method)[0]

    if words is None:
        assert first("con_02").name == f"sample {name}".replace("\u00e9", "\\xe9")
        assert first("con_02").payload == DatasetSlicePayload("conformance", ("a", "b", "c"))
        return
    with pytest.raises(CommandError, match=words):
        first(name[:6])


SCHEMAS: dict[str, dict[str, object]] = {
    "members": {
        "$ref": "#/$defs/A",
        "$defs": {"A": {
            "type": "object", "required": ["n", "t"], "properties": {
                "n": {"type": "integer", "minimum": 3, "exclusiveMaximum": 10},
                "t": {"type": "string", "minLength": 2, "maxLength": 20},
                "l": {"type": "array", "items": {"$ref": "#/$defs/B"}, "maxItems": 3},
                "o": {"anyOf": [{"type": "null"}, {"type": "number", "multipleOf": 4}]},
            },
        }, "B": {"type": "string", "pattern": "^(a|b)[0-9]{2,4}x*$"}},
    },
    "anything": {},
    "an open place": {"type": "object", "properties": {"a": {}}, "required": ["a"]},
    "numbers": {"type": "array", "items": {"type": "integer"}, "minItems": 2},
    "a table": {"additionalProperties": {"type": "boolean"}, "type": "object"},
    "words": {"enum": ["one", "two"]},
    "parts": {
        "allOf": [{"type": "object", "required": ["a"]}, {"properties": {"a": {"const": "x"}}}],
    },
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_documents_fit_their_schema_and_are_the_same_every_time(name: str):
    """What is said to fit does, by the gateway's own validator, within what the wire takes."""
    schema = canonical_bytes(SCHEMAS[name])
    documents, again, validator = Documents(schema), Documents(schema), compile_schema(schema)
    assert documents.bounds()
    assert documents.largest()
    for kind in ("bounds", "empty", "largest", "deepest", "hostile"):
        made = getattr(documents, kind)()
        assert made == getattr(again, kind)()
        assert [validator.problem(check_canonical(one)) for one in made] == [None] * len(made)
    for kind in ("wrong_types", "without_members", "with_members"):
        assert all(len(one) <= JSON_BYTES_MAX for one in getattr(documents, kind)())


def test_documents_reach_the_bounds():
    """Both ends of a number and a text, the gateway's depth, and nearly its size."""
    members = Documents(canonical_bytes(SCHEMAS["members"])).bounds()
    for piece in (b'"n":3', b'"n":9', b'"t":"aa"', b'"t":"' + b"a" * 20, b'"o":null', b'"l":[]'):
        assert any(piece in one for one in members), piece
    anything = Documents(canonical_bytes({}))
    assert anything.deepest()[0] == b"[" * JSON_DEPTH_MAX + b"]" * JSON_DEPTH_MAX
    assert len(anything.largest()[0]) > JSON_BYTES_MAX * 9 // 10
    assert anything.marked(MARK) == f'"{MARK}"'.encode()
    assert Documents(canonical_bytes(SCHEMAS["numbers"])).marked(MARK) is None


@pytest.mark.parametrize("pattern", [
    "^[a-z][a-z0-9-]{2,63}$", "^(aa|bb)+$", r"^\d{4}-\d{2}-\d{2}$", "^[^ ]*$", r"^a\.b?c*$",
    "^(?:x(y|z)){2}$", "^.{3}$", "^",
])
def test_patterns_are_sampled(pattern: str):
    """The short and the long text both fit the pattern."""
    validator = compile_schema(canonical_bytes({"type": "string", "pattern": pattern}))
    for more in (False, True):
        assert validator.problem(pattern_sample(pattern, more=more)) is None
