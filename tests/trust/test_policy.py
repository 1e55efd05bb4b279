"""Policy: reading it, and the one decision about capabilities."""

from __future__ import annotations

import pytest

from broker.policy import (
    denied_limits,
    denied_modules,
    effective,
    load_policy,
    policy_digest,
)
from broker.trust.errors import TrustRefused
from schemas.manifest import Limits, Method, PayloadSpec
from schemas.policy import Policy
from schemas.refusals import RefusalCode

POLICY = b"""
[grants."word-*"]
capabilities = ["clock.read", "fs.read:corpus", "net.connect"]
[grants."*"]
capabilities = ["random.read"]
[roots]
corpus = "/srv/corpus"
[limits]
cpu_ms_max = 2000
[modules.allowed]
"word-*" = ["numpy"]
"""


def test_an_empty_file_is_the_default_policy():
    """Nothing written means nothing granted."""
    assert load_policy(b"") == Policy()


def test_a_policy_is_read_and_named_by_its_meaning():
    """Comments and the order of lines do not change the digest, values do."""
    policy = load_policy(POLICY)
    assert policy.limits.cpu_ms_max == 2000
    turned = b"# a comment\n[limits]\ncpu_ms_max=2_000\n" + POLICY.replace(
        b"[limits]\ncpu_ms_max = 2000\n", b""
    )
    assert policy_digest(load_policy(turned)) == policy_digest(policy)
    assert policy_digest(load_policy(POLICY.replace(b"2000", b"2001"))) != policy_digest(policy)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (b"[limits]\ncpu_max = 3\n", "$.limits"),
        (b"[limits]\ncpu_ms_max = -1\n", "$.limits.cpu_ms_max"),
        (b'[grants."word-*"]\ncapabilities = ["disk.write"]\n', "$.grants"),
        (b"[grant]\n", "$"),
        (b"[limits\n", ""),
        (b"\xff\xfe", ""),
        (b'[grants."a/b"]\ncapabilities = []\n', "$.grants"),
    ],
)
def test_a_wrong_line_is_refused_with_its_path(text: bytes, where: str):
    """An unknown or malformed line is refused, never ignored."""
    with pytest.raises(TrustRefused) as caught:
        load_policy(text)
    assert caught.value.code is RefusalCode.CONFIG_INVALID
    assert caught.value.where.startswith(where)


DECISIONS = {
    "granted by a rule of its own": ("word-count", "clock.read", (), None),
    "granted by a rule for all": ("image-size", "random.read", (), None),
    "granted by request": ("image-size", "artifact.read", ("artifact.read",), None),
    "a rule of another plugin": ("image-size", "clock.read", (), "capability_not_granted"),
    "nothing says so": ("word-count", "artifact.read", (), "capability_not_granted"),
    "another argument": ("word-count", "env.read:HOME", ("env.read:PATH",),
                         "capability_not_granted"),
    "a root with a folder": ("word-count", "fs.read:corpus", (), None),
    "a root without a folder": ("image-size", "fs.read:other", ("fs.read:other",),
                                "capability_not_granted"),
    "the network, though a line grants it": ("word-count", "net.connect", ("net.connect",),
                                             "capability_refused"),
    "processes, though granted": ("word-count", "process.spawn", ("process.spawn",),
                                  "capability_refused"),
}


@pytest.mark.parametrize("name", DECISIONS)
def test_effective_is_what_was_asked_for_and_granted(name: str):
    """Default is refusal; the network and processes stay refused whatever is granted."""
    plugin, capability, grants, code = DECISIONS[name]
    decision = effective(plugin, (capability,), load_policy(POLICY), grants)
    if code is None:
        assert decision == ((capability,), ())
    else:
        assert decision.granted == ()
        assert [one.code.value for one in decision.refused] == [code]
        assert ("[grants" in decision.refused[0].line or "[roots" in decision.refused[0].line) \
            is (code == "capability_not_granted")


def test_what_is_granted_and_not_asked_for_is_not_given():
    """A grant alone gives a plugin nothing."""
    assert effective("word-count", (), load_policy(POLICY), ("clock.read",)) == ((), ())


def test_the_line_of_a_refusal_grants_it():
    """Adding the line that a refusal names makes the same request granted."""
    refused = effective("word-count", ("artifact.read",), Policy(), ()).refused[0]
    table, _, rest = refused.line.partition("] ")
    policy = load_policy(f"{table}]\n{rest}\n".encode())
    assert effective("word-count", ("artifact.read",), policy, ()).granted == ("artifact.read",)


def test_limits_above_the_policy_are_named():
    """Each limit and timeout above its maximum is named with its path and the line to add."""
    limits = Limits(3000, 1000, 128, 1000, 17)
    method = Method(PayloadSpec("text"), PayloadSpec("text"), timeout_ms=200_000)
    found = dict(denied_limits(limits, {"count": method}, load_policy(POLICY)))
    assert set(found) == {
        "$.limits.cpu_ms", "$.limits.concurrency", "$.methods.count.timeout_ms"
    }
    assert found["$.limits.cpu_ms"].line == "[limits] cpu_ms_max = 3000"


def test_modules_beyond_the_table_are_named():
    """Vetted, free and approved modules pass; others are named with the line to add."""
    policy = load_policy(POLICY)
    modules = ("re", "msgspec", "sys", "numpy", "socket")
    assert [where for where, _ in denied_modules("word-count", modules, policy)] == ["$.modules[4]"]
    assert [where for where, _ in denied_modules("image-size", modules, policy)] == [
        "$.modules[3]", "$.modules[4]"
    ]
