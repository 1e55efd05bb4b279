"""Options that several commands share, and what they say about one command line.

Rules this file keeps: imports nothing but click and the standard library, because every command's
module imports it. It leaves finding a home to `broker.home` and a profile to `broker.cli.connect`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import click

FunctionT = TypeVar("FunctionT", bound=Callable[..., object])


@dataclass
class Session:
    """What one command line said, for the code below its command.

    `printed` says that data was put on stdout.
    """

    output: str = "table"
    home: str | None = None
    profile: str | None = None
    printed: bool = False

    def home_path(self) -> str:
        """Give the home's absolute path: `--home`, `$OMEGA_GATEWAY_HOME`, `~/.omega-gateway`."""
        from broker.home import find_home

        return find_home(self.home)


def session() -> Session:
    """Give the session of the command that runs."""
    found = click.get_current_context().find_object(Session)
    assert found is not None
    return found


def _keep(name: str) -> Callable[[click.Context, click.Parameter, str | None], None]:
    def keep(context: click.Context, _parameter: click.Parameter, value: str | None) -> None:
        found = context.find_object(Session)
        if value is not None and found is not None:
            setattr(found, name, value)

    return keep


home_option: Final = click.option(
    "--home", metavar="DIR", expose_value=False, callback=_keep("home"),
    help="The gateway's home; else $OMEGA_GATEWAY_HOME, else ~/.omega-gateway.",
)
profile_option: Final = click.option(
    "--profile", metavar="DIR", expose_value=False, callback=_keep("profile"),
    help="The client profile; else the one that a development home keeps.",
)
# Eager: whatever is wrong with the other options is told in the form that was asked for.
output_option: Final = click.option(
    "--output", type=click.Choice(["table", "json", "ndjson"]), expose_value=False, is_eager=True,
    callback=_keep("output"), help="How to print data on stdout.",
)


def read_options(function: FunctionT) -> FunctionT:
    """Add what every command takes that speaks with a gateway."""
    return home_option(profile_option(output_option(function)))
