"""Fixtures for tests of plugins: `gateway`, `sandboxed_plugin`, `call`, `ledger`, `snapshot`.

    def test_words_are_counted(call):
        assert call("count", "one two").json() == {"words": 2}

Everything is real: kernel, sockets, signatures, processes. One gateway serves a whole run. On a
machine that cannot build the sandbox a test that asks for it, or has the marker `needs_sandbox`, is
skipped with the reason that `omega-gateway doctor` gives.

Rules this file keeps: pytest loads it in every run where the gateway is installed, so it imports
nothing of the gateway before a fixture is asked for. It leaves what tests are handed to
`broker.authoring.testing`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from broker.authoring.local import LocalGateway
    from broker.authoring.testing import Call, LedgerView, Snapshot

SOURCE_FILE = "plugin.toml"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that keeps what deterministic methods answer now."""
    parser.getgroup("omega-plugin").addoption(
        "--rewrite-snapshots", action="store_true",
        help="keep what deterministic methods answer now",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Name the marker for tests that need the sandbox without asking for a fixture of ours."""
    config.addinivalue_line(
        "markers", "needs_sandbox: is skipped, with the doctor's reason, where there can be none"
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a marked test on a machine that cannot build the sandbox."""
    if item.get_closest_marker("needs_sandbox") is not None:
        from broker.authoring.local import unsupported

        lacking = unsupported()
        if lacking:
            pytest.skip(lacking)


@pytest.fixture(scope="session")
def gateway() -> Iterator[LocalGateway]:
    """Give a real gateway with fresh keys in a development domain; it ends with the run."""
    from broker.authoring.local import LocalGateway, unsupported

    lacking = unsupported()
    if lacking:
        pytest.skip(lacking)
    with LocalGateway() as running:
        yield running


@pytest.fixture(scope="module")
def sandboxed_plugin(gateway: LocalGateway, request: pytest.FixtureRequest) -> Call:
    """Give the plugin of the folder that the test lies in, signed, registered and enabled.

    A policy.toml in the folder is the policy that it runs under.
    """
    from broker.authoring.source import SourceRefused
    from broker.authoring.testing import Call

    directory = next((
        str(folder) for folder in Path(request.path).parents if (folder / SOURCE_FILE).exists()
    ), None)
    if directory is None:
        pytest.fail(f"no folder above {request.path} holds a {SOURCE_FILE}", pytrace=False)
    try:
        return Call(gateway, gateway.install(directory).manifest)
    except SourceRefused as refused:
        pytest.fail("\n".join(
            f"{one.where}: found {one.found}, expected {one.expected}; {one.remedy}"
            for one in refused.problems
        ), pytrace=False)


@pytest.fixture
def call(sandboxed_plugin: Call) -> Call:
    """Run a method in the real sandbox: `call("count", "one two").json()`."""
    return sandboxed_plugin


@pytest.fixture
def ledger(gateway: LocalGateway) -> LedgerView:
    """Give the events since the test began: `ledger.of(InvokeEnd)`."""
    from broker.authoring.testing import LedgerView

    return LedgerView(gateway)


@pytest.fixture
def snapshot(sandboxed_plugin: Call, request: pytest.FixtureRequest) -> Snapshot:
    """Hold answers against those kept in snapshots/ beside the test: `snapshot("count", "a b")`."""
    from broker.authoring.testing import Snapshot

    name = re.sub(r"[^\w.-]+", "_", f"{request.path.stem}-{request.node.name}")
    path = os.path.join(request.path.parent, "snapshots", name)
    return Snapshot(
        sandboxed_plugin, path, rewrite=bool(request.config.getoption("--rewrite-snapshots"))
    )
