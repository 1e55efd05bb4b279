"""The documentation says what is so: generated parts are fresh, examples add up, claims have tests.

Worked examples are recomputed here from the text of the page with the standard library alone, as a
client in another language would do it.
"""

from __future__ import annotations

import ast
import hashlib
import hmac
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import pytest

from schemas.refusals import RefusalCode

ROOT: Final = Path(__file__).resolve().parent.parent
DOCS: Final = ROOT / "docs"
AUDIT_LINES_MAX: Final = 3_300
CAPABILITIES: Final = {
    "the governed call", "sandbox", "ledger and proofs", "trust", "orchestration", "load",
    "authoring",
}
"""What may be named as bringing a row that is not held yet."""


def _text(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def _part(name: str, text: str) -> str:
    found = re.search(rf"<!-- generated: {name} -->\n(.*?)<!-- end -->", text, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("generator", ["generate_docs", "generate_docs_reference"])
def test_generated_documentation_is_fresh(generator: str) -> None:
    """Running the generator changes no file: pages and types say the same."""
    run = subprocess.run(
        [sys.executable, "-m", f"scripts.{generator}"], cwd=ROOT, capture_output=True, text=True,
        timeout=60, check=False,
    )

    remedy = f"python -m scripts.{generator} --rewrite"
    assert run.returncode == 0, run.stdout + run.stderr + remedy


def test_a_setting_without_a_sentence_is_not_written_down() -> None:
    """A line of a file that nobody explains ends the generator instead of standing there bare."""
    from scripts.generate_docs_reference import settings

    class Bare(msgspec.Struct):
        """A file."""

        mystery_ms: int = 1

    with pytest.raises(SystemExit, match=r"Bare\.mystery_ms has no sentence"):
        settings("bare.toml", "", Bare)


def test_the_client_s_page_has_every_public_name() -> None:
    """Whoever writes for OMEGA finds each name of `broker.client` under a heading."""
    from broker import client

    page = (ROOT / "docs" / "reference" / "client.md").read_text("utf-8")
    assert [name for name in client.__all__ if f"### `{name}`" not in page] == []


# --- docs/WIRE.md
# ----------------------------------------------------------------------------


def test_the_worked_frame_is_the_golden_one() -> None:
    """The hex of the example frame, joined, is a frame that front.omega accepts as an invoke."""
    from schemas import codec, messages

    block = _part("example", _text("docs/WIRE.md"))
    joined = "".join(
        re.split(r"  ", line)[0].replace(" ", "")
        for line in block.splitlines() if not line.startswith("```")
    )
    request = codec.from_omega.decode(bytes.fromhex(joined))

    assert isinstance(request, messages.Invoke)
    assert codec.encode(request).hex() == joined


def test_the_worked_commitment_adds_up() -> None:
    """HMAC-SHA256 over the page's own key, label and preimage gives the page's commitment."""
    block = _part("commitment", _text("docs/WIRE.md"))
    rows = [line.split() for line in block.splitlines() if not line.startswith("```")]
    values = {row[0]: row[1] for row in rows}
    preimage = b"".join(
        bytes.fromhex(row[1]) + bytes.fromhex(row[2]) for row in rows if row[0] == "preimage"
    )
    message = values["label"].encode() + b"\x00" + preimage

    assert len(bytes.fromhex(values["key"])) == 32
    wanted = hmac.new(bytes.fromhex(values["key"]), message, hashlib.sha256).hexdigest()
    assert values["commitment"] == wanted
    assert values["sha256"] == hashlib.sha256(preimage).hexdigest()


def test_the_worked_event_adds_up() -> None:
    """SHA-256 over 0x00, `{` and the line from byte 81 on is the event_hash in line and text."""
    block = _part("event", _text("docs/WIRE.md"))
    line = next(text for text in block.splitlines() if text.startswith("{")).encode()
    event_hash = hashlib.sha256(b"\x00{" + line[81:]).hexdigest()

    assert json.loads(line)["event_hash"] == event_hash
    assert f"`{event_hash}`" in block
    assert json.dumps(json.loads(line), sort_keys=True, separators=(",", ":")).encode() == line


def test_the_json_schema_takes_the_golden_messages() -> None:
    """Every golden message fits wire.schema.json, with binaries as base64 as the file says."""
    import jsonschema_rs
    import msgspec

    from tests.schemas import samples

    document = json.loads(_text("docs/wire.schema.json"))
    unions = {
        "FromOmega": samples.FROM_OMEGA, "FromAdmin": samples.FROM_ADMIN,
        "FromWorker": samples.FROM_WORKER, "ToWorker": samples.TO_WORKER,
    }
    for union, examples in unions.items():
        validator = jsonschema_rs.validator_for(document | {"$ref": f"#/$defs/{union}"})
        for example in examples:
            shown = json.loads(msgspec.json.encode(example))
            assert validator.is_valid(shown), (union, shown)
            assert not validator.is_valid(shown | {"news": 1})


def test_typescript_types_are_strict() -> None:
    """wire.d.ts holds types only, no `any` and no `unknown`, and every message of every union."""
    from tests.schemas import samples

    text = _text("docs/wire.d.ts")
    code = re.sub(r"/\*.*?\*/|//[^\n]*|\"[^\"]*\"", "", text, flags=re.DOTALL)

    assert not re.search(r"\b(any|unknown|object|Function|function|class|const|let|var)\b", code)
    for examples in samples.DIRECTIONS.values():
        for example in examples:
            assert f"export interface {type(example).__name__} {{" in text
            assert f'readonly type: "{samples.tag_of(example)}";' in text


@pytest.mark.parametrize("page", ["WIRE.md", "ARCHITECTURE.md", "THREATS.md"])
def test_pages_name_only_codes_that_exist(page: str) -> None:
    """Every refusal code that a page names in prose is in the closed list."""
    known = {code.value for code in RefusalCode}
    named = set(re.findall(r"(?:refused (?:with|as)|is) `([a-z]+_[a-z_]+)`", _text(f"docs/{page}")))

    assert named <= known, named - known


# --- docs/SPECIFICATION.md
# -------------------------------------------------------------------


class Row(NamedTuple):
    """One line of the specification and what is said about it."""

    line: str
    files: tuple[str, ...]
    tests: tuple[str, ...]
    state: str


def _rows() -> list[Row]:
    rows = []
    for text in _text("docs/SPECIFICATION.md").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", text)[1:-1]]
        if len(cells) != 5 or cells[0] in {"id", "---"}:
            continue
        rows.append(
            Row(cells[0], tuple(re.findall(r"`([^`]+)`", cells[2])),
                tuple(re.findall(r"`([^`]+)`", cells[3])), cells[4])
        )
    return rows


@cache
def _test_names(path: str) -> frozenset[str]:
    file = ROOT / path
    if not file.is_file():
        return frozenset()
    tree = ast.parse(file.read_text("utf-8"))
    return frozenset(
        node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
    )


def test_every_claim_of_the_specification_names_what_exists() -> None:
    """A row that is held, wholly or partly, names files and tests that are there."""
    wrong = []
    for row in _rows():
        if row.state.startswith("brought by: "):
            continue
        missing = [name for name in row.files if not (ROOT / name).exists()]
        missing += [
            name for name in row.tests
            if name.partition("::")[2] not in _test_names(name.partition("::")[0])
        ]
        if missing or not row.files or not row.tests:
            wrong.append(f"{row.line}: {', '.join(missing) or 'names no file or no test'}")

    assert not wrong, "\n".join(wrong)


def test_every_row_has_a_state() -> None:
    """A row is held, partly held, or says which capability brings it; never nothing."""
    pattern = re.compile(r"held|(partly, rest )?brought by: (?P<by>.+)")
    wrong = []
    for row in _rows():
        found = pattern.fullmatch(row.state)
        if not found or (found["by"] and found["by"] not in CAPABILITIES):
            wrong.append(f"{row.line}: {row.state!r}")

    assert not wrong, "\n".join(wrong)


def test_no_row_is_named_twice_and_no_section_is_left_out() -> None:
    """Each section and invariant of the specification and each section of the design has rows."""
    lines = [row.line for row in _rows()]
    sections = {line.partition(".")[0] for line in lines}

    assert len(lines) == len(set(lines))
    assert {f"S{number}" for number in range(13)} <= sections
    assert {f"D{number}" for number in range(1, 12)} <= sections
    assert {f"S5.{number:02}" for number in range(1, 11)} <= set(lines)


# --- docs/AUDIT.md, decisions, changelog
# ----------------------------------------------------


def test_the_auditors_list_is_short_enough(record_property: pytest.RecordProperty) -> None:
    """The files that stand between a plugin and authority have at most 3,300 lines together."""
    numbered = re.findall(r"^(\d+)\. `([^`]+)`: \S", _text("docs/AUDIT.md"), re.MULTILINE)
    names = [name for _, name in numbered]
    lines = {name: len(_text(name).splitlines()) for name in names}
    print(f"the auditor's list has {sum(lines.values())} lines in {len(lines)} files")
    record_property("audit_lines", sum(lines.values()))

    assert [int(number) for number, _ in numbered] == list(range(1, len(numbered) + 1))
    assert len(names) == len(set(names))
    assert sum(lines.values()) <= AUDIT_LINES_MAX, lines


def test_every_file_of_the_jail_is_on_the_auditors_list() -> None:
    """No mechanism of the jail can be added without being read by an auditor."""
    text = _text("docs/AUDIT.md")
    files = (ROOT / "sandbox_worker/jail").glob("*.py")

    assert not [
        path.name for path in files
        if path.name != "__init__.py" and f"`sandbox_worker/jail/{path.name}`" not in text
    ]


def test_decision_records_have_their_four_parts() -> None:
    """Each record has a number of its own, is on one page, and says what the choice costs."""
    paths = sorted((DOCS / "decisions").glob("[0-9]*.md"))
    index = _text("docs/decisions/README.md")

    # Numbers are given out before records are written, so there may be a gap for a while.
    assert len({path.name[:4] for path in paths}) == len(paths)
    for path in paths:
        text = path.read_text("utf-8")
        assert text.startswith(f"# {path.name[:4]} "), path
        headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
        assert headings == ["Context", "Options", "Choice", "Cost"], path
        assert len(text.splitlines()) <= 60, path
        assert f"]({path.name})" in index, path


def test_the_changelog_keeps_its_form() -> None:
    """The changelog begins with what is not released and uses the agreed headings only."""
    text = _text("CHANGELOG.md")
    versions = re.findall(r"^## \[(.+?)\]", text, re.MULTILINE)
    kinds = set(re.findall(r"^### (.*)$", text, re.MULTILINE))

    assert versions[0] == "Unreleased"
    assert kinds <= {
        "Added", "Changed", "Deprecated", "Removed", "Fixed", "Security", "Wire", "Ledger",
    }


@pytest.mark.parametrize(
    "page", sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.md")
                   if not any(part.startswith(".") for part in path.relative_to(ROOT).parts))
)
def test_links_between_pages_lead_somewhere(page: str) -> None:
    """Every relative link of every page names a file that is there."""
    here = (ROOT / page).parent
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", _text(page))
    missing = [
        target for target in targets
        if "://" not in target and not target.startswith("mailto:")
        and not (here / target).exists()
    ]

    assert not missing
