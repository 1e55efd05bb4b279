"""What a call is handed: copies of artifacts and files of named roots, opened for real."""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from sandbox_worker.handing import (
    ARTIFACT,
    COPIES_MAX,
    PIECE_BYTES,
    Desk,
    FolderMissingError,
    Folders,
    Handing,
    NotHandedError,
    names_handed,
)
from schemas.launch import LaunchDocument
from schemas.manifest import Limits, Method, PayloadSpec
from schemas.messages import CallFailure, Run
from schemas.payloads import BinaryRefPayload, TextPayload

GRANTS = ("artifact.read", "fs.read:corpus")
INSPECT = Method(
    PayloadSpec("binary_ref"), PayloadSpec("json"), files={"words": "corpus/en/words.txt"}
)
DATA = os.urandom(3 * PIECE_BYTES + 7)


OPENED: list[Folders] = []


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder with an artifact, a root with a file, and something that no grant reaches."""
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "scan:1").write_bytes(DATA)
    (tmp_path / "corpus" / "en").mkdir(parents=True)
    (tmp_path / "corpus" / "en" / "words.txt").write_text("apple pear")
    (tmp_path / "secret").write_text("secret")
    yield tmp_path
    while OPENED:
        for descriptor in OPENED.pop().by_grant.values():
            os.close(descriptor)


def folders(place: Path, **changes: object) -> Folders:
    """Open what both grants open."""
    document = LaunchDocument(
        format="omega-launch/1", incarnation="0" * 32, plugin="under-test", version="1.0.0",
        plugin_digest="0" * 64, bundle="/x", endpoint="ipc:///x", server_key="0" * 40,
        worker_secret_key="0" * 40, limits=Limits(100, 100, 64, 100, 2), grants=GRANTS,
        expires_at_us=0, grant_values={
            "artifact.read": str(place / "artifacts"), "fs.read:corpus": str(place / "corpus"),
        },
    )
    OPENED.append(Folders(msgspec.structs.replace(document, **changes)))
    return OPENED[-1]


def reference(data: bytes = DATA, name: str = "scan:1", **changes: object) -> BinaryRefPayload:
    """Make the right reference, or one that is changed."""
    right = BinaryRefPayload(
        name, hashlib.sha256(data).hexdigest(), len(data), "application/octet-stream"
    )
    return msgspec.structs.replace(right, **changes)


def order(payload: BinaryRefPayload | TextPayload) -> Run:
    """Make a call."""
    return Run(call=1, method="inspect", payload=payload, timeout_ms=5000,
               request_id=str(uuid.uuid4()))


def hand(
    opened: Folders, payload: BinaryRefPayload, method: Method = INSPECT,
    meanwhile: Callable[[], object] = lambda: None,
) -> list[int]:
    """Let one call wait until everything is open; `meanwhile` runs after the first piece."""
    kept: list[int] = []

    def begin(handing: Handing) -> None:
        assert [name for name, _ in handing.handed] == list(names_handed(method, GRANTS))
        assert [size for _, size in handing.handed] == list(
            map(os.path.getsize, (f"/proc/self/fd/{one}" for one in handing.descriptors)))
        kept.extend(os.dup(one) for one in handing.descriptors)

    failures: list[CallFailure] = []
    desk = Desk(opened, GRANTS, begin, failures.append)
    assert desk.takes(order(payload), method, ("job",), 0.0, 5000, "wall_limit_exceeded")
    desk.step(0.0)
    meanwhile()
    while desk.waiting:
        desk.step(0.0)
    for failure in failures:
        raise NotHandedError(failure.code, failure.used, failure.allowed)
    return kept


def content(descriptor: int) -> bytes:
    """Read a descriptor to its end and close it."""
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def test_a_method_is_handed_what_it_names_and_holds() -> None:
    """The artifact first, then files of granted roots; without the grant nothing."""
    assert names_handed(INSPECT, GRANTS) == (ARTIFACT, "words")
    assert names_handed(INSPECT, ("artifact.read", "fs.read:other")) == (ARTIFACT,)
    assert names_handed(INSPECT, ("fs.read:corpus", "clock.read")) == ("words",)
    assert names_handed(INSPECT, ()) == ()
    assert names_handed(Method(PayloadSpec("text"), PayloadSpec("text")), GRANTS) == ()


def test_the_artifact_and_the_file_are_handed_whole(place: Path) -> None:
    """What comes is what lies there, whatever the size; nothing stays open behind it."""
    opened = folders(place)
    before = len(os.listdir("/proc/self/fd"))
    for data in (DATA, b"", b"x", DATA[:PIECE_BYTES]):
        (place / "artifacts" / "scan:1").write_bytes(data)
        artifact, words = hand(opened, reference(data))

        assert content(artifact) == data
        assert content(words) == b"apple pear"
    assert len(os.listdir("/proc/self/fd")) == before


def _changes(number: int) -> list[Callable[[], object]]:
    """Every way to change what a descriptor opens."""
    return [
        lambda: os.write(number, b"x"), lambda: os.ftruncate(number, 0),
        lambda: os.ftruncate(number, len(DATA) + 1),
        lambda: mmap.mmap(number, 1, mmap.MAP_SHARED, mmap.PROT_WRITE),
    ]


def test_a_copy_cannot_be_changed_by_anybody(place: Path) -> None:
    """It is open for reading only, sealed against writing and resizing, and not executable."""
    artifact, words = hand(folders(place), reference())

    for number in (artifact, words):
        assert fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        for change in _changes(number):
            with pytest.raises((OSError, ValueError)):
                change()
    again = os.open(f"/proc/self/fd/{artifact}", os.O_RDWR)
    for change in (*_changes(again), lambda: fcntl.fcntl(again, fcntl.F_ADD_SEALS, 0)):
        with pytest.raises(PermissionError):
            change()
    assert not os.stat(artifact).st_mode & 0o111
    os.close(again)
    assert content(artifact) == DATA
    os.close(words)


def test_two_calls_share_no_position(place: Path) -> None:
    """Each call's descriptors are its own: what one reads does not move the other."""
    opened = folders(place)
    first, second = hand(opened, reference()), hand(opened, reference())

    for one, other in zip(first, second, strict=True):
        os.read(one, 5)
        assert os.lseek(other, 0, os.SEEK_CUR) == 0
    for number in first + second:
        os.close(number)


