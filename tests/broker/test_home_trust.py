"""A home's trust root over its life: the ledger's pin decides, and each root is kept for the next.

Every test begins with a home whose first root the ledger has seen, as after a first start.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from broker.home import PUBLISHER_KEY, ROOT_KEY, Home, HomeRefused, load_home
from broker.home import create_home as create
from broker.keys import new_signing_pair, read_secret
from broker.trust.roots import KEPT_TRUST_FILE, TRUST_FILE, Root, load_first_root, sign_root
from broker.trust_folder import UNFINISHED, TrustFolder
from schemas.refusals import RefusalCode
from schemas.trust import TrustRoot


def settle_trust(home: Home, version: int, sha256: str) -> Root:
    """Find the root in force as a start does whose ledger pins this one."""
    return TrustFolder(home.path).settle(home.trust, version, sha256)


def seed(home: Home, name: str) -> bytes:
    """A signing key of the home."""
    return bytes.fromhex(read_secret(os.path.join(home.path, name)).strip())


def bring(home: Home, document: TrustRoot, seeds: list[bytes]) -> Home:
    """An operator puts another trust root into the home, and the home is read again."""
    Path(home.path, TRUST_FILE).write_bytes(sign_root(document, seeds))
    return load_home(home.path, environment={})


def kept(home: Home, version: int) -> Path:
    """Where a root of this version is kept."""
    return Path(home.path, KEPT_TRUST_FILE.format(version=version))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A development home after its first start: version 1 is pinned and kept."""
    made = create(
        str(tmp_path / "home"), "development", None,
        environment={"XDG_RUNTIME_DIR": str(tmp_path)},
    )
    settle_trust(made, 0, "")
    return made


def test_what_is_in_force_is_kept_for_its_owner_alone(home: Home) -> None:
    """The first start keeps the root's very bytes; a second start changes nothing."""
    assert kept(home, 1).read_bytes() == home.trust.envelope
    assert kept(home, 1).stat().st_mode & 0o777 == 0o600
    before = kept(home, 1).stat().st_ino
    settle_trust(home, 1, home.trust.sha256)
    assert kept(home, 1).stat().st_ino == before


def test_a_successor_is_taken_and_kept_and_the_old_one_comes_not_back(home: Home) -> None:
    """The pinned keys sign the next root; from then on the first one is refused."""
    first = home.trust
    later = bring(
        home, msgspec.structs.replace(first.trust, version=5, publishers={}),
        [seed(home, ROOT_KEY)],
    )
    settle_trust(later, 1, first.sha256)
    assert kept(home, 5).read_bytes() == later.trust.envelope
    Path(home.path, TRUST_FILE).write_bytes(first.envelope)
    with pytest.raises(HomeRefused, match="has seen version 5") as caught:
        settle_trust(load_home(home.path, environment={}), 5, later.trust.sha256)
    assert caught.value.code is RefusalCode.TRUST_VERSION_NOT_RAISED


def test_a_root_of_other_keys_is_refused_whatever_its_version(home: Home) -> None:
    """Whoever can write the home's files cannot make himself its root."""
    other = new_signing_pair()
    for version, code in (
        (1, RefusalCode.TRUST_VERSION_NOT_RAISED), (2, RefusalCode.TRUST_INVALID),
    ):
        document = msgspec.structs.replace(
            home.trust.trust, version=version, roots=(other.public,)
        )
        usurped = bring(home, document, [bytes.fromhex(other.secret)])
        with pytest.raises(HomeRefused) as caught:
            settle_trust(usurped, 1, home.trust.sha256)
        assert caught.value.code is code
        assert not kept(home, 2).exists()


