"""Each invariant is broken by a ledger of its own, whose bytes are right and whose rest holds."""

from __future__ import annotations

import ast
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import msgspec
import pytest

from broker.evidence import audit as audit_file
from broker.evidence.audit import Audit, AuditReport
from broker.evidence.events import UnreadableLedger, read_events
from broker.evidence.invariants import INVARIANTS
from broker.evidence.verify import verify_directory
from schemas.events import (
    BreakerChange,
    DeterminismMismatch,
    EventFields,
    FrameDrop,
    FrameIn,
    FrameOut,
    GrantChange,
    InvokeEnd,
    InvokeRefuse,
    KeyChange,
    LedgerClose,
    LedgerRecovery,
    LedgerRoll,
    PluginApprove,
    PluginEnable,
    PluginQuarantine,
    QuotaRefuse,
    Revoke,
    StateSnapshot,
    TrustChange,
    WorkerExit,
    WorkerStart,
    ZygoteRecycle,
)
from tests.evidence.stories import (
    AUDITOR,
    BUNDLE,
    DIGEST,
    OMEGA,
    OPERATOR,
    OTHER,
    PLUGIN,
    PUBLISHER_KEY,
    VERSION,
    WORKER,
    Story,
    changed,
    heard,
    opening,
    ordered,
    put,
    registered,
    request,
    resulted,
    right,
    said,
    told,
    without,
    write,
)
from tests.ledger.conftest import VERIFIER_KEY

RIGHT = right()
RECOVERY = LedgerRecovery(torn_bytes=0, checkpoint_size=0, events_after_checkpoint=0)
SECOND, THIRD = "2" * 32, "3" * 32


def of_second(fields: EventFields, who: str = SECOND, **members: object) -> EventFields:
    """Give an event of a worker as one of another worker's."""
    name = "peer" if isinstance(fields, FrameIn | FrameOut) else "incarnation"
    return msgspec.structs.replace(fields, **{name: who, **members})


COMES = ("start", "ready", "attest", "order probe", "report", "probe")
COMPARED = put(RIGHT, "result 1", **{f"{name}_b": of_second(RIGHT[name]) for name in COMES})
COMPARED = put(COMPARED, "answer 2", run_b=of_second(RIGHT["run 2"], call=9, purpose="replica"),
               answer_b=of_second(RIGHT["answer 2"], call=9))
COMPARED = put(COMPARED, "exit", exit_b=of_second(RIGHT["exit"], calls=1))
COMPARED = changed(COMPARED, "end 2", replica="agreed")
"""The right story with a second run of the second call, in a worker of its own."""
DIFFERS = DeterminismMismatch(
    request_id=request(2), plugin=PLUGIN, version=VERSION, method="count", against="replica",
    input_fingerprint=DIGEST, output_fingerprint=DIGEST, other_output_fingerprint=OTHER)


class Broken(NamedTuple):
    """A story that breaks one invariant: where first, and when the clock moved."""

    invariant: str
    at: str
    story: Story
    later: Mapping[str, int] = MappingProxyType({})


def revoked(kind: str, subject: str, ended: int) -> dict[str, object]:
    """An operator's revocation."""
    return {
        "asks_revoke": heard(OPERATOR, "revoke", 104),
        "revoke": Revoke(kind=kind, id=subject, reason="test", actor=OPERATOR, ended=ended),
        "revoked": told(OPERATOR, "revoked", 104),
    }


def asked(kind: str, reply: str, event: object, peer: str = OPERATOR) -> dict[str, object]:
    """A request with the event that it brings about and its reply."""
    return {
        "asks_more": heard(peer, kind, 105), "more": event, "tells_more": told(peer, reply, 105)
    }