@pytest.mark.parametrize(
    ("changes", "code", "figures"),
    [
        ({"sha256": "0" * 64}, "artifact_mismatch", (None, None)),
        ({"size": len(DATA) + 1}, "artifact_mismatch", (len(DATA), len(DATA) + 1)),
        ({"size": len(DATA) - 1}, "artifact_mismatch", (len(DATA), len(DATA) - 1)),
        ({"size": 0}, "artifact_mismatch", (len(DATA), 0)),
        ({"artifact_id": "scan:2"}, "artifact_unavailable", (None, None)),
        ({"size": 1 << 40}, "artifact_unavailable", (1 << 40, 64 << 20)),
    ],
)
def test_another_artifact_than_the_promised_is_not_handed_over(
    place: Path, changes: dict[str, object], code: str, figures: tuple[int | None, int | None]
) -> None:
    """Size and digest are compared; what is missing or too large is told apart."""
    before = len(os.listdir("/proc/self/fd"))
    opened = folders(place)

    with pytest.raises(NotHandedError) as refused:
        hand(opened, reference(**changes))

    assert (refused.value.code, (refused.value.used, refused.value.allowed)) == (code, figures)
    assert len(os.listdir("/proc/self/fd")) == before + len(opened.by_grant)


def _rewrite(place: Path, at: int, data: bytes) -> None:
    with (place / "artifacts" / "scan:1").open("r+b") as file:
        file.seek(at)
        file.write(data)


def test_a_file_that_changes_while_it_is_read_is_noticed_or_harmless(place: Path) -> None:
    """A change of what was not copied yet, or a cut, is a mismatch; a change behind the copy
    changes nothing: the plugin reads what was hashed."""
    opened = folders(place)
    path = place / "artifacts" / "scan:1"
    for change in (
        lambda: _rewrite(place, len(DATA) - 1, bytes([DATA[-1] ^ 1])),
        lambda: os.truncate(path, len(DATA) - 1),
        lambda: os.truncate(path, 0),
    ):
        path.write_bytes(DATA)
        with pytest.raises(NotHandedError) as refused:
            hand(opened, reference(), meanwhile=change)
        assert refused.value.code == "artifact_mismatch"
    for change in (
        lambda: _rewrite(place, 0, b"changed"), lambda: _rewrite(place, len(DATA), b"more"),
        lambda: path.rename(place / "elsewhere"),
    ):
        path.write_bytes(DATA)
        artifact, words = hand(opened, reference(), meanwhile=change)
        assert content(artifact) == DATA
        os.close(words)


def _no_file(place: Path, kind: str) -> str:
    """Make something that is no regular file beneath the root, and name it."""
    root = place / "corpus"
    if kind == "link":
        (root / "thing").symlink_to(root / "en" / "words.txt")
    elif kind == "link out":
        (root / "thing").symlink_to("../secret")
    elif kind == "link on the way":
        (root / "thing").symlink_to("en")
        return "corpus/thing/words.txt"
    elif kind == "pipe":
        os.mkfifo(root / "thing")
    elif kind == "folder":
        (root / "thing").mkdir()
    elif kind == "socket":
        import socket

        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(root / "thing"))
    return {
        "climbing": "corpus/../secret", "climbing far": "corpus/en/../../secret",
        "absolute": f"corpus/{place}/secret", "magic": "corpus/self/fd/0",
    }.get(kind, "corpus/thing")


