"""Waiting call processes on a real gateway: none for what nobody calls, few for what is idle, and
over the whole host never more than may be."""

from __future__ import annotations

import threading

import pytest

from broker.client import OmegaClient
from schemas.events import WorkerAttest, WorkerStart
from tests.support.gateway import RunningGateway, running_gateway, wait_for
from tests.system.test_life import descendants

pytestmark = [pytest.mark.system, pytest.mark.jail]

PLUGIN = '''
from sandbox_worker.sdk import Context, TextPayload, method


@method()
def count(context: Context, text: TextPayload) -> TextPayload:
    for _ in range(int(text.text)):
        pass
    return text
'''
CONFIG = "\n[limits]\nworkers_max = 3\nwarm_processes_max = 3\n[workers]\npool_size = 4\n"
NAMES = ("first-plugin", "second-plugin", "third-plugin")


def waiting(gateway: RunningGateway) -> list[int]:
    """How many call processes there are below each zygote that still lives."""
    fields = [event.fields for event in gateway.events()]
    here = descendants(gateway.pid)
    supervisors = [one.pid for one in fields if isinstance(one, WorkerAttest) and one.pid in here]
    # Below each are its stub, its zygote and the call processes.
    return [len(descendants(pid)) - 2 for pid in supervisors]


def test_processes_wait_where_there_are_calls_and_within_the_hosts_bound() -> None:
    """Enabled and not called: no process at all. A burst: each call answered. After it no more
    processes wait than the host may hold, although each worker might have four."""
    with running_gateway(CONFIG) as gateway:
        for name in NAMES:
            gateway.install(gateway.write_plugin(name, PLUGIN))
        assert not any(isinstance(event.fields, WorkerStart) for event in gateway.events())
        helpers = len(descendants(gateway.pid))

        answers: list[object] = []

        def call(name: str) -> None:
            with OmegaClient.from_home(str(gateway.home)) as omega:
                for number in range(5):
                    answer = omega.invoke(name, "count", f"{1000 + number}", timeout=15)
                    answers.append(answer.payload)

        callers = [threading.Thread(target=call, args=(name,)) for name in NAMES * 3]
        for thread in callers:
            thread.start()
        for thread in callers:
            thread.join(60)
        assert len(answers) == 9 * 5
        wait_for("one process to wait in each worker", lambda: waiting(gateway) == [1, 1, 1])
        # For each worker its supervisor, stub and zygote, and one call process.
        assert len(descendants(gateway.pid)) == helpers + 3 * 4
