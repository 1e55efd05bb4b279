"""The published RFC 6962 suites against our two verify functions."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from broker.ledger.merkle import ProofError, verify_consistency, verify_inclusion
from tests.vectors import vectors


def _load(folder: str) -> list[tuple[Path, dict]]:
    paths = sorted(vectors("merkle-rfc6962").glob(f"{folder}/**/*.json"))
    if not paths:
        pytest.skip(f"the suite has no folder {folder} here")
    return [(path, json.loads(path.read_text())) for path in paths]


def _raises(function, *arguments) -> bool:
    try:
        function(*arguments)
    except ProofError:
        return True
    return False


def test_inclusion_suite_agrees_with_verify_inclusion():
    """Every published inclusion proof is accepted or refused as its authors say."""
    cases = _load("inclusion")
    for path, case in cases:
        refused = _raises(
            verify_inclusion,
            base64.b64decode(case["leafHash"]), case["leafIdx"], case["treeSize"],
            [base64.b64decode(one) for one in case["proof"] or []], base64.b64decode(case["root"]),
        )
        assert refused == case["wantErr"], path
    assert len(cases) >= 98


def test_consistency_suite_agrees_with_verify_consistency():
    """Every published consistency proof is accepted or refused as its authors say."""
    for path, case in _load("consistency"):
        refused = _raises(
            verify_consistency,
            case["size1"], case["size2"],
            base64.b64decode(case["root1"]), base64.b64decode(case["root2"]),
            [base64.b64decode(one) for one in case["proof"] or []],
        )
        assert refused == case["wantErr"], path
