"""A supervisor that was taken over: what its seal leaves it, as root and as an ordinary user.

The process is sealed by the supervisor's own steps, with a process of the same user in the place of
broker, launcher and siblings, and one started in between in the place of its zygote. That each
attempt succeeds without a seal is shown beside the broker's, in `tests/broker/test_seal.py`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandbox_worker.jail import attest
from tests.broker.test_seal import (
    REFUSED_NETWORK,
    REFUSED_OUTSIDE,
    REFUSED_PROCESSES,
    REFUSED_READING,
    Place,
    place,
)
from tests.escape.runner import PLUGIN
from tests.sandbox_worker.harness import worker

__all__ = ["place"]

pytestmark = [pytest.mark.jail, pytest.mark.system]


def _errnos(names: object, errno: str) -> dict[str, str]:
    assert isinstance(names, dict)
    return dict.fromkeys(names, errno)


def test_it_reads_and_changes_no_file(place: Place) -> None:
    """No key, no folder, no code, nothing of another process; no write, mode, owner or time."""
    filtered = {"change a mode", "change an owner", "change times", "set an attribute"}
    wanted = _errnos(REFUSED_OUTSIDE, "EACCES") | dict.fromkeys(filtered, "EPERM")
    wanted |= REFUSED_READING | {"read its own code": "EACCES"}

    assert place.ask(list(wanted), how="supervisor") == wanted
    assert (place.outside / "file").read_bytes() == b"content"


def test_it_starts_and_reaches_no_process_but_its_own(place: Place) -> None:
    """No exec, fork, ptrace, limit or signal; only what it started itself can be ended."""
    wanted = REFUSED_PROCESSES | {"signal what it started": "done"}

    assert place.ask(list(wanted), how="supervisor") == wanted


def test_it_connects_nowhere_once_the_broker_has_spoken(place: Place) -> None:
    """Before that a unix socket can be reached, because the broker's is one; after, nothing."""
    before = _errnos(REFUSED_NETWORK, "EPERM") | {"connect to a unix socket": "done"}
    after = {"stand connected": "done"} | _errnos(before, "EPERM") | {"start a thread": "EPERM"}

    assert place.ask(list(before), how="supervisor") == before
    assert place.ask(list(after), how="supervisor") == after


def test_a_worker_stands_connected_before_it_runs_a_plugin(tmp_path: Path) -> None:
    """From outside: when the first call is answered every thread has one filter more."""
    with worker(tmp_path, PLUGIN) as one:

        def filters() -> set[int]:
            tasks = os.listdir(f"/proc/{one.process.pid}/task")
            return {int(attest.status(f"{one.process.pid}/task/{task}")["Seccomp_filters"])
                    for task in tasks}  # fmt: skip

        (sealed,) = filters()
        one.value("result = 1")
        assert filters() == {sealed + 1}
