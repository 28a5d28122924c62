# SPDX-License-Identifier: Apache-2.0
"""Means over cases and organs, their bootstrap confidence intervals, and tests of paired differences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

BOOTSTRAP_RESAMPLES = 10_000
BOOTSTRAP_SEED = 0
# With five differences, the smallest possible p is 2 / 2**5 = 0.0625.
FEWEST_FOR_WILCOXON = 6


def macro_mean(values: ArrayLike) -> float:
    """Return the mean over organs of the mean over cases.

    `values` is (cases, organs) float, NaN where an organ does not apply to a case. These pairs are left out, and so is
    an organ that applies to no case. The mean is NaN if nothing is left. Callers report how many pairs counted.
    """
    table = np.asarray(values, dtype=np.float64)
    return float(weighted_macro_means(np.ones((1, len(table))), table)[0])


def bootstrap_ci(
    values: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = BOOTSTRAP_RESAMPLES,
    seed: int = BOOTSTRAP_SEED,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean over cases: (low, high).

    `values` is (cases,) or (cases, organs) float, NaN where not applicable; for a table the statistic is `macro_mean`,
    and whole cases are drawn, since the organs of one patient are not independent. The draw depends only on `seed` and
    the number of cases. Returns (NaN, NaN) for fewer than two cases: one case tells nothing about the spread.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    table = np.asarray(values, dtype=np.float64)
    table = table[:, None] if table.ndim == 1 else table
    table = table[~np.isnan(table).all(axis=1)]
    if len(table) < 2:
        return np.nan, np.nan
    statistics = weighted_macro_means(draw_cases(len(table), resamples, seed), table)
    low, high = np.percentile(statistics, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


def draw_cases(cases: int, resamples: int = BOOTSTRAP_RESAMPLES, seed: int = BOOTSTRAP_SEED) -> np.ndarray:
    """Return how often each case is drawn, (resamples, cases) float64; a resample has `cases` draws with replacement.

    The draws depend only on the number of cases and the seed, so that two arms get the same ones.
    """
    return np.random.default_rng(seed).multinomial(cases, np.full(cases, 1 / cases), size=resamples).astype(np.float64)


def weighted_macro_means(weights: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Return `macro_mean` of `table` (cases, organs) for each row of `weights` (draws, cases), (draws,)."""
    return mean_of_occurring(_organ_means(weights, table))


def mean_of_occurring(figures: np.ndarray, axis: int = -1) -> np.ndarray:
    """Return the mean of the figures that are not NaN over an axis, (..., K) to (...,) by default; NaN if all are."""
    return ratio(np.nansum(figures, axis=axis), np.count_nonzero(~np.isnan(figures), axis=axis))


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Return the quotient of two arrays of one shape, NaN where the denominator is 0."""
    undefined = np.full(np.shape(denominator), np.nan)
    return np.divide(numerator, denominator, out=undefined, where=np.asarray(denominator) > 0)


def wilcoxon_p(differences: ArrayLike) -> float:
    """Return the two-sided p of the Wilcoxon signed-rank test whether paired `differences` (cases,) are around 0.

    NaN (a case that does not apply) and 0 (Wilcoxon's own rule) are left out. Returns NaN if fewer than six are left,
    since p could then never be below 0.05.
    Source: Wilcoxon, Individual comparisons by ranking methods, Biometrics Bulletin 1 (1945).
    """
    # Tables hold six decimals; rounding keeps equal differences equal in spite of binary fractions.
    rounded = np.round(np.asarray(differences, dtype=np.float64), 9)
    nonzero = rounded[~np.isnan(rounded) & (rounded != 0)]
    from scipy import stats  # here: it takes a second, for which --help must not wait

    return float(stats.wilcoxon(nonzero).pvalue) if len(nonzero) >= FEWEST_FOR_WILCOXON else np.nan


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, in the same order; NaN stays NaN and does not count.

    Source: Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6 (1979).
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = [int(index) for index in np.argsort(p) if not np.isnan(p[index])]
    stepped = [(len(order) - step) * p[index] for step, index in enumerate(order)]
    corrected = np.full(len(p), np.nan)
    corrected[order] = np.minimum(np.maximum.accumulate(stepped), 1.0) if order else []
    return corrected.tolist()


def _organ_means(weights: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Return weighted means over cases, (draws, organs), of `table` (cases, organs) with `weights` (draws, cases)."""
    applies = ~np.isnan(table)
    return ratio(weights @ np.where(applies, table, 0.0), weights @ applies.astype(np.float64))
