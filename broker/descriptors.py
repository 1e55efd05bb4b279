"""How many files this process may have open, and how much of that strangers may take.

A TCP front accepts whoever connects; a connection that says nothing lasts until its handshake is
overdue. When no descriptor is left, libzmq aborts the process at the next ipc connection (4.3.5),
so that must never be. Connections come at most `BURST` between two turns, because a full monitor
holds libzmq back, and a front that holds more than its crowd sends the strangers among it away.

Rules this file keeps: a configuration that does not fit under the machine's hard limit does not
start. It leaves closing to `broker.stations`. Source: getrlimit(2), RLIMIT_NOFILE.
"""

from __future__ import annotations

import resource
from typing import Final

from broker.config import GatewayConfig
from broker.monitor import EVENTS_WAITING_MAX
from broker.sockets import TransportRefused
from schemas.refusals import RefusalCode

PER_WORKER: Final = 6
"""Three sockets, a listener, a connection, and one to spare."""
OUR_OWN: Final = 128
"""Ledger, fronts, launcher, Python: below 50 were seen."""
HALF_OPEN: Final = 64
"""Connections of each front that are under way or about to be refused."""
BURST: Final = EVENTS_WAITING_MAX
CROWD_MAX: Final = 4_096
"""Strangers that a front bears at the most; beyond that memory is what they would take."""


def raise_descriptor_limit(
    config: GatewayConfig, *, tcp_fronts: int, old_connections: int = 0
) -> int:
    """Take as many descriptors as the system gives. The launcher, begun before, keeps its limit.

    Args:
        config: how many connections and workers there may be.
        tcp_fronts: how many fronts can be reached by strangers; others lie in a private folder.

        old_connections: how many clients the endpoints of replaced keys may have.

    Returns:
        How many connections beyond those of its clients a TCP front may hold, before it ends
        those that are not authenticated.

    Raises:
        TransportRefused: the hard limit is too low for this configuration.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = hard if hard != resource.RLIM_INFINITY else 1 << 20
    needed = (
        config.omega.connections_max + config.admin.connections_max + 2 * HALF_OPEN
        + config.limits.workers_max * PER_WORKER + tcp_fronts * BURST + OUR_OWN
        + old_connections
    )
    if allowed < needed:
        raise TransportRefused(
            RefusalCode.CONFIG_INVALID,
            f"{allowed} files may be open and {needed} are needed: raise the hard limit of open "
            "files, or lower connections_max or workers_max in gateway.toml",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return HALF_OPEN + min(CROWD_MAX, (allowed - needed) // 2)
