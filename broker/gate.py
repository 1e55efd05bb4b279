"""The gate of a TCP front: turns newcomers away in the kernel, before they cost a handshake.

libzmq takes every connection that its listener has, and has read a HELLO before we could end it
(record 0034). So beside the listener there is a second one on the same port that nobody serves, and
a classic BPF program, which needs no privilege, tells the kernel which of the two a newcomer comes
to. Once one connection waits at the second, further ones get no answer there, and the newcomer's
kernel asks again every second. Connections that stand notice nothing.

Rules this file keeps: the program always names one of our two listeners, so that a process of this
user that only shares the port gets nothing, and no other user's may share it; whoever came to the
second is told by an end, a few each time we look. It leaves whom to turn away to
`broker.handshakes`. Source: socket(7), SO_REUSEPORT and SO_ATTACH_REUSEPORT_CBPF; linux/filter.h.
"""

from __future__ import annotations

import array
import contextlib
import socket
import struct
import time
from typing import Final

from broker.handshakes import KNOWN_MAX, REFUSED_MAX, Admission, HandshakeBudget
from broker.sockets import borrowed

LOOK_MS: Final = 50
"""How often a gate is looked at while it turns somebody away, and for `_SETTLE_S` after."""
FLOODED: Final = "too many handshakes a second: newcomers wait"

_ATTACH_REUSEPORT_CBPF: Final = 51
_SO_PEERNAME: Final = 28
_SOURCE_ADDRESS: Final = 0xFFF00000 + 12
"""SKF_NET_OFF, and where an IPv4 header has its sender."""
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_SERVED, _UNSERVED = 0, 1
_ENDED_PER_LOOK: Final = 4
_SETTLE_S: Final = 3.0
"""A newcomer that was on its way to the second listener when the gate opened is there by then."""


class Gate:
    """One front's listener, the one beside it, and what its connections may cost."""

    def __init__(self, listener: int, per_s: int) -> None:
        """Open to everybody; `listener` is the descriptor of libzmq's, `per_s` handshakes.

        Raises:
            OSError: the system refused.
        """
        self._budget = HandshakeBudget(per_s, time.monotonic())
        self._admission = Admission("everybody", (), ())
        self._came: dict[int, str] = {}
        self._settled_s = 0.0
        self._tell_s = 0.0
        self._refusals = 0
        self.ajar = False
        """Whether somebody is turned away, or was a moment ago: it must be looked at."""
        with socket.socket() as trial:
            # A kernel that would not take the largest program in a flood says so before there is
            # one: net.core.optmem_max may be too small.
            someone = ("127.0.0.1",)
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            _attach(trial, Admission("known", someone * REFUSED_MAX, someone * KNOWN_MAX))
        with borrowed(listener) as served:
            # Only now: a port that another process has was refused when it was bound alone.
            served.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            kind = served.type | socket.SOCK_NONBLOCK
            self._unserved = socket.socket(served.family, kind)
            try:
                for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
                    self._unserved.setsockopt(socket.SOL_SOCKET, option, 1)
                self._unserved.bind(served.getsockname())
                self._unserved.listen(0)
                self._steer(self._admission)
            except OSError:
                self._unserved.close()
                raise

    def came(self, descriptor: int) -> None:
        """Charge a connection that libzmq took; -1 for one that is closed by now."""
        address = _address(descriptor) if descriptor >= 0 else ""
        self._came[descriptor] = address
        self._budget.charge(address, time.monotonic())

    def heard(self, descriptor: int) -> None:
        """Take note that a client with an admitted key spoke by this connection."""
        address = self._came.pop(descriptor, "")
        if address:
            self._budget.heard(address)

    def look(self) -> int:
        """Turn away, or take again, as the budget says.

        Returns:
            How many refusals there were since this was last told, once a second: each time that
            somebody began to be turned away, and each connection that was ended. Who got no answer
            is not counted by anybody.
        """
        self._refusals += self._end_waiting()
        now_s = time.monotonic()
        before, self._admission = self._admission, self._budget.admission(now_s)
        if self._admission != before:
            self._steer(self._admission)
        if self._admission.refused or self._admission.taken != "everybody":
            self._settled_s = now_s + _SETTLE_S
        self.ajar = now_s < self._settled_s
        self._refusals += len(set(self._admission.refused) - set(before.refused))
        if before.taken == "everybody" and self._admission.taken != before.taken:
            self._refusals += 1
        if not self._refusals or now_s < self._tell_s:
            return 0
        told, self._refusals, self._tell_s = self._refusals, 0, now_s + 1
        return told

    def close(self) -> None:
        """Give the port back; must come before libzmq's listener is closed."""
        self._unserved.close()

    def _end_waiting(self) -> int:
        """End connections at the listener that nobody serves; they come again by themselves."""
        ended = 0
        # Nobody waits, or there is no descriptor for who does: then they wait for the next look.
        with contextlib.suppress(OSError):
            while ended < _ENDED_PER_LOOK:
                self._unserved.accept()[0].close()
                ended += 1
        return ended

    def _steer(self, admission: Admission) -> None:
        """Tell the kernel to which listener a newcomer comes."""
        _attach(self._unserved, admission)


def _attach(stream: socket.socket, admission: Admission) -> None:
    """Give the kernel the program for a socket's group of listeners."""
    taken, refused, known = admission
    code = [(_LOAD, 0, 0, _SOURCE_ADDRESS)]
    exceptions = [(address, _UNSERVED) for address in refused]
    if taken == "known":
        exceptions += [(address, _SERVED) for address in known]
    for address, where in exceptions:
        number = int.from_bytes(socket.inet_aton(address))
        code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, where)]
    code.append((_RETURN, 0, 0, _SERVED if taken == "everybody" else _UNSERVED))
    # The structure holds a pointer to the program, which the kernel copies.
    program = array.array("B", b"".join(struct.pack("=HBBI", *line) for line in code))
    stream.setsockopt(
        socket.SOL_SOCKET, _ATTACH_REUSEPORT_CBPF,
        struct.pack("@HP", len(code), program.buffer_info()[0]),
    )


def _address(descriptor: int) -> str:
    """Give a connection's sender; empty when it has gone by now."""
    try:
        with borrowed(descriptor) as stream:
            # Its number may stand for another kind of socket by now.
            if stream.family != socket.AF_INET:
                return ""
            # Unlike getpeername(2) this tells it also of a connection that was reset.
            return socket.inet_ntoa(stream.getsockopt(socket.SOL_SOCKET, _SO_PEERNAME, 16)[4:8])
    except OSError:
        return ""
