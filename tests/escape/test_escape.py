"""Attempts at leaving the jail: in a real worker, and with each layer missing and each alone."""

from __future__ import annotations

import json
import marshal
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.manifest import Limits
from schemas.messages import CallFailure, CallResult
from schemas.payloads import JSONPayload
from tests.escape.attempts import ATTEMPTS, Attempt
from tests.escape.attempts.interpreter import TRICKS, Trick
from tests.escape.layers import (
    COMBINATIONS,
    EVERYTHING,
    LAYERS,
    expected,
    has_control,
    holds,
    tables,
    tried,
)
from tests.escape.runner import BETWEEN, PLUGIN, outcome
from tests.sandbox_worker.harness import ROOT, Worker, worker
from tests.support.gateway import wait_for
from tests.support.packages import lock, package_folder

pytestmark = [pytest.mark.jail, pytest.mark.system]

IS_ROOT = os.getuid() == 0
CLASSES = (
    "files", "sockets", "processes", "signals", "memory", "ipc", "kernel", "privileges",
    "descriptors", "bombs", "time", "other_abis",
)  # fmt: skip
LIMITS = Limits(cpu_ms=100, wall_ms=3000, memory_mb=256, output_bytes=65536, concurrency=4)
POOL = 2
"""How many call processes the worker of the tests keeps waiting."""
ENDS = {"system_call_forbidden": "killed", "cpu_limit_exceeded": "ended"}


def _in_a_worker(jail: Worker, attempts: list[Attempt]) -> dict[str, str]:
    """Attempts by id to outcomes: all that are refused in one call, each of the others alone."""
    found = {}
    batch = [attempt for attempt in attempts if attempt.answer == "refused"]
    for group in [batch, *([attempt] for attempt in attempts if attempt not in batch)]:
        end = jail.call(BETWEEN.join(attempt.code for attempt in group))
        if isinstance(end, CallFailure):
            found.update((attempt.id, ENDS.get(end.code, end.code)) for attempt in group)
            continue
        assert isinstance(end, CallResult)
        assert isinstance(end.payload, JSONPayload)
        lines = json.loads(end.payload.data)
        found.update(
            (attempt.id, outcome(attempt, 0, repr(line)).split()[0])
            for attempt, line in zip(group, lines, strict=True)
        )
    return found


