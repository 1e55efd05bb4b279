"""A home's trust root over its life: the ledger's pin decides, and each root is kept for the next.

Every test begins with a home whose first root the ledger has seen, as after a first start.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from broker.home import PUBLISHER_KEY, ROOT_KEY, Home, HomeRefused, load_home, settle_trust
from broker.home import create_home as create
from broker.keys import new_signing_pair, read_secret
from broker.trust.roots import KEPT_TRUST_FILE, TRUST_FILE, sign_root
from schemas.refusals import RefusalCode
from schemas.trust import TrustRoot


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
