"""`gateway.toml` as it applies: file, environment and command line in layers, each line checked.

Rules this file keeps: a later layer wins, in the order defaults, file, environment, command line;
every layer is checked on its own, so the sentence of a refusal names where the wrong line stands;
what a gateway *is* (format, domain, log_id) stands in the file alone.

An environment variable is `OMEGA_GATEWAY__SECTION__KEY`; its text is read as a TOML value, and as
plain text when it is none. It leaves what the values mean to `broker.config`.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec

from broker.config import FrontConfig, GatewayConfig
from broker.trust.mistakes import mistakes
from schemas.names import LogId
from schemas.refusals import RefusalCode

ENVIRONMENT_PREFIX: Final = "OMEGA_GATEWAY__"
CONFIG_BYTES_MAX: Final = 256 * 1024
IPC_PATH_BYTES_MAX: Final = 107
"""What a unix socket's address holds, see unix(7)."""

_TCP: Final = re.compile(r"tcp://(?:\*|(?:[0-9]{1,3}\.){3}[0-9]{1,3}):([1-9][0-9]{0,4})")
_UNKNOWN: Final = re.compile(r"Object contains unknown field `([^`]*)`")
_MISSING: Final = re.compile(r"Object missing required field `([^`]*)`")

Document = dict[str, object]


class HomeRefused(Exception):
    """A home, or a line of its configuration, that a gateway cannot run with.

    Args:
        code: the refusal code; it decides the exit code.
        sentence: one sentence with the path, the field and what was found.
    """

    def __init__(self, code: RefusalCode, sentence: str) -> None:
        """Keep the code beside the sentence."""
        super().__init__(sentence)
        self.code = code


class Configured(NamedTuple):
    """The configuration in force and, for each `section.key`, which layer gave it."""

    config: GatewayConfig
    origins: dict[str, str]


