"""The fit of `tests.bench.costs`."""

import pytest

from tests.bench.costs import fit


def test_the_fit_finds_the_factors_behind_the_results() -> None:
    rows = [(1, 2, 0.1), (1, 5, 3), (0.5, 1, 9), (1, 40, 1), (0, 3, 3)]
    factors = (0.1, 0.03, 0.7)
    results = [sum(a * b for a, b in zip(row, factors, strict=True)) for row in rows]
    assert fit(rows, results) == pytest.approx(factors, rel=1e-3)


def test_the_fit_has_no_negative_factor() -> None:
    assert fit([(1, 1), (1, 2), (1, 3)], [3, 2, 1])[1] == 0