@pytest.fixture(scope="module")
def jail(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """A worker whose plugin runs whatever it is told."""
    folder = tmp_path_factory.mktemp("escape")
    with worker(folder, PLUGIN, limits=LIMITS, modules=("re", "struct", "types")) as running:
        yield running


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """The same with an approved package, whose import another jail came before."""
    with package_folder({"approved/__init__.py": "import ctypes\n"}) as folder:
        modules = ("re", "struct", "types", "approved")
        changes = {"modules": ("approved",), "packages": lock(folder)}
        place = tmp_path_factory.mktemp("packaged")
        with worker(place, PLUGIN, limits=LIMITS, modules=modules, changes=changes) as running:
            yield running


@pytest.mark.parametrize("where", ["jail", "packaged"])
@pytest.mark.parametrize("group", CLASSES)
def test_a_worker_holds_every_attempt(
    request: pytest.FixtureRequest, where: str, group: str
) -> None:
    """Each attempt of the class ends as declared, and the worker serves the next call."""
    jail: Worker = request.getfixturevalue(where)
    attempts = [attempt for attempt in ATTEMPTS if attempt.group == group]

    found = _in_a_worker(jail, attempts)

    assert found == {attempt.id: attempt.answer for attempt in attempts}
    assert jail.value("result = 1") == [["succeeded", "1", 0]]


@pytest.mark.parametrize("trick", TRICKS, ids=lambda trick: trick.name)
def test_the_supervisor_holds_every_trick(jail: Worker, trick: Trick) -> None:
    """The call of the trick ends as declared, that of its control gives a result, and a moment
    later only waiting call processes are left."""
    end = jail.call(trick.code, timeout_ms=trick.timeout_ms)

    assert (end.code if isinstance(end, CallFailure) else "result") in trick.ends.split(), end
    assert isinstance(jail.call(trick.control), CallResult)
    wait_for("ended call processes to be gone", lambda: len(_call_processes(jail)) <= POOL)


def _call_processes(jail: Worker) -> list[int]:
    """The processes below a worker's zygote: those four steps below the tests."""
    generation = [jail.process.pid]
    for _ in range(3):
        generation = [child for pid in generation for child in _children(pid)]
    return generation


def _children(pid: int) -> list[int]:
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            return [int(word) for word in file.read().split()]
    except FileNotFoundError:
        return []


@pytest.fixture(scope="module")
def matrix() -> dict[str, dict[str, str]]:
    """Combinations of layers by name to the attempts made under them, by id to outcome."""
    jobs = []
    for layers in COMBINATIONS.values():
        together: dict[str, str] = {}
        groups = [together]
        for attempt in ATTEMPTS:
            if not tried(attempt, layers):
                continue
            succeeds = expected(attempt, layers, root=IS_ROOT) == "succeeded"
            if attempt.alone and succeeds:
                groups.append({attempt.id: attempt.code})
            else:
                together[attempt.id] = attempt.code
        jobs.append([sorted(layers), groups])
    with tempfile.TemporaryDirectory(prefix="omega-escape-") as place:
        # For everybody, whoever an attempt is made as.
        Path(place, "left_here.py").touch()
        Path(place, "file").write_bytes(b"content")
        os.chmod(f"{place}/file", 0o666)
        os.chmod(place, 0o777)
        done = subprocess.run(
            [sys.executable, "-s", "-c", "from tests.escape.rig import main; main()"],
            input=marshal.dumps((place, jobs)), capture_output=True, cwd=ROOT, timeout=300,
            check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    by_id = {attempt.id: attempt for attempt in ATTEMPTS}
    return {
        name: {id_: outcome(by_id[id_], *told) for id_, told in found.items()}
        for name, found in zip(COMBINATIONS, marshal.loads(done.stdout), strict=True)
    }


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_each_layer_holds_what_it_is_said_to_hold(
    matrix: dict[str, dict[str, str]], combination: str
) -> None:
    """Under these layers nothing succeeds or fails that the table does not say."""
    layers = COMBINATIONS[combination]
    wanted = {attempt.id: expected(attempt, layers, root=IS_ROOT) for attempt in ATTEMPTS
              if tried(attempt, layers)}  # fmt: skip

    found = matrix[combination]

    assert found.keys() == wanted.keys()
    wrong = {id_: (found[id_], wanted[id_]) for id_ in wanted
             if found[id_].split()[0] != wanted[id_]}  # fmt: skip
    assert wrong == {}, "found and wanted"


def test_every_attempt_succeeds_somewhere(matrix: dict[str, dict[str, str]]) -> None:
    """Its control: a jail without what holds it lets it pass. Only rights over the host, which an
    ordinary user never has, leave an attempt without one."""
    succeeded = {id_ for found in matrix.values() for id_, how in found.items()
                 if how == "succeeded"}  # fmt: skip
    without = [attempt for attempt in ATTEMPTS if attempt.id not in succeeded]

    assert not IS_ROOT or without == []
    assert all("rights" in attempt.held for attempt in without), without
    assert all(not has_control(attempt, root=False) for attempt in without)


@pytest.mark.parametrize("layer", LAYERS)
def test_each_layer_holds_something_by_itself(layer: str) -> None:
    """No layer is there for show: alone, it holds an attempt that succeeds without any."""
    assert any(holds(layer, attempt) for attempt in ATTEMPTS)


def test_the_auditors_tables_are_those_of_the_attempts() -> None:
    """What docs/AUDIT.md says of classes and layers is counted, not remembered."""
    told = (ROOT / "docs" / "AUDIT.md").read_text("utf-8").splitlines()
    wanted = tables(ATTEMPTS, {"interpreter and protocol": len(TRICKS)})

    assert [line for line in wanted if line and line not in told] == []


def test_every_class_is_there_with_enough_attempts() -> None:
    """At least 120 attempts under names of their own, at least six in each class."""
    groups = [attempt.group for attempt in ATTEMPTS]

    assert set(groups) == set(CLASSES)
    assert all(groups.count(group) >= 6 for group in CLASSES)
    assert len({attempt.id for attempt in ATTEMPTS}) == len(ATTEMPTS) >= 120
    assert len({trick.name for trick in TRICKS}) == len(TRICKS) >= 6
    assert COMBINATIONS["full"] == EVERYTHING
