"""`scripts/bench` runs on the real thing, says what it measured in its documented shape, and leaves
nothing behind. Of its figures only memory is judged here: times are for a quiet machine and a
reader."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.once

ROOT = Path(__file__).resolve().parents[2]
ROW = {"name", "in_flight", "p50_us", "p99_us", "per_s", "cpu_us", "ratio"}
MACHINE = {
    "cpu_model", "cores", "kernel", "python", "libzmq", "filesystem", "flush_p50_us", "fork_p50_us",
    "load_generator_cpu_us",
}
SHORT = ("--rounds", "1", "--seconds", "0.1")


class _Ended(NamedTuple):
    """How a bench ended; `left` are processes and files that it left behind."""

    status: int
    output: str
    errors: str
    left: list[str]


def _bench(tmp_path: Path, *arguments: str) -> _Ended:
    errors = tmp_path / "errors"
    command = [sys.executable, str(ROOT / "scripts" / "bench"), *arguments, "--folder"]
    # A file, because whatever a process left behind would hold a pipe open. A folder of its own,
    # because a socket's path may have 107 bytes and a user's name is part of the other.
    with (
        errors.open("w") as stderr, tempfile.TemporaryDirectory(prefix="og-") as folder,
        subprocess.Popen([*command, folder], stdout=subprocess.PIPE, stderr=stderr, text=True,
                         cwd="/", start_new_session=True) as bench,
    ):
        output, _ = bench.communicate(timeout=600)
        left = [*_of_session(bench.pid), *os.listdir(folder)]
        return _Ended(bench.returncode, output, errors.read_text(), left)


def _of_session(session: int) -> list[str]:
    """Command lines of the processes of one session, see proc_pid_stat(5)."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if int(fields[3]) == session:
            found.append(command)
    return found


@pytest.mark.system
@pytest.mark.jail
def test_bus_prints_every_row_and_leaves_nothing(tmp_path: Path) -> None:
    """All nine contestants run at their depths, and no process or folder of theirs is left."""
    ended = _bench(tmp_path, "bus", *SHORT, "--output", "json")

    assert ended.status == 0, ended.errors
    document = json.loads(ended.output)
    assert set(document) == {"rows", "machine"}
    assert document["machine"].keys() >= MACHINE
    assert all(set(row) == ROW for row in document["rows"])
    assert {(row["name"], row["in_flight"]) for row in document["rows"]} == {
        *((name, depth) for depth in (1, 32) for name in (
            "c_proxy", "relay", "relay_bare", "broker_power", "broker_process", "whole_path",
            "fork_zygote", "fork_bare",
        )),
        ("relay_paced", 1), ("whole_path_paced", 1),
    }
    assert all(row["per_s"] > 0 and row["ratio"] > 0 for row in document["rows"])
    assert ended.left == []


@pytest.mark.system
def test_ledger_prints_every_row_and_leaves_nothing(tmp_path: Path) -> None:
    """Writers at four depths beside SQLite, verifiers, proofs and recovery each give their row."""
    ended = _bench(
        tmp_path, "ledger", "--rounds", "1", "--seconds", "0.02", "--events", "3000",
        "--output", "json",
    )

    assert ended.status == 0, ended.errors
    rows = json.loads(ended.output)["rows"]
    assert all(set(row) == ROW for row in rows)
    writers = ("ledger_power", "ledger_process", "sqlite_full", "sqlite_off")
    assert [(row["name"], row["in_flight"]) for row in rows[:16]] == [
        (name, depth) for name in writers for depth in (1, 8, 64, 256)
    ]
    assert [row["name"] for row in rows[16:]] == [
        "verify_bare", "verify_loop", "verify_canonical", "verify_whole", "verify_all_cores",
        "prove", "prove_evicted", "prove_consistency", "recover_segment",
    ]
    assert all(row["per_s"] > 0 and row["p50_us"] > 0 for row in rows)
    assert ended.left == []


