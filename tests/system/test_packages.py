"""A plugin that computes with numpy, from the operator's approval to OMEGA's answer and out."""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec
import pytest

from broker.client import Refused
from schemas.events import InvokeEnd, WorkerAttest, WorkerExit
from schemas.payloads import JSONPayload
from schemas.refusals import RefusalCode
from tests.cli.command import gateway as command
from tests.support.gateway import RunningGateway
from tests.support.packages import numpy_folder

pytestmark = [pytest.mark.system, pytest.mark.jail]

MATRIX = '''
import numpy
from msgspec import Struct
from sandbox_worker.sdk import Context, method


class Solved(Struct):
    determinant: float
    solution: list[float]


class Equations(Struct):
    matrix: list[list[float]]
    right: list[float]


@method()
def solve(context: Context, given: Equations) -> Solved:
    """Solve linear equations."""
    matrix = numpy.array(given.matrix)
    solution = numpy.linalg.solve(matrix, numpy.array(given.right))
    return Solved(round(float(numpy.linalg.det(matrix)), 9), numpy.round(solution, 9).tolist())
'''

EQUATIONS = JSONPayload(b'{"matrix":[[2,1],[1,3]],"right":[5,10]}')


def test_numpy_runs_when_approved_and_not_after_a_byte_changed() -> None:
    """Not approved: refused with the line. Approved and locked: OMEGA's answer is right, from a
    worker with one thread. One byte changed: the next worker does not start, which is evidence."""
    with tempfile.TemporaryDirectory(prefix="og-") as name, numpy_folder() as approved:
        gateway = RunningGateway(Path(name))
        try:
            directory = gateway.write_plugin(
                "matrix-solver", MATRIX, modules='["msgspec", "numpy"]'
            )
            gateway.start()
            problem = gateway.operator().validate_bundle(gateway.bundle(directory)).problems[0]
            assert problem.code is RefusalCode.MODULE_NOT_ALLOWED
            gateway.stop()

            told = command("plugins", "lock", "matrix-*", approved.folder)
            assert (told.code, approved.lock_sha256 in told.out) == (0, True)
            with (gateway.home / "policy.toml").open("a") as policy:
                policy.write(told.out)
            gateway.start()
            gateway.install(directory)
            answer = gateway.omega().invoke("matrix-solver", "solve", EQUATIONS)
            assert isinstance(answer.payload, JSONPayload)
            assert msgspec.json.decode(answer.payload.data) == {
                "determinant": 5, "solution": [1, 3]
            }
            attested = [event.fields for event in gateway.events()
                        if isinstance(event.fields, WorkerAttest)]
            assert [(one.accepted, one.threads) for one in attested] == [(True, 1)]
            gateway.stop()

            init = Path(approved.folder) / "numpy" / "__init__.py"
            init.write_bytes(init.read_bytes().replace(b"import os", b"import 0s", 1))
            gateway.start()
            with pytest.raises(Refused) as refused:
                gateway.omega().invoke("matrix-solver", "solve", EQUATIONS)
            assert refused.value.code is RefusalCode.PACKAGES_CHANGED
            end = gateway.events()[refused.value.refusal.receipt.seq].fields
            assert isinstance(end, InvokeEnd)
            assert end.code is RefusalCode.PACKAGES_CHANGED
            left = [event.fields for event in gateway.events()
                    if isinstance(event.fields, WorkerExit)][-1]
            assert left.reason == "packages_changed"
            assert "numpy/__init__.py is not the file that was approved" in left.detail
        finally:
            gateway.stop()
