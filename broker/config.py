"""`gateway.toml`: how this gateway runs. Every line has a type, a unit and a default.

Rules this file keeps: unknown lines are refused with their path; a number's unit is the last part
of its name; no secret stands in the file, only paths. It leaves reading, origins and environment to
`broker.home`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from schemas.names import Domain, Durability, PluginId

Positive = Annotated[int, Meta(ge=1, le=2**53 - 1)]
QueueLength = Annotated[int, Meta(ge=1, le=100_000)]


class FrontConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One front's socket. An empty `endpoint` means an ipc socket in the run directory."""

    endpoint: Annotated[str, Meta(max_length=200)] = ""
    high_water_mark: QueueLength = 1000
    connections_max: QueueLength = 256


class AdminFrontConfig(FrontConfig, frozen=True, forbid_unknown_fields=True):
    """The operators' front: fewer connections and shorter queues, because its frames are large."""

    high_water_mark: QueueLength = 8
    connections_max: QueueLength = 64


class LimitsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of the broker as a whole."""

    in_flight_max: Positive = 256
    pipeline_parallel_max: Annotated[int, Meta(ge=1, le=64)] = 8
    request_window: Positive = 1_000_000
    request_window_ms: Positive = 86_400_000
    bad_frames_per_s_max: Positive = 20
    workers_max: Positive = 64
    warm_processes_max: Positive = 128
    queue_max: Positive = 256
    progress_per_s_max: Annotated[int, Meta(ge=1, le=1000)] = 20


class ProcessConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The broker's own process: above so many MiB of memory it ends connections."""

    memory_mb_max: Annotated[int, Meta(ge=64, le=1_048_576)] = 4_096


class BreakerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a method that fails is given a rest: after so many failures in a row, or in a window."""

    consecutive_max: Annotated[int, Meta(ge=1, le=1000)] = 5
    window_calls: Annotated[int, Meta(ge=2, le=1000)] = 50
    failure_permille_max: Annotated[int, Meta(ge=1, le=1000)] = 500
    rest_ms: Positive = 5_000
    rest_ms_max: Positive = 300_000
    probes_max: Annotated[int, Meta(ge=1, le=16)] = 2


class TimesConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Every time the broker waits, in ms."""

    reply_margin_ms: Positive = 50
    start_ms: Positive = 10_000
    drain_ms: Positive = 10_000
    flush_ms_max: Positive = 10_000
    abort_ms: Positive = 1_000
    ping_interval_ms: Annotated[int, Meta(ge=100, le=10_000)] = 10_000
    ping_silence_ms: Positive = 30_000
    idle_worker_ms: Positive = 300_000
    witness_interval_ms: Annotated[int, Meta(ge=100, le=600_000)] = 60_000
    recycle_interval_ms: Positive = 10_000
    recycle_spacing_ms: Positive = 1_000
    witness_ms: Annotated[int, Meta(ge=100, le=60_000)] = 5_000
    presence_ms: Positive = 5_000
    presence_grace_ms: Positive = 15_000
    backoff_ms_min: Positive = 100
    backoff_ms_max: Positive = 30_000


class WorkersConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How workers are started and replaced; plugins in `external` are started by an operator."""

    external: Annotated[tuple[PluginId, ...], Meta(max_length=256)] = ()
    crash_loop_max: Positive = 5
    calls_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    minutes_max: Annotated[int, Meta(ge=1, le=10_080)] = 60
    pool_size: Annotated[int, Meta(ge=1, le=64)] = 4
    replicas_max: Positive = 16


class DeterminismConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which answers of a deterministic method wait for a second run: those of the first calls of
    each method of a version, then a share of all."""

    first_calls: Annotated[int, Meta(ge=1, le=1_000_000)] = 20
    share_permille: Annotated[int, Meta(ge=1, le=1000)] = 5


class LedgerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the ledger is kept. An empty `anchor` means the home's own anchor directory.

    Below `low_space_bytes` of free room new requests are refused; 0 means two segments or 5 % of
    the volume, whichever is more.
    """

    durability: Durability = "power"
    anchor: Annotated[str, Meta(max_length=4096)] = ""
    low_space_bytes: Annotated[int, Meta(ge=0, le=2**53 - 1)] = 0


class LogConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What goes to stderr; the ledger is the record, this is not."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "text"] = "auto"


class GatewayConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole of `gateway.toml`."""

    format: Literal["omega-gateway-config/1"]
    domain: Domain
    log_id: str
    omega: FrontConfig = FrontConfig()
    admin: AdminFrontConfig = AdminFrontConfig()
    process: ProcessConfig = ProcessConfig()
    limits: LimitsConfig = LimitsConfig()
    times: TimesConfig = TimesConfig()
    workers: WorkersConfig = WorkersConfig()
    breaker: BreakerConfig = BreakerConfig()
    determinism: DeterminismConfig = DeterminismConfig()
    ledger: LedgerConfig = LedgerConfig()
    log: LogConfig = LogConfig()
