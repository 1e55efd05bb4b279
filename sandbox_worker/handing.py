"""What a call is handed as descriptors: an artifact as a sealed copy, files of named roots.

The folders are opened before the supervisor seals itself, which then may read beneath them and
nowhere else. An artifact is copied into memory while it is hashed, so that what the plugin reads is
what was hashed, whatever happens to the file meanwhile; the copy is sealed against every change and
opened anew for reading only. A file is opened for reading beneath its root, without following a
link, and it is a regular file or nothing.

Rules: nothing blocks, a copy goes forward by one piece at a time; each call gets descriptors of its
own, because one that two calls shared would carry its position from one to the other; an open file
is seen as a regular file before it is opened for reading, since opening anything else may act.
Source: openat2(2), memfd_create(2), fcntl(2) on seals.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from sandbox_worker.bundle import LaunchRefusedError
from sandbox_worker.jail import linux
from sandbox_worker.jail.linux import Memory
from sandbox_worker.jobs import Job
from schemas.launch import LaunchDocument
from schemas.manifest import Method
from schemas.messages import CallFailure, FailureCode, Run
from schemas.payloads import BinaryRefPayload

ARTIFACT = ""
"""The name under which the artifact travels; no file of a method has it."""
PIECE_BYTES = 1 << 20
COPIES_MAX = 4
"""Copies that go a piece forward before the supervisor looks at everything else again."""

_ARTIFACTS = "artifact.read"
_ROOT = "fs.read:"
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_MFD_NOEXEC_SEAL = 8
"""Linux 6.3: sealable, never executable."""
_RESOLVE_BENEATH, _NO_LINKS = 0x08, 0x04 | 0x02
"""RESOLVE_NO_SYMLINKS and RESOLVE_NO_MAGICLINKS."""
_AT_FDCWD = -100
_HOW_BYTES = 24
_PATH_FLAGS = os.O_PATH | os.O_CLOEXEC
_FILE = Memory(struct.pack("=QQQ", _PATH_FLAGS, 0, _RESOLVE_BENEATH | _NO_LINKS))
_FOLDER = Memory(struct.pack("=QQQ", _PATH_FLAGS | os.O_DIRECTORY, 0, _NO_LINKS))
_PATH = Memory(4096)


class NotHandedError(Exception):
    """A call cannot begin; `code` is what it ends with, the figures are bytes."""

    def __init__(
        self, code: FailureCode, used: int | None = None, allowed: int | None = None
    ) -> None:
        """Remember the code, and for a size what was found and what was allowed or promised."""
        super().__init__(code)
        self.code: FailureCode = code
        self.used = used
        self.allowed = allowed


class FolderMissingError(LaunchRefusedError):
    """A folder that a grant names cannot be opened."""


def names_handed(method: Method, grants: Collection[str]) -> tuple[str, ...]:
    """Name what a call of a method is handed, in the order of its descriptors.

    Args:
        method: what the manifest says about it.
        grants: the effective capabilities of the worker.
    """
    artifact = method.input.kind == "binary_ref" and _ARTIFACTS in grants
    files = [name for name, path in method.files.items()
             if _ROOT + path.partition("/")[0] in grants]  # fmt: skip
    return (*([ARTIFACT] if artifact else []), *files)


class Folders:
    """The folders that granted capabilities open, held from before the seal."""

    def __init__(self, launch: LaunchDocument) -> None:
        """Open the folder of each granted capability that has one.

        Raises:
            FolderMissingError: one of them cannot be opened.
        """
        self.artifact_bytes_max = launch.artifact_bytes_max
        self.by_grant: dict[str, int] = {}
        for grant in launch.grants:
            if grant != _ARTIFACTS and not grant.startswith(_ROOT):
                continue
            try:
                self.by_grant[grant] = _openat2(_AT_FDCWD, launch.grant_values[grant], _FOLDER)
            except (OSError, KeyError) as error:
                reason = error.strerror if isinstance(error, OSError) else "not in the document"
                raise FolderMissingError(f"the folder of {grant}: {reason}") from None

    def file(self, path: str) -> tuple[int, int]:
        """Open a file ROOT/PATH.

        Returns:
            A descriptor for reading, and its size in bytes.

        Raises:
            NotHandedError: there is no regular file, or none that may be read.
        """
        root, _, rest = path.partition("/")
        try:
            return _open_beneath(self.by_grant[_ROOT + root], rest)
        except OSError:
            raise NotHandedError("file_unavailable") from None

    def artifact(self, reference: BinaryRefPayload) -> _Copy:
        """Begin to copy an artifact.

        Raises:
            NotHandedError: there is no regular file, it is too large or not of the promised size.
        """
        if reference.size > self.artifact_bytes_max:
            raise NotHandedError("artifact_unavailable", reference.size, self.artifact_bytes_max)
        try:
            source, size = _open_beneath(self.by_grant[_ARTIFACTS], reference.artifact_id)
        except OSError:
            raise NotHandedError("artifact_unavailable") from None
        if size != reference.size:
            os.close(source)
            raise NotHandedError("artifact_mismatch", size, reference.size)
        try:
            return _Copy(source, reference)
        except OSError:
            os.close(source)
            raise NotHandedError("artifact_unavailable") from None


def _openat2(folder: int, path: str, how: Memory) -> int:
    _PATH.write(os.fsencode(path))
    return linux.call(linux.OPENAT2, folder, _PATH, how, _HOW_BYTES)


def _open_beneath(folder: int, path: str) -> tuple[int, int]:
    place = _openat2(folder, path, _FILE)
    try:
        if not stat.S_ISREG(os.fstat(place).st_mode):
            raise OSError(errno.EINVAL, "no regular file")
        descriptor = os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(place)
    return descriptor, os.fstat(descriptor).st_size


class _Copy:
    """An artifact on its way into a memory file."""

    def __init__(self, source: int, reference: BinaryRefPayload) -> None:
        """Copy from an open file; both descriptors are closed with the copy."""
        self._source = source
        self._target = os.memfd_create("artifact", os.MFD_CLOEXEC | _MFD_NOEXEC_SEAL)
        self._left = reference.size
        self._digest = hashlib.sha256()
        self._promised = reference.sha256

    def step(self) -> int | None:
        """Copy a piece.

        Returns:
            The sealed copy, opened for reading, when it is whole; None before.

        Raises:
            NotHandedError: the bytes are not the promised ones, or memory is short.
        """
        try:
            piece = os.read(self._source, min(PIECE_BYTES, self._left))
            if self._left and not piece:
                # The file became shorter while it was read.
                raise NotHandedError("artifact_mismatch")
            self._digest.update(piece)
            self._left -= len(piece)
            while piece:
                piece = piece[os.write(self._target, piece) :]
            if self._left:
                return None
            if self._digest.hexdigest() != self._promised:
                raise NotHandedError("artifact_mismatch")
            return self._seal()
        except OSError:
            raise NotHandedError("artifact_unavailable") from None

    def _seal(self) -> int:
        fcntl.fcntl(self._target, fcntl.F_ADD_SEALS, _SEALS)
        if fcntl.fcntl(self._target, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            raise OSError(errno.EINVAL, "the seals have no effect")
        return os.open(f"/proc/self/fd/{self._target}", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Give both descriptors back."""
        os.close(self._source)
        os.close(self._target)


