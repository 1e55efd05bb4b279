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
    """One front's socket. An empty `endpoint` means an ipc socket in the run directory.

    Attributes:
        endpoint: where clients connect, `ipc://PATH` or `tcp://ADDRESS:PORT`.
        high_water_mark: messages that libzmq queues for one connection, in each direction.
        connections_max: authenticated connections at the same time; who comes later tries again.
        handshakes_per_s_max: connections a second that a tcp front takes, half of them from one
            address; newcomers above that wait.
    """

    endpoint: Annotated[str, Meta(max_length=200)] = ""
    high_water_mark: QueueLength = 1000
    connections_max: QueueLength = 256
    handshakes_per_s_max: Annotated[int, Meta(ge=10, le=100_000)] = 200


class AdminFrontConfig(FrontConfig, frozen=True, forbid_unknown_fields=True):
    """The operators' front: fewer connections and shorter queues, because its frames are large."""

    high_water_mark: QueueLength = 8
    connections_max: QueueLength = 64


class LimitsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of the broker as a whole.

    Attributes:
        in_flight_max: accepted invocations, and accepted pipelines, that have not ended; of all
            clients.
        pipeline_parallel_max: steps of one pipeline that run at the same time.
        request_window: request ids that are remembered, so that none is taken twice.
        request_window_ms: how long a request id is remembered.
        bad_frames_per_s_max: refused frames of one key that are ledgered one by one; of more only
            the number is, once a second.
        workers_max: workers of all plugins that serve or start; an idle one makes room.
        warm_processes_max: call processes that may wait for calls, of all workers together.
        queue_max: invocations of one plugin that wait for a place at a worker.
        progress_per_s_max: progress notes of one call that reach OMEGA in a second; later ones are
            dropped.
    """

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
    """The broker's own process: above so many MiB of memory it ends connections.

    Attributes:
        memory_mb_max: resident memory of the broker above which it ends connections, in MiB.
    """

    memory_mb_max: Annotated[int, Meta(ge=64, le=1_048_576)] = 4_096


class BreakerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a method that fails is given a rest: after so many failures in a row, or in a window.

    Attributes:
        consecutive_max: failures of a method in a row that open its breaker; only those the plugin
            caused count.
        window_calls: calls of a method over which the share of failures is taken.
        failure_permille_max: failures among a thousand of those calls that open the breaker.
        rest_ms: how long an open breaker refuses calls; each further opening doubles it.
        rest_ms_max: the longest rest.
        probes_max: calls that are let through after a rest, and that must end well to close the
            breaker.
    """

    consecutive_max: Annotated[int, Meta(ge=1, le=1000)] = 5
    window_calls: Annotated[int, Meta(ge=2, le=1000)] = 50
    failure_permille_max: Annotated[int, Meta(ge=1, le=1000)] = 500
    rest_ms: Positive = 5_000
    rest_ms_max: Positive = 300_000
    probes_max: Annotated[int, Meta(ge=1, le=16)] = 2


class TimesConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Every time the broker waits, in ms.

    Attributes:
        reply_margin_ms: what a worker is given less than is left, so that its answer comes before
            the broker's own deadline.
        start_ms: how long a worker may take from its start to `ready`.
        drain_ms: how long calls may go on when a worker or the gateway drains.
        flush_ms_max: the longest flush of the ledger; a longer one ends the process with 74.
        abort_ms: how long a worker may take to end a cancelled call; a longer one ends the worker.
        ping_interval_ms: how often a worker that says nothing is asked whether it lives.
        ping_silence_ms: how long a worker may say nothing before it is ended.
        idle_worker_ms: how long a worker without calls is kept.
        witness_interval_ms: how often a serving worker is witnessed again.
        recycle_interval_ms: how often at most a plugin's worker is replaced because a call process
            died.
        recycle_spacing_ms: how often at most any worker is replaced for that reason.
        witness_ms: how long a worker may take to report what the witness's probes met.
        presence_ms: how often a client that asked for it is sent a keep-alive.
        presence_grace_ms: how long such a client may be gone before its calls are cancelled.
        backoff_ms_min: the pause after a worker that did not start; each further failure doubles
            it.
        backoff_ms_max: the longest such pause.
    """

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
    """How workers are started and replaced; plugins in `external` are started by an operator.

    Attributes:
        external: plugins whose workers an operator starts, with scripts/start-worker.
        crash_loop_max: failed starts in a row after which calls are refused until the pause is
            over.
        calls_max: calls after which a worker is replaced.
        minutes_max: minutes after which a worker is replaced.
        pool_size: call processes of one worker that may wait for calls; the load decides how many
            do.
        replicas_max: workers that give second answers of deterministic methods.
    """

    external: Annotated[tuple[PluginId, ...], Meta(max_length=256)] = ()
    crash_loop_max: Positive = 5
    calls_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    minutes_max: Annotated[int, Meta(ge=1, le=10_080)] = 60
    pool_size: Annotated[int, Meta(ge=1, le=64)] = 4
    replicas_max: Positive = 16


class DeterminismConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which answers of a deterministic method wait for a second run: those of the first calls of
    each method of a version, then a share of all.

    Attributes:
        first_calls: calls of each method of a version that are all run twice.
        share_permille: how many of a thousand later calls are run twice; a keyed hash of the
            request id says which.
    """

    first_calls: Annotated[int, Meta(ge=1, le=1_000_000)] = 20
    share_permille: Annotated[int, Meta(ge=1, le=1000)] = 5


class LedgerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the ledger is kept. An empty `anchor` means the home's own anchor directory.

    Below `low_space_bytes` of free room new requests are refused; 0 means two segments or 5 % of
    the volume, whichever is more.

    Attributes:
        durability: `power` flushes to the medium before anything is said, `process` only writes: it
            survives the process, not the machine.
        anchor: a folder, best on another volume, that also holds the newest checkpoint.
        low_space_bytes: see above, in bytes.
    """

    durability: Durability = "power"
    anchor: Annotated[str, Meta(max_length=4096)] = ""
    low_space_bytes: Annotated[int, Meta(ge=0, le=2**53 - 1)] = 0


class LogConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What goes to stderr; the ledger is the record, this is not.

    Attributes:
        level: the least severe lines that are written.
        format: `json` for collectors, `text` for people; `auto` is text on a terminal.
    """

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "text"] = "auto"


class GatewayConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole of `gateway.toml`.

    Attributes:
        format: the format's name and version.
        domain: `production` or `development`; part of every signature, and never changed.
        log_id: the ledger's identity, made by `init` and by `ledger restore`.
    """

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
