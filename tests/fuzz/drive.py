"""One target under atheris, guided by coverage: `python -m tests.fuzz.drive TARGET ARGUMENTS…`.

The arguments are libFuzzer's. It is a process of its own, because libFuzzer ends the process that
it runs in; `scripts/fuzz` starts it, for one target after the other.
"""

from __future__ import annotations

import importlib
import sys

import atheris

INSTRUMENTED = ["schemas", "broker", "sandbox_worker", "verify_ledger", "verify_proof"]


def main() -> None:
    """Import a target's decoders with their branches counted, and search."""
    name, *arguments = sys.argv[1:]
    with atheris.instrument_imports(include=INSTRUMENTED):
        targets = importlib.import_module("tests.fuzz.targets")
    run = targets.TARGETS[name].run
    atheris.Setup([sys.argv[0], *arguments], run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