@pytest.mark.parametrize("fault", ["gone", "another root", "a link", "no root"])
def test_without_the_pinned_root_there_is_no_successor(home: Home, fault: str) -> None:
    """What is kept is compared with the ledger's digest; damage costs the change, fail closed."""
    path = kept(home, 1)
    path.unlink()
    if fault == "another root":
        publisher = bytes.fromhex(read_secret(os.path.join(home.path, PUBLISHER_KEY)).strip())
        document = msgspec.structs.replace(
            home.trust.trust, roots=home.trust.trust.publishers["development"].keys
        )
        path.write_bytes(sign_root(document, [publisher]))
    elif fault == "a link":
        path.symlink_to(Path(home.path, TRUST_FILE))
    elif fault == "no root":
        path.write_bytes(b"{}")
    later = bring(
        home, msgspec.structs.replace(home.trust.trust, version=2), [seed(home, ROOT_KEY)]
    )
    with pytest.raises(HomeRefused) as caught:
        settle_trust(later, 1, home.trust.sha256)
    assert caught.value.code is RefusalCode.TRUST_INVALID


def test_a_successor_that_was_never_pinned_may_still_be_replaced(home: Home) -> None:
    """A start that died between keeping and pinning leaves a file that the next start replaces."""
    root = seed(home, ROOT_KEY)
    died = bring(home, msgspec.structs.replace(home.trust.trust, version=2), [root])
    settle_trust(died, 1, home.trust.sha256)
    other = bring(
        home, msgspec.structs.replace(home.trust.trust, version=2, publishers={}), [root]
    )
    settle_trust(other, 1, home.trust.sha256)
    assert kept(home, 2).read_bytes() == other.trust.envelope


@pytest.mark.parametrize("pinned", [True, False], ids=["pinned", "not pinned"])
def test_a_crash_while_a_root_is_taken_leaves_what_the_ledger_says(
    home: Home, pinned: bool
) -> None:
    """Killed between ledger and file the next start lays the pinned root in place, killed before
    the ledger it forgets the new one; either way nothing unfinished stays behind."""
    first = home.trust
    document = msgspec.structs.replace(first.trust, version=2)
    envelope = sign_root(document, [seed(home, ROOT_KEY)])
    folder = TrustFolder(home.path)
    folder.keep(envelope, 2)
    seen = load_first_root(envelope, "development") if pinned else first

    root = settle_trust(home, seen.trust.version, seen.sha256)

    assert root == seen
    assert load_home(home.path, environment={}).trust == seen
    assert not Path(folder.path + UNFINISHED).exists()
    assert settle_trust(load_home(home.path, environment={}), root.trust.version, root.sha256)


def test_of_two_roots_in_one_turn_the_pinned_one_is_in_force(home: Home) -> None:
    """When a crash kept only the first of two events, the first of two roots is laid in place."""
    root = seed(home, ROOT_KEY)
    envelopes = [
        sign_root(msgspec.structs.replace(home.trust.trust, version=version), [root])
        for version in (2, 3)
    ]
    folder = TrustFolder(home.path)
    for version, envelope in enumerate(envelopes, 2):
        folder.keep(envelope, version)
    second = load_first_root(envelopes[0], "development")

    assert settle_trust(home, 2, second.sha256) == second
    assert Path(folder.path).read_bytes() == envelopes[0]


def test_a_root_that_was_brought_wins_over_what_a_crash_left(home: Home) -> None:
    """An operator's newer root is taken at the start, also after a crash; it is not overwritten."""
    root = seed(home, ROOT_KEY)
    second = sign_root(msgspec.structs.replace(home.trust.trust, version=2), [root])
    TrustFolder(home.path).keep(second, 2)
    pinned = load_first_root(second, "development")
    third = bring(home, msgspec.structs.replace(home.trust.trust, version=3), [root])

    assert settle_trust(third, 2, pinned.sha256) == third.trust


def test_what_is_kept_and_installed_is_whole(home: Home) -> None:
    """A root taken over the wire lies in its place and among those kept, for its owner alone."""
    envelope = sign_root(
        msgspec.structs.replace(home.trust.trust, version=2), [seed(home, ROOT_KEY)]
    )
    folder = TrustFolder(home.path)
    folder.keep(envelope, 2)
    folder.install()
    folder.install()
    assert Path(folder.path).read_bytes() == kept(home, 2).read_bytes() == envelope
    assert Path(folder.path).stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in kept(home, 2).parent.iterdir()) == [
        "root-1.dsse.json", "root-2.dsse.json", "root.dsse.json",
    ]
