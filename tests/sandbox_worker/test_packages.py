"""A folder of packages is compared with its lock: any difference refuses it and names the file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker.store import lock_packages
from sandbox_worker.packages import PackagesChangedError, compare
from schemas.packages import LOCK_FILE, PackageFolder
from tests.support.packages import lock, package_folder

FILES = {"one/__init__.py": "x = 1\n", "one/two.py": "y = 2\n", "three.py": "z = 3\n"}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A small folder, not yet locked."""
    with package_folder(FILES) as path:
        yield path


def test_a_folder_as_it_was_approved_passes(folder: Path) -> None:
    """The path and inode are told, and the system libraries that its binaries name."""
    (folder / "native.so").write_bytes(b"\x7fELF\0libresolv.so.2\0libc.so.6\0libgcc_s.so.1")
    (folder / "native.txt").write_bytes(b"libgcc_s.so.1\0")
    found = compare(lock(folder))

    facts = folder.stat()
    assert (found.folder, found.device, found.inode) == (str(folder), facts.st_dev, facts.st_ino)
    assert "libresolv.so.2" in found.libraries
    assert {"libexpat.so.9", "libgcc_s.so.1", "libc.so.6"}.isdisjoint(found.libraries)


def test_the_operators_command_makes_the_same_lock(folder: Path) -> None:
    """What it writes passes, and it names what can be imported."""
    wanted = lock(folder)
    approved, modules = lock_packages(str(folder))

    assert (approved, modules) == (wanted, ("one", "three"))
    assert compare(approved).folder == str(folder)


def _change_a_byte(folder: Path) -> None:
    (folder / "one/two.py").write_text("y = 3\n")


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a changed byte": (_change_a_byte, "one/two.py is not the file"),
    "a file more": (lambda folder: (folder / "one/four.py").touch(), "one/four.py is not in"),
    "a file less": (lambda folder: (folder / "three.py").unlink(), "three.py is missing"),
    "a link to a file": (
        lambda folder: (folder / "link.py").symlink_to("three.py"), "link.py is neither",
    ),
    "a link to a folder": (lambda folder: (folder / "link").symlink_to("one"), "link is neither"),
    "a pipe": (lambda folder: os.mkfifo(folder / "one" / "pipe"), "one/pipe is neither"),
    "a file that others may write": (
        lambda folder: (folder / "three.py").chmod(0o664), "three.py can be changed by others",
    ),
    "a folder that others may write": (
        lambda folder: (folder / "one").chmod(0o757), "one can be changed by others",
    ),
    "the top that others may write": (lambda folder: folder.chmod(0o777), "can be changed by"),
    "another lock": (
        lambda folder: (folder / LOCK_FILE).write_text("x"), "is not the one that was approved",
    ),
    "no lock": (lambda folder: (folder / LOCK_FILE).unlink(), "No such file"),
    "no folder": (lambda folder: folder.rename(folder.with_name("gone-away")), "No such file"),
}


@pytest.mark.parametrize("change", sorted(CHANGES))
def test_any_difference_is_a_refusal_that_names_the_place(folder: Path, change: str) -> None:
    """Changed, added, missing, linked and exchangeable files are each refused with their path."""
    approved = lock(folder)
    make, words = CHANGES[change]
    make(folder)
    try:
        with pytest.raises(PackagesChangedError, match=words):
            compare(approved)
    finally:
        if not folder.exists():
            folder.with_name("gone-away").rename(folder)


def test_a_lock_with_another_digest_than_the_approved_is_not_read(folder: Path) -> None:
    """Whoever may write the folder can make a new lock, and that is not approved with it."""
    approved = lock(folder)
    _change_a_byte(folder)
    assert lock(folder).lock_sha256 != approved.lock_sha256

    with pytest.raises(PackagesChangedError, match="not the one that was approved"):
        compare(approved)


@pytest.mark.parametrize("text", ["", "nonsense\n", "0" * 64 + "  ../three.py\n"])
def test_a_lock_that_is_none_is_refused_even_when_approved(folder: Path, text: str) -> None:
    """An operator's approval of nonsense loads nothing."""
    (folder / LOCK_FILE).write_text(text)
    approved = PackageFolder(str(folder), hashlib.sha256(text.encode()).hexdigest())
    folder.chmod(0o755)

    with pytest.raises(PackagesChangedError, match=LOCK_FILE):
        compare(approved)
