# SPDX-License-Identifier: Apache-2.0
"""The rows of a results table: one for each organ over all cases, and the mean of the organs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from pipeline.evaluation.scores import ABSENT, STATUSES, OrganScore
from pipeline.evaluation.statistics import bootstrap_ci, macro_mean

MEAN_ROW = "mean"


@dataclass(frozen=True)
class OrganSummary:
    """One organ over all cases, or the mean of the organs.

    Every mean is over the cases that have the organ in label or prediction (ok, missed and false_positive); the counts
    say how many these are. `dice_std` is the sample standard deviation over cases, `dice_ci95_*` the bootstrap interval
    of the mean. `hd95_mm_mean` and `hd95_mm_median` keep inf, so that one missed organ makes the mean inf: a mean of
    only the found organs would reward missing the hard ones. `hd95_penalised_mm_mean` puts the diagonal of the volume
    in place of inf. `volume_error_ml_mean` is signed, prediction minus label. NaN means that there is nothing to
    average.

    In the row `mean`, every mean and median is the mean over organs, `n_cases` is the number of cases, the other counts
    are totals. `dice_std` is over the cases' mean Dice, and `dice_ci95_*` draws whole cases.
    """

    organ: str
    label: int | None
    n_cases: int
    n_ok: int
    n_missed: int
    n_false_positive: int
    n_absent: int
    dice_mean: float
    dice_std: float
    dice_ci95_low: float
    dice_ci95_high: float
    hd95_mm_mean: float
    hd95_mm_median: float
    hd95_penalised_mm_mean: float
    volume_error_ml_mean: float


class HasStatus(Protocol):
    """A score row of any protocol."""

    @property
    def status(self) -> str:
        """One of `STATUSES`."""


class HasDice(HasStatus, Protocol):
    """A score row with the Dice of one organ of one case."""

    @property
    def case(self) -> str:
        """Name of the case."""

    @property
    def label(self) -> int:
        """Label value of the organ."""

    @property
    def dice(self) -> float:
        """Dice, NaN where the organ is absent."""


_Score = TypeVar("_Score", bound=HasDice)


def count_statuses(scores: Sequence[HasStatus]) -> dict[str, int]:
    """Return `n_ok`, `n_missed`, `n_false_positive` and `n_absent` of some scores."""
    return tally_statuses(score.status for score in scores)


def tally_statuses(statuses: Iterable[str]) -> dict[str, int]:
    """Return how often each of `STATUSES` occurs, as the columns `n_ok` and so on."""
    counts = Counter(statuses)
    return {f"n_{status}": counts[status] for status in STATUSES}


def summarise_organs(scores: Sequence[OrganScore]) -> list[OrganSummary]:
    """Return one row for each organ, by label value, and the row `mean` last."""
    rows = [_summarise_organ(mine) for mine in by_organ(scores)]
    return [*rows, _mean_row(rows, scores)]


def dice_table(scores: Sequence[HasDice]) -> np.ndarray:
    """Return Dice as (cases, organs) float, cases by name, organs by label value, NaN where the organ is absent."""
    rows = {case: index for index, case in enumerate(sorted({score.case for score in scores}))}
    columns = {value: index for index, value in enumerate(sorted({score.label for score in scores}))}
    table = np.full((len(rows), len(columns)), np.nan)
    for score in scores:
        table[rows[score.case], columns[score.label]] = score.dice
    return table


def dice_over_cases(scores: Sequence[HasDice]) -> dict[str, float]:
    """Return `dice_mean`, `dice_std` and `dice_ci95_*` of one organ in the cases that have it."""
    dice = np.array([score.dice for score in scores if score.status != ABSENT])
    low, high = bootstrap_ci(dice)
    return {
        "dice_mean": mean_or_nan(dice),
        "dice_std": deviation_or_nan(dice),
        "dice_ci95_low": low,
        "dice_ci95_high": high,
    }


def dice_over_organs(scores: Sequence[HasDice]) -> dict[str, float]:
    """Return `dice_mean`, `dice_std` and `dice_ci95_*` of the row `mean`, where whole cases are drawn."""
    table = dice_table(scores)
    counted = table[~np.isnan(table).all(axis=1)]
    low, high = bootstrap_ci(table)
    return {
        "dice_mean": macro_mean(table),
        "dice_std": deviation_or_nan([macro_mean(case[None]) for case in counted]),
        "dice_ci95_low": low,
        "dice_ci95_high": high,
    }


def mean_or_nan(values: Sequence[float] | np.ndarray) -> float:
    """Return the mean of values (N,), NaN if there are none."""
    return float(np.mean(values)) if len(values) else np.nan


def median_or_nan(values: Sequence[float] | np.ndarray) -> float:
    """Return the median of values (N,), NaN if there are none."""
    return float(np.median(values)) if len(values) else np.nan


def deviation_or_nan(values: Sequence[float] | np.ndarray) -> float:
    """Return the sample standard deviation of values (N,), NaN for fewer than two."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else np.nan


def mean_of_organs(means: Sequence[float]) -> float:
    """Return the mean over the organs that occur in any case; `n_absent` shows which do not."""
    return mean_or_nan([mean for mean in means if not np.isnan(mean)])


def by_organ(scores: Sequence[_Score]) -> list[list[_Score]]:
    """Return the scores of each organ, by label value."""
    values = sorted({score.label for score in scores})
    return [[score for score in scores if score.label == value] for value in values]


def _summarise_organ(scores: Sequence[OrganScore]) -> OrganSummary:
    present = [score for score in scores if score.status != ABSENT]
    hd95 = [score.hd95_mm for score in present]
    return OrganSummary(
        organ=scores[0].organ,
        label=scores[0].label,
        n_cases=len(scores),
        **count_statuses(scores),
        **dice_over_cases(scores),
        hd95_mm_mean=mean_or_nan(hd95),
        hd95_mm_median=median_or_nan(hd95),
        hd95_penalised_mm_mean=mean_or_nan([score.hd95_penalised_mm for score in present]),
        volume_error_ml_mean=mean_or_nan([score.volume_prediction_ml - score.volume_label_ml for score in present]),
    )


def _mean_row(rows: Sequence[OrganSummary], scores: Sequence[OrganScore]) -> OrganSummary:
    return OrganSummary(
        organ=MEAN_ROW,
        label=None,
        n_cases=len({score.case for score in scores}),
        **count_statuses(scores),
        **dice_over_organs(scores),
        hd95_mm_mean=mean_of_organs([row.hd95_mm_mean for row in rows]),
        hd95_mm_median=mean_of_organs([row.hd95_mm_median for row in rows]),
        hd95_penalised_mm_mean=mean_of_organs([row.hd95_penalised_mm_mean for row in rows]),
        volume_error_ml_mean=mean_of_organs([row.volume_error_ml_mean for row in rows]),
    )