def config_with_origins(
    path: str, *, environment: Mapping[str, str], overrides: Mapping[str, str]
) -> Configured:
    """Read a configuration with everything that changes it.

    Args:
        path: the home's `gateway.toml`.
        environment: variables; those without the prefix are not looked at.
        overrides: the command line's values as text, by `section.key`.

    Raises:
        HomeRefused: `config_invalid`, with the place of the wrong line.
    """
    document = _read_toml(path)
    config = _checked(document, path)
    origins = dict.fromkeys(_leaves(msgspec.to_builtins(config)), "default")
    origins.update(dict.fromkeys(_leaves(document), path))
    changes = [
        (name, name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__"), text)
        for name, text in sorted(environment.items())
        if name.startswith(ENVIRONMENT_PREFIX)
    ]
    changes += [("the command line", name.split("."), text) for name, text in overrides.items()]
    for origin, place, text in changes:
        if len(place) != 2:
            raise _invalid(origin, f"$.{'.'.join(place)}", "only a section's key can be set here")
        section = document.setdefault(place[0], {})
        if not isinstance(section, dict):
            raise _invalid(origin, f"$.{place[0]}", "is no section")
        section[place[1]] = _value(text)
        config = _checked(document, origin)
        origins[".".join(place)] = origin
    if config.times.ping_silence_ms <= config.times.ping_interval_ms:
        # An idle worker says nothing until it is asked.
        raise _invalid(
            origins.get("times.ping_silence_ms", path), "$.times.ping_silence_ms",
            "must be longer than ping_interval_ms, or every idle worker is ended",
        )
    return Configured(config, origins)


def tcp_port(endpoint: str) -> int | None:
    """The port of a tcp endpoint, None for an ipc one; see `_check_endpoint` for their forms."""
    found = _TCP.fullmatch(endpoint)
    return int(found[1]) if found else None


def read_bounded(path: str, bytes_max: int, code: RefusalCode) -> bytes:
    """Read a regular file of this home, whole.

    Raises:
        HomeRefused: with `code`; it is missing, a link, no regular file or too large.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise HomeRefused(code, f"{path}: cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise HomeRefused(code, f"{path}: is not a regular file")
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(bytes_max + 1)
    if len(data) > bytes_max:
        raise HomeRefused(code, f"{path}: is longer than {bytes_max} bytes")
    return data


def _read_toml(path: str) -> Document:
    data = read_bounded(path, CONFIG_BYTES_MAX, RefusalCode.CONFIG_INVALID)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise HomeRefused(
            RefusalCode.CONFIG_INVALID, f"{path}: line {line} is not UTF-8 text"
        ) from None
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        lines = text.split("\n")
        end = f"at line {len(lines)}, column {len(lines[-1]) + 1}"
        sentence = str(error).replace("at end of document", end)
        raise HomeRefused(RefusalCode.CONFIG_INVALID, f"{path}: not TOML: {sentence}") from None


def _value(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text


def _leaves(document: object, prefix: str = "") -> list[str]:
    if not isinstance(document, dict):
        return [prefix]
    join = f"{prefix}." if prefix else ""
    return [leaf for name, value in document.items() for leaf in _leaves(value, f"{join}{name}")]


def _checked(document: Document, origin: str) -> GatewayConfig:
    """Check one layer's outcome, types first, then what fields say about each other."""
    try:
        config = msgspec.convert(document, GatewayConfig)
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at ")
        where = place.strip("`") or "$"
        for pattern, sentence in ((_UNKNOWN, "there is no such line"), (_MISSING, "is missing")):
            if found := pattern.fullmatch(what):
                where, what = f"{where}.{found[1]}", sentence
        if what.startswith("Invalid enum"):
            its = (one for one in mistakes(document, GatewayConfig, "$") if one.where == where)
            what += "".join(f", expected {one.expected}" for one in its)
        raise _invalid(origin, where, what) from None
    try:
        msgspec.convert(config.log_id, LogId)
        belongs = config.log_id.split("/")[1] == config.domain
    except msgspec.ValidationError:
        belongs = False
    if not belongs:
        form = f"expected omega-gateway/{config.domain}/ and 16 hex digits"
        raise _invalid(origin, "$.log_id", form)
    _check_endpoint(config.omega, "$.omega.endpoint", origin)
    _check_endpoint(config.admin, "$.admin.endpoint", origin)
    if config.omega.endpoint and config.omega.endpoint == config.admin.endpoint:
        raise _invalid(origin, "$.admin.endpoint", "must differ from $.omega.endpoint")
    if config.ledger.anchor and not os.path.isabs(config.ledger.anchor):
        raise _invalid(origin, "$.ledger.anchor", "must be an absolute path, or empty")
    if config.times.backoff_ms_min > config.times.backoff_ms_max:
        raise _invalid(origin, "$.times.backoff_ms_min", "must not exceed backoff_ms_max")
    return config


def _check_endpoint(front: FrontConfig, where: str, origin: str) -> None:
    """An endpoint is empty, an absolute ipc path, or an IPv4 address with its port.

    The broker is sealed before it binds: it resolves no names, and listens on listed ports only.
    Its sockets and the gate before them know no IPv6.
    """
    endpoint = front.endpoint
    path = os.fsencode(endpoint.removeprefix("ipc://"))
    is_path = endpoint.startswith("ipc:///") and len(path) <= IPC_PATH_BYTES_MAX
    port = tcp_port(endpoint)
    if endpoint and not is_path and not (port is not None and port < 65536):
        raise _invalid(
            origin, where, f"expected ipc:// with an absolute path of at most {IPC_PATH_BYTES_MAX} "
            "bytes, or tcp:// with a numeric IPv4 address and a port",
        )  # fmt: skip


def _invalid(origin: str, where: str, what: str) -> HomeRefused:
    return HomeRefused(RefusalCode.CONFIG_INVALID, f"{origin}: {where}: {what}")
