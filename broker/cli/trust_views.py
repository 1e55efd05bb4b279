"""What `trust show` prints: a trust root as people and programs read it.

Rules this file keeps: it shows the document and says beside it what the ledger adds, keys that were
revoked by request and the root that it pins; it judges nothing and changes nothing.

It leaves reading homes to `broker.home` and the ledger to `broker.evidence`.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime

import msgspec

from broker.cli.output import Table, show
from broker.evidence.events import events_of
from broker.home import load_home
from broker.trust.signatures import key_id
from schemas.events import Revoke, TrustChange
from schemas.trust import TrustRoot

FOR_EVER_S = 2**53 - 1


def show_home(path: str) -> None:
    """Show the root of a home, with what its ledger knows."""
    home = load_home(path)
    requests: dict[str, int] = {}
    pinned: TrustChange | None = None
    if os.path.isdir(os.path.join(home.ledger, "segments")):
        for event in events_of(home.ledger, Revoke, TrustChange):
            fields = event.fields
            if isinstance(fields, TrustChange):
                pinned = fields
            elif isinstance(fields, Revoke) and fields.kind == "publisher_key":
                requests.setdefault(fields.id, event.seq)
    root = home.trust
    agrees = None if pinned is None else pinned.sha256 == root.sha256
    words = {
        None: "the ledger has seen none yet", True: "the one that the ledger pins",
        False: f"waits for the next start; the ledger pins version {pinned and pinned.version}",
    }
    show_document(root.trust, requests, {
        "sha256": root.sha256, "signed_by": list(root.key_ids), "pinned": agrees,
        "state": words[agrees],
    })


def show_document(
    trust: TrustRoot, requests: dict[str, int] | None = None,
    more: dict[str, object] | None = None,
) -> None:
    """Show a document.

    Args:
        trust: the document.
        requests: ids of keys that requests revoked, and the events of these.
        more: what else is known of it.
    """
    requests, more = requests or {}, more or {}
    rows, entries = [], []
    for role, place, keys in (
        ("root", "", trust.roots), ("conformance", "", trust.conformance_keys),
        *(("publisher", name, entry.keys) for name, entry in sorted(trust.publishers.items())),
    ):
        for public in keys:
            name = key_id(bytes.fromhex(public))
            state = "revoked" if name in trust.revoked_keys else "counts"
            if name in requests and role == "publisher":
                state = f"revoked by event {requests[name]}"
            rows.append((role, place, name, state, public))
            entries.append({"role": role, "publisher": place or None, "key_id": name,
                            "revoked": state != "counts", "public_key": public})
    facts = [
        ("domain", trust.domain), ("version", trust.version),
        *((name, _words(value)) for name, value in more.items() if name != "pinned"),
        ("root threshold", f"{trust.root_threshold} of {len(trust.roots)}"),
        ("revoked keys", _words([*trust.revoked_keys, *sorted(requests)])),
    ]
    publishers = [
        (name, ", ".join(entry.plugins), f"{entry.threshold} of {len(entry.keys)}",
         _time(entry.valid_from_s), _time(entry.valid_until_s))
        for name, entry in sorted(trust.publishers.items())
    ]
    document = {
        **more, "trust": msgspec.to_builtins(trust), "keys": entries,
        "revoked_by_request": [{"key_id": name, "seq": seq} for name, seq in requests.items()],
    }
    show("omega.trust/1", document, Table(facts),
         Table(publishers, ("publisher", "plugins", "signatures", "valid from", "until")),
         Table(rows, ("role", "publisher", "key id", "state", "public key")))


def _words(value: object) -> object:
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else value


def _time(seconds: int) -> str:
    if seconds in (0, FOR_EVER_S):
        return "always" if not seconds else "for ever"
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return f"second {seconds}"
