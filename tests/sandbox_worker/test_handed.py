"""Calls that are handed artifacts and files, through a real worker."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from sandbox_worker import seal
from schemas.manifest import Limits, Method, PayloadSpec
from schemas.messages import Abort, Bye, CallFailure, CallResult, Probe, ProbeReport
from schemas.payloads import BinaryRefPayload, JSONPayload
from schemas.witness import failed_probes
from tests.sandbox_worker.harness import PATIENCE_S, Worker, make_bundle, worker
from tests.sandbox_worker.jail.inside import IDENTITIES, inside

pytestmark = [pytest.mark.jail, pytest.mark.system]

SOURCE = '''
import zlib
from sandbox_worker.sdk import BinaryRefPayload, Context, TextPayload, method

@method()
def inspect(ctx: Context, reference: BinaryRefPayload):
    artifact = ctx.artifact
    total, check = 0, 0
    while part := artifact.read(1 << 20):
        total, check = total + len(part), zlib.crc32(part, check)
    end = artifact.seek(0, 2)
    artifact.seek(-4, 2)
    last = artifact.read()
    artifact.seek(0)
    return {"total": total, "check": check, "end": end, "size": artifact.size,
            "first": artifact.read(4).hex(), "last": last.hex(), "names": sorted(ctx.files)}

@method()
def both(ctx: Context, reference: BinaryRefPayload):
    read = {name: ctx.files[name].read().decode() for name in sorted(ctx.files)}
    return [ctx.artifact.read().decode(), read, [one.size for _, one in sorted(ctx.files.items())]]

@method()
def words(ctx: Context, text: TextPayload):
    return ctx.files[text.text].read(5).decode()

@method()
def without(ctx: Context, text: TextPayload):
    refused = []
    for read in (lambda: ctx.artifact, lambda: ctx.files["words"]):
        try:
            read()
        except PermissionError as error:
            refused.append(str(error))
    return refused

@method()
def hang(ctx: Context, reference: BinaryRefPayload):
    while True:
        pass
'''
REFERENCE, TEXT, JSON = PayloadSpec("binary_ref"), PayloadSpec("text"), PayloadSpec("json")
MANY = {f"part-{number:02d}": f"corpus/parts/{number}" for number in range(15)}
METHODS = {
    "inspect": Method(REFERENCE, JSON), "both": Method(REFERENCE, JSON, files=MANY),
    "words": Method(TEXT, JSON, files={"words": "corpus/words.txt", "link": "corpus/words.txt"}),
    "broken": Method(TEXT, JSON, files={"words": "corpus/link"}),
    "pipe": Method(TEXT, JSON, files={"words": "corpus/pipe"}),
    "without": Method(TEXT, JSON, files={"words": "other/words.txt"}),
    "hang": Method(REFERENCE, JSON),
}
LIMITS = Limits(cpu_ms=2000, wall_ms=4000, memory_mb=256, output_bytes=65536, concurrency=4)
LARGE_BYTES = 48 << 20


def reference(data: bytes, name: str) -> BinaryRefPayload:
    """Make the right reference."""
    return BinaryRefPayload(
        name, hashlib.sha256(data).hexdigest(), len(data), "application/octet-stream"
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a large, a small and a very large artifact, and a root."""
    folder = tmp_path_factory.mktemp("handed")
    (folder / "artifacts").mkdir()
    (folder / "corpus" / "parts").mkdir(parents=True)
    (folder / "artifacts" / "large").write_bytes(os.urandom(LARGE_BYTES))
    (folder / "artifacts" / "small").write_bytes(b"small artifact")
    with (folder / "artifacts" / "huge").open("wb") as file:
        file.truncate(1 << 30)
    (folder / "corpus" / "words.txt").write_text("apple pear")
    (folder / "corpus" / "link").symlink_to("words.txt")
    os.mkfifo(folder / "corpus" / "pipe")
    for number in range(15):
        (folder / "corpus" / "parts" / str(number)).write_text(f"part {number}")
    return folder


