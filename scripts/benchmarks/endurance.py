"""Many calls through one gateway and one worker, and what is left of them: nothing may grow.

    scripts/endurance [--calls 10000] [--output table|json]

Counted in /proc for each process of the family (broker, launcher, supervisor, stub, zygote):
descriptors and private memory; and over all of them zombies, and processes once the calls are
over. The first fifth of the calls is warm-up; what was counted then is compared with the end. Exit
status 1: a figure grew beyond its bound. It leaves speed to `scripts/bench`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time

import zmq

from benchmarks.gateway import InvokeTraffic, gateway
from benchmarks.measure import REPLY_MS_MAX, BenchFailed
from benchmarks.processes import temporary_folder

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
ROLES = ("broker", "launcher", "supervisor", "stub", "zygote")
"""By how many parents lie between a process and the broker; below a zygote are call processes."""
IN_FLIGHT = 8
SETTLE_S = 10.0
"""How long the last call processes may take to be gone."""
KB_PER_CALL_MAX = {"broker": 2.0, "supervisor": 0.1, "zygote": 0.05, "launcher": 0.05, "stub": 0.05}
"""Growth of private memory allowed for each call. The broker keeps where the events of recent
requests lie, of 20,000 requests at most (`STORIES_MAX`)."""
KB_MAX = 1024
"""Growth that is an allocator's doing, whatever the number of calls."""

Counts = dict[str, dict[str, int]]


def main(arguments: list[str]) -> int:
    """Run the calls and judge; returns the exit status."""
    parser = argparse.ArgumentParser(prog="scripts/endurance", description=__doc__)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--output", choices=("table", "json"), default="table")
    parser.add_argument("--folder", help="where the home is made (default /var/tmp)")
    options = parser.parse_args(arguments)
    settings = "\n[workers]\ncalls_max = 1000000\n"
    try:
        with temporary_folder(options.folder) as folder, gateway(
            ROOT, folder, durability="process", worker="sandbox", settings=settings
        ) as (socket, broker):
            traffic = InvokeTraffic()
            warm = max(1, options.calls // 5)
            _make_calls(socket, traffic, warm)
            before = _settled(broker)
            began = time.monotonic()
            _make_calls(socket, traffic, options.calls - warm)
            per_s = (options.calls - warm) / (time.monotonic() - began)
            after = _settled(broker, before)
    except BenchFailed as error:
        print(f"endurance: {error}", file=sys.stderr)
        return 1
    wrong = _judge(before, after, options.calls - warm)
    if options.output == "json":
        result = {"calls": options.calls, "before": before, "after": after, "grew": wrong}
        print(json.dumps(result, indent=1))
    else:
        _print(before, after, options.calls - warm, per_s)
    for sentence in wrong:
        print(f"endurance: {sentence}", file=sys.stderr)
    return 1 if wrong else 0


def _make_calls(socket: zmq.Socket[bytes], traffic: InvokeTraffic, count: int) -> None:
    """Keep a window of calls in flight until all are answered."""
    sent = answered = 0
    while answered < count:
        while sent < count and sent - answered < IN_FLIGHT:
            socket.send(traffic.request()[1])
            sent += 1
        if not socket.poll(REPLY_MS_MAX):
            raise BenchFailed("a reply did not come")
        traffic.accept(socket.recv())
        answered += 1


def _settled(broker: int, before: Counts | None = None) -> Counts:
    """Count when the processes of ended calls are gone, and fail when they are not in time.

    With `before`, processes that still wait because of the load are given the same time to go: a
    descriptor that is left then is one too many.
    """
    until = time.monotonic() + SETTLE_S
    while True:
        counts = _count(broker)
        everything = counts["all"]
        calm = not everything["zombies"] and everything["call processes"] <= IN_FLIGHT
        late = time.monotonic() > until
        if calm and (late or before is None or all(
            counts[role]["descriptors"] <= before[role]["descriptors"] for role in KB_PER_CALL_MAX
        )):
            return counts
        if late:
            raise BenchFailed(f"{everything} after the last call was answered")


def _count(broker: int) -> Counts:
    """Look at the whole family once."""
    children: dict[int, list[int]] = {}
    states: dict[int, str] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        fields = _read(f"/proc/{name}/stat").rpartition(")")[2].split()
        if fields:
            states[int(name)] = fields[0]
            children.setdefault(int(fields[1]), []).append(int(name))
    counts: Counts = {"all": {"call processes": 0, "zombies": 0}}
    generation = [broker]
    for role in (*ROLES, "call"):
        for pid in generation:
            counts["all"]["zombies"] += states.get(pid) == "Z"
        if role == "call":
            counts["all"]["call processes"] = len(generation)
        elif len(generation) != 1:
            raise BenchFailed(f"there are {len(generation)} processes in the place of the {role}")
        else:
            counts[role] = _figures(generation[0])
        generation = [child for pid in generation for child in children.get(pid, [])]
    return counts


def _figures(pid: int) -> dict[str, int]:
    """Descriptors, where this user may list them, and private memory in kB."""
    figures = {}
    try:
        figures["descriptors"] = len(os.listdir(f"/proc/{pid}/fd"))
    except PermissionError:
        # A process that hides itself shows them to root only.
        figures["descriptors"] = -1
    for line in _read(f"/proc/{pid}/status").splitlines():
        if line.startswith("RssAnon:"):
            figures["private kB"] = int(line.split()[1])
    return figures


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _judge(before: Counts, after: Counts, calls: int) -> list[str]:
    """One sentence for each figure that grew too much."""
    wrong = []
    for role, kb_per_call in KB_PER_CALL_MAX.items():
        was, now = before[role], after[role]
        if now["descriptors"] > was["descriptors"]:
            wrong.append(f"the {role}'s descriptors grew: {was['descriptors']} to "
                         f"{now['descriptors']}")
        if now["private kB"] - was["private kB"] > KB_MAX + kb_per_call * calls:
            wrong.append(f"the {role}'s memory grew: {was['private kB']} to {now['private kB']} kB")
    return wrong


def _print(before: Counts, after: Counts, calls: int, per_s: float) -> None:
    print(f"{calls} calls after the warm-up, {per_s:.0f} a second, {IN_FLIGHT} in flight")
    for role in (*ROLES, "all"):
        figures = (f"{name} {before[role][name]} -> {now}" for name, now in after[role].items())
        print(f"{role:<12}{', '.join(figures)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
