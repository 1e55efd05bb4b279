"""`ledger prove` and `ledger open` on a copy of a ledger: what they write, say and refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from schemas.proof import VerifierKey
from tests.cli.command import Done, gateway
from tests.evidence.conftest import SCRIPTS
from tests.ledger.conftest import REQUEST_ID, VERIFIER_KEY, Place, frame

UNKNOWN = "00000000-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed ledger of 20 events and a checkpoint over 9 of them in `old.note`."""
    folder = tmp_path_factory.mktemp("ledger")
    place = Place(folder)
    opened = place.fill(9)
    (folder / "old.note").write_text(opened.checkpoint())
    place.fill(11, ledger=opened)
    opened.close()
    return folder


def prove(copy: Path, *arguments: str) -> Done:
    return gateway("ledger", "prove", "--ledger", str(copy / "ledger"), "--vkey", VERIFIER_KEY,
                   *arguments)


def verified(path: Path) -> dict:
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "verify_proof.py"), str(path), "--vkey", VERIFIER_KEY,
         "--output", "json"],
        capture_output=True, text=True, timeout=60, check=False,
    )
    assert done.returncode == 0, done.stdout
    document = json.loads(done.stdout)
    assert isinstance(document, dict)
    return document


def test_a_proof_goes_to_a_file_and_says_what_it_holds(copy, tmp_path):
    """Positions, ranges and a request make one bundle; what is withheld and since when is told."""
    path = tmp_path / "proof.json"
    done = prove(copy, "0", "3-5", REQUEST_ID, "--withhold", "4", "--withhold", "ledger.open",
                 "--since", str(copy / "old.note"), "-o", str(path), "--output", "json")

    assert done.code == 0, done.err
    said = done.document()
    assert (said["schema"], said["file"], said["size"]) == ("omega.proof/1", str(path), 20)
    assert said["withheld"] == [0, 4]
    assert said["shown"] == [1, 2, 3, *range(5, 20)]
    proof = verified(path)
    assert [event["index"] for event in proof["events"]] == list(range(20))
    assert [event["index"] for event in proof["events"] if event["withheld"]] == [0, 4]
    assert proof["continues"] == [9]


def test_a_proof_goes_to_stdout_alone(copy, tmp_path):
    """Without a file the bytes are stdout, and the account is on stderr."""
    done = prove(copy, "7")
    path = tmp_path / "proof.json"
    path.write_text(done.out)

    assert verified(path)["events"][0]["index"] == 7
    assert "withheld" in done.err
    single = prove(copy, "7", "--format", "tlog-proof")
    path.write_text(single.out)
    assert single.out.startswith("c2sp.org/tlog-proof@v1\n")
    assert verified(path)["events"][0]["index"] == 7


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "name an event"),
        (["x"], 2, "no position"),
        (["7-3"], 2, "is empty"),
        (["0-200000"], 2, "a proof holds 100000"),
        (["3", "--withhold", "frame.news"], 2, "no position"),
        (["20"], 1, "covers 20 events, not event 20"),
        ([UNKNOWN], 1, f"no event of request {UNKNOWN}"),
        (["--plugin", "alpha"], 1, "no event of plugin alpha"),
        (["3", "4", "--format", "tlog-proof"], 7, "holds one event"),
        (["3", "--since", __file__], 7, "a note"),
        (["3", "--profile", "/nowhere"], 2, "without --profile"),
    ],
)
def test_what_cannot_be_proven_is_one_sentence(copy, arguments, code, words):
    """Each mistake has its exit code and says what was found; nothing is written."""
    done = prove(copy, *arguments)
    assert (done.code, done.out) == (code, ""), done.err
    assert words in done.sentence()


def test_a_copy_needs_its_key(copy):
    """A ledger somewhere else is only proven under a key that is given, and the right one."""
    assert gateway("ledger", "prove", "3", "--ledger", str(copy / "ledger")).code == 2
    other = str(VerifierKey("omega-gateway/development/0123456789abcdef", bytes(range(32))))
    done = gateway("ledger", "prove", "3", "--ledger", str(copy / "ledger"), "--vkey", other)
    assert done.code == 7
    assert "does not verify" in done.sentence()


def test_events_without_a_checkpoint_are_told(copy, tmp_path):
    """What a crash left uncovered is neither proven nor passed over in silence."""
    place = Place(tmp_path)
    opened = place.fill(5)
    opened.checkpoint()
    opened.append(frame(5))
    opened.commit()
    place.abandon(opened)

    done = prove(tmp_path, REQUEST_ID)

    assert done.code == 0
    assert "the last 1 events are not covered" in done.err
    assert prove(tmp_path, "3").err.count("not covered") == 0


def test_opening_needs_all_of_it(copy, tmp_path):
    """Without key, payload or place nothing is opened, and the sentence says what is missing."""
    key, result = tmp_path / "key", tmp_path / "result.json"
    key.write_text("zz")
    result.write_text('{"payload":{}}')
    for arguments, words in (
        (["3", "--text", "x"], "give the key"),
        (["3", "--text", "x", "--key-file", str(key)], "holds no commitment key"),
        (["--result", str(result)], "is not what `invoke --output json` prints"),
        (["3", "--key-file", str(key), "--proof", str(key)], "belong together"),
    ):
        done = gateway("ledger", "open", *arguments)
        assert done.code == 2
        assert words in done.sentence()
    key.write_text("00" * 32)
    done = gateway("ledger", "open", "3", "--key-file", str(key))
    assert (done.code, "exactly one of --text" in done.sentence()) == (2, True)
