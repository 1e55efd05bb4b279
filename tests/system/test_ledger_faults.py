"""Somebody touches the live ledger of a running gateway: it ends, and the next start names it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.client_errors import GatewayError
from broker.evidence.verify import verify_directory
from broker.home import load_home
from tests.support.gateway import PATIENCE_S, ROOT, RunningGateway, wait_for

pytestmark = pytest.mark.system


def _swap_last_lines(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    with path.open("r+b") as file:
        file.seek(sum(map(len, lines[:-2])))
        file.write(lines[-1] + lines[-2] + b"{")


# What the gateway was writing follows the foreign bytes, so a file that was touched is damaged also
# where a file that is touched while nobody writes could be mended.
FAULTS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "removed": (os.unlink, "no segment", "missing_segment"),
    "cut": (lambda path: os.truncate(path, path.stat().st_size // 2), "not event", "flipped"),
    "swapped": (_swap_last_lines, "not event", "swapped"),
    "grown": (lambda path: path.write_bytes(path.read_bytes() + b"x"), "not event", "flipped"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_touched_live_segment_ends_the_gateway_and_is_named_at_the_next_start(fault: str) -> None:
    """Nobody gets an answer after the fault, the end is 74, and the next start says what it is."""
    spoil, sentence, kind = FAULTS[fault]
    with tempfile.TemporaryDirectory(prefix="og-") as folder:
        gateway = RunningGateway(Path(folder))
        command = [sys.executable, "-m", "broker.cli.main", "serve", "--home", str(gateway.home)]
        with gateway.log.open("wb") as log:
            process = subprocess.Popen(command, cwd=ROOT, env=gateway.environment, stderr=log)
        try:
            wait_for("the gateway to be ready", lambda: b'"ready"' in gateway.log.read_bytes())
            auditor = gateway.auditor()
            auditor.ledger_head()
            (segment,) = (gateway.home / "ledger" / "segments").iterdir()
            spoil(segment)
            with pytest.raises(GatewayError):
                auditor.status()
            assert process.wait(PATIENCE_S) == 74
        finally:
            process.kill()
            process.wait()
            gateway.stop()
        started = subprocess.run(
            command, cwd=ROOT, env=gateway.environment, capture_output=True, text=True,
            check=False, timeout=PATIENCE_S,
        )
        assert started.returncode == 7, started.stderr
        assert sentence in started.stderr
        key = load_home(str(gateway.home), environment=gateway.environment).verifier_key
        report = verify_directory(str(gateway.home / "ledger"), verifier_key=key)
        assert report.problem is not None
        assert report.problem.kind == kind
