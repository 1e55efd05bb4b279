"""The form of a pipeline file, as `omega-gateway pipeline run` reads it.

Rules this file keeps: every field is known and bounded as on the wire; it is imported only when a
file is read. It leaves which input forms go together to `broker.cli.pipelines`.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from schemas.names import (
    ArtifactId,
    Count,
    DatasetKey,
    MethodName,
    PluginId,
    Sha256,
    StepName,
    TimeoutMs,
    VersionRequest,
)

STEP_CPU_MS = 60_000
OUTPUT_BYTES = 4 * 1024 * 1024


class BudgetTable(msgspec.Struct, forbid_unknown_fields=True):
    """What all steps together may use; without a value as much as a call each may."""

    calls: Count | None = None
    cpu_ms: Count | None = None
    output_bytes: Count = OUTPUT_BYTES


class StepEntry(msgspec.Struct, forbid_unknown_fields=True, rename={"take": "from"}):
    """One step; exactly one of the input's forms is given."""

    name: StepName
    plugin: PluginId
    method: MethodName
    version: VersionRequest | None = None
    timeout_ms: TimeoutMs | None = None
    take: StepName | None = None
    pointer: str = ""
    text: str | None = None
    json: str | None = None
    file: str | None = None
    media_type: str | None = None
    dataset: ArtifactId | None = None
    keys: tuple[DatasetKey, ...] = ()
    artifact: ArtifactId | None = None
    sha256: Sha256 | None = None
    size: Count | None = None


class PipelineFile(msgspec.Struct, forbid_unknown_fields=True):
    """The whole of a pipeline file."""

    steps: tuple[StepEntry, ...]
    timeout_ms: TimeoutMs | None = None
    on_error: Literal["abort", "skip_dependents"] = "abort"
    budget: BudgetTable = msgspec.field(default_factory=BudgetTable)
