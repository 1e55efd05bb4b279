"""What clients do in a run: mostly what they may, and often enough what nobody may."""

from __future__ import annotations

import functools
import random
from typing import TYPE_CHECKING

import msgspec

from broker.arrivals import (
    Arrival,
    EndpointEnded,
    FrontFrames,
    HandshakesRefused,
    OversizedMessage,
)
from broker.effects import Origin
from broker.trust.bundles import read_bundle
from broker.trust.ratchet import difference
from broker.trust.signatures import decode_base64, read_envelope
from schemas import codec
from schemas.messages import (
    Approve,
    Budget,
    Cancel,
    DisablePlugin,
    EnablePlugin,
    GetPlugin,
    Grant,
    Invoke,
    InvokePipeline,
    LedgerHead,
    ListPlugins,
    Prove,
    ProveConsistency,
    RegisterPlugin,
    Revoke,
    Run,
    SetTrust,
    ShowRequest,
    Status,
    Step,
    StepOutput,
    ValidateBundle,
)
from schemas.names import Role
from schemas.payloads import DatasetSlicePayload, JSONPayload, Payload, TextPayload
from tests.simulation.settings import APPROVED
from tests.simulation.trusts import MEANING, OTHER_SEED, WRONG, envelope
from tests.support.bundles import ROOT_SEED, public_hex, signed_bundle

if TYPE_CHECKING:
    from tests.simulation.fakes import FakeLedger, FakeTrust

KEYS: dict[str, Role] = {
    "a" * 16: "omega", "b" * 16: "omega", "c" * 16: "operator", "d" * 16: "auditor",
    "9" * 16: "operator",
}
PLUGINS = (("alpha", "1.0.0"), ("alpha", "1.1.0"), ("alpha", "1.2.0"), ("beta", "1.0.0"))
WIDER = "1.2.0"
"""The version whose limits are higher than those of the others."""
GRANTED = {"beta": ("artifact.read",)}
"""What a plugin asks for, by its id, and is granted at the begin of a run."""


@functools.cache
def bundle(plugin: str, version: str) -> bytes:
    """Make one real signed bundle, once; each version of `delta` has a schema of its own."""
    schema: dict[str, object] | None = None
    if plugin == "delta":
        schema = {"type": "object", "title": version}
    return signed_bundle(
        plugin, version, concurrency=3 if version == WIDER else 2,
        capabilities=GRANTED.get(plugin, ()), schema=schema,
        modules=APPROVED.allowed.get(plugin, ()),
    )


@functools.cache
def difference_digest(plugin: str, before: str, after: str) -> str:
    """Give the digest of the difference between two versions."""
    signed = [
        decode_base64(read_envelope(read_bundle(bundle(plugin, version)).envelope).payload, "")
        for version in (before, after)
    ]
    return difference(*signed).digest()


