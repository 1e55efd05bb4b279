"""What plugin authors import: `from sandbox_worker.sdk import method, Context, TextPayload`.

The same names work in the jail, in the author's tests and while packing. They import nothing, since
every module that a call process inherits makes each call slower.
"""

from sandbox_worker.sdk.api import CannotAnswer, Context, InvalidInput, MethodOptions, method
from sandbox_worker.sdk.handed import HandedFile
from sandbox_worker.sdk.payloads import (
    BinaryRefPayload,
    DatasetSlicePayload,
    JSONPayload,
    TextPayload,
)

__all__ = [
    "BinaryRefPayload",
    "CannotAnswer",
    "Context",
    "DatasetSlicePayload",
    "HandedFile",
    "InvalidInput",
    "JSONPayload",
    "MethodOptions",
    "TextPayload",
    "method",
]