def upgraded(
    capabilities: tuple[str, ...], enabled_for: str | None = None, approve: str | None = None
) -> dict[str, object]:
    """A higher version that is registered, perhaps approved, enabled, and taken back again; each
    version has a worker, `a` is the lower one's."""
    newer = "1.3.0"
    events: dict[str, object] = {
        "asks_register_2": heard(OPERATOR, "register_plugin", 106),
        "register_2": registered(newer, capabilities=capabilities),
        "registered_2": told(OPERATOR, "registered", 106),
    }
    if approve is not None:
        events |= {
            "asks_approve": heard(OPERATOR, "approve", 107),
            "approve": PluginApprove(plugin=PLUGIN, version=newer, diff_sha256=approve,
                                     actor=OPERATOR),
            "approved": told(OPERATOR, "approved", 107),
        }
    return events | {
        **{f"{name}_a": of_second(RIGHT[name], THIRD) for name in COMES},
        "asks_enable_2": heard(OPERATOR, "enable_plugin", 108),
        **{f"{name}_c": of_second(RIGHT[name], **(
            {"version": newer} if name == "start" else {})) for name in COMES},
        "enable_2": PluginEnable(plugin=PLUGIN, version=newer, previous=VERSION,
                                 diff_sha256=enabled_for, actor=OPERATOR),
        "enabled_2": told(OPERATOR, "enabled", 108),
        "recycle_2": ZygoteRecycle(incarnation=THIRD, successor=SECOND, reason="upgrade"),
        "asks_enable_3": heard(OPERATOR, "enable_plugin", 109),
        "enable_3": PluginEnable(plugin=PLUGIN, version=VERSION, previous=newer, actor=OPERATOR),
        "enabled_3": told(OPERATOR, "enabled", 109),
        "recycle_3": ZygoteRecycle(incarnation=SECOND, successor=THIRD, reason="upgrade"),
    }


UPGRADED = put(RIGHT, "enabled", **upgraded(("clock.read",)))


