"""Every configured number changes what happens: played with one value and with another.

A row is a number, a value with which the last command's lines hold a word, one with which they do
not, and the commands. What only the shell can show names the test that shows it; a number without a
row or a test fails here.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from broker.config import GatewayConfig
from broker.policy import policy_digest
from broker.reload import FIXED, Settings, fixed_difference
from schemas.messages import Run
from tests.scenarios.stage import Stage
from tests.scenarios.test_scenarios import PREPARED

ROOT = Path(__file__).parents[2]


class Effect(NamedTuple):
    """With `value` the last command's lines hold `word`, with `other` they do not."""

    value: int
    other: int
    word: str
    commands: tuple[str, ...]


READY = ("invoke r0 alpha", "ready w1", "ready w1", "answer w1 r0")
TWO = ("grant beta artifact.read", "register beta 1.0.0", "enable beta 1.0.0")
FAILING = tuple(
    command for number in range(1, 4)
    for command in (f"invoke f{number} alpha", f"exit w{number}", "advance 450")
)

EFFECTS: dict[str, Effect] = {
    "limits.in_flight_max": Effect(1, 6, "in_flight_limit", ("invoke r1 alpha", "invoke r2 alpha")),
    "limits.pipeline_parallel_max": Effect(
        2, 1, "request_id=p1.two", ("pipeline p1 abort one=alpha two=alpha",)),
    "limits.request_window": Effect(
        400, 1, "duplicate_request", (*READY, "invoke r2 alpha", "invoke r0 alpha")),
    "limits.request_window_ms": Effect(
        9_000, 100, "duplicate_request", (*READY, "advance 200", "invoke r0 alpha")),
    "limits.bad_frames_per_s_max": Effect(5, 1, "frame.drop", ("garbage", "garbage")),
    "limits.workers_max": Effect(
        2, 1, "worker.start", (*TWO, "invoke r1 alpha", "invoke r2 beta")),
    "limits.queue_max": Effect(1, 4, "queue_full", ("invoke r1 alpha", "invoke r2 alpha")),
    "limits.progress_per_s_max": Effect(
        1000, 1, "-> omega: progress",
        (*READY, "invoke r1 alpha", "progress w1 r1 100", "advance 5", "progress w1 r1 200")),
    "times.start_ms": Effect(
        500, 60_000, "worker.exit", ("invoke r1 alpha 1 60000", "advance 600")),
    "times.drain_ms": Effect(
        300, 60_000, "abandoned", (*READY, "invoke r1 alpha 1 60000", "terminate", "advance 400")),
    "times.abort_ms": Effect(
        100, 60_000, "abort_ignored", (*READY, "invoke r1 alpha", "cancel r1", "advance 150")),
    "times.ping_interval_ms": Effect(200, 10_000, "type=ping", (*READY, "advance 250")),
    "times.ping_silence_ms": Effect(
        900, 30_000, "worker.exit", (*READY, "advance 1050", "advance 1010")),
    "times.idle_worker_ms": Effect(500, 300_000, "type=drain", (*READY, "advance 1050")),
    "times.witness_interval_ms": Effect(500, 60_000, "type=probe", (*READY, "advance 600")),
    "times.witness_ms": Effect(
        200, 60_000, "worker.exit", (*READY, "advance 2600", "advance 250")),
    "times.backoff_ms_min": Effect(
        50, 5_000, "worker.start",
        ("invoke r1 alpha", "exit w1", "invoke r2 alpha 1 60000", "advance 60")),
    "times.backoff_ms_max": Effect(
        9_000, 100, "worker_crash_loop", (*FAILING, "invoke r1 alpha")),
    "times.presence_ms": Effect(
        200, 9_000, "keep_alive", ("read r1 alpha 9000 keep-alive", "advance 250")),
    "times.presence_grace_ms": Effect(
        700, 60_000, "code=cancelled",
        ("read r1 alpha 9000 keep-alive", "leave", "advance 710", "advance 710")),
    "workers.crash_loop_max": Effect(
        1, 9, "worker_crash_loop", ("invoke r1 alpha", "exit w1", "invoke r2 alpha")),
    "workers.calls_max": Effect(1, 99, "worker.start", READY),
    "determinism.first_calls": Effect(
        2, 1, "purpose=replica",
        ("invoke r1 alpha", "ready w1", "ready w1", "ready w2", "ready w2", "answer w1 r1",
         "answer w2 r1", "invoke r2 alpha", "answer w1 r2")),
    "determinism.share_permille": Effect(1000, 1, "incarnation=w2", ("invoke r1 alpha",)),
}
SHOWN: dict[str, str] = {
    "omega.high_water_mark": "tests/broker/test_transport.py",
    "omega.connections_max": "tests/broker/test_transport_crowds.py",
    "omega.handshakes_per_s_max": "tests/broker/test_gate.py",
    "admin.high_water_mark": "tests/broker/test_transport.py",
    "admin.connections_max": "tests/broker/test_transport_crowds.py",
    "admin.handshakes_per_s_max": "tests/broker/test_gate.py",
    "process.memory_mb_max": "tests/broker/test_footprint.py",
    "limits.warm_processes_max": "tests/broker/test_fleet.py",
    "times.flush_ms_max": "tests/ledger/test_watchdog.py",
    "times.recycle_interval_ms": "tests/scenarios/recycle_is_bounded.txt",
    "times.recycle_spacing_ms": "tests/scenarios/recycle_is_bounded_over_the_host.txt",
    "ledger.low_space_bytes": "tests/ledger/test_space.py",
    "workers.minutes_max": "tests/scenarios/recycle_after_minutes.txt",
    "workers.pool_size": "tests/broker/test_fleet.py",
    "workers.replicas_max": "tests/broker/test_fleet.py",
    "breaker.consecutive_max": "tests/broker/test_breaker.py",
    "breaker.window_calls": "tests/broker/test_breaker.py",
    "breaker.failure_permille_max": "tests/broker/test_breaker.py",
    "breaker.rest_ms": "tests/broker/test_breaker.py",
    "breaker.rest_ms_max": "tests/broker/test_breaker.py",
    "breaker.probes_max": "tests/broker/test_breaker.py",
}

