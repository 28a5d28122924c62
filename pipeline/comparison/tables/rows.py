# SPDX-License-Identifier: Apache-2.0
"""One row for each arm: its figures over seeds, its difference to the student alone, and the network's cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from pipeline.comparison.arms import ALONE, METHOD, TEACHER, Arm, Comparison
from pipeline.comparison.cost import Cost, costs_of
from pipeline.comparison.gap import Gap, gap_closed
from pipeline.comparison.paired import METRICS, Difference, Metric, PairedDraws, organ_table
from pipeline.comparison.run_files import HD95, PENALISED
from pipeline.comparison.runs import Run
from pipeline.evaluation.scores import ABSENT, MISSED
from pipeline.evaluation.statistics import FEWEST_FOR_WILCOXON, holm
from pipeline.evaluation.summaries import deviation_or_nan, mean_of_organs, mean_or_nan, median_or_nan


@dataclass(frozen=True)
class MetricScore:
    """A metric of one arm.

    `mean` and `sd` (sample standard deviation, NaN for one seed) are over seeds. `last` is the mean at the last epoch
    in place of the best, NaN if a run has no report of it. All students but the control have a `difference`, the arm
    minus its better control, and a `gap`. Methods have `p_holm`, corrected over all methods of the comparison. Without
    a test, `test_note` says why. `others` has the differences to each control, by name, if there are several.
    """

    mean: float
    sd: float
    last: float = math.nan
    difference: Difference | None = None
    p_holm: float = math.nan
    test_note: str = ""
    gap: Gap = field(default_factory=Gap)
    others: Mapping[str, Difference] = field(default_factory=dict)


@dataclass(frozen=True)
class OrganFigures:
    """One organ or class of an arm, means over seeds; distances in mm, of slides in pixels."""

    dice_mean: float
    dice_sd: float
    hd95_median: float
    hd95_penalised: float
    n_missed: float


@dataclass(frozen=True)
class ComparisonRow:
    """One arm; `metrics` are by the names of `METRICS`, `organs` by name and empty for slides.

    `hd95_median` is the mean over organs of the median over cases, inf where half of the cases miss an organ, and
    `n_missed` counts organs that were missed in all cases; both are means over seeds.
    """

    arm: Arm
    cases: int
    metrics: dict[str, MetricScore]
    organs: dict[str, OrganFigures]
    hd95_median: float
    n_missed: float
    cost: Cost


def comparison_rows(comparison: Comparison) -> list[ComparisonRow]:
    """Return the rows of a comparison in the order of its arms."""
    draws = PairedDraws(len(comparison.cases), comparison.patients)
    rows = [
        _row(comparison, arm, cost, draws) for arm, cost in zip(comparison.arms, costs_of(comparison.arms), strict=True)
    ]
    for metric in METRICS[comparison.kind]:
        rows = _corrected(rows, metric.name)
    return rows


def _row(comparison: Comparison, arm: Arm, cost: Cost, draws: PairedDraws) -> ComparisonRow:
    run = arm.runs[0]
    tables = [_organ_figures(run) for run in arm.runs]
    return ComparisonRow(
        arm=arm,
        cases=len(run.cases),
        metrics={metric.name: _score(comparison, metric, arm, draws) for metric in METRICS[comparison.kind]},
        organs={organ: _over_seeds([table[organ] for table in tables]) for organ in comparison.organs},
        hd95_median=float(
            np.mean([mean_of_organs([organ.hd95_median for organ in table.values()]) for table in tables])
        ),
        n_missed=float(np.mean([sum(organ.n_missed for organ in table.values()) for table in tables])),
        cost=cost,
    )


def _score(comparison: Comparison, metric: Metric, arm: Arm, draws: PairedDraws) -> MetricScore:
    values = metric.values(arm)
    last = math.nan if None in (runs := [run.last for run in arm.runs]) else float(np.mean([*map(metric.value, runs)]))
    score = MetricScore(mean=float(np.mean(values)), sd=deviation_or_nan(values), last=last)
    if arm.role == TEACHER or math.isnan(score.mean):
        return score
    controls, control = comparison.controls(arm.network), comparison.control(arm.network)
    if control is None:
        reason = f"no run of {arm.network} alone"
        return replace(score, test_note=reason, gap=Gap(note=reason))
    if len(controls) > 1:
        others = {other.method or ALONE: draws.difference(metric, arm, other) for other in controls if other is not arm}
        score = replace(score, others=others)
    if arm is control:
        return score
    difference = draws.difference(metric, arm, control)
    return replace(
        score,
        difference=difference,
        test_note=_test_note(difference, comparison.unit),
        gap=_gap(comparison, metric, arm, control, draws),
    )


def _gap(comparison: Comparison, metric: Metric, arm: Arm, control: Arm, draws: PairedDraws) -> Gap:
    teacher = comparison.teacher
    known = {None, *(run.model_sha256 for run in (teacher.runs if teacher is not None else ()))}
    if teacher is None or not {run.teacher_sha256 for run in arm.runs} <= known:
        return Gap(note="its teacher is not among the runs")
    return gap_closed(metric, arm, control, teacher, draws)


def _test_note(difference: Difference, unit: str) -> str:
    """Return why there is no test, or nothing."""
    if difference.nonzero_pairs >= FEWEST_FOR_WILCOXON:
        return ""
    if difference.pairs < FEWEST_FOR_WILCOXON:
        return f"{difference.pairs} {unit}s: fewer than {FEWEST_FOR_WILCOXON} can never reach p < 0.05"
    return f"only {difference.nonzero_pairs} of {difference.pairs} {unit}s differ at all"


def _corrected(rows: Sequence[ComparisonRow], metric: str) -> list[ComparisonRow]:
    """Return the rows with the p-values of a metric corrected for all methods."""
    scores = [row.metrics[metric] for row in rows]
    tested = [row.arm.role == METHOD and score.difference is not None for row, score in zip(rows, scores, strict=True)]
    p_values = holm([score.difference.p if told else math.nan for score, told in zip(scores, tested, strict=True)])
    return [
        replace(row, metrics={**row.metrics, metric: replace(score, p_holm=p)})
        for row, score, p in zip(rows, scores, p_values, strict=True)
    ]


def _organ_figures(run: Run) -> dict[str, OrganFigures]:
    """Return the figures of each organ of one run, over the cases that have it in label or prediction."""
    hd95, penalised, dice = (organ_table(run, name) for name in (HD95[run.kind], PENALISED[run.kind], "dice"))
    statuses = run.scores["status"].to_numpy().reshape(hd95.shape)
    figures = {}
    for column, organ in enumerate(run.organs):
        present = statuses[:, column] != ABSENT
        figures[organ] = OrganFigures(
            dice_mean=mean_or_nan(dice[present, column]),
            dice_sd=math.nan,
            hd95_median=median_or_nan(hd95[present, column]),
            hd95_penalised=mean_or_nan(penalised[present, column]),
            n_missed=float(np.count_nonzero(statuses[:, column] == MISSED)),
        )
    return figures


def _over_seeds(figures: Sequence[OrganFigures]) -> OrganFigures:
    return OrganFigures(
        dice_mean=float(np.mean([seed.dice_mean for seed in figures])),
        dice_sd=deviation_or_nan([seed.dice_mean for seed in figures]),
        hd95_median=float(np.mean([seed.hd95_median for seed in figures])),
        hd95_penalised=float(np.mean([seed.hd95_penalised for seed in figures])),
        n_missed=float(np.mean([seed.n_missed for seed in figures])),
    )