@pytest.mark.system
@pytest.mark.jail
def test_sandbox_measures_the_worker_alone_and_leaves_nothing(tmp_path: Path) -> None:
    """Each kind of contestant runs, counts stand with the machine, and nothing is left behind."""
    names = "worker,worker_paced,reply_paced,pool_1,zygotes_2,handed,bubblewrap,jail_full,jail_none"
    ended = _bench(
        tmp_path, "sandbox", "--rounds", "1", "--seconds", "0.05", "--output", "json",
        "--only", f"{names},fork_zygote",
    )  # fmt: skip

    assert ended.status == 0, ended.errors
    document = json.loads(ended.output)
    rows, machine = document["rows"], document["machine"]
    assert all(set(row) == ROW for row in rows)
    found = {(row["name"], row["in_flight"]) for row in rows}
    wanted = {
        *(("worker", depth) for depth in (1, 32)), *(("handed", depth) for depth in (1, 32)),
        *(("fork_zygote", depth) for depth in (1, 32)), ("pool_1", 32), ("zygotes_2", 32),
        ("worker_paced", 1), ("reply_paced", 1), ("jail_full", 1), ("jail_none", 1),
    }
    missing = set() if shutil.which("bwrap") else {"bubblewrap"}
    assert found == wanted | {("bubblewrap", 1) for _ in range(1 - len(missing))}
    assert set(machine["missing"]) == missing
    assert machine["page_faults_by_process"]["worker@1 call"] > 50
    assert machine["idle_call_process_kb"]["RssAnon"] > 1000
    assert ended.left == []


@pytest.mark.system
def test_a_table_holds_only_the_rows_asked_for(tmp_path: Path) -> None:
    """`--only` measures what it names, and a row whose floor was not measured has no ratio."""
    ended = _bench(tmp_path, "bus", *SHORT, "--only", "c_proxy")

    assert ended.status == 0, ended.errors
    lines = ended.output.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["name", "c_proxy", "c_proxy"]
    assert lines[1].split()[-1] == "-"


@pytest.mark.system
def test_an_unknown_row_is_a_usage_error(tmp_path: Path) -> None:
    """A mistyped name ends before anything is started, with one sentence and status 2."""
    ended = _bench(tmp_path, "bus", "--only", "realy")

    assert ended.status == 2
    assert ended.errors == "bench: no row named realy\n"


@pytest.mark.system
@pytest.mark.jail
def test_load_prints_its_rows_and_draws_them(tmp_path: Path) -> None:
    """Steps, cancels and offered load are measured and drawn, and nothing is left."""
    picture = tmp_path / "load.svg"
    ended = _bench(
        tmp_path, "load", *SHORT, "--output", "json", "--plot", str(picture),
        "--only", "invoke,pipeline_step,cancel,offered_0.5,offered_2",
    )

    assert ended.status == 0, ended.errors
    rows = {row["name"]: row for row in json.loads(ended.output)["rows"]}
    assert rows.keys() == {"invoke", "pipeline_step", "cancel", "offered_0.5", "offered_2"}
    assert all(row["per_s"] > 0 for row in rows.values())
    assert picture.read_text().count("<polyline") == 3
    assert ended.left == []


@pytest.mark.system
@pytest.mark.jail
def test_a_sleeping_plugin_leaves_room_and_memory_is_bounded(tmp_path: Path) -> None:
    """Beside a plugin that sleeps another one goes on. Each enabled plugin that nobody calls, each
    call that waits and each idle worker costs so much memory at most, far from what is usual."""
    ended = _bench(tmp_path, "load", *SHORT, "--output", "json",
                   "--only", "fair_alone,fair_beside,memory")

    assert ended.status == 0, ended.errors
    document = json.loads(ended.output)
    rows = {row["name"]: row for row in document["rows"]}
    assert rows.keys() == {"fair_alone", "fair_beside"}
    assert all(row["per_s"] > 0 for row in rows.values())
    assert document["machine"]["load_generator_cpu_us"].keys() == rows.keys()
    memory = document["machine"]["memory_kb"]
    assert memory["broker_per_enabled_plugin"] < 64
    assert memory["broker_per_waiting_call"] < 32
    assert 0 < memory["idle_worker"] < 256 * 1024
    assert ended.left == []


@pytest.mark.system
@pytest.mark.jail
def test_trust_measures_a_registry_and_leaves_nothing(tmp_path: Path) -> None:
    """Starts, pages, registrations and calls of a small registry each give their row."""
    names = "start_vouched,start_full,list_page,show,register,invoke_1"
    ended = _bench(tmp_path, "trust", *SHORT, "--versions", "20", "--output", "json",
                   "--only", names)

    assert ended.status == 0, ended.errors
    document = json.loads(ended.output)
    assert [row["name"] for row in document["rows"]] == names.split(",")
    assert all(set(row) == ROW and row["per_s"] > 0 for row in document["rows"])
    assert document["machine"]["versions"] == 20
    assert document["machine"]["broker_memory_mb"].keys() == {"start", "used", "after_calls"}
    assert ended.left == []
