"""`omega-plugin`: the entry point.

Rules this file keeps: names and one-line helps stand in one table, so `--help` imports nothing but
click; a command's module is imported when the command runs. It leaves what commands do to
`broker.authoring.commands`, `conforming`, `starting` and `trying`.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Final

import click

COMMANDS: Final[dict[str, str]] = {
    "call": "Call one method in the real sandbox, and show what it used of its limits.",
    "check": "Say everything that is wrong with a plugin, and change nothing.",
    "conform": "Drive hostile and boundary inputs at a plugin, and write what it did as a report.",
    "dev": "Serve a plugin on a gateway of its own, and swap it after every save.",
    "explain": "Explain a refusal code, a note of check, or a rule of conform.",
    "new": "Make a plugin's folder that passes its own test.",
    "pack": "Pack a plugin's folder into an unsigned bundle; same sources, same bytes.",
    "sign": "Add a signature to a bundle.",
    "test": "Run a plugin's tests with pytest, those in the real sandbox too.",
    "verify": "Verify a bundle's signatures, files and manifest.",
}


def _commands() -> ModuleType:
    from broker.authoring import commands

    return commands


def _conforming() -> ModuleType:
    from broker.authoring import conforming

    return conforming


def _starting() -> ModuleType:
    from broker.authoring import starting

    return starting


def _trying() -> ModuleType:
    from broker.authoring import trying

    return trying


MODULES: Final[dict[str, Callable[[], ModuleType]]] = {
    "call": _trying, "conform": _conforming, "dev": _trying, "new": _starting, "test": _starting,
}
"""Where a command is; those that are not named are in `broker.authoring.commands`."""


class _Table(click.Group):
    """A group that knows its commands by name and loads one when it is used."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(MODULES.get(cmd_name, _commands)(), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(COMMANDS.items()))


@click.command(cls=_Table, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Make, try, check, test, pack and sign plugins for the OMEGA plugin gateway.

    Data goes to stdout, all else to stderr. Exit codes are those of omega-gateway: 0 ok, 1 failure,
    2 usage, 3 timeout, 5 invalid manifest or machine, 6 signature or trust.
    """


if __name__ == "__main__":
    main()
