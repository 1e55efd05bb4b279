"""Fuzz every target for a while, guided by coverage, and keep what reaches further.

    scripts/fuzz [TARGET…] [--seconds 60] [--keep] [--output table|json]

Each target of tests/fuzz/targets.py runs in a process of its own, beginning with its seeds and what
was kept before. With `--keep` the shortest inputs that reached further are added to what
tests/fuzz/corpus holds, which the tests play every time. An input that ends in another exception
than promised is printed in hex with the traceback; exit status 1.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parents[1]
INPUT_BYTES_MAX: Final = 4096
KEPT_BYTES_MAX: Final = 1024
KEPT_MAX: Final = 60
"""How many inputs are kept for a target: the tests play all of them every time."""
SLOW_S: Final = 10
_STATE: Final = re.compile(r"#(\d+)\s+\w+\s+(?:cov: (\d+) )?(?:ft: (\d+) )?")


class Outcome(NamedTuple):
    """What a search of one target came to; `covered` counts branches that were reached."""

    target: str
    executions: int
    covered: int
    features: int
    kept: int
    finding: str


def main() -> int:
    """Run the command line; gives the exit status."""
    sys.path.insert(0, str(ROOT))
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default 60)")
    parser.add_argument("--keep", action="store_true", help="keep what reaches further")
    parser.add_argument("--output", choices=("table", "json"), default="table")
    options = parser.parse_args()
    if unknown := set(options.targets) - set(TARGETS):
        parser.error(f"no target is named {', '.join(sorted(unknown))}")
    outcomes = []
    for number, name in enumerate(options.targets or TARGETS, 1):
        print(f"fuzz: {number} of {len(options.targets or TARGETS)}: {name}, "
              f"{options.seconds} s", file=sys.stderr)
        outcomes.append(search(name, TARGETS[name].seeds(), options.seconds, keep=options.keep))
        if outcomes[-1].finding:
            print(outcomes[-1].finding, file=sys.stderr)
    if options.output == "json":
        print(json.dumps([one._asdict() for one in outcomes], indent=1))
    else:
        form = "{:<20}{:>12}{:>10}{:>10}{:>8}  {}"
        print(form.format(*Outcome._fields))
        for one in outcomes:
            print(form.format(*one[:5], "found" if one.finding else "nothing"))
    return int(any(one.finding for one in outcomes))


def search(name: str, seeds: list[bytes], seconds: int, *, keep: bool) -> Outcome:
    """Search one target, beginning with its seeds and its kept inputs."""
    from tests.fuzz.corpus import read, write

    with tempfile.TemporaryDirectory(prefix="omega-fuzz-") as folder:
        found, begun, ended = (Path(folder) / part for part in ("found", "begun", "ended"))
        for path in (found, begun, ended):
            path.mkdir()
        for number, data in enumerate([*seeds, *read(name)]):
            (begun / str(number)).write_bytes(data)
        done = _drive(
            name, f"-max_total_time={seconds}", f"-max_len={INPUT_BYTES_MAX}",
            f"-timeout={SLOW_S}", f"-artifact_prefix={ended}/", str(found), str(begun),
        )
        states = _STATE.findall(done) or [("0", "0", "0")]
        executions, covered, features = (int(figure or 0) for figure in states[-1])
        finding = "".join(
            f"{name}: {path.name.partition('-')[0]} with the input {path.read_bytes().hex()}\n"
            f"{_told(done)}" for path in ended.iterdir()
        )
        kept = len(read(name))
        if keep and not finding:
            new = [path.read_bytes() for path in found.iterdir()]
            small = sorted((one for one in new if len(one) <= KEPT_BYTES_MAX), key=len)
            write(name, [*read(name), *small][:KEPT_MAX])
            kept = len(read(name))
    return Outcome(name, executions, covered, features, kept, finding)


def _drive(name: str, *arguments: str) -> str:
    """Run libFuzzer on a target and give what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.drive", name, *arguments], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace", check=False,
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )
    return done.stdout


def _told(said: str) -> str:
    """Give the traceback in what a search said."""
    return said[said.rfind("=== Uncaught Python exception") :][:4000]


if __name__ == "__main__":
    sys.exit(main())
