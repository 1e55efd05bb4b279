"""One pipeline in flight: its steps, what each waits for, and how its budget is divided.

Rules this file keeps: a step's share of the budget is set aside before it starts and what it did
not use is given back, so that steps at the same time cannot use more than the whole; outputs live
here and go when the pipeline ends.

It leaves transitions to `broker.lifecycle` and decisions to `broker.orchestrator.pipelines`.
Source: specification section 4, `invokePipeline()`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from broker.effects import Origin
from broker.lifecycle import PipelineState, StepState
from schemas.manifest import Limits
from schemas.messages import InvokePipeline, Step, StepOutput, StepResult, Usage


class Share(NamedTuple):
    """What is set aside for one step: processor time in ms and output in bytes."""

    cpu_ms: int
    output_bytes: int


NOTHING = Share(0, 0)


@dataclass(slots=True, eq=False)
class StepRun:
    """One step on its way; `share` is set aside while it runs.

    `to_the_end`: the pipeline's deadline is its own, so that missing it ends the pipeline.
    """

    index: int
    declared: Step
    state: StepState = "waiting"
    share: Share = NOTHING
    to_the_end: bool = False
    result: StepResult | None = None

    @property
    def source(self) -> str | None:
        """The step whose output this one takes, if it takes any."""
        taken = self.declared.input
        return taken.step if isinstance(taken, StepOutput) else None


@dataclass(slots=True, eq=False)
class Pipeline:
    """One accepted pipeline. Times are monotonic, in us."""

    request: InvokePipeline
    origin: Origin
    arrived_us: int
    deadline_us: int
    state: PipelineState = "running"
    client_gone_us: int | None = None
    steps: dict[str, StepRun] = field(default_factory=dict)
    order: list[StepRun] = field(default_factory=list)
    used: Usage = field(default_factory=lambda: Usage(
        cpu_ms=0, wall_ms=0, max_rss_kb_upper_bound=0, output_bytes=0
    ))

    def __post_init__(self) -> None:
        """Lay the steps out so that each comes after the one it takes from."""
        self.steps = {
            step.name: StepRun(index, step) for index, step in enumerate(self.request.steps)
        }
        placed: set[str] = set()
        for step in self.steps.values():
            chain: list[StepRun] = []
            at: StepRun | None = step
            while at is not None and at.declared.name not in placed:
                placed.add(at.declared.name)
                chain.append(at)
                at = self.steps[at.source] if at.source else None
            self.order += reversed(chain)

    def running(self) -> Iterator[StepRun]:
        """Give the steps that are open invocations."""
        return (step for step in self.order if step.state == "running")

    def share(self, limits: Limits) -> Share | None:
        """Say what a step of a plugin may use now; None while too much is set aside for others.

        Args:
            limits: what the plugin's manifest declares for one call.
        """
        budget, used = self.request.budget, self.used
        aside = [step.share for step in self.running()]
        left = Share(
            budget.cpu_ms - used.cpu_ms - sum(one.cpu_ms for one in aside),
            budget.output_bytes - used.output_bytes - sum(one.output_bytes for one in aside),
        )
        given = Share(min(left.cpu_ms, limits.cpu_ms), min(left.output_bytes, limits.output_bytes))
        whole = given.cpu_ms == limits.cpu_ms and given.output_bytes == limits.output_bytes
        if aside and not whole:
            return None
        return given

    def charge(self, usage: Usage | None) -> None:
        """Count what a step used."""
        if usage is not None:
            used = self.used
            self.used = Usage(
                cpu_ms=used.cpu_ms + usage.cpu_ms, wall_ms=used.wall_ms + usage.wall_ms,
                max_rss_kb_upper_bound=max(
                    used.max_rss_kb_upper_bound, usage.max_rss_kb_upper_bound
                ),
                output_bytes=used.output_bytes + usage.output_bytes,
            )
