"""Every example is checked, packed, signed, accepted, tested, and answers in the real sandbox."""

from __future__ import annotations

import hashlib
import pydoc_data.topics
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from broker.authoring.pack import pack, sign
from broker.authoring.source import read_folder
from broker.trust.json_schemas import compile_schema
from broker.trust.validation import Validated, validate_bundle
from schemas.canonical import canonical_bytes, check_canonical
from schemas.messages import CallResult
from schemas.payloads import JSONPayload, Payload, TextPayload
from schemas.trust import Publisher
from tests.authoring.folders import ENVIRONMENT
from tests.sandbox_worker.harness import Worker
from tests.trust.builders import SEED_A, context, public, trust_root

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted(path.parent for path in (ROOT / "examples").glob("*/plugin.toml"))
TOPICS = "\n\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))

every_example = pytest.mark.parametrize("folder", EXAMPLES, ids=lambda path: path.name)


def registered(folder: Path) -> tuple[bytes, Validated]:
    """Pack, sign and validate an example as a development home would."""
    data = sign(pack(read_folder(str(folder)), "development").data, [SEED_A]).data
    publisher = Publisher(keys=(public(SEED_A).hex(),), threshold=1, plugins=("*",))
    known = context(trust=trust_root(publishers={"development": publisher}))
    return data, validate_bundle(data, known)


def test_there_are_examples_on_text_and_on_json():
    """The two kinds of payload that travel by value each have an example."""
    assert {path.name for path in EXAMPLES} >= {"text-statistics", "json-difference"}


@every_example
def test_an_example_is_accepted_under_the_default_policy(folder: Path):
    """No example needs a line of policy, and its folder is named as its plugin."""
    _, validated = registered(folder)
    assert validated.problems == ()
    assert validated.manifest is not None
    assert validated.manifest.id == folder.name
    assert (folder / "README.md").read_text().startswith(f"# {folder.name}\n")


@every_example
def test_an_example_passes_its_own_tests(folder: Path):
    """An author's `python -m pytest` in the folder is green."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)],
        cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False,
    )
    assert done.returncode == 0, done.stdout


CALLS: dict[str, tuple[str, Payload, object]] = {
    "text-statistics": ("count", TextPayload(TOPICS), len(TOPICS)),
    "json-difference": (
        "difference",
        JSONPayload(canonical_bytes({"after": {"a": [1, 2]}, "before": {"a": [1], "b": True}})),
        [{"op": "add", "path": "/a/1", "value": 2}, {"op": "remove", "path": "/b"}],
    ),
    "forbidden-attempts": ("try_everything", TextPayload("/etc/passwd"), True),
}


@pytest.mark.jail
@every_example
def test_an_example_answers_in_the_sandbox(folder: Path, tmp_path: Path):
    """A signed example, run by a real worker, gives an answer that fits its own schema."""
    data, validated = registered(folder)
    manifest = validated.manifest
    assert manifest is not None
    path = tmp_path / "example.omegaplugin"
    path.write_bytes(data)
    path.chmod(0o644)
    changes = {
        "plugin": manifest.id, "version": manifest.version,
        "plugin_digest": hashlib.sha256(data).hexdigest(),
    }
    worker = Worker(tmp_path, path, limits=manifest.limits, changes=changes)
    try:
        worker.ready()
        method, payload, expected = CALLS[folder.name]
        ends = [worker.call(payload, method) for _ in range(2)]
    finally:
        worker.close()
    assert all(isinstance(end, CallResult) for end in ends), ends
    assert ends[0].payload == ends[1].payload, "a deterministic method gave two answers"
    assert isinstance(ends[0].payload, JSONPayload)
    value = check_canonical(ends[0].payload.data)
    schema = manifest.schemas[manifest.methods[method].output.schema or ""]
    assert compile_schema(bytes(schema)).problem(value) is None
    assert expected in msgspec.to_builtins(value).values()
