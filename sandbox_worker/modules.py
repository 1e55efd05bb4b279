"""What a zygote loads for its plugin, and what it forgets of the host before plugin code is near.

Rules: only what the plugin's manifest names is loaded, because every page that an import touches is
paid for by every call; vetted modules while there is still a file system, approved packages in the
first jail, where their code can reach nothing but two folders and itself.
"""

from __future__ import annotations

import os
import posix
import sys

from sandbox_worker import denials
from sandbox_worker.jail import clock

TYPE_CHECKING = False
if TYPE_CHECKING:
    # Never true when running: the zygote stays lean.
    from collections.abc import Callable

    from sandbox_worker.jail.first import FirstJail
    from sandbox_worker.printing import Printer


class CannotLoadError(Exception):
    """An approved package cannot be imported; the text says why."""


def load(names: list[str], *, development: bool) -> None:
    """Load modules of the standard library and our own."""
    for name in names:
        __import__(name)
    if development:
        import sandbox_worker.printing  # noqa: F401  Found again when there are no files.


def load_packaged(names: list[str], jail: FirstJail) -> None:
    """In the first jail, load modules that an operator approved, and leave it.

    Args:
        names: the modules.
        jail: the first jail, entered and restricted.

    Raises:
        CannotLoadError: a module does not load, left something other than memory behind, or would
            run code in each call process before that closed its jail.
    """
    sys.path[:] = jail.search_path
    sys.path_importer_cache.clear()
    register, hooks = os.register_at_fork, list[object]()

    def remember(**given: Callable[[], object]) -> None:
        hooks.extend(given.values())
        register(**given)

    vars(os)["register_at_fork"] = vars(posix)["register_at_fork"] = remember
    name = ""
    try:
        for name in names:
            __import__(name)
    except BaseException as error:  # noqa: BLE001  Code of others may raise anything.
        found = f"{type(error).__name__}: {error}"
        raise CannotLoadError(f"approved module {name}: {found}"[:512]) from None
    vars(os)["register_at_fork"] = vars(posix)["register_at_fork"] = register
    for hook in hooks:
        # Those of the library are known: `random` draws entropy, and is given a constant instead.
        owner = str(getattr(hook, "__module__", None)).partition(".")[0]
        if owner not in sys.stdlib_module_names:
            raise CannotLoadError(f"an approved module has code run at every fork, in {owner}")
    left = jail.leave()
    if left is not None:
        raise CannotLoadError(f"an approved module left {left} behind")


def forget_host(*, clock_granted: bool, random_granted: bool) -> None:
    """Take away what names the host, and answer in the kernel's place what is not granted."""
    if not clock_granted:
        clock.refuse_clocks(denials.refuse_clock)
        if "uuid" in sys.modules:
            # It would be made of what happens to lie in memory.
            vars(sys.modules["uuid"])["uuid1"] = denials.refuse_clock
    if not random_granted and "numpy.random" in sys.modules:
        # It drew entropy while it was imported; calls start from a constant, as with `random`.
        sys.modules["numpy.random"].seed(0)
    # The program that started this process needed its environment; a plugin's is empty. The
    # second is the interpreter's own copy, and the paths would lead nowhere and name the machine.
    os.environ.clear()
    posix.environ.clear()
    sys.path.clear()
    sys.path_importer_cache.clear()
    denials.prepare(random=random_granted)


def printer(send: Callable[[str], object]) -> Printer:
    """Make what stands for stdout and stderr in a development domain."""
    made: Printer = sys.modules["sandbox_worker.printing"].Printer(send)
    return made


def redirect(stream: Printer | None) -> None:
    """Let what is printed go to `stream`, or nowhere: our own errors of the start were the last."""
    for name in ("stdout", "stderr", "__stdout__", "__stderr__"):
        setattr(sys, name, stream or _Discard())
    for name in ("stdin", "__stdin__"):
        setattr(sys, name, None)


class _Discard:
    """Where plugin output goes in production: nowhere."""

    def write(self, text: str) -> int:
        """Take the text and forget it."""
        return len(text)

    def flush(self) -> None:
        """Nothing is held."""
