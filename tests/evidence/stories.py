"""Ledgers made by hand: one right story of a gateway, changed in one place, written with a real
chain and real checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from broker.ledger.commit import Ledger
from schemas.events import (
    EventFields,
    FrameIn,
    FrameOut,
    InvokeAccept,
    InvokeEnd,
    KeyChange,
    LedgerClose,
    LedgerOpen,
    PluginEnable,
    PluginRegister,
    PolicyChange,
    StateSnapshot,
    TrustChange,
    WorkerAttest,
    WorkerExit,
    WorkerProbe,
    WorkerStart,
)
from schemas.witness import PROBES
from tests.ledger.conftest import LOG_ID, SIGNING_KEY, VERIFIER_KEY

OMEGA, OPERATOR, AUDITOR = "a" * 16, "c" * 16, "d" * 16
WORKER = "1" * 32
PLUGIN, VERSION, BUNDLE = "word-count", "1.2.0", "b2" * 32
DIGEST, OTHER = "a1" * 32, "a2" * 32
PUBLISHER_KEY = "f" * 16

Story = dict[str, EventFields]
"""Events in order, each with a name of its own."""


def request(number: int) -> str:
    """Give a request id."""
    return f"{number:08d}-0000-4000-8000-000000000000"


def heard(peer: str, kind: str, number: int) -> FrameIn:
    """A client's frame."""
    front = "front.omega" if peer == OMEGA else "front.admin"
    return FrameIn(plane=front, peer=peer, type=kind, bytes=200, request_id=request(number))


def told(peer: str, kind: str, number: int, code: str | None = None) -> FrameOut:
    """A reply to a client."""
    front = "front.omega" if peer == OMEGA else "front.admin"
    return FrameOut(plane=front, peer=peer, type=kind, bytes=200, request_id=request(number),
                    code=code)


def said(kind: str, call: int | None = None, number: int | None = None) -> FrameIn:
    """A worker's frame."""
    return FrameIn(plane="worker", peer=WORKER, type=kind, bytes=100, call=call,
                   request_id=None if number is None else request(number))


def ordered(kind: str, call: int | None = None, number: int | None = None) -> FrameOut:
    """An order to a worker."""
    return FrameOut(plane="worker", peer=WORKER, type=kind, bytes=100, call=call,
                    request_id=None if number is None else request(number),
                    purpose="primary" if kind == "run" else None)


def accepted(number: int) -> InvokeAccept:
    """An accepted call of the deterministic method."""
    return InvokeAccept(
        request_id=request(number), peer=OMEGA, plugin=PLUGIN, version=VERSION,
        bundle_sha256=BUNDLE, method="count", input_kind="text", input_bytes=7,
        input_commitment=DIGEST, timeout_ms=1000, input_fingerprint=DIGEST,
    )


def resulted(number: int) -> InvokeEnd:
    """A result of the deterministic method."""
    return InvokeEnd(
        request_id=request(number), outcome="result", reached="answered", incarnation=WORKER,
        output_kind="json", output_bytes=9, output_commitment=DIGEST, output_fingerprint=DIGEST,
    )


def opening() -> LedgerOpen:
    """What a run begins with."""
    return LedgerOpen(
        gateway_version="0.1.0", api_version="1.0.0", domain="development", durability="power",
        python_version="3.11.7", zmq_version="4.3.5", kernel="6.18.0", verifier_key=VERIFIER_KEY,
        trust_sha256=DIGEST, trust_version=1, policy_sha256=DIGEST,
    )


def registered(version: str = VERSION, **changes: object) -> PluginRegister:
    """A registration by the operator."""
    fields = PluginRegister(
        plugin=PLUGIN, version=version, bundle_sha256=BUNDLE, manifest_sha256=DIGEST,
        publisher="development", signing_keys=(PUBLISHER_KEY,), api_version="1.0.0",
        domain="development", capabilities=("clock.read",), deterministic=("count",),
        actor=OPERATOR,
    )
    return msgspec.structs.replace(fields, **changes)


def attested() -> WorkerAttest:
    """An attestation with every layer."""
    return WorkerAttest(
        incarnation=WORKER, accepted=True, pid=7, uid=65534, landlock_abi=6, no_new_privileges=1,
        seccomp_mode=2, seccomp_filters_zygote=1, seccomp_filters_call=2,
        capabilities_effective="0" * 16, capabilities_bounding="0" * 16, threads=1,
        base_filter_sha256=DIGEST, strict_filter_sha256=OTHER, interpreter="3.11.7",
        namespaces={"cgroup": 1, "ipc": 2, "mnt": 3, "net": 4, "pid": 5, "user": 6, "uts": 7},
    )


