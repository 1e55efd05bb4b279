"""Policy: reading it, and the one decision about capabilities."""

from __future__ import annotations

import msgspec
import pytest

from broker.policy import (
    ALWAYS_REFUSED,
    approved_modules,
    denied_limits,
    denied_modules,
    effective,
    grant_denied,
    grant_values,
    load_policy,
    package_folder,
    policy_digest,
)
from broker.trust.errors import TrustRefused
from schemas.launch import LAUNCH_BYTES_MAX
from schemas.manifest import Limits, Method, PayloadSpec
from schemas.policy import VALUE_BYTES_MAX, Policy
from schemas.refusals import RefusalCode

POLICY = b"""
[grants."word-*"]
capabilities = ["clock.read", "fs.read:corpus", "net.connect"]
[grants."*"]
capabilities = ["random.read"]
[roots]
corpus = "/srv/corpus"
[env]
LANG = "fr"
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
        (b'[roots]\ncorpus = "srv/corpus"\n', "$.roots"),
        (b'[roots]\ncorpus = "/srv/\\u0000"\n', "$.roots"),
        (b'[roots]\n"../x" = "/srv"\n', "$.roots"),
        (b'[env]\nlang = "fr"\n', "$.env"),
        (b'[env]\nLANG = "a\\nb"\n', "$.env"),
        (b'[env]\nLANG = 7\n', "$.env"),
        ('[env]\nLANG = "%s"\n'.replace("%s", "\u00e9" * 257).encode(), "$.env.LANG"),
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
    "a value with an entry": ("image-size", "env.read:LANG", ("env.read:LANG",), None),
    "a value without an entry": ("image-size", "env.read:HOME", ("env.read:HOME",),
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
        assert (decision.refused[0].line.startswith(("[grants", "[roots", "[env"))) \
            is (code == "capability_not_granted")
        assert (decision.refused[0].sentence == ALWAYS_REFUSED) is (code == "capability_refused")


@pytest.mark.parametrize("name", DECISIONS)
def test_a_grant_is_refused_where_it_would_give_nothing(name: str):
    """What no grant makes effective is not granted; everything else can be."""
    plugin, capability, _, _ = DECISIONS[name]
    policy = load_policy(POLICY)
    decision = effective(plugin, (capability,), policy, (capability,))
    denied = grant_denied(plugin, capability, policy)
    assert (denied is None) is (decision.granted == (capability,))
    assert (denied,) == (decision.refused or (None,))


def test_a_worker_is_told_values_and_folders_of_its_grants_alone():
    """Values of `env.read`, folders of `fs.read` and `artifact.read`, nothing for the rest."""
    grants = ("clock.read", "env.read:LANG", "artifact.read", "fs.read:corpus")
    policy = load_policy(POLICY)
    assert grant_values(grants, policy, "/home/artifacts") == {
        "env.read:LANG": "fr", "artifact.read": "/home/artifacts", "fs.read:corpus": "/srv/corpus",
    }
    assert grant_values(("random.read",), policy, "/home/artifacts") == {}


def test_the_longest_grants_fit_a_launch_document():
    """With every value at its bound a launch document stays below its size."""
    names = [f"env.read:{'A' * 62}{number:02d}" for number in range(32)]
    values = dict.fromkeys(names, '"' * VALUE_BYTES_MAX)
    document = msgspec.json.encode({"grants": names, "grant_values": values})
    assert len(document) + 8192 < LAUNCH_BYTES_MAX


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
    folder = f'[modules.packages."word-*"]\nfolder = "/srv/x"\nlock_sha256 = "{"0" * 64}"\n'
    policy = load_policy(POLICY + folder.encode())
    modules = ("re", "msgspec", "sys", "numpy", "numpy.linalg", "socket")
    assert [where for where, _ in denied_modules("word-count", modules, policy)] == ["$.modules[5]"]
    assert [where for where, _ in denied_modules("image-size", modules, policy)] == [
        "$.modules[3]", "$.modules[4]", "$.modules[5]"
    ]
    assert approved_modules("word-count", modules, policy) == ("numpy", "numpy.linalg")


def test_an_approved_module_needs_a_folder_unless_it_is_standard():
    """A third-party module that lies nowhere is refused at registration, with the lines to add."""
    policy = load_policy(POLICY.replace(b'["numpy"]', b'["numpy", "socket"]'))
    (where, denied), = denied_modules("word-count", ("numpy", "socket"), policy)
    assert (where, denied.code) == ("$.modules[0]", RefusalCode.MODULE_NOT_ALLOWED)
    assert denied.line.startswith('[modules.packages."word-count"] folder = ')


def test_the_longest_glob_names_the_folder():
    """Of several folders that fit a plugin one counts; a plugin that none fits has none."""
    policy = load_policy("".join(
        f'[modules.packages."{glob}"]\nfolder = "/srv/{at}"\nlock_sha256 = "{"0" * 64}"\n'
        for at, glob in enumerate(("*-count", "word-*", "word-count", "w*"))
    ).encode())
    folders = [package_folder(plugin, policy)
               for plugin in ("word-count", "line-count", "word-list", "image-size")]
    assert [folder and folder.folder for folder in folders] == ["/srv/2", "/srv/0", "/srv/1", None]


@pytest.mark.parametrize(("text", "sentence"), [
    (b'[grants."X Y"]\ncapabilities = []\n',
     "found \"X Y\", expected text of the form '^[a-z0-9*?-]+$'"),
    (b"[limits]\ncpu_ms_max = true\n", "found true, expected `int`"),
    (b"[limit]\n", "found an unknown field, expected one of conformance_required,"),
])
def test_the_sentence_about_a_wrong_line_reads_well(text: bytes, sentence: str):
    """What is there, and what may be there, each said once."""
    with pytest.raises(TrustRefused) as caught:
        load_policy(text)
    assert caught.value.sentence.startswith(sentence), caught.value.sentence
