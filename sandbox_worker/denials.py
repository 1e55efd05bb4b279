"""What was denied last, as a class and never with its arguments: a hint for the plugin's author.

An audit hook hears what the interpreter is about to ask the kernel for. What the interpreter does
not tell a hook notices itself: a finder behind all others is asked only for a module that nobody
has, and clocks, entropy and the environment are answered by functions of ours where they are not
granted.

Rules: nothing here holds anything back, the kernel does; plugin code can forge or erase what is
noted, so nobody may believe it; nothing is imported, since every call process inherits this module.
Source: docs.python.org, "Audit events table"; the classes are those of `schemas.denials`.
"""

from __future__ import annotations

import _thread
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    # Never true when running: the zygote stays lean.
    from types import CodeType
    from typing import NoReturn

_EVENTS = {
    **dict.fromkeys(
        ("open", "os.chdir", "os.listdir", "os.mkdir", "os.remove", "os.rename", "os.rmdir",
         "os.scandir"), "file",
    ),
    **dict.fromkeys(
        ("os.exec", "os.fork", "os.forkpty", "os.kill", "os.killpg", "os.posix_spawn", "os.system"),
        "process",
    ),
    **dict.fromkeys(
        ("socket.__new__", "socket.getaddrinfo", "socket.gethostbyname"), "socket",
    ),
    **dict.fromkeys(("_thread.start_joinable_thread", "_thread.start_new_thread"), "thread"),
}  # fmt: skip
"""Audit events of what is denied to every call process, by name."""

_MODULES = {
    "_socket": "socket", "socket": "socket", "ssl": "socket",
    "multiprocessing": "process", "subprocess": "process",
    "concurrent": "thread", "threading": "thread",
}  # fmt: skip
"""Modules of which not only the import is denied."""

_WAYS = {
    "__builtins__", "__import__", "_io", "_thread", "builtins", "codecs", "eval", "exec", "gc",
    "importlib", "io", "open", "os", "posix", "sys",
}  # fmt: skip
"""What a source without modules must mention to cause one of the events."""

last = ""
"""The class of the last denied operation; empty when there was none."""


def prepare(*, random: bool) -> None:
    """In the zygote, when all modules are loaded: answer what no hook hears.

    Args:
        random: whether entropy is granted.
    """
    vars(os.environ)["_data"] = Environment()
    if not random:
        os.getrandom = _refuse_entropy
    # Python 3.11 tells no hook.
    _thread.start_new_thread = _refuse_thread
    sys.meta_path.append(_Nowhere)


def worth_hearing(code: CodeType) -> bool:
    """Whether code, or code within it, can cause an event by its own names.

    A hook costs each call some copied pages, so that code which cannot reach a file, a process or
    a thread goes without. Code that hides what it reaches gets no hint.
    """
    return not _WAYS.isdisjoint(code.co_names) or any(
        worth_hearing(part) for part in code.co_consts if hasattr(part, "co_names")
    )


def listen() -> None:
    """In the call process, before plugin code: hear what it asks for."""
    sys.addaudithook(_hear)


def _note(denied: str) -> None:
    global last  # noqa: PLW0603  One process, one thread, one call.
    last = denied


def _hear(event: str, arguments: tuple[object, ...]) -> None:
    denied = _EVENTS.get(event)
    if denied is None:
        return
    if event == "open":
        # A number is a descriptor that was handed in.
        if type(arguments[0]) is int:
            return
        # Where entropy is sought when getrandom(2) is refused.
        if arguments[0] == "/dev/urandom":
            denied = "random"
    _note(denied)


class _Nowhere:
    """The last finder: asked for a module that no other finder has."""

    @staticmethod
    def find_spec(name: str, _path: object = None, _target: object = None) -> None:
        """Note it and find nothing."""
        _note(_MODULES.get(name.partition(".")[0], "import"))


class Environment(dict[str, str]):
    """A mapping that notes when something is asked for that it does not hold."""

    def __missing__(self, key: str) -> NoReturn:
        """Note it; absent is absent."""
        _note("environment")
        raise KeyError(key)


NOTHING = Environment()
"""What `ctx.env` holds where nothing is granted; made once, for all calls."""


def refuse_clock(*_arguments: object, **_options: object) -> NoReturn:
    """Stand in for a function that reads a clock."""
    _note("clock")
    raise PermissionError(1, "clock.read is not granted")


def _refuse_thread(*_arguments: object, **_options: object) -> NoReturn:
    _note("thread")
    raise RuntimeError("can't start new thread")


def _refuse_entropy(*_arguments: object, **_options: object) -> NoReturn:
    _note("random")
    raise PermissionError(1, "random.read is not granted")
