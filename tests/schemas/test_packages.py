"""The lock of a packages folder has one spelling, and names nothing outside of it."""

from __future__ import annotations

import pytest

from schemas.packages import FILES_MAX, read_lock, write_lock

DIGEST = "0123456789abcdef" * 4
FILES = {"numpy/__init__.py": DIGEST, "numpy.libs/liba b.so": DIGEST, "z\u00e9.py": DIGEST}


def test_a_lock_is_what_sha256sum_writes_and_reads_back():
    """One line for each file, digest and path with two spaces between, sorted by path."""
    data = write_lock(FILES)

    assert data.decode().splitlines()[0] == f"{DIGEST}  numpy.libs/liba b.so"
    assert read_lock(data) == FILES


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        f"{DIGEST}  a".encode(),
        f"{DIGEST} a\n".encode(),
        f"{DIGEST[:-1]}  a\n".encode(),
        f"{DIGEST.upper()}  a\n".encode(),
        f"{DIGEST}  a\n\n".encode(),
        f"{DIGEST}  a\r\n".encode(),
        f"{DIGEST}  b\n{DIGEST}  a\n".encode(),
        f"{DIGEST}  a\n{DIGEST}  a\n".encode(),
        *(f"{DIGEST}  {path}\n".encode() for path in (
            "/etc/passwd", "../a", "a/../b", "./a", "a//b", "a/", "a/.", "..", "a\\b", "a\tb",
            "packages.lock", "x" * 513,
        )),
        f"{DIGEST}  ".encode() + b"\xff\n",
        b"".join(f"{DIGEST}  {number:06}\n".encode() for number in range(FILES_MAX + 1)),
    ],
    ids=range(24),
)
def test_any_other_spelling_is_refused(data: bytes):
    """A line that is not one, a path that climbs, and a file named twice are each refused."""
    with pytest.raises(ValueError):
        read_lock(data)


@pytest.mark.parametrize("path", ["", "../a", "/a", "a\nb", "a\\b", "packages.lock"])
def test_a_lock_is_not_written_that_could_not_be_read(path: str):
    """What a lock cannot hold is refused when it is made."""
    with pytest.raises(ValueError):
        write_lock({path: DIGEST})
