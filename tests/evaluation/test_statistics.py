# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from pipeline.evaluation import bootstrap_ci, macro_mean

NAN = np.nan


def test_macro_mean_by_hand():
    # Organ means: (0.8 + 0.6) / 2 = 0.7 and 0.1; the third organ is in no case.
    assert macro_mean([[0.8, 0.1, NAN], [0.6, NAN, NAN]]) == pytest.approx(0.4)


def test_macro_mean_of_nothing_is_nan():
    assert np.isnan(macro_mean([[NAN, NAN]]))


def test_interval_of_equal_values_is_that_value():
    assert bootstrap_ci([0.5, 0.5, 0.5]) == pytest.approx((0.5, 0.5))


def test_interval_of_two_values_spans_them():
    # A quarter of the draws each takes one value twice: both ends are reached at 95 %.
    assert bootstrap_ci([0.2, 0.6]) == pytest.approx((0.2, 0.6))


@pytest.mark.parametrize("values", [[], [0.7], [0.7, NAN], [[0.7, 0.2]], [[0.7], [NAN]]])
def test_fewer_than_two_cases_have_no_interval(values):
    assert np.isnan(bootstrap_ci(values)).all()


def test_interval_is_reproducible_and_follows_the_seed():
    values = np.random.default_rng(0).normal(0.8, 0.1, 30)
    assert bootstrap_ci(values) == bootstrap_ci(values)
    assert bootstrap_ci(values, seed=1) != bootstrap_ci(values)


def test_interval_matches_the_normal_one_for_many_cases():
    values = np.random.default_rng(0).normal(0.8, 0.1, 400)
    margin = 1.96 * values.std(ddof=1) / 20
    assert bootstrap_ci(values) == pytest.approx((values.mean() - margin, values.mean() + margin), abs=1e-3)


def test_higher_level_is_wider():
    values = np.random.default_rng(1).random(20)
    narrow, wide = bootstrap_ci(values, level=0.8), bootstrap_ci(values, level=0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_organs_of_a_case_are_drawn_together():
    # Two organs that err in opposite cases: their mean is constant, so its interval has no width.
    assert bootstrap_ci([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]]) == pytest.approx((0.5, 0.5))


def test_one_column_equals_the_list_without_absent_cases():
    assert bootstrap_ci([[0.2], [NAN], [0.4], [0.9]]) == bootstrap_ci([0.2, 0.4, 0.9])
