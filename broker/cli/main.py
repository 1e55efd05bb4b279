"""`omega-gateway`: the entry point, and the one place where every command's end is decided.

Rules this file keeps: names and one-line helps stand in one table, so `--help` imports nothing but
click; a command's module is imported when the command runs. Whatever a command raises becomes one
sentence, a next step and an exit code in `broker.cli.problems`; what that file does not know is a
defect and keeps its traceback.

It leaves what commands do to the files beside this one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Final, NamedTuple

import click

from broker.cli.options import Session, home_option

PROGRAM: Final = "omega-gateway"


class Entry(NamedTuple):
    """One command: its help in one line, and how to import the module that has it."""

    help: str
    load: Callable[[], ModuleType]


def _homes() -> ModuleType:
    from broker.cli import homes

    return homes


def _processes() -> ModuleType:
    from broker.cli import processes

    return processes


def _questions() -> ModuleType:
    from broker.cli import questions

    return questions


def _plugins() -> ModuleType:
    from broker.cli import plugins

    return plugins


def _invocations() -> ModuleType:
    from broker.cli import invocations

    return invocations


def _replays() -> ModuleType:
    from broker.cli import replays

    return replays


def _pipelines() -> ModuleType:
    from broker.cli import pipelines

    return pipelines


def _keys() -> ModuleType:
    from broker.cli import keys

    return keys


def _trust() -> ModuleType:
    from broker.cli import trust

    return trust


def _ledger() -> ModuleType:
    from broker.cli import ledger

    return ledger


COMMANDS: Final[dict[str, Entry]] = {
    "init": Entry("Make a home.", _homes),
    "serve": Entry("Run the gateway in the foreground.", _processes),
    "worker": Entry("Run one plugin's worker in the foreground.", _processes),
    "doctor": Entry("Say what this machine can enforce.", _questions),
    "status": Entry("Say how the gateway is.", _questions),
    "explain": Entry("Explain a refusal code.", _questions),
    "config": Entry("Show and check the configuration.", _homes),
    "plugins": Entry("List, register, enable and revoke plugins.", _plugins),
    "invoke": Entry("Run one method of one plugin.", _invocations),
    "pipeline": Entry("Run a graph of methods.", _pipelines),
    "replay": Entry("Run an invocation of the ledger again.", _replays),
    "keys": Entry("Make, list, rotate and revoke keys.", _keys),
    "trust": Entry("Show, sign and change the trust root.", _trust),
    "ledger": Entry("Read, verify, audit and prove the ledger.", _ledger),
    "completion": Entry("Print the completion script of a shell.", _questions),
}


class _Table(click.Group):
    """A group that knows its commands by name and loads one when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx  # click's signature; the table is the same in every context.
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command = getattr(entry.load(), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])


def _version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        from importlib import metadata

        click.echo(f"{PROGRAM} {metadata.version('omega-plugin-gateway')}")
        context.exit()


@click.command(cls=_Table, context_settings={"help_option_names": ["-h", "--help"]})
@home_option
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version,
              help="Show the version and end.")
def gateway() -> None:
    """Run and use an OMEGA plugin gateway.

    Data goes to stdout, all else to stderr. Exit codes: 0 ok, 1 failure, 2 usage, 3 unreachable or
    timeout, 4 not authorised, 5 invalid manifest, configuration or machine, 6 signature or trust,
    7 ledger verification failed, 8 degraded, 74 the ledger could not be written. Where --output
    asks for JSON, a failure is a JSON document on stdout too, unless data stands there already.
    """


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        arguments: the words after the program's name; None means the process's own.

    Returns:
        The exit code.
    """
    session = Session()
    try:
        status = gateway.main(
            arguments, prog_name=PROGRAM, standalone_mode=False, obj=session
        )
        sys.stdout.flush()
    except Exception as error:
        from broker.cli.problems import ending_of, tell

        ending = ending_of(error)
        if ending is None:
            raise
        tell(ending, session.output, printed=session.printed)
        return ending.exit_code
    return status if isinstance(status, int) else 0


def main() -> None:
    """End the process with the exit code of its command line."""
    try:
        status = run()
    except BrokenPipeError:
        # Whoever read our output has enough; the interpreter's last flush must not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = 1
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


if __name__ == "__main__":
    main()
