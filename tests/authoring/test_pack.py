"""Packing and signing: what a folder becomes, and every mistake an author can make in one."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from broker.authoring.pack import pack, sign
from broker.authoring.source import SourceRefused, read_folder
from broker.trust.bundles import read_archive, read_bundle, write_archive
from broker.trust.errors import TrustRefused
from schemas.refusals import RefusalCode
from tests.authoring.folders import PLUGIN, TOML, plugin_folder
from tests.trust.builders import (
    SEED_A,
    SEED_B,
    accepted,
    context,
    problems,
    trust_root,
    two_key_root,
)


def packed(folder: Path, domain="development"):
    """Read and pack a folder."""
    return pack(read_folder(str(folder)), domain)


def test_a_folder_becomes_a_bundle_that_a_gateway_accepts(tmp_path: Path):
    """Packed and signed, the manifest says what plugin.py and plugin.toml say."""
    folder = plugin_folder(tmp_path / "plugin", resources__csv="a,b\n",
                           toml=TOML + 'resources = ["resources.csv"]\n[limits]\ncpu_ms = 700\n')
    bundle = sign(packed(folder).data, [SEED_A])
    found = accepted(bundle.data)
    manifest = found.manifest
    assert manifest is not None
    method = manifest.methods["count"]
    assert (method.input.kind, method.output.kind) == ("text", "json")
    assert (method.deterministic, method.timeout_ms, method.idempotent) == (True, 20_000, False)
    schema = json.loads(bytes(manifest.schemas[method.output.schema or ""]))
    assert schema["$defs"]["Answer"]["properties"] == {"words": {"type": "integer"}}
    assert manifest.limits.cpu_ms == 700
    assert [entry.path for entry in manifest.files] == ["plugin.py", "resources.csv"]


def test_same_sources_same_bytes(tmp_path: Path):
    """Folder, time, mode and order of files leave no trace in a bundle."""
    first = plugin_folder(tmp_path / "one")
    second = plugin_folder(tmp_path / "two", notes__txt="not packed")
    os.utime(second / "plugin.py", (1, 1))
    (second / "plugin.py").chmod(0o700)
    one, two = packed(first), packed(second)
    assert one.data == two.data
    assert sign(one.data, [SEED_A]).data == sign(two.data, [SEED_A]).data


def test_an_unsigned_bundle_is_accepted_nowhere(tmp_path: Path):
    """What pack writes is refused until it is signed."""
    assert problems(packed(plugin_folder(tmp_path / "plugin")).data) == [
        ("bundle_malformed", "manifest.dsse.json")
    ]


def test_signatures_are_added_one_by_one(tmp_path: Path):
    """A second publisher key adds its signature to a signed bundle, in any order."""
    data = packed(plugin_folder(tmp_path / "plugin")).data
    one = sign(data, [SEED_A]).data
    known = context(trust=two_key_root())
    assert problems(one, known) == [("signature_threshold", "signatures")]
    both = sign(one, [SEED_B]).data
    accepted(both, known)
    assert both == sign(sign(data, [SEED_B]).data, [SEED_A]).data


def test_a_development_bundle_is_refused_in_production(tmp_path: Path):
    """The domain is chosen when packing and part of what is signed."""
    folder = plugin_folder(tmp_path / "plugin")
    development = sign(packed(folder).data, [SEED_A]).data
    production = sign(packed(folder, "production").data, [SEED_A]).data
    home = context(
        domain="production",
        trust=trust_root(domain="production"),
    )
    assert problems(development, home) == [("domain_mismatch", "payloadType")]
    accepted(production, home)
    with pytest.raises(TrustRefused) as caught:
        sign(packed(folder).data, [SEED_A], "production")
    assert caught.value.code is RefusalCode.DOMAIN_MISMATCH


def test_a_changed_bundle_is_not_signed(tmp_path: Path):
    """Signing refuses a bundle whose files are not its manifest's."""
    members = read_archive(packed(plugin_folder(tmp_path / "plugin")).data)
    for change in ({"plugin.py": b"import os"}, {"extra.py": b""}):
        with pytest.raises(SourceRefused) as caught:
            sign(write_archive(members | change), [SEED_A])
        assert caught.value.problems[0].code is RefusalCode.BUNDLE_FILES_MISMATCH
    with pytest.raises(TrustRefused):
        sign(write_archive({"plugin.py": b""}), [SEED_A])
    with pytest.raises(TrustRefused):
        sign(b"hello", [SEED_A])


def test_schemas_may_come_from_files(tmp_path: Path):
    """A method that takes a JSONPayload names its schema in plugin.toml."""
    source = PLUGIN.replace("TextPayload", "JSONPayload").replace("text.text.split()", "text.data")
    toml = TOML + '[methods.count]\ninput_schema = "input.json"\nidempotent = true\n'
    folder = plugin_folder(
        tmp_path / "plugin", source, toml, input__json='{ "type": "array" }'
    )
    manifest = packed(folder).manifest
    method = manifest.methods["count"]
    assert bytes(manifest.schemas[method.input.schema or ""]) == b'{"type":"array"}'
    assert method.idempotent
    assert method.timeout_ms == 20_000
    assert [entry.path for entry in manifest.files] == ["plugin.py"]


