"""Attempts at leaving the jail, each refused inside and each able to succeed outside."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from schemas.manifest import Limits
from schemas.messages import CallFailure, CallResult
from schemas.payloads import JSONPayload
from tests.escape.attempts import ATTEMPTS, Attempt
from tests.escape.runner import PLUGIN, RUNNER
from tests.sandbox_worker.harness import ROOT, Worker, worker

pytestmark = [pytest.mark.jail, pytest.mark.system]

OUTSIDE = RUNNER + '''
import json, sys
from sandbox_worker.jail import linux

print(json.dumps(attempt(sys.argv[1], linux)))
'''
LIMITS = Limits(cpu_ms=500, wall_ms=2000, memory_mb=128, output_bytes=4096, concurrency=4)


@pytest.fixture(scope="module")
def jail(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """A worker whose plugin runs whatever it is told."""
    with worker(tmp_path_factory.mktemp("escape"), PLUGIN, limits=LIMITS) as running:
        yield running


def _ids(attempt: Attempt) -> str:
    return f"{attempt.group}-{attempt.name}"


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=_ids)
def test_the_jail_holds(jail: Worker, attempt: Attempt) -> None:
    """The attempt is refused or killed as listed, and the worker serves the next call."""
    end = jail.call(attempt.code)
    if attempt.answer == "killed":
        assert isinstance(end, CallFailure)
        assert end.code == "system_call_forbidden"
    else:
        assert isinstance(end, CallResult), end
        assert isinstance(end.payload, JSONPayload)
        assert json.loads(end.payload.data)[0] == "refused"
    assert jail.value("result = 1") == ["succeeded", "1"]


@pytest.mark.parametrize("attempt", [one for one in ATTEMPTS if one.control], ids=_ids)
def test_the_same_attempt_succeeds_outside(attempt: Attempt) -> None:
    """Without a jail the attempt works, so its refusal inside is the jail's doing."""
    done = subprocess.run(
        [sys.executable, "-c", OUTSIDE, attempt.code],
        capture_output=True, cwd=ROOT, timeout=20, check=False,
    )  # fmt: skip

    assert done.stdout, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])[0] == "succeeded", done.stdout


def test_every_group_has_several_attempts() -> None:
    """No class of attack is represented by a single call, and names are unique."""
    groups = [attempt.group for attempt in ATTEMPTS]

    assert all(groups.count(group) >= 5 for group in groups)
    assert len({_ids(attempt) for attempt in ATTEMPTS}) == len(ATTEMPTS)
