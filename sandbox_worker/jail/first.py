"""The first jail: a view on two folders, for as long as approved packages are imported.

A package's code runs while it is imported, and importing reads files. So before its own jail the
zygote closes a first one: namespaces, no capabilities, no network, limits, an empty root with the
standard library and the approved folder in it, read-only, and a Landlock layer that reads there and
nothing else. The outer stub, which stands outside that layer and kept the right to unmount, then
detaches both and closes the root; from there on the zygote goes on as it does without packages.

Rules: a folder is read-only before it is attached; of an import nothing may be left but memory: a
process, a thread or memory shared with others refuses the start; each effect is read back. What the
folder holds was compared before (`sandbox_worker.packages`). See mount_setattr(2), move_mount(2).
"""

from __future__ import annotations

import _socket
import os
import struct

from sandbox_worker.jail import landlock, linux, mounts
from sandbox_worker.jail.linux import Memory, SandboxUnavailable, expect, require

TYPE_CHECKING = False
if TYPE_CHECKING:
    # Never true when running: the zygote stays lean.
    from collections.abc import Callable

LIBRARY = os.path.dirname(os.__file__)
"""The folder of the standard library."""

_HINT = (
    "The folder of approved packages and the standard library must be readable by the sandbox's "
    "user (65534 for workers of root), all folders above the packages searchable."
)
_EMPTY, _AT_FDCWD, _AT_EMPTY_PATH, _MOVE_FROM_EMPTY_PATH = Memory(b"\0"), -100, 0x1000, 0x4
_CLONE_CLOSE_ON_EXEC = 1 | os.O_CLOEXEC
_READ = landlock.READ_FILE | landlock.READ_DIR


def stand_in_library() -> None:
    """As the worker's user: stand in the standard library.

    A sandbox user may be kept out of the folders above it, for instance of root's own, and the
    present folder is the one that goes along into a new mount namespace.
    """
    os.chdir(LIBRARY)


class FirstJail:
    """Both halves: the zygote's, which enters and leaves, and the stub's, which takes away.

    Args:
        folder: the absolute path of the approved packages.
        inode: its device and inode, as they were when it was compared.
    """

    def __init__(self, folder: str, inode: tuple[int, int]) -> None:
        """In the new namespaces, standing in the standard library: take hold of both folders."""
        self._folders = sorted((LIBRARY, folder), key=len)
        trees = {LIBRARY: _read_only_copy("."), folder: _read_only_copy(folder)}
        found = os.fstat(trees[folder])
        expect("approved packages", (found.st_dev, found.st_ino) == inode, _HINT)
        self.search_path = [LIBRARY, os.path.join(LIBRARY, "lib-dynload"), folder]
        self._trees = [trees[path] for path in self._folders]
        outer, inner = self._folders
        above = {*_parents(outer), *(() if inner.startswith(f"{outer}/") else _parents(inner))}
        self._above = sorted(above, key=len)
        self._ours, self._stubs = _socket.socketpair()
        os.chdir("/")

    # --- the zygote's half ---

    def enter(self) -> None:
        """Replace the file system by a root with the two folders at their own paths."""
        # Opened while there is a /proc; they tell of this process for as long as it lives.
        self._status, self._maps = (os.open(f"/proc/self/{name}", os.O_RDONLY | os.O_CLOEXEC)
                                    for name in ("status", "maps"))
        mounts.cover_root(folders=len(self._above))
        for path in self._above:
            _try(os.mkdir, f".{path}")
        for path, tree in zip(self._folders, self._trees, strict=True):
            require("first jail", _HINT, linux.MOVE_MOUNT, tree, _EMPTY, _AT_FDCWD,
                    Memory(f".{path}\0".encode()), _MOVE_FROM_EMPTY_PATH)  # fmt: skip
            os.close(tree)
        mounts.swap_root()
        for path in self._folders:
            flags = os.statvfs(path).f_flag
            expect("read-only packages", bool(flags & os.ST_RDONLY), _HINT)

    def restrict(self) -> None:
        """Put on the layer that reads beneath the two and nothing else. Needs no_new_privs."""
        beneath = {os.open(path, os.O_PATH | os.O_DIRECTORY): _READ for path in self._folders}
        ruleset = landlock.ruleset(files=True, beneath=beneath)
        landlock.restrict(ruleset)
        landlock.expect_no_files()
        for descriptor in (ruleset, *beneath):
            os.close(descriptor)
        # Kept until the zygote's own layer is on: what can be opened through it now must fail then.
        self._witness = os.open(LIBRARY, os.O_RDONLY | os.O_DIRECTORY)

    def leave(self) -> str | None:
        """After the import: have the stub take the folders away, or say what the import left."""
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            pass
        else:
            return "a process"
        if b"\nThreads:\t1\n" not in _whole(self._status):
            return "a thread"
        if any(line.split()[1][1::2] == b"ws" for line in _whole(self._maps).splitlines()):
            return "memory that processes share"
        self._ours.send(b"1")
        if self._ours.recv(1) != b"1":
            # The stub said why.
            os._exit(1)
        return None

    def expect_left(self) -> None:
        """Once the zygote's own Landlock layer is on: the first one's permission is gone."""
        try:
            os.open(".", os.O_RDONLY, dir_fd=self._witness)
        except PermissionError:
            return
        raise SandboxUnavailable("landlock", 0, _HINT)

    # --- the stub's half ---

    def take_away(self) -> None:
        """Wait for the import's end, detach both folders and close the root."""
        for tree in self._trees:
            os.close(tree)
        self._ours.close()
        if self._stubs.recv(1) != b"1":
            # The zygote ended, and said why.
            return
        for path in reversed(self._folders):
            require("first jail", _HINT, linux.UMOUNT2, Memory(f"{path}\0".encode()),
                    mounts.MNT_DETACH)  # fmt: skip
        for path in reversed(self._above):
            _try(os.rmdir, path)
        mounts.close_root()
        self._stubs.send(b"1")


def _read_only_copy(path: str) -> int:
    """A detached mount of a folder, for reading only, that nothing runs from with other rights."""
    tree = require("first jail", _HINT, linux.OPEN_TREE, _AT_FDCWD, Memory(f"{path}\0".encode()),
                   _CLONE_CLOSE_ON_EXEC)  # fmt: skip
    flags = mounts.MS_RDONLY | mounts.MS_NOSUID | mounts.MS_NODEV
    attributes = Memory(struct.pack("=4Q", flags, 0, mounts.MS_PRIVATE, 0))
    require("first jail", _HINT, linux.MOUNT_SETATTR, tree, _EMPTY, _AT_EMPTY_PATH, attributes, 32)
    return tree


def _try(change: Callable[[str], object], path: str) -> None:
    try:
        change(path)
    except OSError as error:
        raise SandboxUnavailable("first jail", error.errno or 0, _HINT) from None


def _parents(path: str) -> list[str]:
    """A path and all folders above it but the root."""
    parts = path.strip("/").split("/")
    return ["/" + "/".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _whole(descriptor: int) -> bytes:
    """A file of /proc from its beginning."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    parts = []
    while part := os.read(descriptor, 1 << 16):
        parts.append(part)
    return b"".join(parts)