def test_a_print_at_the_top_level_does_not_reach_the_description(tmp_path: Path):
    """What a plugin prints while it is imported is not taken for its description."""
    folder = plugin_folder(tmp_path / "plugin", 'print("{}")\n' + PLUGIN)
    assert packed(folder).manifest.id == "word-count"


def test_a_file_beside_the_plugin_stands_in_for_nothing(tmp_path: Path):
    """A file named like one of the gateway's modules is not imported in its place."""
    folder = plugin_folder(
        tmp_path / "plugin", msgspec__py="raise SystemExit(9)", json__py="raise SystemExit(9)"
    )
    assert packed(folder).manifest.id == "word-count"


def _method(signature: str) -> str:
    return f"""
from sandbox_worker.sdk import Context, TextPayload, JSONPayload, method
@method()
def count{signature}:
    return None
"""


BARE = TOML.replace('modules = ["msgspec"]\n', "")
MISTAKES = {
    "an undeclared module": (PLUGIN, BARE, "plugin.toml.modules", "msgspec"),
    "a module that is not there": (
        "import no_such_module\n" + PLUGIN, TOML.replace('["msg', '["no_such_module", "msg'),
        "plugin.py line 1", "ModuleNotFoundError",
    ),
    "a syntax error": ("def count(:\n", BARE, "plugin.py line 1", "invalid syntax"),
    "an error while importing": ("\n1/0\n", BARE, "plugin.py line 2", "ZeroDivisionError"),
    "an exit while importing": ("raise SystemExit(3)\n", BARE, "plugin.py", "status 3"),
    "no method": ("def count(): ...\n", BARE, "plugin.py", "no method"),
    "no input": (_method("(context: Context) -> str"), BARE, "count()", "parameters (context)"),
    "too many inputs": (
        _method("(c: Context, a: str, b: str) -> str"), BARE, "count()", "parameters (c, a, b)"
    ),
    "keyword inputs": (
        _method("(c: Context, a: str, **more: str) -> str"), BARE, "count()", "parameters"
    ),
    "a zero byte": (PLUGIN + "\0", TOML, "plugin.py", "null bytes"),
    "a letter of another encoding": (
        PLUGIN + "# \udce9 e\n", TOML, "plugin.py line 15", "invalid continuation byte"
    ),
    "a relative import": ("from . import other\n" + PLUGIN, TOML, "plugin.py line 1", "relative"),
    "an async method": (
        _method("(context: Context, text: TextPayload) -> str").replace("def c", "async def c"),
        BARE, "count()", "an async function",
    ),
    "a generator": (
        _method("(context: Context, text: TextPayload) -> str").replace("return", "yield"),
        BARE, "count()", "a generator",
    ),
    "no parentheses": (
        PLUGIN.replace("@method(", "@method  # ("), TOML, "plugin.py line 12",
        "no parentheses behind @method",
    ),
    "no annotation": (
        _method("(context: Context, text) -> str"), BARE, "count() text", "no annotation"
    ),
    "no result type": (
        _method("(context: Context, text: TextPayload)"), BARE, "count() return", "no annotation"
    ),
    "a context that is none": (
        _method("(context: str, text: TextPayload) -> str"), BARE, "count() context", "str"
    ),
    "a type that JSON does not have": (
        _method("(context: Context, text: TextPayload) -> complex"), BARE, "count() return",
        "complex",
    ),
    "an annotation that is not defined": (
        _method("(context: Context, text: 'Nothing') -> str"), BARE, "count()", "Nothing"
    ),
    "a JSONPayload without a schema": (
        _method("(context: Context, document: JSONPayload) -> str"), BARE,
        "plugin.toml.methods.count.input_schema", "nothing",
    ),
    "an unknown line in plugin.toml": (
        PLUGIN, TOML + 'colour = "red"\n', "plugin.toml.colour", "an unknown field"
    ),
    "a missing line in plugin.toml": (
        PLUGIN, TOML.replace('publisher = "acme"\n', ""), "plugin.toml.publisher", "nothing"
    ),
    "a wrong value in plugin.toml": (
        PLUGIN, TOML.replace('"word-count"', '"Word Count"'), "plugin.toml.id", "Word Count"
    ),
    "plugin.toml is no TOML": (PLUGIN, "id = ", "plugin.toml", "Invalid"),
    "a limit that does not exist": (
        PLUGIN, TOML + "[limits]\ncpu = 3\n", "plugin.toml.limits.cpu", "an unknown field"
    ),
    "a limit out of bounds": (
        PLUGIN, TOML + "[limits]\ncpu_ms = 1\n", "$.limits.cpu_ms", "1"
    ),
    "a method that does not exist": (
        PLUGIN, TOML + "[methods.cuont]\ntimeout_ms = 3\n", "plugin.toml.methods.cuont",
        "no such method",
    ),
    "a resource that is not there": (
        PLUGIN, TOML + 'resources = ["words.csv"]\n', "words.csv", "No such file"
    ),
    "a version that is none": (
        PLUGIN, TOML.replace("1.2.3", "01.2.3"), "$.version", "01.2.3"
    ),
    "a file of a root that is not asked for": (
        PLUGIN, TOML + '[methods.count.files]\nwords = "corpus/words.txt"\n',
        "$.methods.count.files.words", "corpus/words.txt",
    ),
    "a file that climbs": (
        PLUGIN, TOML + '[methods.count.files]\nwords = "corpus/../words.txt"\n',
        "plugin.toml.methods.count.files.words", "corpus/../words.txt",
    ),
    "a deterministic method with a clock": (
        PLUGIN, TOML + 'capabilities = ["clock.read"]\n', "$.methods.count.deterministic", "true"
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_of_an_author_is_told_with_its_place(name: str, tmp_path: Path):
    """A folder with one mistake is not packed, and the message names place and finding."""
    source, toml, where, found = MISTAKES[name]
    with pytest.raises(SourceRefused) as caught:
        packed(plugin_folder(tmp_path / "plugin", source, toml))
    told = [(problem.where, problem.found) for problem in caught.value.problems]
    assert len(told) == 1, told
    assert told[0][0] == where
    assert found in told[0][1]


def test_files_of_roots_come_into_the_manifest(tmp_path: Path):
    """What plugin.toml names for a method is what the manifest says, and nothing else is."""
    toml = TOML + (
        'capabilities = ["fs.read:corpus"]\n[methods.count.files]\nwords = "corpus/en/w.txt"\n'
    )
    made = packed(plugin_folder(tmp_path / "plugin", PLUGIN, toml)).manifest
    assert made.methods["count"].files == {"words": "corpus/en/w.txt"}
    assert packed(plugin_folder(tmp_path / "bare")).manifest.methods["count"].files == {}


def test_all_mistakes_of_a_folder_come_at_once(tmp_path: Path):
    """Mistakes in several methods and in plugin.toml are told together."""
    source = _method("(context: Context) -> str") + _method(
        "(context: Context, text: TextPayload) -> complex"
    ).replace("def count", "def other")
    with pytest.raises(SourceRefused) as caught:
        packed(plugin_folder(tmp_path / "plugin", "import re\n" + source, BARE))
    assert [problem.where for problem in caught.value.problems] == [
        "count()", "other() return", "plugin.toml.modules"
    ]
    assert caught.value.problems[2].remedy == 'Write: modules = ["re"]'


def test_a_schema_that_a_gateway_refuses_is_not_packed(tmp_path: Path):
    """The admission of JSON Schemas is the gateway's own."""
    source = PLUGIN.replace(
        "    words: int", '    words: Annotated[str, msgspec.Meta(pattern="(?=a)")]'
    ).replace("import msgspec\n", "import msgspec\nfrom typing import Annotated\n")
    toml = TOML.replace('["msgspec"]', '["msgspec", "typing"]')
    with pytest.raises(SourceRefused) as caught:
        packed(plugin_folder(tmp_path / "plugin", source, toml))
    assert [one.code for one in caught.value.problems] == [RefusalCode.SCHEMA_NOT_ADMITTED]


@pytest.mark.parametrize(("side", "written", "found"), [
    ("output", '{"type": "array"}', ("another schema", "JSONPayload")),
    ("input", "{}", ("a JSON Schema file", "Take the line out.")),
    ("output", None, None),
])
def test_a_schema_file_is_compared_with_the_type(
    tmp_path: Path, side: str, written: str | None, found: tuple[str, str] | None
):
    """A file that says otherwise than plugin.py, or stands where no JSON goes, is a mistake."""
    plain = packed(plugin_folder(tmp_path / "plugin")).manifest
    own = bytes(plain.schemas[plain.methods["count"].output.schema or ""]).decode()
    toml = TOML + f'[methods.count]\n{side}_schema = "named.json"\n'
    folder = plugin_folder(
        tmp_path / "plugin", PLUGIN, toml,
        named__json=written or json.dumps(json.loads(own), indent=2),
    )
    if found is None:
        assert packed(folder).manifest.schemas == plain.schemas
        return
    with pytest.raises(SourceRefused) as caught:
        packed(folder)
    (problem,) = caught.value.problems
    assert problem.where == f"plugin.toml.methods.count.{side}_schema"
    assert found[0] in problem.found
    assert found[1] in problem.remedy


def test_no_two_things_are_named_alike_in_a_signed_bundle(tmp_path: Path):
    """A signed bundle holds the envelope in place of the unsigned manifest."""
    bundle = sign(packed(plugin_folder(tmp_path / "plugin")).data, [SEED_A])
    assert sorted(read_archive(bundle.data)) == ["manifest.dsse.json", "plugin.py"]
    assert read_bundle(bundle.data).sha256 == hashlib.sha256(bundle.data).hexdigest()
