# SPDX-License-Identifier: Apache-2.0
"""Means over cases and organs, and their bootstrap confidence intervals."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

BOOTSTRAP_RESAMPLES = 10_000
BOOTSTRAP_SEED = 0


def macro_mean(values: ArrayLike) -> float:
    """Return the mean over organs of the mean over cases.

    `values` is (cases, organs) float, NaN where an organ does not apply to a case. Such pairs are left out, and so is
    an organ that applies to no case; NaN if nothing is left. Callers report how many pairs counted.
    """
    table = np.asarray(values, dtype=np.float64)
    means = _organ_means(np.ones((1, len(table))), table)
    return float(_row_means(means)[0])


def bootstrap_ci(
    values: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = BOOTSTRAP_RESAMPLES,
    seed: int = BOOTSTRAP_SEED,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean over cases: (low, high).

    `values` is (cases,) or (cases, organs) float, NaN where not applicable; for a table the statistic is `macro_mean`,
    and whole cases are drawn, since the organs of one patient are not independent. The draw depends on `seed` and the
    number of cases alone. (NaN, NaN) for fewer than two cases that apply: one case says nothing about the spread.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    table = np.asarray(values, dtype=np.float64)
    table = table[:, None] if table.ndim == 1 else table
    table = table[~np.isnan(table).all(axis=1)]
    if len(table) < 2:
        return np.nan, np.nan
    drawn = np.random.default_rng(seed).multinomial(len(table), np.full(len(table), 1 / len(table)), size=resamples)
    statistics = _row_means(_organ_means(drawn.astype(np.float64), table))
    low, high = np.percentile(statistics, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


def _organ_means(weights: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Return weighted means over cases, (draws, organs), of `table` (cases, organs) with `weights` (draws, cases)."""
    applies = ~np.isnan(table)
    totals = weights @ np.where(applies, table, 0.0)
    counts = weights @ applies.astype(np.float64)
    return np.divide(totals, counts, out=np.full(totals.shape, np.nan), where=counts > 0)


def _row_means(means: np.ndarray) -> np.ndarray:
    """Return the mean of each row over the organs that are not NaN, (draws,)."""
    applies = ~np.isnan(means)
    counts = applies.sum(axis=1)
    totals = np.where(applies, means, 0.0).sum(axis=1)
    return np.divide(totals, counts, out=np.full(len(means), np.nan), where=counts > 0)
