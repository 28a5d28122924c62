# SPDX-License-Identifier: Apache-2.0
"""The comparison in a sentence a student: whether its best method is better than the student without a teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline.comparison.arms import METHOD, Comparison
from pipeline.comparison.paired import Difference, Metric, main_metric
from pipeline.comparison.tables.rows import ComparisonRow
from pipeline.evaluation.statistics import FEWEST_FOR_WILCOXON


def verdict(comparison: Comparison, rows: Sequence[ComparisonRow]) -> str:
    """Return the sentences; empty where no method has a student alone beside it.

    A student's best method is the best in validation, as is its control; where the runs tell no validation score, the
    best of the table.
    """
    metric = main_metric(comparison.kind)
    compared = [row for row in rows if row.arm.role == METHOD and row.metrics[metric.name].difference is not None]
    if not compared:
        return ""
    by_validation = not any(math.isnan(row.arm.validation) for row in compared)
    parts = []
    for network in dict.fromkeys(row.arm.network for row in compared):
        mine = [row for row in compared if row.arm.network == network]
        best = max(mine, key=lambda row: row.arm.validation if by_validation else row.metrics[metric.name].mean)
        change, control = best.metrics[metric.name].difference, comparison.control(network)
        parts.append(f"{best.arm.label} is {_standing(change)} {control.label}: {_told(metric, change)}.")
    chosen = "in validation" if by_validation else "in this table, since the runs tell no validation score"
    return f"{' '.join(parts)} Of each student the method and the control are those that are best {chosen}."


def _standing(change: Difference) -> str:
    """Return where a method stands by the interval of its change; the main metrics are all better where more."""
    if change.includes_zero is not False:
        return "not clearly better than"
    return "better than" if change.low > 0 else "worse than"


def _told(metric: Metric, change: Difference) -> str:
    told = f"{metric.title} {change.value:+.{metric.decimals}f}"
    if not math.isnan(change.low):
        told += f" (95 % interval {change.low:.{metric.decimals}f} to {change.high:.{metric.decimals}f})"
    told = told.replace("-", "\N{MINUS SIGN}")
    return told if change.pairs >= FEWEST_FOR_WILCOXON else f"{told}, but {change.pairs} cases are too few to be sure"