def with_number(config: GatewayConfig, name: str, value: int) -> GatewayConfig:
    """Change one number."""
    section, field = name.split(".")
    changed = msgspec.structs.replace(getattr(config, section), **{field: value})
    return msgspec.structs.replace(config, **{section: changed})


def last_lines(
    name: str, value: int, commands: tuple[str, ...], *, instead_of: int | None = None
) -> str:
    """Play the commands under one value and give what the last one produced.

    With `instead_of` the gateway began with that one, and takes the value while it runs.
    """
    stage = Stage()
    stage.config = with_number(stage.config, name, value if instead_of is None else instead_of)
    stage.begin()
    for command in (*PREPARED, "invoke r99 nobody"):
        stage.play(command)
    if instead_of is not None:
        stage.config = with_number(stage.config, name, value)
        stage.gateway.perform(stage.core.reload(Settings(
            stage.config, stage.policy, policy_digest(stage.policy), stage.core.state.keys,
        ), stage.clock.mono))
    lines: list[str] = []
    for command in commands:
        lines = stage.play(command)
    return "\n".join(lines)


@pytest.mark.parametrize("name", EFFECTS)
def test_a_number_has_its_effect(name: str) -> None:
    """With one value the thing happens, with the other it does not."""
    effect = EFFECTS[name]

    assert effect.word in last_lines(name, effect.value, effect.commands)
    assert effect.word not in last_lines(name, effect.other, effect.commands)


@pytest.mark.parametrize("name", sorted(EFFECTS.keys() - set(FIXED)))
def test_a_number_has_its_effect_when_it_is_changed_while_the_gateway_runs(name: str) -> None:
    """A reload is enough: nothing that was made before holds on to the number before."""
    value, other, word, commands = EFFECTS[name]

    assert word in last_lines(name, value, commands, instead_of=other)
    assert word not in last_lines(name, other, commands, instead_of=value)


@pytest.mark.parametrize("name", sorted(EFFECTS.keys() & set(FIXED)))
def test_a_number_that_the_ledger_pins_needs_a_new_start(name: str) -> None:
    """Under another one the settings are refused by its name, under the same they are not."""
    before = Stage().config

    assert fixed_difference(before, with_number(before, name, EFFECTS[name].other)) == name
    assert fixed_difference(before, msgspec.structs.replace(before)) is None


@pytest.mark.parametrize("margin_ms", [50, 300])
def test_the_reply_margin_is_taken_from_a_workers_time(margin_ms: int) -> None:
    """A worker is given what is left without the margin, so that its failure comes in time."""
    stage = Stage()
    times = msgspec.structs.replace(stage.config.times, reply_margin_ms=margin_ms)
    stage.config = msgspec.structs.replace(stage.config, times=times)
    stage.begin()
    for command in (*PREPARED, *READY, "invoke r1 alpha 1 1000"):
        stage.play(command)

    runs = [order for order in stage.inbox[stage.workers[0]] if isinstance(order, Run)]
    assert runs[-1].timeout_ms == 1000 - margin_ms


def test_every_number_is_here() -> None:
    """A number that is added gets a row, or names the test that shows its effect."""
    numbers = {
        f"{section.name}.{field.name}"
        for section in msgspec.structs.fields(GatewayConfig)
        if isinstance(section.default, msgspec.Struct)
        for field in msgspec.structs.fields(type(section.default))
        if type(field.default) is int
    }

    assert numbers == {*EFFECTS, *SHOWN, "times.reply_margin_ms"}
    for path in SHOWN.values():
        assert (ROOT / path).exists(), path