class Clients:
    """Everything that sends to a front. The world gives it chance and a look at the ledger."""

    random: random.Random
    ledger: FakeLedger
    trust: FakeTrust
    sent: list[str]
    pipelines: dict[str, InvokePipeline]
    cancels: dict[str, str]
    registering: dict[str, str]
    """Versions of `delta` that are to be registered or validated, by request."""

    def uuid(self) -> str:
        """Make a request id."""
        digits = f"{self.random.getrandbits(128):032x}"
        return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"

    def framed(self, key: str, frame: bytes, front: str | None = None) -> FrontFrames:
        """Put a frame on the front of its key."""
        omega = front == "front.omega" if front else KEYS.get(key) == "omega"
        route = key.encode() + b"%d" % self.random.randint(0, 2)
        return FrontFrames(
            Origin("front.omega" if omega else "front.admin", key, route), [frame]
        )

    # --- workers ---

    def client_acts(self) -> Arrival:
        """Let some client do something, mostly sensible."""
        roll = self.random.random()
        if roll < 0.5:
            asked = self.pipeline() if roll < 0.12 else self.invocation()
            return self.framed(self.random.choice(("a" * 16, "b" * 16)), codec.encode(asked))
        if roll < 0.62:
            cancel = Cancel(request_id=self.uuid(), target=self.known_request())
            self.cancels[cancel.request_id] = cancel.target
            return self.framed(self.random.choice(("a" * 16, "b" * 16)), codec.encode(cancel))
        if roll < 0.88:
            return self.operator_acts()
        return self.stranger_acts()

    def operator_acts(self) -> Arrival:
        """Let an operator or auditor do something."""
        plugin, version = self.random.choice(PLUGINS)
        ask = self.uuid()
        choices: list[msgspec.Struct] = [
            *[EnablePlugin(request_id=ask, plugin=plugin, version=version)] * 12,
            DisablePlugin(request_id=ask, plugin=plugin),
            *[Approve(request_id=ask, plugin="alpha", version=WIDER, diff_digest=digest)
              for digest in (difference_digest("alpha", "1.0.0", WIDER),
                             difference_digest("alpha", "1.1.0", WIDER), "0" * 64)],
            Approve(request_id=ask, plugin=plugin, version=version, diff_digest="0" * 64),
            Grant(request_id=ask, plugin=plugin, capability="clock.read"),
            *[Grant(request_id=ask, plugin="beta", capability="artifact.read")] * 2,
            Revoke(request_id=ask, kind="grant", id="beta artifact.read", reason="test"),
            Grant(request_id=ask, plugin=plugin, capability="env.read:HOME"),
            Grant(request_id=ask, plugin=plugin, capability="net.connect"),
            RegisterPlugin(request_id=ask, bundle=bundle(plugin, version)),
            *[self.registration(ask)] * 2,
            RegisterPlugin(request_id=ask, bundle=self.random.randbytes(40)),
            ValidateBundle(request_id=ask, bundle=b"PK"),
            Status(request_id=ask), ListPlugins(request_id=ask, limit=1),
            GetPlugin(request_id=ask, plugin=plugin, version=version),
            GetPlugin(request_id=ask, plugin=plugin), LedgerHead(request_id=ask),
            Prove(request_id=ask, seq=self.random.randint(0, 2 * len(self.ledger.events)),
                  size=self.some_size(ask)),
            ProveConsistency(request_id=ask, old_size=self.random.randint(0, 99_999),
                             size=self.some_size(ask)),
            ShowRequest(request_id=ask, target=self.known_request()),
        ]
        if self.random.random() < 0.03:
            choices = [
                Revoke(request_id=ask, kind="plugin_version", id=f"{plugin}@{version}",
                       reason="test"),
                Revoke(request_id=ask, kind="grant", id=f"{plugin} clock.read", reason="test"),
                *[Revoke(request_id=ask, kind="client_key", id="b" * 16, reason="test",
                         disconnect=self.random.random() < 0.5)] * 3,
                Revoke(request_id=ask, kind="client_key", id="9" * 16, reason="test"),
                Revoke(request_id=ask, kind="grant", id=f"{plugin} clock.read", reason="test",
                       disconnect=True),
                Revoke(request_id=ask, kind="publisher_key", id="f" * 16, reason="test"),
            ]
        # A root under which little may run is soon followed by another.
        if self.random.random() < (0.04 if self.trust.present.trust.version % 2 else 0.3):
            choices = [self.other_trust(ask)]
        key = self.random.choice(["c" * 16] * 5 + ["9" * 16] * 2 + ["d" * 16])
        message = self.random.choice(choices)
        if key == "c" * 16 and isinstance(message, RegisterPlugin | ValidateBundle):
            # Of a key that is revoked, what comes beyond the bound is only counted.
            self.registering[ask] = str(message.__struct_config__.tag)
        return self.framed(key, codec.encode(message))

    def other_trust(self, ask: str) -> SetTrust:
        """Make a trust root: odd versions let everything run, the others often do not."""
        present = self.trust.present.trust
        version = present.version + (1 if self.random.random() < 0.8 else -1)
        forms = ("right", "rotated") if version % 2 else tuple(MEANING)
        form = self.random.choice(WRONG if self.random.random() < 0.2 else forms)
        rotated = present.roots == (public_hex(OTHER_SEED),)
        self.trust.full = self.random.random() < 0.05
        return SetTrust(request_id=ask, envelope=envelope(
            max(1, version), form, (OTHER_SEED if rotated else ROOT_SEED,)))

    def stranger_acts(self) -> Arrival:
        """Let somebody do what nobody may."""
        roll = self.random.randint(0, 9)
        key = self.random.choice([*KEYS, "e" * 16])
        if roll == 0:
            return HandshakesRefused("front.omega", self.random.randint(1, 9), "no CURVE")
        if roll == 1 and self.random.random() < 0.2:
            return EndpointEnded("f" * 16)
        if roll == 1:
            return OversizedMessage("front.admin", key, 9, 999)
        if roll == 2:
            return FrontFrames(Origin("front.omega", key, b"x"), [b"a", b"b"])
        if roll == 3:
            return self.framed(key, codec.encode(self.invocation()), "front.admin")
        if roll == 4:
            return self.framed("c" * 16, codec.encode(self.invocation()), "front.omega")
        if roll == 5:
            return self.framed(key, codec.encode(Run(
                call=1, method="work", payload=TextPayload("x"), timeout_ms=5,
                request_id=self.uuid())))
        frame = codec.encode(self.invocation())
        at = self.random.randrange(len(frame))
        mutated = frame[:at] + self.random.randbytes(1) + frame[at + 1 :]
        if roll == 6:
            mutated = self.random.randbytes(self.random.randint(0, 60))
        return self.framed(key, mutated, self.random.choice(("front.omega", "front.admin")))

    def registration(self, ask: str) -> RegisterPlugin | ValidateBundle:
        """Send a bundle whose schemas nobody has tried, unless it was registered before."""
        version = f"1.0.{self.random.randint(0, 9)}"
        kind = RegisterPlugin if self.random.random() < 0.7 else ValidateBundle
        return kind(request_id=ask, bundle=bundle("delta", version))

    def invocation(self) -> Invoke:
        """Make an invocation, mostly one that fits."""
        repeat = self.sent and self.random.random() < 0.05
        request_id = self.random.choice(self.sent) if repeat else self.uuid()
        self.sent.append(request_id)
        method = self.random.choice(("work", "work", "work", "read", "read", "pick", "none"))
        payload: Payload = {
            "work": JSONPayload(self.random.choice((b'{"value":1}', b'{"value":2}'))),
            "read": TextPayload("some text"),
        }.get(method, DatasetSlicePayload("set", ("k1", "k2")))
        if self.random.random() < 0.08:
            payload = self.random.choice((
                TextPayload("wrong"), JSONPayload(b'{"value":"x"}'), JSONPayload(b'{"a": 1}'),
            ))
        return Invoke(
            request_id=request_id,
            plugin=self.random.choice(("alpha", "alpha", "beta", "beta", "beta", "gamma")),
            method=method, payload=payload, commitment_key=self.random.randbytes(32),
            timeout_ms=self.random.choice((1, 60, 900, 1500, 60_000, 60_000)),
            version=self.random.choice((None, None, None, None, "^1.0", "^1.0", "1.1.0", "9.9.9")),
            known_size=self.random.choice((None, 0, 5, 10_000_000)),
            keep_alive=self.random.random() < 0.2,
        )

    def pipeline(self) -> InvokePipeline:
        """Make a pipeline, mostly one that fits: steps of `work` that take from each other."""
        repeat = self.sent and self.random.random() < 0.05
        request_id = self.random.choice(self.sent) if repeat else self.uuid()
        self.sent.append(request_id)
        steps: list[Step] = []
        for number in range(self.random.randint(1, 4)):
            given: Payload | StepOutput = JSONPayload(b'{"value":1}')
            if steps and self.random.random() < 0.7:
                given = StepOutput(
                    step=self.random.choice(steps).name,
                    pointer=self.random.choice(("", "", "", "", "", "/value", "/none")),
                )
            steps.append(Step(
                name=f"s{number}", plugin=self.random.choice(("alpha", "beta", "beta")),
                method="work", input=given,
                timeout_ms=self.random.choice((None, None, 900, 60_000)),
            ))
        if self.random.random() < 0.1:
            steps[0] = msgspec.structs.replace(steps[0], input=StepOutput(step=steps[-1].name))
        self.random.shuffle(steps)
        request = InvokePipeline(
            request_id=request_id, steps=tuple(steps), commitment_key=self.random.randbytes(32),
            timeout_ms=self.random.choice((60, 1500, 60_000, 60_000)),
            budget=Budget(
                calls=self.random.choice((3, 9, 9)), cpu_ms=self.random.choice((1, 2, 90_000)),
                output_bytes=self.random.choice((10, 5_000_000, 5_000_000)),
            ),
            on_error=self.random.choice(("abort", "skip_dependents")),
            known_size=self.random.choice((None, 0)), keep_alive=self.random.random() < 0.2,
        )
        return self.pipelines.setdefault(request_id, request)

    def some_size(self, ask: str) -> int | None:
        """Name a checkpoint by its size, signed or not, or none."""
        present = len(self.ledger.events)
        return (None, 0, present // 2, present, 99_999)[int(ask[:2], 16) % 5]

    def known_request(self) -> str:
        """Pick a request id, mostly one that was used."""
        if self.sent and self.random.random() < 0.9:
            return self.random.choice(self.sent[-6:])
        return self.uuid()
