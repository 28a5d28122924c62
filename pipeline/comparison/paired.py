# SPDX-License-Identifier: Apache-2.0
"""Differences of arms on the same cases: bootstrap intervals over whole patients and signed-rank tests.

An arm's figure is the mean of the figures in its runs' reports. A draw takes the same patients for every run of every
arm. So the difficulty of a case, which is common to all arms, cancels in a difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.comparison.arms import Arm
from pipeline.comparison.run_files import PENALISED
from pipeline.comparison.runs import Run
from pipeline.data.dataset.dataset import SCANS, SLIDES
from pipeline.errors import InputError
from pipeline.evaluation.slides.pixel_scores import PixelCounts
from pipeline.evaluation.statistics import draw_cases, macro_mean, mean_of_occurring, weighted_macro_means, wilcoxon_p

LEVEL = 0.95
# The metric by which papers of the field rank networks.
MAIN_METRIC = {SCANS: "dice", SLIDES: "miou"}


@dataclass(frozen=True)
class Metric:
    """A figure by which arms are compared.

    `name` is the beginning of its columns, `title` its heading in tables, where it is rounded to `decimals`. `sign` is
    1 if larger is better and -1 if smaller is. `drawn(run, weights)` returns it for each row of weights (draws, cases),
    and `by_case(run)` its value in each case, (cases,), NaN where it does not apply.
    """

    name: str
    title: str
    decimals: int
    sign: int
    drawn: Callable[[Run, np.ndarray], np.ndarray]
    by_case: Callable[[Run], np.ndarray]

    def value(self, run: Run) -> float:
        """Return the figure over all cases of a run."""
        return float(self.drawn(run, np.ones((1, len(run.cases))))[0])

    def values(self, arm: Arm) -> list[float]:
        """Return the figure of each run of an arm."""
        return [self.value(run) for run in arm.runs]


@dataclass(frozen=True)
class Difference:
    """One arm minus another: the difference, its bootstrap interval over patients, and the test over patients.

    `low` and `high` are NaN for fewer than two patients. `p` (two-sided, not corrected) is NaN if there are too few
    differences for the test. `pairs` is the number of patients with a difference, `nonzero_pairs` the number of those
    whose difference is not 0.
    """

    value: float
    low: float
    high: float
    p: float
    pairs: int
    nonzero_pairs: int

    @property
    def includes_zero(self) -> bool | None:
        """Whether the interval includes 0; None where there is no interval."""
        return None if math.isnan(self.low) else self.low <= 0 <= self.high


class PairedDraws:
    """Draws of the patients whose cases all arms share, and each arm's figures in them.

    Args:
        cases: number of cases, at least two for intervals.
        patients: the patient of each case, in order; all cases of a patient are drawn and tested together. None: each
            case is a patient.
    """

    def __init__(self, cases: int, patients: Sequence[str] | None = None) -> None:
        self._patients = np.unique(patients, return_inverse=True)[1] if patients else np.arange(cases)
        count = len(set(self._patients))
        self._weights = draw_cases(count)[:, self._patients] if count > 1 else None
        self._figures: dict[tuple[Arm, str], np.ndarray] = {}

    def difference(self, metric: Metric, arm: Arm, reference: Arm) -> Difference:
        """Return `arm` minus `reference` in a metric."""
        by_case = _case_means(metric, arm) - _case_means(metric, reference)
        paired = self._by_patient(by_case)
        low, high = self._interval(metric, arm, reference)
        return Difference(
            value=float(np.mean(metric.values(arm)) - np.mean(metric.values(reference))),
            low=low,
            high=high,
            p=wilcoxon_p(paired),
            pairs=len(paired),
            nonzero_pairs=int(np.count_nonzero(np.round(paired, 9))),
        )

    def _interval(self, metric: Metric, arm: Arm, reference: Arm) -> tuple[float, float]:
        if self._weights is None:
            return math.nan, math.nan
        return _percentiles(self._drawn(metric, arm) - self._drawn(metric, reference))

    def share_interval(self, metric: Metric, arm: Arm, control: Arm, best: Arm) -> tuple[float, float]:
        """Return the interval of (arm - control) / (best - control); NaN for fewer than two patients."""
        if self._weights is None:
            return math.nan, math.nan
        arm, control, best = (self._drawn(metric, each) for each in (arm, control, best))
        with np.errstate(divide="ignore", invalid="ignore"):  # a draw may have no gap at all
            return _percentiles((arm - control) / (best - control))

    def _by_patient(self, values: np.ndarray) -> np.ndarray:
        """Return each patient's mean over the cases that have a value, (patients that have any,)."""
        has = ~np.isnan(values)
        counts = np.bincount(self._patients[has], minlength=1)
        totals = np.bincount(self._patients[has], weights=values[has], minlength=1)
        return totals[counts > 0] / counts[counts > 0]

    def _drawn(self, metric: Metric, arm: Arm) -> np.ndarray:
        """Return an arm's figure in each draw: the mean of its runs, (draws,)."""
        key = arm, metric.name
        if key not in self._figures:
            self._figures[key] = np.mean([metric.drawn(run, self._weights) for run in arm.runs], axis=0)
        return self._figures[key]


