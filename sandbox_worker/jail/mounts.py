"""The empty root: a read-only tmpfs without one file, and everything else detached.

Rules: propagation is cut first, so nothing reaches the host; the old root is detached, not hidden;
the new root is read back as empty, read-only and without /proc. See mount_namespaces(7),
pivot_root(2), tmpfs(5).
"""

from __future__ import annotations

import os

from sandbox_worker.jail import linux
from sandbox_worker.jail.linux import Memory, expect, require
from schemas.remedies import USER_NAMESPACES as _HINT

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MNT_DETACH = 0x2

_LOCKED = MS_NOSUID | MS_NODEV | MS_NOEXEC


def enter_empty_root() -> None:
    """Replace the whole file system by an empty read-only directory."""
    cover_root(folders=0)
    swap_root()
    close_root()


def cover_root(*, folders: int) -> None:
    """Make the new root, with room for some folders, and stand in it; cut off the old."""
    root = _text("/")
    require("mount namespace", _HINT, linux.MOUNT, 0, root, 0, MS_REC | MS_PRIVATE, 0)
    # /proc is the one directory that is certain to exist: the earlier steps needed it.
    place, kind = _text("/proc"), _text("tmpfs")
    options = _text(f"size=4k,nr_inodes={1 + folders},mode=0555")
    require("mount namespace", _HINT, linux.MOUNT, kind, place, kind, _LOCKED, options)
    os.chdir("/proc")


def swap_root() -> None:
    """Put the folder stood in into the place of the root, and detach the old root."""
    here = _text(".")
    require("pivot_root", _HINT, linux.PIVOT_ROOT, here, here)
    # The old root now lies over the new one at the same place; detaching uncovers the new one.
    require("pivot_root", _HINT, linux.UMOUNT2, here, MNT_DETACH)
    os.chdir("/")


def close_root() -> None:
    """Make the root read-only, and see that nothing is in it."""
    require(
        "read-only root", _HINT, linux.MOUNT, 0, _text("/"), 0,
        MS_REMOUNT | MS_BIND | MS_RDONLY | _LOCKED, 0,
    )  # fmt: skip
    expect("empty root", os.listdir("/") == [] == os.listdir(".."), _HINT)
    expect("empty root", not os.path.lexists("/proc"), _HINT)
    expect("read-only root", bool(os.statvfs("/").f_flag & os.ST_RDONLY), _HINT)


def _text(path: str) -> Memory:
    return Memory(path.encode() + b"\0")
