"""Every way a command can end badly: one sentence, what to do next, and the exit code.

Rules this file keeps: `ending_of` is the only place that turns an error into an exit code; every
refusal code has its exit code in one table; an error that is not known here is a defect and is not
dressed up. It is imported when something went wrong, so that nothing else pays for it.

It leaves the sentences to whoever raised them and the remedies to `schemas.refusals`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final, NamedTuple

import click
import msgspec

from broker.cli.ends import (
    DEGRADED,
    FAILURE,
    INVALID,
    LEDGER,
    NOT_AUTHORISED,
    TRUST,
    UNREACHABLE,
    UNWRITABLE,
    USAGE,
    CommandError,
)
from broker.cli.output import json_bytes, printable
from schemas.refusals import REFUSALS, RefusalCode

if TYPE_CHECKING:
    from schemas.messages import Refusal

_EXITS: Final[dict[int, str]] = {
    FAILURE: """
        frame_malformed frame_too_large frame_count message_unknown message_invalid
        connection_refused key_unknown duplicate_request request_unknown json_not_canonical
        json_too_large json_too_deep text_too_large payload_kind_not_accepted
        input_schema_violation output_schema_violation output_kind_mismatch output_not_canonical
        output_reference_unknown artifact_unavailable artifact_mismatch file_unavailable
        nondeterministic_output unknown_plugin unknown_version unknown_method plugin_not_enabled
        plugin_quarantined revoked in_flight_limit queue_full quota_exceeded circuit_open
        cancelled abandoned worker_lost worker_start_failed
        worker_crash_loop worker_protocol_violation call_process_failed plugin_error invalid_input
        cannot_answer plugin_crashed plugin_load_failed system_call_forbidden cpu_limit_exceeded
        wall_limit_exceeded memory_limit_exceeded output_limit_exceeded output_invalid
        pipeline_invalid pipeline_step_failed budget_exceeded approval_mismatch seq_unknown
        events_archived size_unknown ledger_locked upgrade_withdrawn internal_error""",
    UNREACHABLE: "deadline_unreachable deadline_exceeded draining",
    NOT_AUTHORISED: """
        plugin_origin_routing handshake_refused role_not_allowed key_revoked approval_required""",
    INVALID: """
        bundle_malformed bundle_too_large bundle_files_mismatch manifest_invalid
        schema_not_admitted api_version_incompatible version_not_raised already_registered
        capability_not_granted capability_refused limit_not_allowed module_not_allowed
        packages_changed conformance_required sandbox_unavailable machine_unsupported
        config_invalid home_invalid key_unreadable socket_in_use""",
    TRUST: """
        signature_invalid signature_threshold domain_mismatch publisher_unknown
        publisher_not_allowed trust_invalid trust_version_not_raised""",
    LEDGER: "ledger_damaged ledger_truncated",
    DEGRADED: "low_space gateway_degraded",
    UNWRITABLE: "ledger_unwritable",
}
EXIT_CODES: Final[dict[RefusalCode, int]] = {
    RefusalCode(name): exit_code for exit_code, names in _EXITS.items() for name in names.split()
}
"""The exit code of every refusal code."""

assert len(EXIT_CODES) == len(RefusalCode), "a refusal code without an exit code"


class Ending(NamedTuple):
    """How a command ends: a sentence, the next step or nothing, an exit code, and a refusal."""

    sentence: str
    next_step: str
    exit_code: int
    refusal: Refusal | None = None


def ending_of(error: Exception) -> Ending | None:
    """Say how a command ends that raised `error`; None for an error that nobody foresaw."""
    if isinstance(error, click.exceptions.Exit):
        return Ending("", "", error.exit_code)
    if isinstance(error, click.Abort):
        return Ending("stopped", "", FAILURE)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return Ending(error.format_message(), "", USAGE)
    if isinstance(error, click.ClickException):
        return Ending(_usage(error), "", error.exit_code)
    if isinstance(error, CommandError):
        return Ending(str(error), error.next_step, error.exit_code)
    return _of_client(error) or _of_home(error) or _of_gateway(error) or _of_machine(error)


def tell(ending: Ending, output: str, *, printed: bool = False) -> None:
    """Say on stderr how a command ended, and on stdout too where JSON was asked for.

    What was asked for as JSON is one document: nothing is added where something was `printed`.
    """
    refusal = ending.refusal
    if output != "table" and ending.sentence and not printed:
        sys.stdout.buffer.write(_as_json(ending, indent=output == "json"))
        sys.stdout.buffer.flush()
    lines = [printable(ending.sentence)] if ending.sentence else []
    if ending.next_step:
        lines.append(f"  next: {printable(ending.next_step)}")
    if refusal is not None and refusal.plugin_message:
        lines.append(f"  the plugin said: {printable(refusal.plugin_message)!r}")
    if refusal is not None and refusal.receipt is not None:
        lines.append(f"  receipt: event {refusal.receipt.seq} of {refusal.receipt.log_id}")
    for line in lines:
        click.echo(line, err=True)


def _as_json(ending: Ending, *, indent: bool) -> bytes:
    """Write an end as one document: all of a refusal, or what stderr says."""
    document: dict[str, object] = {"exit_code": ending.exit_code}
    if ending.refusal is None:
        # A path in it may be no text, which JSON cannot hold.
        document |= {
            "message": printable(ending.sentence), "next_step": printable(ending.next_step),
        }
        return json_bytes("omega.error/1", document, indent=indent)
    document |= msgspec.to_builtins(ending.refusal)
    del document["type"]
    return json_bytes("omega.refusal/1", document, indent=indent)


def _usage(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    helped = f"; see `{context.command_path} --help`" if context is not None else ""
    return " ".join(error.format_message().split()).rstrip(".") + helped


def _of_client(error: Exception) -> Ending | None:
    """Errors of the client library."""
    from broker.client_errors import (
        GatewayError,
        LedgerForked,
        NotAuthorised,
        Refused,
        TimedOut,
        Unreachable,
    )

    if isinstance(error, Refused):
        refusal = error.refusal
        remedy = refusal.hint or REFUSALS[refusal.code].remedy
        return Ending(f"refused: {error.sentence}", remedy, EXIT_CODES[refusal.code], refusal)
    if isinstance(error, Unreachable):
        return Ending(str(error), "start it with `omega-gateway serve`", UNREACHABLE)
    if isinstance(error, TimedOut):
        return Ending(str(error), "give more time with --timeout, or ask `status`", UNREACHABLE)
    if isinstance(error, NotAuthorised):
        return Ending(str(error), "a running gateway learns of keys by SIGHUP or at its next start",
                      NOT_AUTHORISED)
    if isinstance(error, LedgerForked):
        return Ending(str(error), "keep home, profile and this sentence as evidence, and stop",
                      LEDGER)
    if isinstance(error, GatewayError):
        cause = error.__cause__
        ending = _of_machine(cause) if isinstance(cause, UnicodeEncodeError) else None
        return ending or Ending(str(error), "", FAILURE)
    return None


def _of_home(error: Exception) -> Ending | None:
    """Errors of files: homes, keys, configuration, trust."""
    from broker.configured import HomeRefused
    from broker.keys import KeyFileRefused
    from broker.trust.errors import TrustRefused

    if isinstance(error, TrustRefused):
        where = f"{error.where}: " if error.where else ""
        return _with_code(error.code, where + error.sentence, error.hint)
    if isinstance(error, HomeRefused | KeyFileRefused):
        return _with_code(error.code, str(error))
    return None


def _of_gateway(error: Exception) -> Ending | None:
    """Errors of a gateway that starts or runs; imported only when its parts are."""
    from broker.ledger.errors import LedgerFailure, LedgerRefused

    if isinstance(error, LedgerRefused | LedgerFailure):
        return _with_code(error.code, str(error))
    # What was never imported cannot have been raised, and importing it here would load sockets.
    transport, seal, launcher = (
        sys.modules.get(f"broker.{name}") for name in ("sockets", "seal", "launchers.local")
    )
    if transport is not None and isinstance(error, transport.TransportRefused):
        return _with_code(error.code, str(error))
    if seal is not None and isinstance(error, seal.SealUnavailable):
        return _with_code(RefusalCode.MACHINE_UNSUPPORTED, str(error))
    if launcher is not None and isinstance(error, launcher.LauncherLost):
        return Ending(str(error), "look at what stderr says above, then start again", FAILURE)
    return None


def _of_machine(error: Exception) -> Ending | None:
    """What the operating system refused, or handed over as no text."""
    if isinstance(error, UnicodeEncodeError) and "\udc80" <= error.object[error.start] <= "\udcff":
        # Python's form of a byte of the command line that is not UTF-8 (PEP 383).
        return Ending("an argument is not UTF-8 text", "write it in a file and give that", USAGE)
    if isinstance(error, BrokenPipeError) or not isinstance(error, OSError):
        return None
    # What was opened by its number has a number for a name.
    place = f"{error.filename}: " if isinstance(error.filename, str) else ""
    return Ending(f"{place}{error.strerror or error}", "", FAILURE)


def _with_code(code: RefusalCode, sentence: str, hint: str = "") -> Ending:
    return Ending(sentence, hint or REFUSALS[code].remedy, EXIT_CODES[code])
