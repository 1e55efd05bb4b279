#!/usr/bin/env python3
"""Send two frames that a broker must refuse, with real keys on real sockets, and show its answers.

    refused_frames.py PROFILES

PROFILES is the folder of a development home's client profiles. An operator's key sends a
well-formed invocation on front.admin, whose decoder cannot express one; OMEGA's key sends bytes
that are no message. Exit status: 0 both were refused, 1 one of them was not.
"""

from __future__ import annotations

import os
import secrets
import sys
import time

from broker.client_link import Link
from broker.client_profile import read_profile
from broker.client_session import new_request_id
from schemas import codec
from schemas.messages import Invoke, Refusal
from schemas.payloads import TextPayload

ANSWER_S = 10.0


def answer_to(profile: str, frame: bytes) -> Refusal | None:
    """Send one frame with a profile's key and give the refusal that comes back."""
    link = Link(read_profile(profile), connect_s=5.0)
    link.open()
    try:
        link.send(frame, in_flight=False)
        deadline = time.monotonic() + ANSWER_S
        while time.monotonic() < deadline:
            data = link.receive()
            if data is not None:
                reply = codec.decode_reply(data)
                return reply if isinstance(reply, Refusal) else None
    finally:
        link.close()
    return None


def main() -> int:
    """Send both frames."""
    profiles = sys.argv[1]
    invocation = codec.encode(Invoke(
        request_id=new_request_id(), plugin="text-statistics", method="count", timeout_ms=1000,
        payload=TextPayload("an operator may not ask this"),
        commitment_key=secrets.token_bytes(32),
    ))
    failed = False
    for role, what, frame in (
        ("operator", "an invocation on front.admin, with an operator's key", invocation),
        ("omega", "bytes that are no message on front.omega, with OMEGA's key", b"\x00" * 32),
    ):
        refusal = answer_to(os.path.join(profiles, role), frame)
        print(f"sent: {what} ({len(frame)} bytes)")
        if refusal is None:
            failed = True
            print("  it was not refused")
        else:
            print(f"  refused: {refusal.code}: {refusal.message}")
            if refusal.receipt is not None:
                print(f"  receipt: event {refusal.receipt.seq} of {refusal.receipt.log_id}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
