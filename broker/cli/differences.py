"""The difference between two versions as an operator reads and approves it.

Rules this file keeps: what is approved is the document that was shown, byte for byte; a document
that does not have the digest it came with is not shown. It leaves what widens to
`broker.trust.ratchet`.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec

from broker.cli.ends import FAILURE, CommandError
from broker.cli.output import Table, show
from broker.trust.ratchet import Difference, read_difference

if TYPE_CHECKING:
    from broker.client import AdminClient
    from schemas.messages import Approved, Plugin


def show_difference(found: Plugin) -> None:
    """Print a plugin's pending difference, or that there is none."""
    if found.pending_diff is None:
        show("omega.difference/1", {"plugin": found.plugin, "digest": None, "waits": False,
                                    "difference": None},
             Table([("plugin", found.plugin), ("difference", "none to a version enabled before")]))
        return
    _show(found, found.pending_diff, None)


def approve_difference(
    client: AdminClient, plugin: str, version: str, digest: str | None
) -> None:
    """Fetch, approve and print one difference.

    Args:
        client: of an operator.
        plugin, version: what waits.
        digest: what the caller looked at before; None approves what is shown now.

    Raises:
        CommandError: nothing waits, or it is another difference.
    """
    found = client.get_plugin(plugin, version=version)
    document = found.pending_diff
    if document is None or not _read(document).widens:
        raise CommandError(FAILURE, f"nothing of {plugin}@{version} waits for approval",
                           f"omega-gateway plugins enable {plugin}@{version}")
    present = _digest(document)
    if digest is not None and digest != present:
        _show(found, document, None)
        raise CommandError(
            FAILURE, f"the difference has another digest than {digest}",
            "look at it again, then approve its own digest",
        )
    _show(found, document, client.approve(plugin, version, present))


def _digest(document: str) -> str:
    return hashlib.sha256(document.encode()).hexdigest()


def _read(document: str) -> Difference:
    try:
        return read_difference(document.encode())
    except msgspec.MsgspecError as error:
        raise CommandError(FAILURE, f"the gateway sent no difference: {error}") from None


def _show(found: Plugin, document: str, approved: Approved | None) -> None:
    difference, digest = _read(document), _digest(document)
    if found.pending_diff_digest not in (None, digest):
        raise CommandError(FAILURE, "the gateway sent a difference with another one's digest")
    count, required = len(found.pending_approvals), found.approvals_required
    if approved is not None:
        count, required = approved.approvals, approved.required
    waits = found.pending_diff_digest is not None and (approved is None or count < required)
    answer: dict[str, object] = {
        "plugin": found.plugin, "digest": digest, "waits": waits,
        "approved_by": found.pending_approvals, "approvals": count, "required": required,
        "difference": msgspec.Raw(document.encode()),
    }
    state = "waits for approval" if waits else "approved"
    if waits and required > 1:
        state += f": {count} of {required} operators approved it"
    facts: list[tuple[str, object]] = [
        ("plugin", found.plugin),
        ("from", difference.before.version if difference.before else "a version that is damaged"),
        ("to", difference.after.version),
        ("digest", digest),
        ("state", state if difference.widens else "widens nothing: needs no approval"),
    ]
    if approved is not None and approved.receipt is not None:
        answer["receipt"] = msgspec.to_builtins(approved.receipt)
        facts.append(("receipt", f"event {approved.receipt.seq} of {approved.receipt.log_id}"))
    rows = [(one.change, one.where, one.before, one.after, one.at or None)
            for one in difference.changes]
    headers = ("change", "where", "before", "after", "first at")
    show("omega.difference/1", answer, Table(facts), *([Table(rows, headers)] if rows else []))
