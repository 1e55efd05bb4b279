"""What an attempt is: hostile code, the layers that hold it, and what success looks like.

`held` is the declared result of every ablation: names of layers (see `tests/escape/layers.py`), any
one of which refuses the attempt alone; `a+b` is held only where both are on. An attempt succeeds
wherever none of them is on, and a cell that differs fails the build.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Answer = Literal["refused", "killed", "ended"]
"""Of the filter, or of the layer that holds it: an exception, death by SIGSYS, death by SIGKILL."""


class Attempt(NamedTuple):
    """One thing tried.

    Attributes:
        group: its class.
        name: unique within the class.
        code: sets `result` or raises; see `tests/escape/runner.py` for what it finds in its scope.
        held: the layers that hold it, separated by blanks.
        answer: how it ends in the full jail.
        reached: errnos by name that only the kernel's own code gives, never a layer: they count as
            success, since the code behind the system call ran. "any" where the filter kills, so
            that every errno must be the kernel's.
        alone: what it changes, where it succeeds, would disturb the next attempt of its process.
        costly: run only in the full jail, in none, and with its own layers alone or missing.
    """

    group: str
    name: str
    code: str
    held: str = "seccomp"
    answer: Answer = "refused"
    reached: str = ""
    alone: bool = False
    costly: bool = False

    @property
    def id(self) -> str:
        """Class and name."""
        return f"{self.group}-{self.name}"

    @property
    def only(self) -> str | None:
        """The layer without which it succeeds, where there is a single one."""
        return None if " " in self.held or "+" in self.held else self.held


def raw(number: int, *arguments: str) -> str:
    """The code of one system call by number; arguments are expressions."""
    return f"result = linux.call({number}, {', '.join(arguments)})"
