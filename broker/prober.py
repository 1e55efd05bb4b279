"""The prober: a process of its own that compiles a bundle's schemas and tries them, and ends.

    python -m broker.prober INPUT OUTPUT

INPUT is the descriptor of a sealed memory file: a msgpack map of schemas' bytes by content id.
OUTPUT takes one `Verdict`. The launcher starts it, under limits of processor time and memory.

Rules this file keeps: it seals itself before it reads a byte of what came from outside; after that
it can open, connect to, run and signal nothing; it writes one answer. What it says is believed no
further than a refusal goes: a prober that was taken over can only get a schema admitted, which
every call would still be held against.

It leaves documents and what an end means to `broker.trust.trials`. Source: docs/decisions/0029.
"""

from __future__ import annotations

import gc
import heapq
import itertools
import os
import signal
import sys
import time
from typing import Final, NamedTuple, NoReturn

import msgspec

from broker.seal import SealUnavailable, seal_prober
from broker.trust.bounds import COMPILE_MS_MAX, TRIAL_WALL_S, VALIDATION_MS_MAX
from broker.trust.errors import TrustRefused, printable
from broker.trust.json_schemas import Validator, build
from broker.trust.trials import Verdict, documents, places
from schemas.canonical import JsonValue
from schemas.names import JSON_BYTES_MAX

_SMALL_BYTES: Final = 4 * 1024
_DOCUMENTS_MAX: Final = 4096
"""Small documents over all schemas of a bundle; each schema is tried with its share."""
_SLOWEST: Final = 16
"""So many of them, the slowest over all schemas, come once more in the largest size."""

_decode: Final = msgspec.msgpack.Decoder(dict[str, bytes]).decode


class _Timed(NamedTuple):
    """What one small document cost: first, so that the slowest is the largest."""

    cost_ns: int
    schema: str
    place: int
    number: int


def try_schemas(schemas: dict[str, bytes]) -> Verdict:
    """Compile and try the schemas of one bundle, all of which were weighed.

    Args:
        schemas: the bytes of each by its content id.
    """
    read = {name: msgspec.json.decode(data) for name, data in schemas.items()}
    validators: dict[str, Validator] = {}
    begin = time.process_time_ns()
    for name, schema in read.items():
        try:
            validators[name] = Validator(build(schema), frozenset())
        except TrustRefused as refused:
            return Verdict(schema=name, where=printable(refused.where, 200),
                           sentence=printable(refused.sentence, 400))
        took_ms = (time.process_time_ns() - begin) // 1_000_000
        if took_ms > COMPILE_MS_MAX:
            return Verdict(schema=name, sentence=(
                f"building the schemas took {took_ms} ms of processor time, allowed are "
                f"{COMPILE_MS_MAX}"))
    timed: list[_Timed] = []
    for name, schema in read.items():
        timed += _small(name, schema, validators[name], _DOCUMENTS_MAX // len(read))
    for one in heapq.nlargest(_SLOWEST, timed):
        place = places(read[one.schema])[one.place]
        large = next(itertools.islice(documents(place, JSON_BYTES_MAX), one.number, None))
        took_ms = _cost_ns(validators[one.schema], large) // 1_000_000
        if took_ms > VALIDATION_MS_MAX:
            return Verdict(schema=one.schema, sentence=(
                f"checking a document of {JSON_BYTES_MAX} bytes took {took_ms} ms of processor "
                f"time, allowed are {VALIDATION_MS_MAX}"))
    return Verdict(fits=True)


def _small(
    name: str, schema: dict[str, JsonValue], validator: Validator, documents_max: int
) -> list[_Timed]:
    """Hold small documents against one schema."""
    tried = (
        _Timed(_cost_ns(validator, document), name, at, number)
        for at, place in enumerate(places(schema))
        for number, document in enumerate(documents(place, _SMALL_BYTES))
    )
    return list(itertools.islice(tried, documents_max))


def _cost_ns(validator: Validator, document: JsonValue) -> int:
    begin = time.process_time_ns()
    validator.problem(document)
    return time.process_time_ns() - begin


def main(given: int, answer: int) -> NoReturn:
    """Seal this process, try what is given, say what came of it, and end."""
    # A collection of large documents would be charged to whatever is measured just then.
    gc.disable()
    # The clock on the wall is there for a machine that stands still; the kernel ends the rest.
    signal.alarm(TRIAL_WALL_S)
    try:
        seal_prober()
    except SealUnavailable:
        sys.exit(5)
    with os.fdopen(given, "rb") as file:
        file.seek(0)
        schemas = _decode(file.read())
    os.write(answer, msgspec.json.encode(try_schemas(schemas)))
    # Nothing of ours is worth waiting for, and tearing large documents down would take time.
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
