"""What was verified before, so that a later run need not read it again.

The memory belongs to whoever verifies, not to the ledger: it lies outside every gateway's home, is
written by nobody else, and the gateway never reads it. It reaches to the end of a segment that a
verified checkpoint covers. It counts only while it can: same key, the same segment files, none
changed since they were read as far as the file system tells, and the same bytes of checkpoints.log.

Rules this file keeps: a memory that is missing, damaged, of another ledger or not sure is no
memory, and everything is read. A memory never makes a verdict, it only shortens the reading.

It leaves deciding what was verified to `broker.evidence.verify`. docs/LEDGER.md, section 8, says
what a shortened run does not show.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

import msgspec

from broker.evidence.files import segment_names
from broker.evidence.walk import file_identity
from broker.regular import regular

_BYTES_MAX: Final = 64 * 1024 * 1024


class Memory(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The verified begin of a ledger: `size` events whose tree has these `peaks`.

    `segments` are the positions and file identities of those that hold them, `log_*` how much of
    checkpoints.log speaks of them.
    """

    format: Literal["omega-verified/1"] = "omega-verified/1"
    verifier_key: str
    log_id: str
    size: int
    previous: str
    peaks: tuple[str, ...]
    segments: tuple[tuple[int, tuple[int, ...]], ...]
    log_entries: int
    log_bytes: int
    log_sha256: str


    @property
    def hashes(self) -> list[bytes]:
        """The peaks as raw hashes."""
        return [bytes.fromhex(peak) for peak in self.peaks]


class Sealed(NamedTuple):
    """A place between two segments: how many events lie before it, in which files.

    `previous` is the hash of the last of them, `peaks` are those of the tree over them.
    """

    size: int
    previous: str
    peaks: tuple[bytes, ...]
    segments: tuple[tuple[int, tuple[int, ...]], ...]


def memory_path(directory: str, environment: Mapping[str, str]) -> str:
    """Say where the memory of a ledger directory lies, for this user.

    Args:
        directory: the ledger's folder.
        environment: whose `XDG_STATE_HOME`, else `HOME`, is used (XDG base directories, 0.8).
    """
    state = environment.get("XDG_STATE_HOME") or os.path.join(
        environment.get("HOME") or os.path.expanduser("~"), ".local", "state"
    )
    name = hashlib.sha256(os.fsencode(os.path.realpath(directory))).hexdigest()[:32]
    return os.path.join(state, "omega-gateway", "verified", f"{name}.json")


def recall(
    path: str, directory: str, first_seqs: list[int], verifier_key: str | None
) -> Memory | None:
    """Give what is known of a ledger, if it may be believed; otherwise nothing.

    Args:
        path: where the memory lies.
        directory: the ledger's folder.
        first_seqs: the positions with which its segments begin.
        verifier_key: the key that was given, which must be the remembered one.
    """
    try:
        names = segment_names(f"{directory}/segments")
        with open(path, "rb", opener=regular) as file:
            memory = msgspec.json.decode(file.read(_BYTES_MAX), type=Memory)
        same = all(
            file_identity(f"{directory}/segments/{name}") == identity
            for name, (_, identity) in zip(names, memory.segments, strict=False)
        )
        with open(f"{directory}/checkpoints.log", "rb", opener=regular) as file:
            begin = file.read(memory.log_bytes)
        peaks = memory.hashes
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, ValueError):
        # Not knowing costs a longer run; nothing is decided by it.
        return None
    fits = (
        same and first_seqs[: len(memory.segments)] == [one[0] for one in memory.segments]
        and verifier_key in (None, memory.verifier_key)
        and hashlib.sha256(begin).hexdigest() == memory.log_sha256
        and len(peaks) == memory.size.bit_count()
    )
    return memory if fits else None


def remember(path: str, memory: Memory) -> bool:
    """Keep a memory for the next run; False when it cannot be written there."""
    temporary = f"{path}.{os.getpid()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
            file.write(msgspec.json.encode(memory))
        os.replace(temporary, path)
    except OSError:
        # The verdict stands without it; who asked is told.
        return False
    return True