@pytest.fixture(scope="module")
def one(place: Path) -> Iterator[Worker]:
    """A worker with both grants."""
    with worker(
        place, SOURCE, methods=METHODS, limits=LIMITS, grants=("artifact.read", "fs.read:corpus"),
        grant_values={
            "artifact.read": str(place / "artifacts"), "fs.read:corpus": str(place / "corpus"),
        },
        modules=("zlib",), changes={"artifact_bytes_max": 1 << 30},
    ) as running:  # fmt: skip
        yield running


def test_an_artifact_of_many_megabytes_is_read_whole(one: Worker, place: Path) -> None:
    """Every byte arrives, in several calls at once, each from its start."""
    data = (place / "artifacts" / "large").read_bytes()
    calls = {one.start(reference(data, "large"), "inspect") for _ in range(3)}
    while calls:
        end = one.receive()
        assert isinstance(end, CallResult), end
        calls.remove(end.call)
        assert isinstance(end.payload, JSONPayload)
        assert msgspec.json.decode(end.payload.data) == {
            "total": LARGE_BYTES, "end": LARGE_BYTES, "size": LARGE_BYTES, "names": [],
            "check": zlib.crc32(data), "first": data[:4].hex(), "last": data[-4:].hex(),
        }
        assert end.usage.wall_ms > 0


def test_sixteen_descriptors_at_once(one: Worker) -> None:
    """An artifact and fifteen files, each under its own name."""
    answer = one.value(reference(b"small artifact", "small"), "both")

    names = sorted(MANY)
    assert answer == [
        "small artifact", {name: f"part {int(name[-2:])}" for name in names},
        [len(f"part {number}") for number in range(15)],
    ]


def test_a_file_is_read_by_the_name_the_method_gives_it(one: Worker) -> None:
    """Two names of one file are two open files; another name is refused with the reason."""
    assert [one.value(name, "words") for name in ("words", "link")] == ["apple", "apple"]
    end = one.call("other", "words")
    assert isinstance(end, CallFailure)
    assert end.plugin_message is not None
    assert "no file 'other' was handed in" in end.plugin_message


@pytest.mark.parametrize(
    ("payload", "method", "code"),
    [
        (reference(b"small artifacT", "small"), "inspect", "artifact_mismatch"),
        (reference(b"small", "small"), "inspect", "artifact_mismatch"),
        (reference(b"none", "none"), "inspect", "artifact_unavailable"),
        ("", "broken", "file_unavailable"),
        ("", "pipe", "file_unavailable"),
    ],
)
def test_what_cannot_be_handed_over_ends_the_call_before_plugin_code(
    one: Worker, payload: BinaryRefPayload | str, method: str, code: str
) -> None:
    """The refusal has its own code, no plugin code ran, and the next call is served."""
    end = one.call(payload, method)

    assert isinstance(end, CallFailure)
    assert (end.code, end.usage, end.plugin_message) == (code, None, None)
    assert one.value("words", "words") == "apple"


def test_a_long_copy_keeps_nobody_waiting(one: Worker) -> None:
    """While a gigabyte is copied other calls end, and a cancel ends the copy at once."""
    waiting = one.start(BinaryRefPayload("huge", "0" * 64, 1 << 30, "image/png"), "inspect")
    assert one.value("words", "words") == "apple"
    assert not any(getattr(other, "call", 0) == waiting for other in one.others)
    one.send(Abort(call=waiting))
    end = one.end_of(waiting)
    assert isinstance(end, CallFailure)
    assert end.code == "cancelled"


def test_the_wait_counts_as_the_calls_time(one: Worker) -> None:
    """A copy that takes longer than the call may ends it, with the figures."""
    large = BinaryRefPayload("huge", "0" * 64, 1 << 30, "image/png")
    end = one.call(large, "inspect", timeout_ms=30)

    assert isinstance(end, CallFailure)
    assert (end.code, end.allowed) == ("deadline_exceeded", 30)


def test_a_call_with_descriptors_is_held_to_its_limits(one: Worker) -> None:
    """It is an ordinary call process: its deadline kills it."""
    end = one.call(reference(b"small artifact", "small"), "hang", timeout_ms=200)

    assert isinstance(end, CallFailure)
    assert end.code == "deadline_exceeded"


