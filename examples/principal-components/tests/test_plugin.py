"""Components of tables whose answer is known, and of this project's own measurements."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from plugin import Table, analyse

from sandbox_worker.sdk import CannotAnswer, Context, InvalidInput

MEASUREMENTS = sorted(
    (Path(__file__).resolve().parents[3] / "docs" / "measurements").glob("bus-*.json")
)
FIGURES = ("in_flight", "p50_us", "p99_us", "per_s")


def test_columns_that_move_together_are_one_component():
    """Three columns in a line: one component has everything, in equal parts."""
    found = analyse(Context(), Table(["a", "b", "c"], [[x, 2 * x + 1, -x] for x in range(10)]))
    assert [one.share for one in found.components] == [1.0]
    loadings = found.components[0].loadings
    assert {abs(value) for value in loadings.values()} == {0.577350269}
    assert loadings["a"] == loadings["b"] == -loadings["c"]


def test_columns_that_do_not_move_together_share():
    """Four corners of a square: both columns count the same."""
    found = analyse(Context(), Table(["x", "y"], [[0, 0], [0, 1], [1, 0], [1, 1]]))
    assert [one.share for one in found.components] == [0.5, 0.5]
    assert found.means == {"x": 0.5, "y": 0.5}


def test_a_column_that_never_changes_is_left_out_and_named():
    """It would be divided by nothing."""
    found = analyse(Context(), Table(["a", "b", "c"], [[x, 7, x * x] for x in range(5)]))
    assert found.constant == ["b"]
    assert set(found.components[0].loadings) == {"a", "c"}


@pytest.mark.parametrize("path", MEASUREMENTS, ids=lambda path: path.stem)
def test_this_projects_measurements_have_few_components(path: Path):
    """Rows of a bench: shares fall and are one together, and waiting longer means fewer calls."""
    rows = json.loads(path.read_text())["rows"]
    table = [[float(row[name]) for name in FIGURES] for row in rows if all(
        row.get(name) is not None for name in FIGURES
    )]
    found = analyse(Context(), Table(list(FIGURES), table))
    shares = [one.share for one in found.components]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1.0)
    assert found.rows == len(table) > 5


def test_what_is_no_table_is_refused():
    """Rows of different lengths and a name twice are invalid; equal rows have no answer."""
    with pytest.raises(InvalidInput, match="row 1 has 1 numbers for 2 columns"):
        analyse(Context(), Table(["a", "b"], [[1, 2], [1], [1, 2]]))
    with pytest.raises(InvalidInput, match="same name"):
        analyse(Context(), Table(["a", "a"], [[1, 2]] * 3))
    with pytest.raises(CannotAnswer, match="every row is the same"):
        analyse(Context(), Table(["a", "b"], [[1, 2]] * 3))
