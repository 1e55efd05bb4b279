"""`pipeline run`: a graph of steps from a TOML file, its progress, and what became of each step.

Rules this file keeps: the file is held against its form before anything is sent, and what is wrong
is told with its place; stdout holds a table or one object; progress and evidence go to stderr.

It leaves the input forms to `broker.cli.inputs` and the graph's judgement to the gateway.
"""

from __future__ import annotations

import os
import sys
import tomllib
from typing import TYPE_CHECKING

import click

from broker.cli.connect import omega_client
from broker.cli.ends import INVALID, CommandError
from broker.cli.inputs import file_payload, json_payload
from broker.cli.options import read_options, session
from broker.cli.output import Table, json_bytes, printable, put, show_tables
from broker.cli.results import payload_document

if TYPE_CHECKING:
    from broker.cli.pipeline_file import PipelineFile, StepEntry
    from broker.client import PipelineResult
    from schemas.messages import Progress, Step, StepOutput, StepResult
    from schemas.payloads import Payload

_FORMS = ("text", "json", "file", "take", "dataset", "artifact")


@click.group()
def pipeline() -> None:
    """Run a graph of methods, each of which takes its input from you or from an earlier step."""


@pipeline.command()
@read_options
@click.argument("file", metavar="FILE.toml")
def run(file: str) -> None:
    """Run the pipeline that a TOML file describes.

    Each [[steps]] has name, plugin and method, and one input: text, json (a document as text), file
    (beside the TOML file), from (a step's name, with pointer for a part of its output), dataset
    with keys, or artifact with sha256, size and media_type. timeout_ms, on_error and [budget] with
    calls, cpu_ms and output_bytes hold for the whole.
    """
    from broker.cli.pipeline_file import STEP_CPU_MS
    from schemas.messages import Budget

    asked = _read(file)
    steps = [_step(file, number, step) for number, step in enumerate(asked.steps)]
    budget = Budget(
        calls=asked.budget.calls or max(1, len(steps)),
        cpu_ms=STEP_CPU_MS * len(steps) if asked.budget.cpu_ms is None else asked.budget.cpu_ms,
        output_bytes=asked.budget.output_bytes,
    )
    with omega_client() as client:
        result = client.invoke_pipeline(
            steps, budget=budget, on_error=asked.on_error, on_progress=_tell,
            timeout=None if asked.timeout_ms is None else asked.timeout_ms / 1000,
        )
    if session().output == "table":
        _show(asked, result)
        return
    put(json_bytes(
        "omega.pipeline-result/1", _document(result), indent=session().output == "json"
    ))


def _tell(progress: Progress) -> None:
    """Say on stderr how far a step is; 0 and 1000 are the gateway's own words."""
    what = {0: "began", 1000: "ended"}.get(progress.permille, f"{progress.permille / 10:.0f} %")
    note = f": {printable(progress.note)}" if progress.note else ""
    click.echo(f"{progress.step}: {what}{note}", err=True)


def _read(path: str) -> PipelineFile:
    import msgspec

    from broker.cli import pipeline_file

    try:
        with open(os.path.expanduser(path), "rb") as source:
            return msgspec.convert(tomllib.load(source), pipeline_file.PipelineFile)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise CommandError(
            INVALID, f"{path}: {error}", "`omega-gateway pipeline run --help` names the fields"
        ) from None


def _step(path: str, number: int, step: StepEntry) -> Step:
    from schemas.messages import Step as WireStep

    forms = [form for form in _FORMS if getattr(step, form) is not None]
    if len(forms) != 1:
        names = ", ".join("from" if form == "take" else form for form in _FORMS)
        raise CommandError(
            INVALID, f"{path}: $.steps[{number}]: has {len(forms)} inputs",
            f"give exactly one of {names}",
        )
    return WireStep(
        name=step.name, plugin=step.plugin, method=step.method, version=step.version,
        timeout_ms=step.timeout_ms, input=_input(path, number, step, forms[0]),
    )


def _input(path: str, number: int, step: StepEntry, form: str) -> Payload | StepOutput:
    """Make one step's input."""
    import msgspec

    from broker.client_session import as_payload
    from schemas.messages import StepOutput as Taken
    from schemas.payloads import Payload as PayloadType

    place = f"{path}: $.steps[{number}].{form}"
    if step.take is not None:
        return Taken(step=step.take, pointer=step.pointer)
    if step.json is not None:
        return as_payload(json_payload(step.json.encode(), place))
    if step.file is not None:
        beside = os.path.join(os.path.dirname(os.path.expanduser(path)), step.file)
        return as_payload(file_payload(beside, step.media_type))
    fields: dict[str, object] = {"media_type": step.media_type}
    if step.text is not None:
        fields |= {"type": "text", "text": step.text}
    elif step.dataset is not None:
        fields |= {"type": "dataset_slice", "dataset_id": step.dataset, "keys": step.keys}
    else:
        fields |= {"type": "binary_ref", "artifact_id": step.artifact, "sha256": step.sha256,
                   "size": step.size, "media_type": step.media_type or "application/octet-stream"}
    try:
        given = {key: value for key, value in fields.items() if value is not None}
        payload: Payload = msgspec.convert(given, PayloadType)
    except msgspec.ValidationError as error:
        raise CommandError(INVALID, f"{place}: {error}") from None
    return payload


def _show(asked: PipelineFile, result: PipelineResult) -> None:
    methods = {step.name: f"{step.plugin} {step.method}" for step in asked.steps}
    show_tables(sys.stdout, Table(
        [(step.step, methods[step.step], step.outcome, *_used(step), _answer(step))
         for step in result.steps],
        ("step", "method", "outcome", "cpu ms", "bytes", "answer"),
    ))
    show_tables(sys.stderr, Table([
        ("request", result.request_id),
        ("receipt", f"event {result.receipt.seq} of {result.receipt.log_id}"),
        ("usage", f"{result.usage.cpu_ms} ms of processor, {result.usage.wall_ms} ms in all, "
                  f"{result.usage.output_bytes} bytes of answers"),
        ("commitment key", f"{result.commitment_key.hex()} (kept nowhere else)"),
    ]))


def _used(step: StepResult) -> tuple[object, object]:
    return (step.usage.cpu_ms, step.usage.output_bytes) if step.usage else (None, None)


def _answer(step: StepResult) -> str:
    """Show the begin of an answer, or why there is none."""
    import msgspec

    from schemas.payloads import JSONPayload, TextPayload

    if step.refusal is not None:
        return f"{step.refusal.code}: {step.refusal.message}"
    if isinstance(step.payload, TextPayload):
        return " ".join(step.payload.text[:200].split())[:80]
    if isinstance(step.payload, JSONPayload):
        return step.payload.data[:80].decode("utf-8", "replace")
    return "" if step.payload is None else msgspec.json.encode(step.payload)[:80].decode()


def _document(result: PipelineResult) -> dict[str, object]:
    import msgspec

    return {
        "request_id": result.request_id,
        "steps": [
            {
                **{key: value for key, value in msgspec.to_builtins(step).items()
                   if key != "payload"},
                "request_id": result.request_id_of(step.step),
                "payload": None if step.payload is None else payload_document(step.payload),
                "commitment_key": result.commitment_key_of(step.step).hex(),
            }
            for step in result.steps
        ],
        "receipt": msgspec.to_builtins(result.receipt),
        "usage": msgspec.to_builtins(result.usage),
        "commitment_key": result.commitment_key.hex(),
    }
