"""The four payload types as a plugin sees them: plain classes with the fields of the wire.

Rules: JSON arrives decoded and leaves as a Python value, written canonically after the method
returns; artifacts and datasets are references, never bytes. Values are checked by the supervisor
and the broker, not here: nothing inside a call process can vouch for itself.
"""

from __future__ import annotations


class _Payload:
    """Equality and a readable form over the fields, so that tests read well."""

    __slots__: tuple[str, ...] = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash((type(self), repr(self)))

    def __repr__(self) -> str:
        pairs = zip(self.__slots__, self._values(), strict=True)
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in pairs)})"

    def _values(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in self.__slots__)


class TextPayload(_Payload):
    """A text by value."""

    __slots__ = ("media_type", "text")

    def __init__(self, text: str, media_type: str = "text/plain") -> None:
        """Hold `text`; `media_type` is one of the closed list of docs/WIRE.md."""
        self.text = text
        self.media_type = media_type


class JSONPayload(_Payload):
    """A JSON document."""

    __slots__ = ("data", "schema")

    def __init__(self, data: object, schema: str | None = None) -> None:
        """Hold `data`, made of dict, list, str, int, float, bool and None."""
        self.data = data
        self.schema = schema


class BinaryRefPayload(_Payload):
    """A reference to an artifact that OMEGA already has."""

    __slots__ = ("artifact_id", "media_type", "sha256", "size")

    def __init__(self, artifact_id: str, sha256: str, size: int, media_type: str) -> None:
        """Hold the reference; `size` is in bytes, `sha256` in lower-case hex."""
        self.artifact_id = artifact_id
        self.sha256 = sha256
        self.size = size
        self.media_type = media_type


class DatasetSlicePayload(_Payload):
    """Keys of a dataset that OMEGA has."""

    __slots__ = ("dataset_id", "keys")

    def __init__(self, dataset_id: str, keys: tuple[str, ...]) -> None:
        """Hold the keys in the order given."""
        self.dataset_id = dataset_id
        self.keys = tuple(keys)


KINDS: dict[str, type[TextPayload | JSONPayload | BinaryRefPayload | DatasetSlicePayload]] = {
    "text": TextPayload,
    "json": JSONPayload,
    "binary_ref": BinaryRefPayload,
    "dataset_slice": DatasetSlicePayload,
}
"""Payload classes by the kind a manifest names."""
