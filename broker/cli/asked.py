"""What the worker's own code says, asked in a process of its own.

Rules this file keeps: the broker's side never imports the worker's, so a command that shows
something of the worker runs one of its modules and reads the JSON that it writes.
"""

from __future__ import annotations

import os
import subprocess
import sys

import msgspec

import broker
from broker.cli.output import Table, show
from broker.machine import Finding

ANSWER_SECONDS_MAX = 60


def ask_worker(module: str) -> bytes:
    """Run `python -m MODULE` of the worker and give what it wrote to standard output.

    Raises:
        subprocess.SubprocessError: it failed or took too long, which is a defect.
    """
    root = os.path.dirname(os.path.dirname(os.path.abspath(broker.__file__)))
    search = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-P", "-m", module], stdout=subprocess.PIPE, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(search)}, timeout=ANSWER_SECONDS_MAX,
    )  # fmt: skip
    return done.stdout


class _Program(msgspec.Struct):
    program: str
    instructions: int
    sha256: str


class _Row(msgspec.Struct):
    number: int | None
    call: str
    arguments: str
    action: str
    otherwise: str


class _Filter(msgspec.Struct):
    filter: str
    rows: list[_Row]


class _Listing(msgspec.Struct):
    programs: list[_Program]
    filters: list[_Filter]


class _Trial(msgspec.Struct):
    feature: str = ""
    errno: int = 0
    hint: str = ""


def try_sandbox() -> Finding:
    """Have the worker close a whole jail; the remedy of what does not hold is the worker's own."""
    trial = msgspec.json.decode(ask_worker("sandbox_worker.trial"), type=_Trial)
    wanted = "made, attested and rehearsed"
    reason = os.strerror(trial.errno) if trial.errno else "no effect"
    found = f"refused: {trial.feature}, {reason}" if trial.feature else wanted
    return Finding("sandbox", found, wanted, not trial.feature, trial.hint)


def show_filters() -> None:
    """Print every filter that a worker installs: its digest, and what it does with which call."""
    listing = msgspec.json.decode(ask_worker("sandbox_worker.listing"), type=_Listing)
    rows = [
        (one.filter, row.number, row.call, row.arguments, row.action, row.otherwise)
        for one in listing.filters
        for row in one.rows
    ]
    headers = ("filter", "number", "call", "when", "action", "otherwise")
    programs = [(one.program, one.instructions, one.sha256) for one in listing.programs]
    show(
        "omega.filters/1",
        msgspec.to_builtins(listing),
        Table(programs, ("program", "instructions", "sha256")),
        Table(rows, headers),
        each=("filters", "omega.filter/1"),
    )
