"""Running the command line in a process of its own, as a shell would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 60


class Done(NamedTuple):
    """How one command ended."""

    code: int
    out: str
    err: str

    def document(self) -> dict[str, object]:
        """Give stdout as the one JSON object that it must be."""
        document = json.loads(self.out)
        assert isinstance(document, dict)
        return document

    def documents(self) -> list[dict[str, object]]:
        """Give stdout as one JSON object a line."""
        return [json.loads(line) for line in self.out.splitlines()]

    def sentence(self) -> str:
        """Give the first line of stderr, which says what went wrong."""
        assert self.err, "stderr is empty"
        return self.err.splitlines()[0]


def environment(home: Path | None = None, **more: str) -> dict[str, str]:
    """An environment without anything that would change how a command prints."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    if home is not None:
        # The sockets lie beside the home, so that nothing is left behind outside of it.
        kept |= {"OMEGA_GATEWAY_HOME": str(home), "XDG_RUNTIME_DIR": str(home.parent),
                 "XDG_STATE_HOME": str(home.parent / "state")}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


def gateway(
    *arguments: str, home: Path | None = None, stdin: bytes = b"", **more: str
) -> Done:
    """Run `omega-gateway` with these arguments."""
    done = subprocess.run(
        [sys.executable, "-m", "broker.cli.main", *arguments], input=stdin, capture_output=True,
        env=environment(home, **more), timeout=PATIENCE_S, check=False,
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())
