# SPDX-License-Identifier: Apache-2.0
"""The share of the gap between the student alone and its teacher that a method closes, and whether there is a gap."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pipeline.comparison.arms import Arm
from pipeline.comparison.paired import Metric, PairedDraws


@dataclass(frozen=True)
class Gap:
    """The share of the gap between control and teacher that a method closes: 1 is as good as the teacher.

    `share` and its bootstrap interval are NaN if no share can be computed, and `note` says why. `is_none` is True if
    the reason is that the teacher is not clearly better than the control.
    """

    share: float = math.nan
    low: float = math.nan
    high: float = math.nan
    note: str = ""
    is_none: bool = False


def gap_closed(metric: Metric, method: Arm, control: Arm, teacher: Arm, draws: PairedDraws) -> Gap:
    """Return (method - control) / (teacher - control) of the means over seeds, negative where worse than the control.

    No share is computed if there is no gap, or if the gap may be due to chance.
    """
    gap = draws.difference(metric, teacher, control)
    if not gap.value * metric.sign > 0:
        return Gap(note=f"the teacher is not better than {control.label}", is_none=True)
    if gap.includes_zero is None:
        return Gap(note="too few cases to know whether the teacher is better")
    if gap.includes_zero:
        told = f"{gap.low:.{metric.decimals}f} to {gap.high:.{metric.decimals}f}"
        return Gap(note=f"the interval of teacher minus {control.label} includes zero ({told})", is_none=True)
    change = float(np.mean(metric.values(method)) - np.mean(metric.values(control)))
    return Gap(change / gap.value, *draws.share_interval(metric, method, control, teacher))