def test_nothing_is_handed_without_grant(one: Worker) -> None:
    """A root that is not granted and an input that is no artifact give PermissionError."""
    answer = one.value("", "without")

    assert isinstance(answer, list)
    assert ["artifact.read" in answer[0], "fs.read" in answer[1]] == [True, True]


def test_the_witness_is_refused_everything_in_a_worker_with_grants(one: Worker) -> None:
    """Grants that hand descriptors over make no probe succeed."""
    one.send(Probe(probe=77, nonce=b"n" * 16))
    report = one.receive()

    assert isinstance(report, ProbeReport)
    outcomes = {entry.name: entry.outcome for entry in report.outcomes}
    assert failed_probes(outcomes, one.launch.grants) == ()


def test_nothing_stays_open_in_supervisor_and_zygote(one: Worker, place: Path) -> None:
    """After many calls, also refused ones, both have the descriptors they had before."""
    small = reference(b"small artifact", "small")
    zygote = _zygote(one.process.pid)

    def opened() -> list[int]:
        return [len(os.listdir(f"/proc/{pid}/fd")) for pid in (one.process.pid, *zygote)]

    one.value(small, "both")
    before = opened()
    for _ in range(10):
        one.value(small, "both")
        one.call(reference(b"other", "small"), "both")
    # What belongs to a process that has answered goes when it is reaped, a moment later.
    deadline = time.monotonic() + PATIENCE_S
    while any(now > then for now, then in zip(opened(), before, strict=True)):
        assert time.monotonic() < deadline, (before, opened())


def _zygote(supervisor: int) -> list[int]:
    """The zygote, where this user may look into it."""
    if os.getuid() != 0:
        return []
    children: list[int] = []
    waiting = [supervisor]
    while waiting:
        pid = waiting.pop()
        for task in os.listdir(f"/proc/{pid}/task"):
            found = Path(f"/proc/{pid}/task/{task}/children").read_text().split()
            waiting += map(int, found)
            children += map(int, found)
    # The stub, then the zygote; call processes come and go.
    return children[1:2]


def test_a_folder_that_is_missing_ends_the_start_with_its_name(tmp_path: Path) -> None:
    """The worker says which grant has no folder, before it serves anything."""
    grants = ("fs.read:corpus",)
    bundle = make_bundle(tmp_path, SOURCE, methods=METHODS, grants=grants)
    one = Worker(tmp_path, bundle, grants=grants, grant_values={"fs.read:corpus": "/nowhere"})
    try:
        report = one.receive()
        assert isinstance(report, Bye)
        assert report.reason == "launch_refused"
        assert "fs.read:corpus" in report.detail
        assert one.process.wait(PATIENCE_S) == 5
    finally:
        one.close()


@pytest.mark.parametrize("who", IDENTITIES)
def test_the_sealed_supervisor_reads_granted_folders_alone(who: str) -> None:
    """After its seal it opens files beneath the folders it holds; it lists, writes and opens
    nothing else."""
    # A test's own folder cannot be entered by another user.
    with tempfile.TemporaryDirectory() as folder:
        assert _sealed_attempts(Path(folder), who) == ["opened", *["refused"] * 5]


def _sealed_attempts(place: Path, who: str) -> object:
    place.chmod(0o755)
    for name in ("granted", "other"):
        (place / name).mkdir(mode=0o777)
        (place / name).chmod(0o777)
        (place / name / "file").write_text(name)
        (place / name / "file").chmod(0o666)

    def attempt() -> object:
        folder = os.open(place / "granted", os.O_PATH)
        seal.close_outside()
        seal.close_files([folder])
        outcomes = []
        for path, flags in (
            ("granted/file", os.O_RDONLY), ("granted/file", os.O_WRONLY),
            ("granted", os.O_RDONLY), ("granted/new", os.O_CREAT | os.O_WRONLY),
            ("other/file", os.O_RDONLY), ("other", os.O_RDONLY),
        ):
            try:
                os.close(os.open(place / path, flags, 0o600))
                outcomes.append("opened")
            except PermissionError:
                outcomes.append("refused")
        return outcomes

    return inside(attempt, who)
