"""What a new author waits for, measured with the wheel that would be published.

    scripts/first-minute [--output table|json]

The wheel is built from this project and installed, with its extra `test`, into a fresh virtual
environment in a temporary folder; nothing of this project is importable there. Then, typed as a new
user would: install, `omega-plugin new`, `omega-plugin call`; how long from saving to the next
answer of `call --watch`; how long until the fixture `gateway` is there; how long `--help` takes;
and the whole tutorial, block by block. Exit status 1: something took longer than it may, or the
tutorial does not do what it says.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import select
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parents[1]
HELP_RUNS: Final = 11
PATIENCE_S: Final = 60.0
FIXTURE_TEST: Final = "def test_gateway(gateway):\n    assert gateway.operator.status()\n"


class Figure(NamedTuple):
    """One wait: what for, how long it took and how long it may take, in ms; 0 means no bound."""

    name: str
    took_ms: float
    allowed_ms: float

    @property
    def ok(self) -> bool:
        """Whether it was short enough."""
        return not self.allowed_ms or self.took_ms <= self.allowed_ms


def main() -> int:
    """Run the command line; gives the exit status."""
    parser = argparse.ArgumentParser(prog="scripts/first-minute", description=__doc__)
    parser.add_argument("--output", choices=("table", "json"), default="table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="omega-first-") as name:
        figures = _measure(Path(name))
    if options.output == "json":
        print(json.dumps([one._asdict() | {"ok": one.ok} for one in figures], indent=1))
    else:
        for one in figures:
            bound = f"of {one.allowed_ms:,.0f} ms" if one.allowed_ms else ""
            print(f"{one.name:<44}{one.took_ms:>9,.0f} ms {bound}{'' if one.ok else '  TOO LONG'}")
    return int(not all(one.ok for one in figures))


def _measure(folder: Path) -> list[Figure]:
    _tell("building the wheel")
    _run([sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--disable-pip-version-check",
          "--wheel-dir", str(folder), str(ROOT)], os.environ, folder)
    (wheel,) = folder.glob("*.whl")
    environment = _environment(folder)
    _tell("installing it in a fresh virtual environment")
    begun = time.monotonic()
    _run([sys.executable, "-m", "venv", str(folder / "venv")], os.environ, folder)
    _run(["pip", "install", "-qq", "--disable-pip-version-check", f"{wheel}[test]"], environment,
         folder)
    installed = time.monotonic()
    _tell("making and calling a plugin")
    _run(["omega-plugin", "new", "word-length"], environment, folder)
    called = time.monotonic()
    answer = _run(["omega-plugin", "call", "count", "-C", "word-length", "--text", "one two"],
                  environment, folder)
    ended = time.monotonic()
    assert answer == '{"words":2}\n', answer
    return [
        Figure("install", (installed - begun) * 1000, 0),
        Figure("omega-plugin new", (called - installed) * 1000, 0),
        Figure("omega-plugin call, the first one", (ended - called) * 1000, 0),
        Figure("from install to the first answer, 3 commands", (ended - begun) * 1000, 60_000),
        Figure("from saving to the next answer", _saved(folder / "word-length", environment), 1000),
        Figure("the fixture `gateway`", _fixture(folder, environment), 1000),
        *(Figure(f"{name} --help", _help(name, environment, folder), 150)
          for name in ("omega-gateway", "omega-plugin")),
        Figure("the tutorial, whole", _tutorial(folder, environment), 0),
    ]


def _environment(folder: Path) -> dict[str, str]:
    """An environment that knows the fresh installation and nothing of this project."""
    left = {name: value for name, value in os.environ.items()
            if not name.startswith(("PYTHON", "VIRTUAL_ENV", "OMEGA"))}
    return left | {
        "PATH": f"{folder / 'venv' / 'bin'}{os.pathsep}/usr/local/bin:/usr/bin:/bin",
        "HOME": str(folder), "XDG_RUNTIME_DIR": str(folder),
        "PYTEST_ADDOPTS": "-p no:cacheprovider",
    }


def _run(words: list[str], environment: os._Environ[str] | dict[str, str], folder: Path) -> str:
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True,
                          check=False, timeout=600)
    if done.returncode:
        sys.exit(f"first-minute: {' '.join(words)} ended with {done.returncode}\n"
                 f"{done.stdout}{done.stderr}")
    return done.stdout


def _saved(folder: Path, environment: dict[str, str]) -> float:
    """Save the plugin while `call --watch` looks, and wait for what it answers then; in ms."""
    _tell("saving while `call --watch` looks")
    words = ["omega-plugin", "call", "count", "--text", "one two", "--watch"]
    times = []
    with subprocess.Popen(words, cwd=folder, env=environment, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL) as watching:
        try:
            _next_line(watching)
            for number in range(5):
                begun = time.monotonic()
                with open(folder / "plugin.py", "a", encoding="utf-8") as file:
                    file.write(f"# saved {number}\n")
                _next_line(watching)
                times.append((time.monotonic() - begun) * 1000)
        finally:
            watching.terminate()
    return statistics.median(times)


def _next_line(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], PATIENCE_S)[0]:
        sys.exit("first-minute: `call --watch` did not answer")
    process.stdout.readline()


def _fixture(folder: Path, environment: dict[str, str]) -> float:
    """How long pytest says that the fixture took, in ms."""
    _tell("asking for the fixture `gateway`")
    (folder / "test_fixture.py").write_text(FIXTURE_TEST)
    said = _run(["python", "-m", "pytest", "-q", "--durations=0", "-vv", "test_fixture.py"],
                environment, folder)
    found = re.search(r"([0-9.]+)s setup", said)
    if found is None:
        sys.exit(f"first-minute: the fixture was not used\n{said}")
    return float(found[1]) * 1000


def _help(name: str, environment: dict[str, str], folder: Path) -> float:
    times = []
    for _ in range(HELP_RUNS):
        begun = time.monotonic()
        _run([name, "--help"], environment, folder)
        times.append((time.monotonic() - begun) * 1000)
    return statistics.median(times)


def _tutorial(folder: Path, environment: dict[str, str]) -> float:
    """Play the tutorial in an empty folder, with the installed commands; in ms."""
    _tell("playing the tutorial")
    sys.path.insert(0, str(ROOT))
    from tests.support.pages import play

    place = folder / "tutorial"
    place.mkdir()
    begun = time.monotonic()
    play(ROOT / "docs" / "tutorial" / "first-plugin.md", place, environment)
    return (time.monotonic() - begun) * 1000


def _tell(words: str) -> None:
    print(f"first-minute: {words}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