BROKEN = [
    # The ledger's own course.
    Broken("AUD-01", "trust", without(RIGHT, "open")),
    Broken("AUD-01", "again", put(without(RIGHT, "close"), "exit", again=opening())),
    Broken("AUD-01", "more", put(RIGHT, "close", more=KeyChange(
        action="added", role="server", key_id="9" * 16, actor="home"))),
    Broken("AUD-01", "trust", put(RIGHT, "open", recovery=RECOVERY)),
    Broken("AUD-01", "roll", put(RIGHT, "exit", roll=LedgerRoll(segment=5))),
    Broken("AUD-01", "open", changed(changed(
        RIGHT, "open", domain="production"), "register", domain="production")),
    Broken("AUD-01", "run 1", RIGHT, {"run 1": -500_000, "progress": 500_000}),
    Broken("AUD-02", "snapshot", changed(RIGHT, "snapshot", open_invocations=(request(9),))),
    Broken("AUD-02", "snapshot", changed(RIGHT, "snapshot", trust_sha256=OTHER)),
    Broken("AUD-02", "snapshot", changed(RIGHT, "snapshot", policy_sha256=OTHER)),
    Broken("AUD-02", "new", put(RIGHT, "run 1", new=StateSnapshot(
        inventory_sha256=DIGEST, trust_sha256=DIGEST, policy_sha256=DIGEST))),
    # Who asks.
    Broken("AUD-03", "accept 1", changed(RIGHT, "asks 1", type="status")),
    Broken("AUD-03", "accept 2", changed(changed(
        RIGHT, "accept 2", pipeline=request(77), step="one"), "result 2", type="pipeline_result")),
    Broken("AUD-03", "no", put(RIGHT, "result 1", no=InvokeRefuse(
        request_id=request(5), peer=OMEGA, code="draining", pipeline=request(6)))),
    Broken("AUD-04", "enable", {
        **RIGHT, "asks enable": heard(AUDITOR, "enable_plugin", 102),
        "enable": PluginEnable(plugin=PLUGIN, version=VERSION, actor=AUDITOR),
        "enabled": told(AUDITOR, "enabled", 102),
    }),
    Broken("AUD-04", "register", changed(RIGHT, "asks register", type="validate_bundle")),
    Broken("AUD-04", "tells more", put(RIGHT, "enabled", asks_more=heard(AUDITOR, "revoke", 105),
                                       tells_more=told(AUDITOR, "revoked", 105))),
    Broken("AUD-04", "asks more", put(RIGHT, "enabled", **asked(
        "status", "status_report", KeyChange(
            action="added", role="server", key_id="9" * 16, actor="home"), "8" * 16))),
    # What becomes of an invocation.
    Broken("AUD-05", "again", put(RIGHT, "result 1", again=resulted(1))),
    Broken("AUD-05", "accept 2", changed(changed(changed(changed(changed(changed(
        RIGHT, "asks 2", request_id=request(1)), "accept 2", request_id=request(1)), "run 2",
        request_id=request(1)), "answer 2", request_id=request(1)), "end 2",
        request_id=request(1)), "result 2", request_id=request(1))),
    Broken("AUD-05", "asks more", put(without(
        RIGHT, "asks cancel", "abort 3", "end 3", "refusal 3", "cancelled", "late 3", "drain",
        "bye", "exit", "close"), "run 3", recovery=RECOVERY, again=opening(),
        asks_more=heard(OMEGA, "status", 105), tells_more=told(OMEGA, "status_report", 105))),
    Broken("AUD-05", "close", without(
        RIGHT, "asks cancel", "abort 3", "end 3", "refusal 3", "cancelled")),
    Broken("AUD-06", "again", put(RIGHT, "run 1", again=ordered("run", 9, 1))),
    Broken("AUD-06", "twin", put(RIGHT, "result 1", twin=ordered("run", 9, 1))),
    Broken("AUD-06", "run 3", changed(changed(RIGHT, "run 3", purpose="replica"), "end 3",
                                      replica="unverified")),
    Broken("AUD-06", "run b", changed(changed(COMPARED, "run b", peer=WORKER), "answer b",
                                      peer=WORKER)),
    Broken("AUD-06", "twin", put(COMPARED, "answer b", twin=msgspec.structs.replace(
        COMPARED["run b"], call=10))),
    Broken("AUD-06", "early", put(without(COMPARED, "run b"), "run 2", early=COMPARED["run b"])),
    Broken("AUD-06", "order probe", put(
        without(RIGHT, "order probe"), "start", order_probe=ordered("probe"))),
    Broken("AUD-06", "probe", without(RIGHT, "report")),
    # Workers.
    Broken("AUD-07", "run 1", without(RIGHT, "order probe", "report", "probe")),
    Broken("AUD-07", "attest", changed(RIGHT, "attest", seccomp_mode=1)),
    Broken("AUD-07", "attest", changed(RIGHT, "attest", namespaces={"net": 1})),
    Broken("AUD-07", "probe", changed(RIGHT, "probe", outcomes={
        **RIGHT["probe"].outcomes, "connect": "allowed"})),
    Broken("AUD-07", "run 2", put(RIGHT, "accept 2", drains=ordered("drain"))),
    Broken("AUD-08", "accept 1", without(RIGHT, "asks enable", "enable", "enabled")),
    Broken("AUD-08", "run 3", put(RIGHT, "accept 3", quarantine=PluginQuarantine(
        plugin=PLUGIN, version=VERSION, reason="bundle_damaged"))),
    Broken("AUD-08", "start", changed(RIGHT, "start", bundle_sha256=OTHER)),
    Broken("AUD-08", "enable", changed(RIGHT, "register", signing_keys=())),
    Broken("AUD-09", "more", put(RIGHT, "enabled", **asked(
        "register_plugin", "registered", registered("1.2.0-rc.1")))),
    Broken("AUD-09", "register", changed(RIGHT, "register", api_version="1.1.0")),
    Broken("AUD-09", "register", changed(RIGHT, "register", domain="production")),
    Broken("AUD-09", "enable 2", put(
        RIGHT, "close", again=msgspec.structs.replace(opening(), api_version="2.0.0"),
        asks_enable_2=heard(OPERATOR, "enable_plugin", 108),
        enable_2=PluginEnable(plugin=PLUGIN, version=VERSION, actor=OPERATOR),
        enabled_2=told(OPERATOR, "enabled", 108))),
    Broken("AUD-09", "again", put(RIGHT, "trust", again=TrustChange(
        version=1, sha256=DIGEST, previous_sha256=DIGEST, actor="home"))),
    Broken("AUD-09", "policy", changed(RIGHT, "policy", previous_sha256=OTHER)),
    # Results.
    Broken("AUD-10", "end 1", without(RIGHT, "answer 1")),
    Broken("AUD-10", "asks 2", without(RIGHT, "result 1")),
    Broken("AUD-10", "asks 3", changed(changed(RIGHT, "result 2", type="refusal"),
                                       "result 2", type="refusal", code="worker_lost")),
    Broken("AUD-10", "end 1", changed(RIGHT, "end 1", reached="running")),
    Broken("AUD-10", "end 3", changed(RIGHT, "asks cancel", type="status")),
    Broken("AUD-10", "end 3", changed(RIGHT, "end 3", reached="queued")),
    Broken("AUD-11", "end 2", changed(RIGHT, "end 2", output_fingerprint=OTHER)),
    Broken("AUD-11", "accept 3", changed(RIGHT, "accept 3", input_fingerprint=None)),
    Broken("AUD-11", "end 2", put(RIGHT, "answer 2", mismatch=DeterminismMismatch(
        request_id=request(2), plugin=PLUGIN, version=VERSION, method="count", against="history",
        input_fingerprint=DIGEST, output_fingerprint=DIGEST, other_output_fingerprint=OTHER))),
    Broken("AUD-18", "enable 2", put(RIGHT, "enabled", **upgraded(
        ("clock.read", "random.read")))),
    Broken("AUD-18", "enable 2", put(RIGHT, "enabled", **upgraded(("clock.read",), OTHER))),
    Broken("AUD-18", "enable 2", put(RIGHT, "enabled", **upgraded(
        ("clock.read", "random.read"), OTHER, approve=DIGEST))),
    Broken("AUD-11", "end 2", changed(COMPARED, "end 2", replica=None)),
    Broken("AUD-11", "end 2", changed(COMPARED, "end 2", replica="unverified")),
    Broken("AUD-11", "end 2", changed(COMPARED, "answer b", type="call_failure")),
    Broken("AUD-11", "end 2", changed(RIGHT, "end 2", replica="agreed")),
    Broken("AUD-11", "end 3", changed(RIGHT, "end 3", replica="unverified")),
    Broken("AUD-11", "end 2", put(COMPARED, "answer b", differs=DIFFERS)),
    Broken("AUD-11", "end 2", changed(put(COMPARED, "answer b", differs=DIFFERS), "end 2",
                                      replica="differed")),
    Broken("AUD-12", "start", changed(RIGHT, "start", grants=("env.read:HOME",))),
    Broken("AUD-12", "more", put(RIGHT, "enabled", **asked("grant", "granted", GrantChange(
        action="granted", plugin=PLUGIN, capability="net.connect", actor=OPERATOR)))),
    Broken("AUD-12", "run 2", put(changed(changed(
        RIGHT, "start", grants=("clock.read",)), "probe", outcomes={
            **RIGHT["probe"].outcomes, "clock": "allowed"}), "result 1", **revoked(
                "grant", f"{PLUGIN} clock.read", 0))),
    Broken("AUD-13", "answer 1", put(RIGHT, "progressed", lies=said("call_result", 77))),
    Broken("AUD-13", "run 2", put(RIGHT, "accept 2", dropped=FrameDrop(
        plane="worker", peer=WORKER, code="plugin_origin_routing", bytes=99))),
    Broken("AUD-13", "speaks", put(RIGHT, "result 1", speaks=said("invoke"))),
    Broken("AUD-14", "more", put(RIGHT, "enabled", more=told(AUDITOR, "head", 105))),
    Broken("AUD-14", "again", put(RIGHT, "exit", again=said("pong"))),
    Broken("AUD-14", "again", put(RIGHT, "exit", again=WorkerStart(
        incarnation=WORKER, plugin=PLUGIN, version=VERSION, bundle_sha256=BUNDLE,
        launcher="local"), ends=WorkerExit(incarnation=WORKER, reason="killed"))),
    Broken("AUD-15", "asks cancel", put(RIGHT, "run 3", **revoked(
        "plugin_version", f"{PLUGIN}@{VERSION}", 1))),
    Broken("AUD-15", "asks cancel", put(RIGHT, "run 3", **revoked(
        "publisher_key", PUBLISHER_KEY, 1))),
    Broken("AUD-15", "revoke", put(RIGHT, "cancelled", **revoked("client_key", "9" * 16, 3))),
    Broken("AUD-15", "end 3", changed(changed(RIGHT, "end 3", outcome="revoked", code="revoked"),
                                      "refusal 3", code="revoked")),
    Broken("AUD-15", "end 3", put(changed(changed(
        RIGHT, "end 3", outcome="revoked", code="revoked"), "refusal 3", code="revoked"),
        "run 2", other=TrustChange(
            version=2, sha256=OTHER, previous_sha256=DIGEST, actor="home"))),
    Broken("AUD-16", "run 3", RIGHT, {"run 3": 1_000_000}),
    Broken("AUD-16", "asks cancel", RIGHT, {"asks cancel": 17_000_000}),
    Broken("AUD-16", "accept 2", put(RIGHT, "result 1", breaks=BreakerChange(
        plugin=PLUGIN, method="count", before="closed", after="open", reason="failures",
        retry_after_ms=5_000))),
    Broken("AUD-16", "breaks", put(RIGHT, "result 1", breaks=BreakerChange(
        plugin=PLUGIN, method="count", before="open", after="closed", reason="time"))),
    Broken("AUD-16", "quota", put(RIGHT, "result 1", quota=QuotaRefuse(
        peer=OMEGA, quota="calls", used=3, allowed=4, window_begin_us=0, window_end_us=9))),
    Broken("AUD-17", "end 1", changed(RIGHT, "end 1", output_kind=None)),
    Broken("AUD-17", "end 3", changed(RIGHT, "end 3", output_commitment=DIGEST)),
    Broken("AUD-19", "enable 2", without(UPGRADED, "order probe c", "report c", "probe c")),
    Broken("AUD-19", "enable 2", changed(UPGRADED, "enable 2", previous=None)),
    Broken("AUD-19", "enable 3", put(UPGRADED, "enabled 2", drains=of_second(
        ordered("drain"), THIRD))),
    Broken("AUD-19", "recycle 2", changed(UPGRADED, "recycle 2", successor=THIRD)),
    Broken("AUD-19", "early", put(without(UPGRADED, "recycle 2"), "probe c",
                                  early=UPGRADED["recycle 2"])),
]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory where there is one: no flush is tested here, and there are many."""
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(
        prefix="og-", dir=memory if os.access(memory, os.W_OK) else None
    ) as path:
        yield Path(path)


def audited(story: Story, folder: Path, later: Mapping[str, int] | None = None) -> AuditReport:
    """Write a story as a ledger whose bytes hold, and audit it."""
    audit = Audit()
    directory = str(write(story, folder, later or {}))
    assert verify_directory(
        directory, verifier_key=VERIFIER_KEY, anchor_directory=str(folder / "anchor")
    ).ok
    for event in read_events(directory):
        audit.take(event)
    return audit.report()


def test_a_right_story_breaks_nothing_and_asks_everything(folder):
    """Every invariant holds, and each was asked at least once."""
    report = audited(RIGHT, folder)
    assert [verdict for verdict in report.verdicts if not verdict.ok] == []
    assert (report.ok, report.events, report.open) == (True, len(RIGHT), 0)
    assert all(verdict.asked for verdict in report.verdicts)


def test_a_second_run_that_agrees_breaks_nothing(folder):
    """A replica in a worker of its own, after the answer and before the end, is as it must be."""
    assert audited(COMPARED, folder).ok


@pytest.mark.parametrize("broken", BROKEN, ids=lambda one: f"{one.invariant} {one.at}")
def test_each_invariant_is_broken_alone(broken, folder):
    """Only the one that was broken says so, and it names the first event that breaks it."""
    report = audited(broken.story, folder, broken.later)
    found = {verdict.name: verdict for verdict in report.verdicts if not verdict.ok}
    assert set(found) == {broken.invariant}, found
    verdict = found[broken.invariant]
    assert (verdict.seq, report.ok) == (list(broken.story).index(broken.at), False)
    assert verdict.event_type == broken.story[broken.at].EVENT_TYPE
    assert verdict.expected
    assert verdict.found


def test_an_upgrade_that_was_approved_breaks_nothing(folder):
    """Exactly the approved difference may be enabled, and going back to what was narrower too."""
    story = put(RIGHT, "enabled", **upgraded(("clock.read", "random.read"), OTHER, approve=OTHER))
    assert audited(story, folder).ok


def test_a_warm_upgrade_breaks_nothing(folder):
    """Each version's worker is witnessed before its version takes over."""
    assert audited(UPGRADED, folder).ok


