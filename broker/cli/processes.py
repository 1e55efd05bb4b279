"""`serve` and `worker`: the two processes that an operator starts, in the foreground.

Rules this file keeps: nothing is routed and nothing decided here; a word on stderr says what is
waited for. It leaves start-up to `broker.serve` and the launch document to
`broker.launchers.external`.
"""

from __future__ import annotations

import click

from broker.cli.ends import INVALID, CommandError
from broker.cli.options import home_option, session

_set_option = click.option(
    "--set", "lines", multiple=True, metavar="SECTION.KEY=VALUE",
    help="A line of the configuration for this run; may be given several times.",
)


@click.command()
@home_option
@_set_option
def serve(lines: tuple[str, ...]) -> int:
    """Run the gateway in the foreground.

    SIGTERM or Ctrl-C ends it after the calls in flight; a second one ends it now.
    """
    from broker.serve import serve as run

    return run(session().home_path(), _overrides(lines))


@click.command()
@home_option
@_set_option
@click.argument("plugin")
def worker(plugin: str, lines: tuple[str, ...]) -> None:
    """Run one plugin's worker in the foreground.

    For plugins that the configuration names in `workers.external`; the gateway starts all others
    itself. Waits until the gateway needs the worker.
    """
    from broker.home import load_home
    from broker.launchers.external import become_worker

    home = load_home(session().home_path(), overrides=_overrides(lines))
    if plugin not in home.config.workers.external:
        raise CommandError(
            INVALID, f"{home.path}/gateway.toml: $.workers.external: does not name {plugin!r}",
            f'write `external = ["{plugin}"]` under [workers], then start the gateway again; it '
            "starts the workers of all other plugins itself",
        )
    click.echo(f"worker of {plugin}: waits for the gateway in {home.run_directory}", err=True)
    become_worker(home.run_directory, plugin)


def _overrides(lines: tuple[str, ...]) -> dict[str, str]:
    overrides = {}
    for line in lines:
        name, equals, value = line.partition("=")
        if not equals:
            raise click.BadParameter(f"{line!r} is not SECTION.KEY=VALUE", param_hint="--set")
        overrides[name] = value
    return overrides
