"""The worker plane over real sockets: one key, one process, one handshake, one life."""

from __future__ import annotations

import os
import select
import stat
import subprocess
import sys

import pytest

from broker.arrivals import (
    FrontFrames,
    HandshakesRefused,
    OversizedMessage,
    WorkerConnected,
    WorkerDisconnected,
    WorkerFrames,
    WorkerIntruder,
)
from broker.keys import curve_pair, new_curve_pair
from broker.monitor import NOT_AUTHORISED
from broker.transport import TransportRefused, WorkerEndpoint
from tests.broker.sockets_kit import House, Socket, house, incarnation, own_ids

PID, UID = own_ids()


def connect(home: House, orders: WorkerEndpoint, *, key: str = "") -> Socket:
    """Connect as a worker does, with the secret of its launch document or another."""
    return home.dealer(
        curve_pair(key or orders.worker_secret_key),
        endpoint=orders.endpoint,
        server=orders.server_key,
    )


def admitted(home: House) -> tuple[str, Socket]:
    """Give a worker that is connected."""
    name = incarnation()
    orders = home.transport.open_worker(name)
    home.transport.admit_worker(name, PID, UID)
    worker = connect(home, orders)
    home.pump_for(WorkerConnected)
    return name, worker


def test_a_reported_worker_is_admitted_and_speaks_both_ways():
    """The launcher's process connects once, is told of, and frames go both ways."""
    with house() as home:
        name, worker = admitted(home)
        worker.send(b"ready")

        assert home.pump_for(WorkerFrames) == [WorkerFrames(name, [b"ready"])]
        assert home.transport.send_worker(name, b"run") == "sent"
        assert worker.recv() == b"run"


def test_a_handshake_before_the_report_waits_for_it_while_others_go_on():
    """An early worker is held without an answer; clients are served meanwhile; then it is let in.

    Everything is as if it had come after the report.
    """
    with house() as home:
        name = incarnation()
        worker = connect(home, home.transport.open_worker(name))
        worker.send(b"early")
        assert home.quiet() == []

        client = home.dealer()
        client.send(b"question")
        assert [one.frames for one in home.pump_for(FrontFrames)] == [[b"question"]]

        home.transport.admit_worker(name, PID, UID)
        assert home.pump_for(WorkerFrames) == [
            WorkerConnected(name), WorkerFrames(name, [b"early"])
        ]


@pytest.mark.parametrize(
    ("pid", "uid"), [(PID + 1, UID), (PID, UID + 1)], ids=["another process", "another user"]
)
@pytest.mark.parametrize("early", [False, True])
def test_the_right_key_from_the_wrong_process_is_refused_and_told_of(pid, uid, early):
    """The kernel's word on who connects must be the launcher's, before and after the report."""
    with house() as home:
        name = incarnation()
        orders = home.transport.open_worker(name)
        if early:
            connect(home, orders)
            home.quiet()
        home.transport.admit_worker(name, pid, uid)
        if not early:
            connect(home, orders)

        arrivals = home.pump_for(HandshakesRefused)

        assert WorkerIntruder(name) in arrivals
        assert not any(isinstance(one, WorkerConnected) for one in arrivals)
        assert home.transport.send_worker(name, b"run") == "gone"


def test_a_worker_of_an_operators_is_admitted_by_user_and_key_alone():
    """An external worker has no reported pid; its user and its one-shot key must be right."""
    with house() as home:
        name = incarnation()
        orders = home.transport.open_worker(name)
        home.transport.admit_worker(name, None, UID)
        connect(home, orders)

        assert home.pump_for(WorkerConnected) == [WorkerConnected(name)]


def test_an_unknown_key_on_a_workers_socket_is_refused_and_does_not_use_up_the_handshake():
    """A stranger is counted, and the worker still gets in afterwards."""
    with house() as home:
        name = incarnation()
        orders = home.transport.open_worker(name)
        home.transport.admit_worker(name, PID, UID)
        connect(home, orders, key=new_curve_pair().secret)
        assert home.pump_for(HandshakesRefused) == [HandshakesRefused("worker", 1, NOT_AUTHORISED)]

        connect(home, orders)
        assert home.pump_for(WorkerConnected) == [WorkerConnected(name)]


def test_a_second_handshake_beside_the_first_is_refused_and_told_of():
    """The key is worth one handshake; the copy gets nothing and the loop hears of it."""
    with house() as home:
        name = incarnation()
        orders = home.transport.open_worker(name)
        home.transport.admit_worker(name, PID, UID)
        first = connect(home, orders)
        home.pump_for(WorkerConnected)

        copy = connect(home, orders)
        copy.send(b"me too")
        arrivals = home.pump_for(HandshakesRefused)
        assert set(arrivals) == {
            WorkerIntruder(name), HandshakesRefused("worker", 1, NOT_AUTHORISED)
        }
        first.send(b"mine")
        assert home.pump_for(WorkerFrames) == [WorkerFrames(name, [b"mine"])]