def test_every_invariant_is_broken_by_some_ledger():
    """No invariant is listed that nothing could break, and numbers and INVs are as documented."""
    names = [one.name for one in sorted(INVARIANTS)]
    assert names == [f"AUD-{number:02d}" for number in range(1, len(names) + 1)]
    assert {broken.invariant for broken in BROKEN} == set(names)
    assert {one.specification for one in INVARIANTS} == {
        f"INV-PNP-{number:02d}" for number in (1, 3, 4, 5, 6, 7, 8, 9, 10)
    }


def test_a_second_run_goes_on_where_the_first_ended(folder):
    """After a crash what was open ends as abandoned, and nobody is told; that is right."""
    story = put(
        without(RIGHT, "asks cancel", "abort 3", "end 3", "refusal 3", "cancelled", "late 3",
                "drain", "bye", "exit", "close"),
        "run 3",
        recovery=RECOVERY,
        again=opening(),
        snapshot_2=StateSnapshot(inventory_sha256=DIGEST, trust_sha256=DIGEST,
                                 policy_sha256=DIGEST, open_invocations=(request(3),)),
        end_3=InvokeEnd(request_id=request(3), outcome="abandoned", reached="queued",
                        code="abandoned"),
        asks_status=heard(OMEGA, "status", 105), status=told(OMEGA, "status_report", 105),
        close=LedgerClose(reason="drained"),
    )
    report = audited(story, folder, {"recovery": -500_000, "again": 1})
    assert report.ok, report


