# SPDX-License-Identifier: Apache-2.0
"""The comparison in a sentence a student: whether its best method is better than the student without a teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline.comparison.arms import ALONE, METHOD, TEACHER, Arm, Comparison
from pipeline.comparison.paired import Difference, Metric, main_metric
from pipeline.comparison.tables.rows import ComparisonRow
from pipeline.evaluation.statistics import FEWEST_FOR_WILCOXON


def verdict(comparison: Comparison, rows: Sequence[ComparisonRow]) -> str:
    """Return a sentence for each student; empty where no method has a student alone beside it.

    A student's best method is the best in validation, as is its control; where the runs tell no validation score, the
    best of the table. `choice` says which. A student that trained for longer without a teacher, as for the time that
    a method takes, is no control and gets a sentence of its own: often it is ahead. So does a teacher that is no better
    than the control, since it has little to teach.
    """
    metric, compared = main_metric(comparison.kind), _compared(comparison, rows)
    told = []
    for network in dict.fromkeys(row.arm.network for row in compared):
        mine = [row for row in compared if row.arm.network == network]
        by_validation = _by_validation(compared)
        best = max(mine, key=lambda row: row.arm.validation if by_validation else row.metrics[metric.name].mean)
        change, control = best.metrics[metric.name].difference, comparison.control(network)
        figures = _told(metric, change, comparison.unit)
        told.append(f"{best.arm.label} is {_standing(change)} {control.label}: {figures}.")
        means = [(row.arm, row.metrics[metric.name].mean) for row in rows]
        told += longer_trained(metric, means, best.arm)
        told += _weak_teacher(metric, means, control)
    return " ".join(told)


def choice(comparison: Comparison, rows: Sequence[ComparisonRow]) -> list[str]:
    """Return the note on which methods the verdict is about, in a list; none where there is no verdict."""
    compared = _compared(comparison, rows)
    if not compared:
        return []
    chosen = "in validation" if _by_validation(compared) else "in this table, since the runs tell no validation score"
    return [f"The verdict at the top is about the method and the control of each student that are best {chosen}."]


def longer_trained(metric: Metric, means: Sequence[tuple[Arm, float]], method: Arm) -> list[str]:
    """Return a sentence for each arm of a method's student that trained for more epochs than the method, alone.

    Args:
        metric: whose means are told.
        means: arms and their means, the method's among them.
        method: the arm that the others are compared with.
    """
    (of_method,) = [mean for arm, mean in means if arm is method]
    most = _epochs(method)[1]
    longer = [
        (arm, mean)
        for arm, mean in means
        if arm.role == ALONE and arm.network == method.network and _epochs(arm)[1] > most
    ]
    return [
        f"{arm.label}, trained for {_listed_epochs(arm)} epochs in place of {most}, has {metric.title} "
        f"{mean:.{metric.decimals}f}, {method.label} {of_method:.{metric.decimals}f}."
        for arm, mean in longer
    ]


def _weak_teacher(metric: Metric, means: Sequence[tuple[Arm, float]], control: Arm) -> list[str]:
    """Return a sentence if the teacher's mean is not above the control's, in a list."""
    (of_control,) = [mean for arm, mean in means if arm is control]
    return [
        f"The teacher is no better than {control.label}, with {metric.title} {mean:.{metric.decimals}f} and "
        f"{of_control:.{metric.decimals}f}: it has little to teach."
        for arm, mean in means
        if arm.role == TEACHER and mean <= of_control
    ]


def _compared(comparison: Comparison, rows: Sequence[ComparisonRow]) -> list[ComparisonRow]:
    name = main_metric(comparison.kind).name
    return [row for row in rows if row.arm.role == METHOD and row.metrics[name].difference is not None]


def _by_validation(compared: Sequence[ComparisonRow]) -> bool:
    return not any(math.isnan(row.arm.validation) for row in compared)


def _standing(change: Difference) -> str:
    """Return where a method stands by the interval of its change; the main metrics are all better where more."""
    if change.includes_zero is not False:
        return "not clearly better than"
    return "better than" if change.low > 0 else "worse than"


def _epochs(arm: Arm) -> tuple[int, int]:
    """Return the fewest and the most epochs of an arm's runs."""
    epochs = [run.epochs for run in arm.parts]
    return min(epochs), max(epochs)


def _listed_epochs(arm: Arm) -> str:
    least, most = _epochs(arm)
    return f"{least}" if least == most else f"{least} to {most}"


def _told(metric: Metric, change: Difference, unit: str) -> str:
    told = f"{metric.title} {change.value:+.{metric.decimals}f}"
    if not math.isnan(change.low):
        told += f" (95 % interval {change.low:.{metric.decimals}f} to {change.high:.{metric.decimals}f})"
    told = told.replace("-", "\N{MINUS SIGN}")
    return told if change.pairs >= FEWEST_FOR_WILCOXON else f"{told}, but {change.pairs} {unit}s are too few to be sure"
