"""The fit of `tests.network.coefficients`."""

from itertools import product

import pytest

from tests.network.coefficients import ROUND_TRIPS_S, Sample, fit


@pytest.mark.parametrize(("a", "b"), [(1, 2), (2, 4), (1, 0)])
def test_the_fit_finds_both_numbers_of_round_trips(a: int, b: int) -> None:
    samples = [Sample(c, m, 0.003 + a * c + b * m) for c, m in product(ROUND_TRIPS_S, repeat=2)]
    assert fit(samples) == pytest.approx((a, b))
