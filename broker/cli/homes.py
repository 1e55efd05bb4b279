"""`init` and `config`: make a home, show how it is configured, and check all of it.

Rules this file keeps: only `init` writes. It leaves what a home is to `broker.home`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from broker.cli.ends import USAGE, CommandError
from broker.cli.options import home_option, output_option, session
from broker.cli.output import Table, show

if TYPE_CHECKING:
    from broker.configured import Configured
    from schemas.names import Domain


@click.command()
@home_option
@output_option
@click.option("--domain", type=click.Choice(["production", "development"]), required=True,
              help="Part of every signature; neither domain takes the other's plugins.")
@click.option("--trust-root", type=click.Path(exists=True, dir_okay=False), metavar="FILE",
              help="The signed trust root; a production home needs one.")
def init(domain: Domain, trust_root: str | None) -> None:
    """Make a home.

    A development home makes its own trust root, a publisher's key and a profile for each role. A
    production home holds no root secret: its trust root is brought.
    """
    from broker.home import create_home

    if (trust_root is None) != (domain == "development"):
        needed = "needs --trust-root FILE" if trust_root is None else "makes its own trust root"
        raise CommandError(USAGE, f"a {domain} home {needed}")
    envelope = None
    if trust_root is not None:
        with open(trust_root, "rb") as file:
            envelope = file.read()
    home = create_home(session().home_path(), domain, envelope)
    facts = {
        "home": home.path, "domain": domain, "log_id": home.config.log_id,
        "verifier_key": home.verifier_key, "omega_endpoint": home.omega_endpoint,
        "admin_endpoint": home.admin_endpoint,
        "profiles": os.path.join(home.path, "profiles") if domain == "development" else None,
    }
    show("omega.home/1", facts, Table([*facts.items()]))
    if domain == "development":
        click.echo(
            "development: this home holds its own signing keys and its clients' secret keys; what "
            "is signed here is valid nowhere else", err=True,
        )


@click.group()
def config() -> None:
    """Show and check the configuration."""


@config.command("show")
@home_option
@output_option
@click.option("--origin", is_flag=True, help="Say where each line comes from.")
def show_config(*, origin: bool) -> None:
    """Show every line of the configuration in force."""
    import msgspec

    configured = _configured()
    document: dict[str, object] = {"config": msgspec.to_builtins(configured.config)}
    if origin:
        document["origins"] = configured.origins
    lines = [
        (name, _value(configured, name), *([came_from] if origin else []))
        for name, came_from in configured.origins.items()
    ]
    headers = ("line", "value", "origin") if origin else ("line", "value")
    show("omega.config/1", document, Table(lines, headers))


@config.command("check")
@home_option
@output_option
def check_config() -> None:
    """Check configuration, policy, trust root, keys and folders of a home."""
    from broker.home import load_home

    home = load_home(session().home_path())
    facts = {
        "home": home.path, "domain": home.config.domain, "log_id": home.config.log_id,
        "clients": len(home.clients), "valid": True,
    }
    show("omega.config_check/1", facts, Table([*facts.items()]))


def _configured() -> Configured:
    from broker.configured import config_with_origins
    from broker.home import CONFIG_FILE

    path = os.path.join(session().home_path(), CONFIG_FILE)
    return config_with_origins(path, environment=os.environ, overrides={})


def _value(configured: Configured, name: str) -> object:
    value: object = configured.config
    for part in name.split("."):
        value = getattr(value, part)
    return ", ".join(value) if isinstance(value, tuple) else value
