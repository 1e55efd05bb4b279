"""`new` and `test`: a plugin's folder that works at once, and its tests in the real sandbox.

Rules this file keeps: nothing that is there is written over. The template's files lie beside this
one, as texts, because they import what a gateway's own code must not.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Final

import click

from broker.authoring.telling import say

_TEMPLATE: Final = {
    "plugin.toml": "plugin.toml", "plugin.py": "plugin.py", "conftest.py": "conftest.py",
    "test_plugin.py": os.path.join("tests", "test_plugin.py"),
}
PYTEST_PLUGIN: Final = "broker.authoring.pytest_plugin"
"""Also the name of the entry point, so that pytest loads it once."""


@click.command()
@click.argument("name")
def new(name: str) -> None:
    """Make a plugin's folder that passes its own test.

    The folder is called NAME, as is the plugin: three to 64 of a-z, 0-9 and -, a letter first.
    """
    import msgspec

    from schemas.names import PluginId

    try:
        msgspec.convert(name, PluginId)
    except msgspec.ValidationError:
        raise click.BadParameter(
            f"{name!r} is no plugin id: three to 64 of a-z, 0-9 and -, a letter first",
            param_hint="NAME",
        ) from None
    if os.path.lexists(name):
        raise click.BadParameter(f"{name} is there already", param_hint="NAME")
    source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "template")
    for file_name, target in _TEMPLATE.items():
        path = os.path.join(name, target)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(os.path.join(source, f"{file_name}.txt"), encoding="utf-8") as file:
            text = file.read()
        with open(path, "x", encoding="utf-8") as file:
            file.write(text.replace("NAME", name))
        click.echo(path)
    say(f"next: cd {name}; omega-plugin test; omega-plugin call count --text 'one two'")


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("-C", "--directory", type=click.Path(exists=True, file_okay=False), default=".",
              metavar="DIR", help="The plugin's folder; else the present one.")
@click.argument("pytest_arguments", nargs=-1, type=click.UNPROCESSED)
def test(directory: str, pytest_arguments: tuple[str, ...]) -> None:
    """Run a plugin's tests with pytest, those in the real sandbox too.

    Further arguments are pytest's. What stands in the way of the sandbox on this machine is the
    reason with which tests that need it are skipped.
    """
    import importlib.util

    from broker.authoring.source import own_environment

    if importlib.util.find_spec("pytest") is None:
        say("pytest is not installed: pip install pytest")
        raise SystemExit(1)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", PYTEST_PLUGIN, *pytest_arguments],
        cwd=directory, env=own_environment(), check=False,
    )
    raise SystemExit(done.returncode)
