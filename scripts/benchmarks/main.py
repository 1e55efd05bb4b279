"""The command line of `scripts/bench`: which bench, how long, and how its result is printed."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

from benchmarks import bus, ledger, load, sandbox, trust
from benchmarks.machine import describe
from benchmarks.measure import BenchFailed, Row
from benchmarks.plot import plot
from benchmarks.processes import temporary_folder

BENCHES = {
    "bus": (bus.run, bus.NAMES), "ledger": (ledger.run, ledger.NAMES),
    "load": (load.run, load.NAMES), "sandbox": (sandbox.run, sandbox.NAMES),
    "trust": (trust.run, trust.NAMES),
}


def main(root: str, arguments: list[str]) -> int:
    """Run one bench and print its result; returns the exit status."""
    options = _options(arguments)
    run, names = BENCHES[options.bench]
    only = frozenset(options.only.split(",")) if options.only else frozenset(names)
    if unknown := only - set(names):
        print(f"bench: no row named {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    # So that a stopped bench ends its processes and removes its folders.
    signal.signal(signal.SIGTERM, _stop)
    os.environ["PYTHONPATH"] = os.pathsep.join((os.path.join(root, "scripts"), root))
    try:
        with temporary_folder(options.folder) as folder:
            machine = describe(folder)
            result = run(
                root, folder, rounds=options.rounds, seconds=options.seconds, only=only, tell=_tell,
                **({"events": options.events} if options.bench == "ledger" else {}),
                **({"versions": options.versions} if options.bench == "trust" else {}),
            )
    except BenchFailed as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    forks = {row.name: row.p50_us for row in result.rows if row.in_flight == 1}
    document = {
        "rows": [row._asdict() for row in result.rows],
        "machine": {
            **machine,
            "fork_p50_us": forks.get("fork_bare"),
            "rounds": options.rounds,
            "seconds": options.seconds,
            "load_generator_cpu_us": result.load_us,
            **result.counts,
        },
    }
    if options.plot:
        with open(options.plot, "w", encoding="utf-8") as file:
            file.write(plot(result.rows))
    if options.output == "json":
        print(json.dumps(_rounded(document), indent=1))
    else:
        _print_table(result.rows, document["machine"])
    return 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="Measure this gateway on this machine."
    )
    parser.add_argument("bench", choices=sorted(BENCHES))
    parser.add_argument("--output", choices=("table", "json"), default="table")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default 5)")
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="length of one row in one round (default 1)"
    )
    parser.add_argument(
        "--events", type=int, default=ledger.EVENTS,
        help="events that `ledger` verifies and proves (default 1000000)",
    )
    parser.add_argument(
        "--versions", type=int, default=trust.VERSIONS,
        help="versions that `trust` registers (default 10000)",
    )
    parser.add_argument("--only", help="rows to measure, by name, with commas")
    parser.add_argument(
        "--folder", help="where the homes are made, so whose flush is measured (default /var/tmp)"
    )
    parser.add_argument("--plot", metavar="FILE", help="with `load`: an SVG of offered load")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.seconds <= 0 or options.events < 1 or options.versions < 1:
        parser.error("--rounds, --seconds, --events and --versions must be positive")
    return options


def _stop(_number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(143)


def _tell(word: str) -> None:
    print(f"bench: {word}", file=sys.stderr)


def _rounded(value: object) -> object:
    """Round every figure to what it can bear: three digits behind the point."""
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def _print_table(rows: list[Row], machine: object) -> None:
    form = "{:<25}{:>10}{:>11}{:>11}{:>10}{:>9}{:>8}"
    print(form.format(*Row._fields))
    for row in rows:
        ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
        figures = (f"{figure:,.0f}" if figure >= 100 else f"{figure:.2f}" for figure in row[2:6])
        print(form.format(row.name, row.in_flight, *figures, ratio))
    print()
    for name, value in machine.items() if isinstance(machine, dict) else ():
        print(f"{name}: {_words(value)}")


def _words(value: object) -> str:
    """Write one fact about the machine for a person."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(figure)}" for key, figure in value.items())
    if isinstance(value, float):
        return f"{value:,.2f}" if abs(value) < 10 else f"{value:,.0f}"
    return "not measured" if value is None else str(value)
