"""`omega-plugin`: the entry point.

Rules this file keeps: names and one-line helps stand in one table, so `--help` imports nothing but
click; a command's module is imported when the command runs. It leaves what commands do to
`broker.authoring.commands`.
"""

from __future__ import annotations

import importlib
from typing import Final

import click

COMMANDS: Final[dict[str, str]] = {
    "check": "Say everything that is wrong with a plugin, and change nothing.",
    "explain": "Explain a refusal code, or a class of what the sandbox denied.",
    "pack": "Pack a plugin's folder into an unsigned bundle; same sources, same bytes.",
    "sign": "Add a signature to a bundle.",
    "verify": "Verify a bundle's signatures, files and manifest.",
}


class _Table(click.Group):
    """A group that knows its commands by name and loads one when it is used."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module("broker.authoring.commands")
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(COMMANDS.items()))


@click.command(cls=_Table, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Make, check, pack and sign plugins for the OMEGA plugin gateway."""


if __name__ == "__main__":
    main()