def witnessed() -> WorkerProbe:
    """A witness report that passes."""
    return WorkerProbe(
        incarnation=WORKER, probe=1, passed=True,
        outcomes={name: "allowed" if name == "control" else "denied" for name in PROBES},
    )


def right() -> Story:
    """One short life in which everything is as it must be: two results and a cancelled call."""
    return {
        "open": opening(),
        "trust": TrustChange(version=1, sha256=DIGEST, actor="home"),
        "policy": PolicyChange(sha256=DIGEST, actor="home"),
        "key omega": KeyChange(action="added", role="omega", key_id=OMEGA, actor="home"),
        "key operator": KeyChange(action="added", role="operator", key_id=OPERATOR, actor="home"),
        "key auditor": KeyChange(action="added", role="auditor", key_id=AUDITOR, actor="home"),
        "snapshot": StateSnapshot(
            inventory_sha256=DIGEST, trust_sha256=DIGEST, policy_sha256=DIGEST
        ),
        "asks register": heard(OPERATOR, "register_plugin", 101),
        "register": registered(), "registered": told(OPERATOR, "registered", 101),
        "asks enable": heard(OPERATOR, "enable_plugin", 102),
        "enable": PluginEnable(plugin=PLUGIN, version=VERSION, actor=OPERATOR),
        "enabled": told(OPERATOR, "enabled", 102),
        "asks 1": heard(OMEGA, "invoke", 1), "accept 1": accepted(1),
        "start": WorkerStart(incarnation=WORKER, plugin=PLUGIN, version=VERSION,
                             bundle_sha256=BUNDLE, launcher="local"),
        "ready": said("ready"), "attest": attested(),
        "order probe": ordered("probe"), "report": said("probe_report"), "probe": witnessed(),
        "run 1": ordered("run", 1, 1),
        "progress": said("call_progress", 1, 1), "progressed": told(OMEGA, "progress", 1),
        "answer 1": said("call_result", 1, 1), "end 1": resulted(1),
        "result 1": told(OMEGA, "result", 1),
        "asks 2": heard(OMEGA, "invoke", 2), "accept 2": accepted(2),
        "run 2": ordered("run", 2, 2), "answer 2": said("call_result", 2, 2),
        "end 2": resulted(2), "result 2": told(OMEGA, "result", 2),
        "asks 3": heard(OMEGA, "invoke", 3), "accept 3": accepted(3),
        "run 3": ordered("run", 3, 3),
        "asks cancel": heard(OMEGA, "cancel", 103), "abort 3": ordered("abort", 3),
        "end 3": InvokeEnd(request_id=request(3), outcome="cancelled", reached="dispatched",
                           code="cancelled", incarnation=WORKER),
        "refusal 3": told(OMEGA, "refusal", 3, "cancelled"),
        "cancelled": told(OMEGA, "cancelled", 103),
        "late 3": said("call_failure", 3),
        "drain": ordered("drain"), "bye": said("bye"),
        "exit": WorkerExit(incarnation=WORKER, reason="drained", calls=3),
        "close": LedgerClose(reason="drained"),
    }


def put(story: Story, after: str, **more: EventFields) -> Story:
    """Give the story with more events behind a named one."""
    changed: Story = {}
    for name, fields in story.items():
        changed[name] = fields
        if name == after:
            changed |= {key.replace("_", " "): value for key, value in more.items()}
    return changed


def without(story: Story, *names: str) -> Story:
    """Give the story without some events."""
    return {name: fields for name, fields in story.items() if name not in names}


def changed(story: Story, name: str, **members: object) -> Story:
    """Give the story with other members in one event."""
    return {**story, name: msgspec.structs.replace(story[name], **members)}


class Clock:
    """A millisecond for each event, and more where it is told so."""

    def __init__(self) -> None:
        """Begin somewhere."""
        self.us = 1_000_000

    def __call__(self) -> tuple[int, int]:
        """Give wall and monotonic time."""
        return 1_790_000_000_000_000 + self.us, self.us


def write(story: Story, folder: Path, later: Mapping[str, int]) -> Path:
    """Write a story as a real ledger; `later` moves the clock by so many us before an event."""
    clock = Clock()
    ledger = Ledger.open(
        str(folder / "ledger"), str(folder / "anchor"), log_id=LOG_ID, signing_key=SIGNING_KEY,
        durability="process", now=clock,
    )
    for name, fields in story.items():
        clock.us += 1000 + later.get(name, 0)
        ledger.append(fields)
    ledger.close()
    return folder / "ledger"
