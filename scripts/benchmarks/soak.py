"""Mixed load and faults against one gateway, and what is left of them.

    scripts/soak [--minutes 10] [--seed 1] [--output table|json]

Four clients call, fail, crash, flood, cancel, run pipelines and leave in mid-call; one asks for
much and reads late, one only reads; once a second a process is killed, a version upgraded, revoked
or broken, the policy reloaded or nonsense sent. After the first fifth and at the end everybody
rests, and what the gateway holds then is compared: memory and descriptors of broker and launcher,
processes, zombies, files of the run directory. At the end it drains, and its ledger is verified and
audited, which shows that every accepted call ended exactly once. Exit status 1: something grew,
hung or was not as it should be.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from typing import Final

from benchmarks.gateway import CONNECT_S
from benchmarks.measure import BenchFailed
from benchmarks.processes import Child, temporary_folder
from benchmarks.soak_clients import Pause, Tally, auditor, complain_of_threads, mixed, slow, started
from benchmarks.soak_faults import Faults, family
from broker.client import AdminClient, GatewayError
from broker.evidence.audit import Audit
from broker.evidence.events import read_events
from broker.evidence.verify import verify_directory
from broker.home import Home, create_home

ROOT: Final = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
CLIENTS: Final = 4
REMEMBERED: Final = 20_000
"""Of so many requests the broker remembers ids and where their events lie."""
KB_PER_REQUEST: Final = 1.0
"""What one remembered request may cost."""
KB_PER_VERSION: Final = 20.0
"""What a version may leave that was registered, called and superseded: its record and what came of
its calls are never forgotten. 7 kB without faults and load, once as many are loaded as are kept."""
SETTLE_S: Final = 30.0
BROKER_KB_MAX: Final = 8 * 1024
LAUNCHER_KB_MAX: Final = 1024
SETTINGS: Final = f"""
[limits]
request_window = {REMEMBERED}
[workers]
crash_loop_max = 1000000
calls_max = 2000
[times]
presence_ms = 500
presence_grace_ms = 1000
backoff_ms_max = 500
witness_interval_ms = 5000
recycle_interval_ms = 500
[breaker]
rest_ms = 500
rest_ms_max = 1000
"""
_PRINTED: Final = re.compile(r"[a-z][a-z0-9-]* [0-9]+\| ")
Figures = dict[str, int]


def main(arguments: list[str]) -> int:
    """Run the soak and judge it; returns the exit status."""
    options = _options(arguments)
    tally = Tally()
    try:
        with temporary_folder(options.folder) as folder:
            home = create_home(os.path.join(folder, "home"), "development", None)
            try:
                before, after = _soak(home, folder, options, tally)
                ledger = _ledger(home, tally)
            finally:
                shutil.rmtree(home.run_directory, ignore_errors=True)
    except (BenchFailed, GatewayError) as error:
        print(f"soak: {error}", file=sys.stderr)
        return 1
    _judge(before, after, tally)
    result = {
        "minutes": options.minutes, "seed": options.seed, "before": before, "after": after,
        "ledger": ledger, "outcomes": dict(sorted(tally.outcomes.items())), "wrong": tally.wrong,
    }
    if options.output == "json":
        print(json.dumps(result, indent=1))
    else:
        _print(before, after, ledger, tally)
    for sentence in tally.wrong:
        print(f"soak: {sentence}", file=sys.stderr)
    return 1 if tally.wrong else 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", choices=("table", "json"), default="table")
    parser.add_argument("--folder", help="where the home is made (default /var/tmp)")
    return parser.parse_args(arguments)


def _soak(
    home: Home, folder: str, options: argparse.Namespace, tally: Tally
) -> tuple[Figures, Figures]:
    """Serve, load and break, and count twice; the broker has ended when this returns."""
    log = os.path.join(folder, "broker.log")
    with open(os.path.join(home.path, "gateway.toml"), "a", encoding="utf-8") as file:
        file.write(SETTINGS)
    with Child(ROOT, "broker", {"home": home.path, "log": log}, wait=False) as broker:
        faults = Faults(ROOT, home.path, broker.pid, options.seed, tally)
        profile = os.path.join(home.path, "profiles", "operator")
        with AdminClient(profile, connect_timeout=CONNECT_S) as operator:
            faults.upgrade(operator)
        pause = Pause()
        complain_of_threads(tally)
        threads = [
            started(f"client {number}", lambda seed=number: mixed(
                home.path, options.seed * 1000 + seed, tally, pause
            ))
            for number in range(CLIENTS)
        ]
        threads += [
            started("the slow client", lambda: slow(home.path, tally, pause)),
            started("the auditor", lambda: auditor(home.path, tally, pause)),
            started("the faults", lambda: faults.run(pause)),
        ]
        seconds = options.minutes * 60
        _go_on(seconds / 5, "warming up", broker.pid, tally)
        before = _rested(home, broker.pid, pause, tally, seconds)
        _go_on(seconds * 4 / 5, "soaking", broker.pid, tally)
        after = _rested(home, broker.pid, pause, tally, seconds)
        _end(threads, pause, tally)
        os.kill(broker.pid, signal.SIGTERM)
        status = broker.wait(SETTLE_S)
        if status != 0:
            tally.complain(f"the broker drained with status {status}")
    _read_log(log, tally)
    return before, after


def _read_log(path: str, tally: Tally) -> None:
    """Complain about errors of the gateway's own; what plugins print stands behind their name."""
    with open(path, encoding="utf-8", errors="replace") as file:
        own = [line.rstrip() for line in file if not _PRINTED.match(line)]
    for number, line in enumerate(own):
        if line.startswith("Traceback") or '"level":"critical"' in line:
            tally.complain("the broker's log has: " + " / ".join(own[number : number + 12])[:2000])


