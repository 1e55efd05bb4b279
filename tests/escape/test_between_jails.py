"""Jails beside each other, and what lies in one: no plugin reaches another's call, none ends its
own worker by a lie, and no secret lies where plugin code could read it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.messages import CallFailure
from tests.escape.runner import PLUGIN
from tests.sandbox_worker.harness import Worker, make_bundle, text_to_json, worker

pytestmark = [pytest.mark.jail, pytest.mark.system]

LIBRARY_WORD = """
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
    modules = ("struct", "types")
    with (
        worker(tmp_path / "one", PLUGIN, modules=modules) as one,
        worker(tmp_path / "two", PLUGIN, modules=modules) as two,
    ):
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


def _memory(pid: int) -> Iterator[bytes]:
    """All readable memory of a process, mapping by mapping."""
    with open(f"/proc/{pid}/maps", encoding="ascii") as maps, \
            open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            bounds, rights, *_ = line.split()
            start, end = (int(word, 16) for word in bounds.split("-"))
            if rights[0] == "r" and "[v" not in line:
                memory.seek(start)
                yield memory.read(end - start)


def test_no_secret_lies_in_the_memory_that_calls_inherit(tmp_path: Path) -> None:
    """A zygote holds neither keys nor addresses of the broker, nor what an earlier call was given.

    An ordinary user cannot even look: the process hides from it.
    """
    bundle = make_bundle(tmp_path, PLUGIN, methods=text_to_json())
    one = Worker(tmp_path, bundle)
    try:
        zygote = one.ready().attestation.zygote_pid
        one.value("result = 'only of the first call'")
        launch = one.launch
        secrets = [launch.worker_secret_key, launch.server_key, launch.endpoint,
                   launch.incarnation, "only of the first call"]  # fmt: skip
        if os.getuid() != 0:
            with pytest.raises(PermissionError):
                next(_memory(zygote))
            return
        found = [secret for part in _memory(zygote) for secret in secrets
                 if secret.encode() in part]  # fmt: skip
        assert found == []
    finally:
        one.close()
