"""Pipelines as both sides understand them: ids and keys of steps, pointers, and what is a graph.

Rules this file keeps: each step is an invocation of its own, with an id and a commitment key that
follow from the pipeline's, so that a client can name and open one step and reveal nothing of the
others; a graph is judged before anything runs, and the judgement names the step.

It leaves plugins, versions and budgets to `broker.pipelines`. Source: specification section 4;
docs/WIRE.md, section "Pipelines".
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from schemas.canonical import JsonValue
from schemas.messages import Step, StepOutput

_INDEX: Final = re.compile(r"0|[1-9][0-9]{0,8}")


def step_request_id(pipeline: str, step: str) -> str:
    """Give the request id of one step: the first 128 bits of SHA-256, marked as a UUIDv4.

    Args:
        pipeline: the pipeline's request id.
        step: the step's name.
    """
    digits = hashlib.sha256(f"{pipeline}\x00{step}".encode()).hexdigest()
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:32]}"


def step_commitment_key(commitment_key: bytes, step: str) -> bytes:
    """Give the key of one step's commitments: HMAC-SHA256 of `step ‖ 0x00 ‖ name`.

    Args:
        commitment_key: the 32 bytes that OMEGA made for the pipeline.
        step: the step's name.
    """
    return hmac.digest(commitment_key, b"step\x00" + step.encode(), "sha256")


class Flaw(NamedTuple):
    """What is wrong with a graph, and where."""

    sentence: str
    where: str


def graph_flaw(steps: Sequence[Step]) -> Flaw | None:
    """Say why steps are no graph that can run: a name twice, an unknown one, or a cycle.

    Each step takes its input from at most one other, so following the inputs finds every cycle.
    """
    source: dict[str, str | None] = {}
    for index, step in enumerate(steps):
        if step.name in source:
            return Flaw(f"two steps are named {step.name}", f"$.steps[{index}].name")
        source[step.name] = step.input.step if isinstance(step.input, StepOutput) else None
    begins: set[str] = set()
    for index, step in enumerate(steps):
        path, name = [step.name], source[step.name]
        while name is not None and name not in begins:
            if name not in source:
                return Flaw(f"there is no step {name}", f"$.steps[{index}].input.step")
            if name in path:
                circle = " takes from ".join([*path[path.index(name):], name])
                return Flaw(f"the steps wait for each other: {circle}", f"$.steps[{index}].input")
            path.append(name)
            name = source[name]
        begins.update(path)
    return None


def resolve_pointer(document: JsonValue, pointer: str) -> JsonValue:
    """Give the part of a document that a JSON Pointer names.

    Args:
        document: a decoded JSON document.
        pointer: RFC 6901; empty for the whole.

    Raises:
        LookupError: the pointer is malformed or names nothing; the text says at which part.
    """
    if pointer and not pointer.startswith("/"):
        raise LookupError("a pointer begins with /")
    value = document
    for part in pointer.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict) and name in value:
            value = value[name]
        elif isinstance(value, list) and _INDEX.fullmatch(part) and int(part) < len(value):
            value = value[int(part)]
        else:
            raise LookupError(f"nothing is at {part!r}")
    return value