def test_events_that_do_not_follow_are_not_audited(folder):
    """A line that is none, or not the next one, is an error and not a verdict."""
    directory = write(RIGHT, folder, {})
    path = next((directory / "segments").iterdir())
    lines = path.read_bytes().splitlines(keepends=True)
    for wrong in (lines[:3] + lines[4:], [b"{}\n", *lines[1:]], [b"\xff\n"]):
        path.write_bytes(b"".join(wrong))
        with pytest.raises(UnreadableLedger):
            list(read_events(str(directory)))


def test_the_audit_shares_no_code_with_what_it_judges():
    """Its files import the standard library, msgspec, the events' structs and each other."""
    files = {"accepted", "audit", "history", "invariants", *(
        part.__name__.rpartition(".")[2] for part in audit_file.PARTS
    )}
    allowed = {"msgspec", "schemas.events", "broker.evidence",
               *(f"broker.evidence.{name}" for name in files)}
    folder = Path(audit_file.__file__).parent
    for name in files:
        tree = ast.parse((folder / f"{name}.py").read_text())
        imported = {
            module for node in ast.walk(tree)
            for module in (
                [alias.name for alias in node.names] if isinstance(node, ast.Import)
                else [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            )
        }
        ours = {one for one in imported if one.split(".")[0] in
                ("schemas", "broker", "sandbox_worker", "msgspec")}
        assert ours <= allowed, name
        assert not {"importlib", "runpy"} & imported