@pytest.mark.parametrize("kind", [
    "missing", "link", "link out", "link on the way", "pipe", "folder", "socket", "climbing",
    "climbing far", "absolute", "magic",
])  # fmt: skip
def test_only_a_regular_file_beneath_its_root_is_opened(place: Path, kind: str) -> None:
    """A link anywhere, `..`, an absolute path, a pipe: refused at once, and nothing is touched."""
    changes = {}
    if kind == "magic":
        changes["grant_values"] = {"artifact.read": str(place), "fs.read:corpus": "/proc"}
    path = _no_file(place, kind)
    opened = folders(place, **changes)

    with pytest.raises(NotHandedError) as refused:
        opened.file(path)

    assert refused.value.code == "file_unavailable"


@pytest.mark.parametrize("name", ["link", "folder", "pipe", "../secret", "en/words.txt"])
def test_an_artifact_is_a_regular_file_of_the_store(place: Path, name: str) -> None:
    """An id that names a link, a folder, a pipe or a way out names no artifact."""
    store = place / "artifacts"
    (store / "link").symlink_to("scan:1")
    (store / "folder").mkdir()
    os.mkfifo(store / "pipe")

    with pytest.raises(NotHandedError) as refused:
        folders(place).artifact(reference(name=name))

    assert refused.value.code == "artifact_unavailable"


def test_a_folder_that_is_missing_or_a_file_opens_nothing(place: Path) -> None:
    """A grant whose folder cannot be opened is told by its name."""
    for wrong in ("nowhere", "secret"):
        values = {"artifact.read": str(place), "fs.read:corpus": str(place / wrong)}
        with pytest.raises(FolderMissingError, match=r"fs\.read:corpus"):
            folders(place, grant_values=values)
    with pytest.raises(FolderMissingError, match="not in the document"):
        folders(place, grant_values={})


def test_copies_go_on_in_turn_and_a_file_waits_for_none(place: Path) -> None:
    """Of many copies a few go a piece forward at a time, each comes to its end, and a call that
    needs none begins at once."""
    begun: list[int] = []
    read = Method(PayloadSpec("text"), PayloadSpec("json"), files={"words": "corpus/en/words.txt"})
    desk = Desk(folders(place), GRANTS, lambda one: begun.append(one.order.call), pytest.fail)
    for call in range(1, 11):
        asked = msgspec.structs.replace(order(reference()), call=call)
        desk.takes(asked, INSPECT, ("job",), 0.0, 5000, "wall_limit_exceeded")
    asked = msgspec.structs.replace(order(TextPayload("x")), call=99)
    desk.takes(asked, read, ("job",), 0.0, 5000, "wall_limit_exceeded")

    desk.step(0.0)
    assert begun == [99]
    assert sum(one.descriptors == [] for one in desk.waiting.values()) == 10
    turns = 1
    while desk.waiting:
        desk.step(0.0)
        turns += 1
    pieces = 10 * (len(DATA) // PIECE_BYTES + 1)
    assert turns == pieces // COPIES_MAX
    assert begun == [99, *range(1, 11)]


def test_a_root_behind_a_link_is_not_opened(place: Path) -> None:
    """Neither the folder itself nor one above it may be a link when a worker opens it."""
    (place / "link").symlink_to("corpus")
    (place / "above").symlink_to(".")
    for path in (place / "link", place / "above" / "corpus"):
        values = {"artifact.read": str(place / "artifacts"), "fs.read:corpus": str(path)}
        with pytest.raises(FolderMissingError, match="symbolic links"):
            folders(place, grant_values=values)


def test_a_call_whose_time_is_over_waits_no_longer(place: Path) -> None:
    """The time runs while a call waits; a cancelled one waits no longer and leaves nothing open."""
    opened = folders(place)
    before = len(os.listdir("/proc/self/fd"))
    told: list[CallFailure] = []
    desk = Desk(opened, GRANTS, lambda _: pytest.fail("it began"), told.append)
    desk.takes(order(reference()), INSPECT, ("job",), 1.0, 20, "wall_limit_exceeded")
    desk.step(1.01)
    assert not told
    desk.step(1.021)
    assert not desk.waiting
    desk.takes(order(reference()), INSPECT, ("job",), 1.0, 5000, "wall_limit_exceeded")
    desk.step(1.0)
    desk.cancel(1)
    desk.cancel(1)
    assert told == [
        CallFailure(call=1, code="wall_limit_exceeded", used=20, allowed=20),
        CallFailure(call=1, code="cancelled"),
    ]
    assert len(os.listdir("/proc/self/fd")) == before