def test_a_reconnect_is_a_second_handshake():
    """A worker that lost its connection does not come back."""
    with house() as home:
        name = incarnation()
        orders = home.transport.open_worker(name)
        home.transport.admit_worker(name, PID, UID)
        first = connect(home, orders)
        home.pump_for(WorkerConnected)

        first.close()
        assert home.pump_for(WorkerDisconnected) == [WorkerDisconnected(name)]
        assert home.transport.send_worker(name, b"run") == "gone"
        connect(home, orders)
        assert WorkerIntruder(name) in home.pump_for(WorkerIntruder)


def test_a_second_early_handshake_is_told_of_before_the_report():
    """While one handshake is held, another with the same key is refused at once."""
    with house() as home:
        name = incarnation()
        orders = home.transport.open_worker(name)
        connect(home, orders)
        home.quiet()
        connect(home, orders)

        assert WorkerIntruder(name) in home.pump_for(WorkerIntruder)


def test_one_workers_key_opens_no_other_workers_socket():
    """Keys are of one incarnation: a plugin's worker cannot stand in for another's."""
    with house() as home:
        names = [incarnation(), incarnation()]
        orders = [home.transport.open_worker(name) for name in names]
        for name in names:
            home.transport.admit_worker(name, PID, UID)
        connect(home, orders[0], key=orders[1].worker_secret_key)

        assert home.pump_for(HandshakesRefused) == [HandshakesRefused("worker", 1, NOT_AUTHORISED)]


@pytest.mark.parametrize("count", [5, 10_000])
def test_too_many_frames_of_a_worker_are_dropped_and_told_of(count):
    """The fact names the incarnation, so that its worker can be ended."""
    with house() as home:
        name, worker = admitted(home)
        worker.send_multipart([b"x"] * count)

        assert home.pump_for(OversizedMessage) == [OversizedMessage("worker", name, count, count)]


def test_a_worker_of_another_process_is_known_by_its_pid():
    """The pid that the kernel reports is that of the process which connected."""
    code = """
import sys, zmq
endpoint, server, public, secret = sys.argv[1:]
socket = zmq.Context().socket(zmq.DEALER)
socket.curve_serverkey, socket.curve_publickey = server.encode(), public.encode()
socket.curve_secretkey = secret.encode()
socket.connect(endpoint)
socket.send(b"ready")
socket.recv()
"""
    with house() as home:
        name = incarnation()
        orders = home.transport.open_worker(name)
        pair = curve_pair(orders.worker_secret_key)
        process = subprocess.Popen(
            [sys.executable, "-c", code, orders.endpoint, orders.server_key, *pair]
        )
        try:
            home.transport.admit_worker(name, process.pid, UID)
            assert home.pump_for(WorkerFrames)[-1] == WorkerFrames(name, [b"ready"])
            home.transport.send_worker(name, b"end")
            assert WorkerDisconnected(name) in home.pump_for(WorkerDisconnected)
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize("count", [1, 200])
def test_what_a_worker_had_sent_is_told_before_that_it_went(count):
    """However late the loop looks, results come first, and an order meanwhile finds it gone."""
    with house() as home:
        name, worker = admitted(home)
        home.quiet()
        worker.linger = 10_000
        for number in range(count):
            worker.send(b"%d" % number)
        worker.close()
        # The monitor's descriptor alone: the loop is busy elsewhere until the worker has gone.
        monitor = home.transport._workers[name].monitor.socket
        assert select.select([monitor.fileno()], [], [], 10)[0]

        assert home.transport.holds(name)
        assert home.transport.send_worker(name, b"run") != "full"
        arrivals = home.pump_for(WorkerDisconnected)

        assert arrivals == [
            *(WorkerFrames(name, [b"%d" % number]) for number in range(count)),
            WorkerDisconnected(name),
        ]
        assert not home.transport.holds(name)


def test_closing_a_worker_ends_its_connection_and_removes_its_file():
    """After the close nothing can be sent, connected or found."""
    with house() as home:
        name, worker = admitted(home)
        path = os.path.join(home.directory, f"{name[:16]}.worker")
        assert stat.S_ISSOCK(os.stat(path).st_mode)
        assert stat.S_IMODE(os.stat(path).st_mode) & 0o077 == 0

        home.transport.close_worker(name)

        assert not os.path.lexists(path)
        assert home.transport.send_worker(name, b"run") == "gone"
        home.transport.admit_worker(name, PID, UID)
        home.transport.close_worker(name)
        assert home.quiet() == []
        worker.close()


def test_workers_come_and_go_without_leaving_a_descriptor():
    """A hundred lives leave as many open descriptors as there were before."""
    with house() as home:
        home.transport.close_worker(admitted(home)[0])
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(100):
            name = incarnation()
            home.transport.open_worker(name)
            home.transport.close_worker(name)
        # The io thread closes listeners a moment later.
        home.pump(lambda _: len(os.listdir("/proc/self/fd")) <= before)


def test_a_taken_path_is_refused_and_left_alone():
    """A file in the way of a worker's socket is not replaced."""
    with house() as home:
        name = incarnation()
        path = os.path.join(home.directory, f"{name[:16]}.worker")
        with open(path, "w", encoding="ascii") as file:
            file.write("mine")

        with pytest.raises(TransportRefused, match="is there and is no socket"):
            home.transport.open_worker(name)
        with open(path, encoding="ascii") as file:
            assert file.read() == "mine"
