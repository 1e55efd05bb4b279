"""The soak's clients: each a thread that makes one kind of trouble until it is told to stop.

Rules this file keeps: what a client does is drawn from a seeded generator; every outcome is counted
under the operation's name and the code it ended with; what no client should ever see is kept as a
sentence, and ends nothing.

It leaves breaking processes to `benchmarks.soak_faults` and judging to `benchmarks.soak`.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

import zmq

from benchmarks.gateway import InvokeTraffic
from benchmarks.plain import client_socket
from broker.client import AdminClient, GatewayError, OmegaClient, Refused
from broker.client_profile import read_profile
from broker.client_session import Call, new_request_id
from schemas.messages import Budget, Step, StepOutput
from schemas.payloads import TextPayload

PLUGIN: Final = "soak"
TIMEOUT_S: Final = 5.0
PACE_S: Final = 0.02
"""Between two operations of one client: what a machine shared with others can keep up with."""
BURST: Final = 300
SLOW_REQUESTS: Final = 200


class Tally:
    """What became of every operation, from all threads."""

    def __init__(self) -> None:
        """Count nothing yet."""
        self._lock = threading.Lock()
        self.outcomes: Counter[str] = Counter()
        self.requests = 0
        self.versions = 0
        self.wrong: list[str] = []

    def count(self, operation: str, code: str, requests: int = 1) -> None:
        """Count one end of an operation of so many requests."""
        with self._lock:
            self.outcomes[f"{operation}: {code}"] += 1
            self.requests += requests

    def complain(self, sentence: str) -> None:
        """Keep what should not have happened."""
        with self._lock:
            self.wrong.append(sentence)

    def total(self) -> int:
        """Say how many operations have ended."""
        with self._lock:
            return self.outcomes.total()


class Pause:
    """Lets everybody work, rest, or end."""

    def __init__(self) -> None:
        """Let everybody work."""
        self._work = threading.Event()
        self._work.set()
        self.ended = threading.Event()

    def rest(self) -> None:
        """Let nobody begin anything new."""
        self._work.clear()

    def go_on(self) -> None:
        """Let everybody work again."""
        self._work.set()

    def end(self) -> None:
        """Let everybody go."""
        self.ended.set()
        self._work.set()

    def turns(self, pace_s: float) -> bool:
        """Wait for the next turn; false when there is none."""
        self.ended.wait(pace_s)
        self._work.wait()
        return not self.ended.is_set()


def started(name: str, work: Callable[[], None]) -> threading.Thread:
    """Start a thread."""
    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    return thread


def complain_of_threads(tally: Tally) -> None:
    """Make the unexpected end of any thread a complaint."""
    def complain(ended: threading.ExceptHookArgs) -> None:
        name = ended.thread.name if ended.thread else "a thread"
        tally.complain(f"{name} ended by {ended.exc_type.__name__}: {ended.exc_value}")

    threading.excepthook = complain


def mixed(home: str, seed: int, tally: Tally, pause: Pause) -> None:
    """Call every method in turn of chance, alone, in pipelines and in windows, and cancel some."""
    chance = random.Random(seed)
    operations = {
        _simple: 60, _failing: 14, _pipeline: 8, _window: 4, _cancelled: 6, _gone: 4, _reading: 4,
    }
    names, weights = list(operations), list(operations.values())
    with OmegaClient.from_home(home) as omega, OmegaClient.from_home(home) as other:
        while pause.turns(PACE_S):
            operation = chance.choices(names, weights)[0]
            name = operation.__name__[1:]
            try:
                operation(omega, other, home, chance)
                tally.count(name, "ok", BURST if operation is _window else 1)
            except Refused as refused:
                tally.count(name, str(refused.code))
            except GatewayError as error:
                tally.complain(f"{name} ended by {type(error).__name__}: {error}")


def _text(chance: random.Random) -> TextPayload:
    return TextPayload("word " * chance.choice((1, 10, 100, 1000)))


def _simple(
    omega: OmegaClient, _other: OmegaClient, _home: str, chance: random.Random
) -> None:
    text = _text(chance)
    answer = omega.invoke(PLUGIN, chance.choice(("measure", "echo")), text, timeout=TIMEOUT_S)
    wrong = isinstance(answer.payload, TextPayload) and answer.payload != text
    if wrong:
        raise GatewayError("another text came back")


def _failing(
    omega: OmegaClient, _other: OmegaClient, _home: str, chance: random.Random
) -> None:
    method = chance.choice(("refuse", "fail", "crash", "flood", "grow", "spin", "nothing"))
    omega.invoke(PLUGIN, method, _text(chance), timeout=TIMEOUT_S)


def _pipeline(
    omega: OmegaClient, _other: OmegaClient, _home: str, chance: random.Random
) -> None:
    steps = [Step(name="first", plugin=PLUGIN, method="echo", input=_text(chance))]
    for number, method in enumerate(chance.choices(("echo", "measure", "fail"), (4, 4, 1), k=3)):
        steps.append(
            Step(name=f"then-{number}", plugin=PLUGIN, method=method, input=StepOutput("first"))
        )
    budget = Budget(calls=4, cpu_ms=10_000, output_bytes=1 << 20)
    omega.invoke_pipeline(steps, budget=budget, timeout=TIMEOUT_S, on_error="skip_dependents")


def _window(
    omega: OmegaClient, _other: OmegaClient, _home: str, chance: random.Random
) -> None:
    """More at once than one key may have in flight, so that some are refused at the door."""
    calls = (Call(PLUGIN, "measure", _text(chance), timeout=TIMEOUT_S) for _ in range(BURST))
    answered = 0
    for _, outcome in omega.invoke_many(calls, in_flight=BURST, ordered=False):
        if not isinstance(outcome, Refused) and isinstance(outcome, GatewayError):
            raise outcome
        answered += 1
    if answered != BURST:
        raise GatewayError(f"{answered} of {BURST} calls of a window ended")


def _cancelled(
    omega: OmegaClient, other: OmegaClient, _home: str, chance: random.Random
) -> None:
    """Cancel a call that spins, as soon as it says so."""
    request_id = new_request_id()

    def cancel(_note: object) -> None:
        with contextlib.suppress(Refused):
            other.cancel(request_id)

    omega.invoke(
        PLUGIN, "spin", _text(chance), timeout=TIMEOUT_S, request_id=request_id, on_progress=cancel
    )


def _gone(_omega: OmegaClient, _other: OmegaClient, home: str, chance: random.Random) -> None:
    """Ask, and be gone before the answer."""
    with OmegaClient.from_home(home) as brief:
        for _ in range(chance.randrange(1, 4)):
            method, present = chance.choice(("spin", "measure")), chance.random() < 0.5
            call = Call(PLUGIN, method, _text(chance), timeout=TIMEOUT_S, keep_alive=present)
            brief._send(brief._session.invoke(call, None, None))  # noqa: SLF001 - nobody waits


def _reading(
    omega: OmegaClient, _other: OmegaClient, _home: str, chance: random.Random
) -> None:
    size = omega.ledger_head().receipt.seq
    omega.prove(chance.randrange(size))
    omega.list_plugins()


def slow(home: str, tally: Tally, pause: Pause) -> None:
    """Ask for much and read none of it for a while; then read it all."""
    profile = read_profile(f"{home}/profiles/omega")
    pair = (profile.pair.public.encode(), profile.pair.secret.encode())
    with zmq.Context() as context:
        while pause.turns(1.0):
            traffic = InvokeTraffic()
            with client_socket(
                context, profile.settings.endpoint, profile.settings.server_key.encode(), pair
            ) as socket:
                socket.rcvhwm = 1
                for _ in range(SLOW_REQUESTS):
                    socket.send(traffic.request()[1])
                pause.ended.wait(2.0)
                got = 0
                while socket.poll(1000):
                    socket.recv()
                    got += 1
            code = "ok" if got == SLOW_REQUESTS else "replies lost on the way"
            tally.count("slow", code, SLOW_REQUESTS)


def auditor(home: str, tally: Tally, pause: Pause) -> None:
    """Read what everybody may read, all the time."""
    with AdminClient.from_home(home, role="auditor") as reader:
        while pause.turns(0.2):
            began = time.monotonic()
            reader.status()
            reader.get_plugin(PLUGIN)
            slow_answer = time.monotonic() - began > TIMEOUT_S
            tally.count("auditor", "late" if slow_answer else "ok")