def _go_on(seconds: float, what: str, broker: int, tally: Tally) -> None:
    """Let everybody work for a while, and say every ten seconds how it stands."""
    end = time.monotonic() + seconds
    told, last = time.monotonic(), tally.total()
    while (now := time.monotonic()) < end:
        threading.Event().wait(min(10.0, end - now))
        took, told = time.monotonic() - told, time.monotonic()
        total = tally.total()
        print(
            f"soak: {what}, {max(0.0, end - told):.0f} s left: {(total - last) / took:.0f} "
            f"operations a second, {_private_kb(broker) // 1024} MB, {len(tally.wrong)} complaints",
            file=sys.stderr,
        )
        last = total


def _rested(home: Home, broker: int, pause: Pause, tally: Tally, seconds: float) -> Figures:
    """Let everybody rest, wait until what they left behind is gone, and count."""
    pause.rest()
    look_s = min(1.0, seconds / 60)
    until = time.monotonic() + SETTLE_S
    figures, quiet = _count(home, broker, tally), 0
    while quiet < 5 and time.monotonic() < until:
        threading.Event().wait(look_s)
        now = _count(home, broker, tally)
        same = all(now[name] == figures[name] for name in now if not name.endswith("kB"))
        quiet = quiet + 1 if same and not now["zombies"] else 0
        figures = now
    if quiet < 5:
        tally.complain(f"the gateway did not come to rest within {SETTLE_S:.0f} s: {figures}")
    pause.go_on()
    return figures


def _count(home: Home, broker: int, tally: Tally) -> Figures:
    """What the gateway holds at this moment."""
    members = family(broker)
    files = sum(len(names) for _, _, names in os.walk(home.run_directory))
    return {
        "requests": tally.requests,
        "versions": tally.versions,
        "broker kB": _private_kb(broker),
        "broker descriptors": len(os.listdir(f"/proc/{broker}/fd")),
        "launcher kB": sum(map(_private_kb, members["launcher"])),
        "launchers": len(members["launcher"]),
        "workers": len(members["supervisor"]),
        "zygotes": len(members["zygote"]),
        "call processes": len(members["call"]),
        "zombies": sum(_state(pid) == "Z" for pids in members.values() for pid in pids),
        "run directory files": files,
    }


def _private_kb(pid: int) -> int:
    for line in _read(f"/proc/{pid}/status").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    return 0


def _state(pid: int) -> str:
    return (_read(f"/proc/{pid}/stat").rpartition(")")[2].split() or [""])[0]


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _end(threads: list[threading.Thread], pause: Pause, tally: Tally) -> None:
    pause.end()
    for thread in threads:
        thread.join(SETTLE_S)
        if thread.is_alive():
            tally.complain(f"{thread.name} hangs")


def _ledger(home: Home, tally: Tally) -> dict[str, object]:
    """Verify and audit what was written."""
    print("soak: verifying and auditing the ledger", file=sys.stderr)
    verified = verify_directory(
        home.ledger, verifier_key=home.verifier_key, anchor_directory=home.anchor
    )
    if not verified.ok:
        tally.complain(f"the ledger does not verify: {verified.problems[:3]}")
    audit = Audit()
    for event in read_events(home.ledger):
        audit.take(event)
    report = audit.report()
    for verdict in report.verdicts:
        if not verdict.ok:
            tally.complain(f"{verdict.name} does not hold at event {verdict.seq}: "
                           f"expected {verdict.expected}, found {verdict.found}")
    if report.open:
        tally.complain(f"{report.open} accepted invocations have no end")
    return {"events": report.events, "invariants": len(report.verdicts), "open": report.open}


def _judge(before: Figures, after: Figures, tally: Tally) -> None:
    """Complain about what grew."""
    new = max(0, min(after["requests"], REMEMBERED) - before["requests"])
    kept = KB_PER_REQUEST * new + KB_PER_VERSION * (after["versions"] - before["versions"])
    for name, bound in (("broker kB", BROKER_KB_MAX + kept), ("launcher kB", LAUNCHER_KB_MAX)):
        if after[name] - before[name] > bound:
            tally.complain(f"{name} grew from {before[name]} to {after[name]}")
    # A worker more has descriptors and a socket file of its own, a client that just left may still
    # have a connection.
    workers = max(0, after["workers"] - before["workers"])
    for name, some, each in (("broker descriptors", 4, 4), ("run directory files", 0, 2)):
        if after[name] > before[name] + some + workers * each:
            tally.complain(f"{name} grew from {before[name]} to {after[name]}")
    if after["zombies"]:
        tally.complain(f"{after['zombies']} zombies are left")


def _print(before: Figures, after: Figures, ledger: dict[str, object], tally: Tally) -> None:
    for name, figure in after.items():
        print(f"{name:<24}{before[name]:>10,} -> {figure:>10,}")
    print(", ".join(f"{name} {figure:,}" for name, figure in ledger.items()
                    if isinstance(figure, int)))
    for name, count in sorted(tally.outcomes.items()):
        print(f"{name:<60}{count:>10,}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
