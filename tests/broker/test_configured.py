"""The layers of a configuration: which wins, where each value comes from, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.configured import HomeRefused, config_with_origins, read_bounded, tcp_port
from schemas.refusals import RefusalCode

TEXT = """
format = "omega-gateway-config/1"
domain = "development"
log_id = "omega-gateway/development/0123456789abcdef"

[limits]
in_flight_max = 10
workers_max = 11
request_window = 12
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A configuration file with three limits."""
    (tmp_path / "gateway.toml").write_text(TEXT)
    return str(tmp_path / "gateway.toml")


def test_command_line_wins_over_environment_over_file_over_default(path: str) -> None:
    """Each layer wins over those before it, and every value knows its layer."""
    config, origins = config_with_origins(
        path,
        environment={
            "OMEGA_GATEWAY__LIMITS__IN_FLIGHT_MAX": "20",
            "OMEGA_GATEWAY__LIMITS__WORKERS_MAX": "21",
            "OMEGA_GATEWAY_HOME": "/somewhere",
            "PATH": "/bin",
        },
        overrides={"limits.in_flight_max": "30"},
    )
    limits = config.limits
    assert (limits.in_flight_max, limits.workers_max, limits.request_window) == (30, 21, 12)
    assert limits.bad_frames_per_s_max == 20
    assert origins["limits.in_flight_max"] == "the command line"
    assert origins["limits.workers_max"] == "OMEGA_GATEWAY__LIMITS__WORKERS_MAX"
    assert origins["limits.request_window"] == path
    assert origins["limits.bad_frames_per_s_max"] == "default"
    assert origins["domain"] == path


def test_texts_and_lists_can_be_set_from_outside(path: str) -> None:
    """A value may be plain text, quoted text or a TOML list."""
    config, _ = config_with_origins(
        path,
        environment={
            "OMEGA_GATEWAY__LEDGER__DURABILITY": "process",
            "OMEGA_GATEWAY__LOG__LEVEL": '"debug"',
            "OMEGA_GATEWAY__WORKERS__EXTERNAL": '["text-tools"]',
        },
        overrides={"omega.endpoint": "tcp://127.0.0.1:5555"},
    )
    assert config.ledger.durability == "process"
    assert config.log.level == "debug"
    assert config.workers.external == ("text-tools",)
    assert config.omega.endpoint == "tcp://127.0.0.1:5555"


@pytest.mark.parametrize(
    ("environment", "overrides", "words"),
    [
        ({"OMEGA_GATEWAY__LIMITS__IN_FLIGHT_MAX": "many"}, {},
         ["OMEGA_GATEWAY__LIMITS__IN_FLIGHT_MAX: $.limits.in_flight_max: Expected `int`"]),
        ({"OMEGA_GATEWAY__LIMITS__NOTHING": "1"}, {},
         ["OMEGA_GATEWAY__LIMITS__NOTHING: $.limits.nothing: there is no such line"]),
        ({"OMEGA_GATEWAY__NOWHERE__NOTHING": "1"}, {}, ["$.nowhere: there is no such line"]),
        ({"OMEGA_GATEWAY__DOMAIN": "production"}, {}, ["$.domain: only a section's key"]),
        ({"OMEGA_GATEWAY__": "1"}, {}, ["OMEGA_GATEWAY__: $.", "only a section's key"]),
        ({}, {"limits.in_flight_max": "0"}, ["the command line: $.limits.in_flight_max"]),
        ({}, {"log_id": "omega-gateway/development/ffffffffffffffff"}, ["$.log_id"]),
        ({}, {"domain.x": "1"}, ["the command line: $.domain: is no section"]),
    ],
)  # fmt: skip
def test_wrong_value_from_outside_names_its_layer(
    path: str, environment: dict[str, str], overrides: dict[str, str], words: list[str]
) -> None:
    """The sentence says which variable or that the command line is wrong, not the file."""
    with pytest.raises(HomeRefused) as refused:
        config_with_origins(path, environment=environment, overrides=overrides)
    assert [word for word in words if word not in str(refused.value)] == [], refused.value


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [
        ("tcp://127.0.0.1:5555", 5555),
        ("tcp://*:1", 1),
        ("tcp://0.0.0.0:65535", 65535),
        ("tcp://[::1]:65535", None),
        ("ipc:///run/x", None),
        ("tcp://example.org:5555", None),
        ("tcp://127.0.0.1:*", None),
        ("tcp://127.0.0.1:0", None),
        ("tcp://127.0.0.1:5555\n", None),
    ],
)
def test_port_of_an_endpoint(endpoint: str, port: int | None) -> None:
    """Only a numeric address with a fixed port has a port that the seal can list."""
    assert tcp_port(endpoint) == port


@pytest.mark.parametrize(
    "endpoint",
    ["tcp://127.0.0.1:65536", "tcp://localhost:5555", "tcp://127.0.0.1", "inproc://x", "x",
     "ipc://relative", "ipc://@abstract", "ipc:///" + "x" * 107, "tcp://127.0.0.1:*",
     "tcp://[::1]:5555", "tcp://[::ffff:127.0.0.1]:5555", "tcp://1.2.3:5", "tcp://....:5"],
)  # fmt: skip
def test_endpoint_that_cannot_be_served_is_refused(path: str, endpoint: str) -> None:
    """What a sealed broker could not bind is refused when it is read."""
    with pytest.raises(HomeRefused, match=r"\$\.admin\.endpoint"):
        config_with_origins(path, environment={}, overrides={"admin.endpoint": endpoint})


def test_a_folder_in_the_place_of_the_file_is_refused_by_its_name(tmp_path: Path) -> None:
    """What is no regular file is one refusal that says which path it is about."""
    (tmp_path / "gateway.toml").mkdir()
    with pytest.raises(HomeRefused, match=r"gateway\.toml: is not a regular file"):
        read_bounded(str(tmp_path / "gateway.toml"), 10, RefusalCode.CONFIG_INVALID)


def test_a_word_that_is_none_of_a_list_is_told_the_list(path: str) -> None:
    """Whoever wrote `fast` reads what there is."""
    with pytest.raises(HomeRefused, match=r"'fast', expected one of power, process"):
        config_with_origins(path, environment={}, overrides={"ledger.durability": "fast"})


def test_the_list_is_that_of_the_word_and_not_of_another_mistake(path: str) -> None:
    """A second mistake of the file does not lend its own words."""
    with open(path, "a", encoding="utf-8") as file:
        file.write('[log]\nlevel = "loud"\n[nothing]\n')
    with pytest.raises(HomeRefused, match=r"'loud', expected one of debug, info, warning, error$"):
        config_with_origins(path, environment={}, overrides={})


def test_a_silence_shorter_than_the_question_is_refused(path: str) -> None:
    """It would end every idle worker before it was asked; together both may be short."""
    with pytest.raises(HomeRefused, match=r"the command line: \$\.times\.ping_silence_ms: must be"):
        config_with_origins(path, environment={}, overrides={"times.ping_silence_ms": "500"})
    both = {"times.ping_silence_ms": "500", "times.ping_interval_ms": "100"}
    config_with_origins(path, environment={}, overrides=both)


def test_two_fronts_never_share_an_endpoint(path: str) -> None:
    """OMEGA's door and the operators' door are two."""
    both = {"omega.endpoint": "ipc:///run/x", "admin.endpoint": "ipc:///run/x"}
    with pytest.raises(HomeRefused, match="must differ"):
        config_with_origins(path, environment={}, overrides=both)


def test_the_operators_front_keeps_its_small_bounds_when_its_endpoint_is_named(path: str) -> None:
    """A table that names only an endpoint, as `init` writes it, takes the defaults of its front."""
    config = config_with_origins(path, environment={}, overrides={}).config
    named = config_with_origins(
        path, environment={}, overrides={"admin.endpoint": "ipc:///run/elsewhere/admin"}
    ).config

    assert named.admin.endpoint == "ipc:///run/elsewhere/admin"
    assert (named.admin.high_water_mark, named.admin.connections_max) == (8, 64)
    assert config.admin.connections_max == named.admin.connections_max