def _percentiles(drawn: np.ndarray) -> tuple[float, float]:
    # Equal arms must differ by 0, not by the 1e-17 that another order of additions gives.
    drawn = np.round(drawn[~np.isnan(drawn)], 12)
    if not drawn.size:
        return math.nan, math.nan
    low, high = np.percentile(drawn, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)


def organ_table(run: Run, column: str) -> np.ndarray:
    """Return a column of a run's table of cases as (cases, organs), cases by name and organs by label value."""
    return run.scores[column].to_numpy(dtype=np.float64).reshape(len(run.cases), -1)


def image_counts(run: Run) -> np.ndarray:
    """Return pixel counts (images, 4, K), background first: true and false positives, false and true negatives.

    With a single class, the counts of the background follow from those of the class. With several, they also need the
    number of right pixels, which is the column `pixels_right`. Raises `InputError` for a report without it.
    """
    names = ("true_positive", "false_positive", "false_negative", "true_negative")
    classes = np.stack([organ_table(run, name) for name in names], axis=1)
    hit, invented, lost, left = np.moveaxis(classes, 1, 0)
    pixels = (hit + invented + lost + left)[:, 0]
    if classes.shape[-1] == 1:
        right = left[:, 0]
    elif "pixels_right" in run.scores:
        right = organ_table(run, "pixels_right")[:, 0] - hit.sum(axis=1)
    else:
        raise InputError(
            f"{run.report} tells of several classes but not how many pixels are right (column pixels_right): evaluate "
            f"{run.path} again with this release"
        )
    label, prediction = pixels - (hit + lost).sum(axis=1), pixels - (hit + invented).sum(axis=1)
    background = np.stack([right, prediction - right, label - right, pixels - label - prediction + right], axis=1)
    return np.concatenate([background[..., None], classes], axis=2)


def pooled_accuracy(counts: np.ndarray) -> np.ndarray:
    """Return the share of right pixels, (...,), from counts (..., 4, K)."""
    return counts[..., 0, :].sum(axis=-1) / counts[..., 0].sum(axis=-1)


def pooled_miou(counts: np.ndarray) -> np.ndarray:
    """Return the mean IoU of the classes that occur, background included, (...,), from counts (..., 4, K)."""
    return mean_of_occurring(PixelCounts(*np.moveaxis(counts, -2, 0)).iou)


def _averaged(name: str, title: str, column: str, decimals: int, sign: int) -> Metric:
    """Return the metric that is the mean over organs of the mean over cases."""
    return Metric(
        name,
        title,
        decimals,
        sign,
        lambda run, weights: weighted_macro_means(weights, organ_table(run, column)),
        lambda run: np.array([macro_mean(case[None]) for case in organ_table(run, column)]),
    )


def _pooled(name: str, title: str, figure: Callable[[np.ndarray], np.ndarray]) -> Metric:
    """Return the metric of the counts of all images together."""

    def drawn(run: Run, weights: np.ndarray) -> np.ndarray:
        """Return the metric of each draw, (draws,), from how often it has each image, (draws, images)."""
        counts = image_counts(run)
        return figure((weights @ counts.reshape(len(counts), -1)).reshape(-1, *counts.shape[1:]))

    return Metric(name, title, 4, 1, drawn, lambda run: figure(image_counts(run)))


def _case_means(metric: Metric, arm: Arm) -> np.ndarray:
    """Return each case's value, (cases,): the mean of the runs in which the metric applies to it."""
    return mean_of_occurring(np.stack([metric.by_case(run) for run in arm.runs]), axis=0)


METRICS: dict[str, Sequence[Metric]] = {
    SCANS: (
        _averaged("dice", "Dice", "dice", 3, 1),
        _averaged("hd95_penalised_mm", "HD95 mm (penalised)", PENALISED[SCANS], 2, -1),
    ),
    SLIDES: (
        _pooled("accuracy", "ACC", pooled_accuracy),
        _pooled("miou", "mIoU", pooled_miou),
        _averaged("dice", "Dice per image", "dice", 4, 1),
        _averaged("hd95_penalised_px", "HD95 px (penalised)", PENALISED[SLIDES], 2, -1),
    ),
}


def main_metric(kind: str) -> Metric:
    """Return the metric by which "scans" or "slides" are ranked."""
    return next(metric for metric in METRICS[kind] if metric.name == MAIN_METRIC[kind])
