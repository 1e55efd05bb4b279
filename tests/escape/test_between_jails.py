"""Two jails at once: no plugin reaches another's call, and none ends its own worker by a lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.messages import CallFailure
from tests.escape.runner import PLUGIN
from tests.sandbox_worker.harness import worker

pytestmark = [pytest.mark.jail, pytest.mark.system]

LIBRARY_WORD = """
ctypes = linux.ctypes
page = ctypes.cast(linux._syscall, ctypes.c_void_p).value & ~4095
word = int.from_bytes(ctypes.string_at(page, 4), "little")
"""
"""A word of the C library: the same page of the same file in every process of the machine."""


@pytest.mark.parametrize("operation", [0, 9, 265], ids=["wait", "bitset", "bitset_on_clock"])
def test_no_process_waits_where_another_jail_could_wake_it(
    tmp_path: Path, operation: int
) -> None:
    """A shared futex on a library's page would be a bell between plugins; asking for one kills."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir(mode=0o755)
    with worker(tmp_path / "one", PLUGIN) as one, worker(tmp_path / "two", PLUGIN) as two:
        wait = f"linux.call(202, page, {operation}, word, 0, 0, 0xFFFFFFFF)"
        waiting = one.start(LIBRARY_WORD + wait)
        ringing = two.call(LIBRARY_WORD + "linux.call(202, page, 1, 1)")

        for end in (one.end_of(waiting), ringing):
            assert isinstance(end, CallFailure), end
            assert end.code == "system_call_forbidden"


def test_an_exit_status_of_ours_is_not_believed_from_a_plugin(tmp_path: Path) -> None:
    """The status that means "not jailed" ends only the call in which a plugin gives it."""
    with worker(tmp_path, PLUGIN) as one:
        end = one.call("import os; os._exit(70)")

        assert isinstance(end, CallFailure)
        assert end.code == "plugin_crashed"
        assert one.value("result = 1") == [["succeeded", "1", 0]]
