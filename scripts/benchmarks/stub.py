"""A worker that runs nothing: it speaks the worker plane and gives every payload back.

With it the rows `broker_power` and `broker_process` measure the broker alone. It takes its launch
document as a worker does that an operator starts, attests and answers the witness as a jail that
holds, and echoes. Only a bench's own gateway, in a folder of its own, ever meets it.
"""

from __future__ import annotations

import os
import time
from typing import Literal

import msgspec
import zmq

from broker.launchers.external import take_document
from schemas import codec
from schemas.launch import LaunchDocument
from schemas.messages import (
    Attestation,
    Drain,
    Ping,
    Pong,
    Probe,
    ProbeOutcome,
    ProbeReport,
    Ready,
    Usage,
)
from schemas.witness import CONTROL, PROBES

Namespace = Literal["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"]

_LOOK_S = 0.02
_USAGE = Usage(cpu_ms=1, wall_ms=1, max_rss_kb_upper_bound=5000, output_bytes=1000)
_NAMESPACES: dict[Namespace, int] = dict.fromkeys(
    ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts"), 1
)
_ATTESTATION = Attestation(
    zygote_pid=os.getpid(), uid=65534, landlock_abi=6, no_new_privileges=1, seccomp_mode=2,
    seccomp_filters_zygote=1, seccomp_filters_call=2, capabilities_effective="0" * 16,
    capabilities_bounding="0" * 16, threads=1, base_filter_sha256="0" * 64,
    strict_filter_sha256="0" * 64, namespaces=_NAMESPACES, interpreter="none",
)  # fmt: skip


class _Run(msgspec.Struct, tag_field="type", tag="run"):
    """An order to run, as much of it as an echo needs; the payload stays encoded."""

    call: int
    payload: msgspec.Raw


class _CallResult(msgspec.Struct, tag_field="type", tag="call_result"):
    """Its answer."""

    call: int
    payload: msgspec.Raw
    usage: Usage


def serve(run_directory: str, plugin: str) -> None:
    """Wait for the launch document, then serve until the broker says to stop."""
    while (document := take_document(run_directory, plugin)) is None:
        time.sleep(_LOOK_S)
    launch = msgspec.json.decode(document, type=LaunchDocument)
    socket = _connect(launch)
    ready = Ready(
        pid=os.getpid(), attestation=_ATTESTATION, concurrency=launch.limits.concurrency
    )
    socket.send(codec.encode(ready))
    decoder = msgspec.msgpack.Decoder(_Run | Ping | Probe | Drain)
    while True:
        order = decoder.decode(memoryview(socket.recv())[4:])
        if isinstance(order, _Run):
            socket.send(codec.encode(_CallResult(order.call, order.payload, _USAGE)))
        elif isinstance(order, Ping):
            socket.send(codec.encode(Pong(nonce=order.nonce)))
        elif isinstance(order, Probe):
            socket.send(codec.encode(_report(order)))
        elif isinstance(order, Drain):
            return


def _connect(launch: LaunchDocument) -> zmq.Socket[bytes]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    secret = launch.worker_secret_key.encode()
    socket.linger = 0
    socket.curve_secretkey = secret
    socket.curve_publickey = zmq.curve_public(secret)
    socket.curve_serverkey = launch.server_key.encode()
    socket.reconnect_ivl = -1
    socket.connect(launch.endpoint)
    return socket


def _report(order: Probe) -> ProbeReport:
    return ProbeReport(
        probe=order.probe, nonce=order.nonce,
        outcomes=tuple(
            ProbeOutcome(name, "allowed" if name == CONTROL else "denied") for name in PROBES
        ),
    )  # fmt: skip