@dataclass(eq=False)
class Handing:
    """A call that waits for what it is handed.

    Attributes:
        order: the call.
        method: what the manifest says about its method.
        names: what it is handed, from `names_handed`; at least one.
        job: what its process will be told, but for what it is handed.
        arrived: when it came, on the monotonic clock.
        allowed_ms: how long it may take, the wait included.
        late: what it ends with after that.
        descriptors: what is open so far, in the order of `names`.
        sizes: their sizes in bytes.
    """

    order: Run
    method: Method
    names: tuple[str, ...]
    job: Job
    arrived: float
    allowed_ms: int
    late: FailureCode
    descriptors: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    _copy: _Copy | None = None

    @property
    def copies(self) -> bool:
        """Whether an artifact must be copied for it."""
        return self.names[0] == ARTIFACT

    @property
    def handed(self) -> tuple[tuple[str, int], ...]:
        """Names and sizes, for the job."""
        return tuple(zip(self.names, self.sizes, strict=True))

    def step(self, folders: Folders, now: float) -> bool:
        """Go one piece forward; whether everything is open now.

        Raises:
            NotHandedError: something cannot be handed over, or the call's time is over.
        """
        waited_ms = int((now - self.arrived) * 1000)
        if waited_ms >= self.allowed_ms:
            raise NotHandedError(self.late, waited_ms, self.allowed_ms)
        if self.copies and not self.descriptors:
            assert isinstance(self.order.payload, BinaryRefPayload)
            if self._copy is None:
                self._copy = folders.artifact(self.order.payload)
            whole = self._copy.step()
            if whole is None:
                return False
            self._open(whole, self.order.payload.size)
        # Last, so that a call that waits for a long copy holds no descriptor for each file.
        for name in self.names[len(self.descriptors) :]:
            self._open(*folders.file(self.method.files[name]))
        return True

    def _open(self, descriptor: int, size: int) -> None:
        self.descriptors.append(descriptor)
        self.sizes.append(size)

    def close(self) -> None:
        """Give every descriptor back: they were sent, or the call ends without them."""
        if self._copy is not None:
            self._copy.close()
            self._copy = None
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors.clear()


class Desk:
    """The calls that wait for what they are handed, by number.

    Args:
        folders: what grants open.
        grants: the effective capabilities of the worker.
        begin: gives a call a process of its own; its descriptors are open until it returns.
        send: takes the failure of a call that cannot begin.
    """

    def __init__(
        self,
        folders: Folders,
        grants: Collection[str],
        begin: Callable[[Handing], object],
        send: Callable[[CallFailure], object],
    ) -> None:
        """Begin with none."""
        self._folders = folders
        self._grants = grants
        self._begin = begin
        self._send = send
        self.waiting: dict[int, Handing] = {}

    def takes(
        self, order: Run, method: Method, job: Job, now: float, allowed_ms: int, late: FailureCode
    ) -> bool:
        """Let a call wait, if it is handed anything; see `Handing` for the arguments."""
        names = names_handed(method, self._grants)
        if names:
            self.waiting[order.call] = Handing(order, method, names, job, now, allowed_ms, late)
        return bool(names)

    def step(self, now: float) -> None:
        """Go one piece forward with some calls, in turn, and begin or end those that are done."""
        copies = 0
        for call, handing in list(self.waiting.items()):
            copies += handing.copies
            if handing.copies and copies > COPIES_MAX:
                continue
            try:
                if not handing.step(self._folders, now):
                    # Behind the others, so that each copy goes on.
                    self.waiting[call] = self.waiting.pop(call)
                    continue
                self._begin(handing)
            except NotHandedError as error:
                self._send(CallFailure(
                    call=call, code=error.code, used=error.used, allowed=error.allowed
                ))
            handing.close()
            del self.waiting[call]

    def cancel(self, call: int) -> None:
        """End a call that waits; nothing happens if it does not."""
        handing = self.waiting.pop(call, None)
        if handing is not None:
            handing.close()
            self._send(CallFailure(call=call, code="cancelled"))
