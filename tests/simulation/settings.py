"""What every run of the simulation is configured with, and what a worker says of itself."""

from __future__ import annotations

from random import Random

import msgspec

from broker.config import (
    BreakerConfig,
    DeterminismConfig,
    GatewayConfig,
    LimitsConfig,
    TimesConfig,
    WorkersConfig,
)
from broker.policy import policy_digest
from broker.reload import Settings
from broker.state import KnownKey
from schemas.messages import Attestation, Usage
from schemas.policy import GrantRule, ModuleRules, PluginQuotas, Policy, Quotas

CONFIG = GatewayConfig(
    format="omega-gateway-config/1",
    domain="development",
    log_id="omega-gateway/development/0123456789abcdef",
    limits=LimitsConfig(in_flight_max=6, request_window=400, bad_frames_per_s_max=3, workers_max=3,
                        queue_max=4, warm_processes_max=5),
    breaker=BreakerConfig(consecutive_max=3, window_calls=4, rest_ms=400, rest_ms_max=2_000),
    times=TimesConfig(start_ms=3_000, drain_ms=300, ping_interval_ms=1_000,
                      ping_silence_ms=3_500, idle_worker_ms=9_000, backoff_ms_min=50,
                      witness_interval_ms=500, witness_ms=400,
                      recycle_interval_ms=400, recycle_spacing_ms=100,
                      presence_ms=700, presence_grace_ms=1_500),
    workers=WorkersConfig(crash_loop_max=3, calls_max=6, replicas_max=1),
    determinism=DeterminismConfig(first_calls=3, share_permille=300),
)
APPROVED = ModuleRules(allowed={"beta": ("getpass",)})
"""What `beta` imports, and somebody has to approve."""
POLICY = Policy(modules=APPROVED, operators_required=2, quotas=Quotas(
    in_flight_max=5, calls_per_second_max=90, cpu_ms_per_window_max=40, window_ms=5_000,
    plugins={"alph*": PluginQuotas(queued_max=2, output_bytes_per_window_max=300, weight=3)},
))
RULED: tuple[dict[str, GrantRule], ...] = (
    {}, {}, {"be*": GrantRule(("artifact.read",))}, {"*": GrantRule(("artifact.read",))},
)
"""What policy itself may come to grant, beside what requests do."""
KEY = b"k" * 32
"""The determinism key of every run."""
USAGE = Usage(cpu_ms=1, wall_ms=2, max_rss_kb_upper_bound=3, output_bytes=4)
ATTESTATION = Attestation(
    zygote_pid=7, uid=65534, landlock_abi=7, no_new_privileges=1, seccomp_mode=2,
    seccomp_filters_zygote=1, seccomp_filters_call=2, capabilities_effective="0" * 16,
    capabilities_bounding="0" * 16, threads=1, base_filter_sha256="1" * 64,
    strict_filter_sha256="2" * 64,
    namespaces={"cgroup": 1, "ipc": 2, "mnt": 3, "net": 4, "pid": 5, "user": 6, "uts": 7},
    interpreter="3.11.7",
)


def other_settings(random: Random, keys: dict[str, KnownKey]) -> Settings:
    """Make other settings: bounds, quotas and keys that somebody might come to write."""
    keys = dict(keys)
    if random.random() < 0.3:
        keys.pop(random.choice(["b" * 16, "d" * 16, "9" * 16]))
    elif random.random() < 0.2:
        key = random.choice(["b" * 16, "9" * 16])
        keys[key] = KnownKey(key, "auditor", key)
    quotas = msgspec.structs.replace(
        POLICY.quotas, in_flight_max=random.randint(2, 6), weight=random.randint(1, 9),
        plugins=random.choice(({}, POLICY.quotas.plugins)),
    )
    policy = msgspec.structs.replace(
        POLICY, quotas=quotas, operators_required=random.randint(1, 2),
        grants=random.choice(RULED),
        modules=APPROVED if random.random() < 0.8 else ModuleRules())
    limits = msgspec.structs.replace(CONFIG.limits, queue_max=random.randint(1, 5))
    return Settings(msgspec.structs.replace(CONFIG, limits=limits), policy,
                    policy_digest(policy), keys)
