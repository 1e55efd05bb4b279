"""The decorator, the context and the two errors that a plugin may raise on purpose.

Rules: decorating changes nothing about a function, it only records options that packing reads into
the manifest; a context can report and read what was handed in, and reaches nothing else.
"""

from __future__ import annotations

from sandbox_worker.sdk.handed import FIRST_DESCRIPTOR, HandedFile, HandedFiles

TYPE_CHECKING = False
if TYPE_CHECKING:
    # Never true when running: a call process inherits no module that it does not need.
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Never, TypeVar

    from msgspec import Struct

    from sandbox_worker.sdk.payloads import (
        BinaryRefPayload,
        DatasetSlicePayload,
        JSONPayload,
        TextPayload,
    )

    Payload = TextPayload | JSONPayload | BinaryRefPayload | DatasetSlicePayload
    JsonLike = Mapping[str, object] | Sequence[object] | str | int | float | bool | None
    # A function of whatever payload takes one of no type at all.
    Function = TypeVar("Function", bound="Callable[[Context, Never], Payload | Struct | JsonLike]")

OPTIONS_ATTRIBUTE = "__omega_method__"


class InvalidInput(Exception):
    """The input is not something this method can work on; the text reaches OMEGA."""


class CannotAnswer(Exception):
    """The input is valid and there is no answer to it; the text reaches OMEGA."""


class MethodOptions:
    """What `@method` recorded about a function."""

    __slots__ = ("deterministic", "idempotent", "timeout_ms")

    def __init__(self, deterministic: bool, timeout_ms: int | None, idempotent: bool) -> None:
        """Hold the options; `timeout_ms` None means the default of the manifest."""
        self.deterministic = deterministic
        self.timeout_ms = timeout_ms
        self.idempotent = idempotent


def method(
    *, deterministic: bool = False, timeout_ms: int | None = None, idempotent: bool = False
) -> Callable[[Function], Function]:
    """Make a function a method that OMEGA may invoke: `@method(deterministic=True)`.

    The function takes a `Context` and one payload and returns one payload or a value that becomes
    one: a str, a JSON value or a `msgspec.Struct`.

    Args:
        deterministic: same input, same output, always; the gateway may check it.
        timeout_ms: longest run of one call, in ms.
        idempotent: running it twice has the effect of running it once.
    """
    if not deterministic and timeout_ms is None and not idempotent:
        return _record_plain
    options = MethodOptions(deterministic, timeout_ms, idempotent)

    def record(function: Function) -> Function:
        setattr(function, OPTIONS_ATTRIBUTE, options)
        return function

    return record


_plain_options = MethodOptions(deterministic=False, timeout_ms=None, idempotent=False)


def _record_plain(function: Function) -> Function:
    setattr(function, OPTIONS_ATTRIBUTE, _plain_options)
    return function


class Context:
    """What one call is given beside its payload.

    Attributes:
        request_id: the id of OMEGA's request.
        method: the name under which the function was invoked.
        env: the values granted by `env.read:NAME`, by name.
        files: the open files that the manifest names for the method, by name; `fs.read:ROOT`.
    """

    __slots__ = ("_artifact", "_log", "_progress", "_resources", "env", "files", "method",
                 "request_id")  # fmt: skip

    def __init__(
        self,
        request_id: str = "",
        method: str = "",
        *,
        env: Mapping[str, str] | None = None,
        resources: Mapping[str, bytes] | None = None,
        progress: Callable[[float, str], object] | None = None,
        log: Callable[[str], object] | None = None,
        artifact: HandedFile | None = None,
    ) -> None:
        """Made by the call process; in an author's test every argument may be left out."""
        self.request_id = request_id
        self.method = method
        self.env: Mapping[str, str] = {} if env is None else env
        self._resources = resources or {}
        self._progress = progress
        self._log = log
        self._artifact = artifact
        self.files = HandedFiles()

    def hand(self, handed: Iterable[tuple[str, int]]) -> None:
        """Take what the call process was handed: names and sizes, in the order of descriptors.

        The artifact has no name. For the call process alone.
        """
        for number, (name, size) in enumerate(handed, FIRST_DESCRIPTOR):
            file = HandedFile(number, size)
            if name:
                self.files[name] = file
            else:
                self._artifact = file

    @property
    def artifact(self) -> HandedFile:
        """The artifact that the input refers to, open for reading; `artifact.read`.

        Raises:
            PermissionError: the capability is not granted, or the input is no artifact.
        """
        if self._artifact is None:
            raise PermissionError(1, "artifact.read is not granted, or the input is no artifact")
        return self._artifact

    def progress(self, fraction: float, note: str = "") -> None:
        """Tell OMEGA how far the call is, from 0.0 to 1.0, with a note of at most 1 KiB."""
        if not isinstance(note, str):
            raise TypeError("the note of context.progress is a text")
        if self._progress is not None:
            self._progress(fraction, note)

    def log(self, text: str) -> None:
        """Tell the author something; dropped outside a development domain."""
        if self._log is not None:
            self._log(text)

    def resource(self, name: str) -> bytes:
        """The bytes of a bundle file that the manifest lists under `resources`.

        Raises:
            KeyError: the manifest lists no such file.
        """
        try:
            return self._resources[name]
        except KeyError:
            raise KeyError(f'plugin.toml has no resources = ["{name}"]') from None
