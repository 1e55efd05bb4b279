"""Exporting: a ledger, or a range of it, as a folder that verifies by itself.

The folder holds the lines as they are, in `segments/`, the checkpoints up to the first one that
covers all of them, and, for a range that begins later than the ledger, the hashes of the events
before it in `before.hashes`: so every checkpoint can be checked, and nothing of what was before is
shown. docs/LEDGER.md, section 8, says how it is verified.

Rules this file keeps: it only reads the ledger, takes no lock, goes no further than the newest
checkpoint, writes into a new folder alone, and verifies what it wrote before it says so.
"""

from __future__ import annotations

import os
import re
from typing import Final

import msgspec

from broker.evidence.reading import LedgerReader
from broker.evidence.verify import VerificationReport, verify_directory
from broker.ledger.errors import LedgerDamaged, PositionUnknown
from broker.ledger.segments import BEFORE_FILE, list_segments
from broker.regular import regular
from schemas.events import line_hash
from schemas.proof import VerifierKey, parse_checkpoint, parse_note

_ENTRY: Final = re.compile(rb"[0-9]{1,16}\n((?:[^\n]+\n){3}\n\xe2\x80\x94 [^\n]+\n)")


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """What was written: events from `begins` to before `ends`, which the last checkpoint covers."""

    begins: int
    ends: int
    report: VerificationReport


def export(
    directory: str, key: VerifierKey, target: str, wanted: range | None = None
) -> Exported:
    """Write a folder that holds a ledger, or a range of it, and verify it.

    Args:
        directory: the ledger's folder; a gateway may be writing it.
        key: who must have signed.
        target: the new folder; its parent exists.
        wanted: the events that must be in it; None means all that a checkpoint covers. As many
            more follow as the next checkpoint covers.

    Raises:
        PositionUnknown: no checkpoint covers the range.
        LedgerDamaged: what was written does not verify.
        FileExistsError: the folder is there already.
        OSError: a file cannot be read or written.
    """
    with LedgerReader(directory, key) as reader:
        size = reader.checkpoint.size
        begins, last = (wanted.start, wanted.stop) if wanted is not None else (reader.begins, size)
        if not reader.begins <= begins < last <= size:
            raise PositionUnknown(
                f"the newest checkpoint covers {size} events, the first here is {reader.begins}; "
                f"there are no events {begins} to {last - 1}"
            )
        checkpoints, ends = _checkpoints(directory, last)
        os.mkdir(target, 0o700)
        os.mkdir(f"{target}/segments", 0o700)
        _write(f"{target}/checkpoints.log", checkpoints)
        starts = {first for first in list_segments(directory) if begins < first < ends} | {begins}
        before, lines = bytearray(reader.before), bytearray()
        written = begins
        for seq, line in reader.lines():
            if seq < begins:
                before += bytes.fromhex(line_hash(line))
                continue
            if seq in starts and lines:
                _write(f"{target}/segments/{written:012d}.ndjson", lines)
                lines.clear()
                written = seq
            if seq == ends:
                break
            lines += line + b"\n"
        if lines:
            _write(f"{target}/segments/{written:012d}.ndjson", lines)
        if begins:
            _write(f"{target}/{BEFORE_FILE}", before)
    report = verify_directory(target, verifier_key=str(key))
    if report.problem is not None:
        problem = report.problem
        raise LedgerDamaged(f"{target}/{problem.file}: {problem.kind}: {problem.sentence}")
    return Exported(begins=begins, ends=ends, report=report)


def _checkpoints(directory: str, size: int) -> tuple[bytes, int]:
    """Give the log's entries up to the first that covers so many events, and how many it covers."""
    with open(f"{directory}/checkpoints.log", "rb", opener=regular) as file:
        data = file.read()
    for entry in _ENTRY.finditer(data):
        covered = parse_checkpoint(parse_note(entry[1].decode()).text).size
        if covered >= size:
            return data[: entry.end()], covered
    raise PositionUnknown(f"no checkpoint covers {size} events")


def _write(path: str, data: bytes | bytearray) -> None:
    """Write a new file of our own, durable."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
