# SPDX-License-Identifier: Apache-2.0
"""Accuracy against cost: what a student loses to its teacher, what it saves, and what a method gives back."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation, Transform

from pipeline.comparison.arms import Comparison
from pipeline.comparison.paired import main_metric
from pipeline.comparison.pictures.style import ArmStyle, arm_styles
from pipeline.comparison.tables.rows import ComparisonRow, MetricScore

_LABEL_SHARE = 0.055  # of the axis' height: what one label needs
_LETTER_SHARE, _MOST_ROOM = 0.011, 0.6  # of the axis' width: a letter of a label, and all labels
_WIDTH_PT = 440.0  # of the axis, about
_STEP_PT = 8.0  # between arms of one network, which all have the same cost


def cost_figure(comparison: Comparison, rows: Sequence[ComparisonRow]) -> Figure | None:
    """Draw each arm's main metric against the multiply-adds of its network, a logarithmic axis; None without figures.

    Bars are one sample deviation over seeds to each side; arms of one seed have none. Arms of equal cost stand side by
    side about it.
    """
    metric, styles = main_metric(comparison.kind), arm_styles(comparison)
    drawn = [row for row in rows if math.isfinite(row.metrics[metric.name].mean)]
    if not drawn:
        return None
    figure = Figure(figsize=(7.2, max(3.6, 1.8 + 0.24 * len(rows))), layout="constrained")
    axis = figure.subplots()
    axis.set_xscale("log")
    axis.set_xlabel("multiply-adds of one image in 10⁹ (logarithmic)")
    axis.set_ylabel(metric.title)
    drawn.sort(key=lambda row: row.metrics[metric.name].mean)  # so that few of the lines to the labels cross
    places = [_beside(figure, axis, row, drawn) for row in drawn]
    for row, (_, transform) in zip(drawn, places, strict=True):
        _draw_arm(axis, row, row.metrics[metric.name], styles[row.arm.label], transform)
    room = min(_MOST_ROOM, max(len(row.arm.label) for row in drawn) * _LETTER_SHARE + 0.15)
    spread = min(0.2, max(reach_pt for reach_pt, _ in places) / 2 / _WIDTH_PT)
    axis.set_xlim(*_limits([_cost(row) for row in drawn], spread, room))
    low, high = _value_limits([row.metrics[metric.name] for row in drawn])
    axis.set_ylim(low, high)
    values = [row.metrics[metric.name].mean for row in drawn]
    margin = _LABEL_SHARE / 2 * (high - low)
    heights = apart(values, _LABEL_SHARE * (high - low), low + margin, high - margin)
    for row, value, height, (reach_pt, transform) in zip(drawn, values, heights, places, strict=True):
        label = axis.annotate(
            f"{row.arm.label}  {value:.{metric.decimals}f}",
            (_cost(row), value), (reach_pt + 22, height), xycoords=transform, textcoords=("offset points", "data"),
            va="center", fontsize=8, bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8},
            arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.6, "relpos": (0, 0.5), "shrinkA": 0},
        )  # fmt: skip
        label.set_in_layout(False)  # it hangs on a point, so that it cannot make the axis smaller
    axis.grid(color="#DDDDDD", linewidth=0.6, which="both", axis="both")
    axis.set_axisbelow(True)
    return figure


def _cost(row: ComparisonRow) -> float:
    return row.cost.multiply_adds / 1e9


def _limits(costs: Sequence[float], left: float, right: float) -> tuple[float, float]:
    """Return the limits of the logarithmic axis, of which `left` and `right` are left beside the costs and a margin."""
    low, high = (math.log10(extreme(costs)) for extreme in (min, max))
    margin = max(0.12 * (high - low), 0.1)
    low, high = low - margin, high + margin
    width = (high - low) / (1 - left - right)
    return 10 ** (low - left * width), 10 ** (high + right * width)


def _value_limits(scores: Sequence[MetricScore]) -> tuple[float, float]:
    """Return the limits of the axis of the metric: all means with their deviations, and a margin."""
    deviations = [0.0 if math.isnan(score.sd) else score.sd for score in scores]
    low = min(score.mean - deviation for score, deviation in zip(scores, deviations, strict=True))
    high = max(score.mean + deviation for score, deviation in zip(scores, deviations, strict=True))
    margin = max(0.12 * (high - low), 1e-3)
    return low - margin, high + margin


def _beside(figure: Figure, axis: Axes, row: ComparisonRow, rows: Sequence[ComparisonRow]) -> tuple[float, Transform]:
    """Return how arms of equal cost stand side by side: points to the last of them, and the transform of this one."""
    equal = [other for other in rows if other.cost.multiply_adds == row.cost.multiply_adds]
    last = (len(equal) - 1) / 2
    shift_pt = _STEP_PT * (equal.index(row) - last)
    transform = axis.transData + ScaledTranslation(shift_pt / 72, 0, figure.dpi_scale_trans)
    return _STEP_PT * last - shift_pt, transform


def _draw_arm(axis: Axes, row: ComparisonRow, score: MetricScore, style: ArmStyle, transform: Transform) -> None:
    axis.errorbar(
        _cost(row), score.mean, yerr=None if math.isnan(score.sd) else score.sd, capsize=2, transform=transform,
        color=style.colour, marker=style.marker, markersize=13 if style.marker == "*" else 7, linestyle="",
        elinewidth=1, markeredgecolor="white", markeredgewidth=0.5,
    )  # fmt: skip


def apart(values: Sequence[float], distance: float, low: float = -math.inf, high: float = math.inf) -> list[float]:
    """Return places near some values, in their order, no two nearer than `distance`.

    Runs of values that are too near are spread about their mean; all stay between `low` and `high` if they fit there.
    """

    def centre(group: Sequence[int]) -> float:
        """Return where the middle of a group of labels goes: their mean, moved inside the bounds."""
        half = distance * (len(group) - 1) / 2
        mean = sum(values[member] for member in group) / len(group)
        return max(low + half, min(high - half, mean))

    groups: list[list[int]] = []
    for index in sorted(range(len(values)), key=lambda index: values[index]):
        groups.append([index])
        while len(groups) > 1 and centre(groups[-1]) - centre(groups[-2]) < distance * sum(map(len, groups[-2:])) / 2:
            groups[-2:] = [groups[-2] + groups[-1]]
    places = [0.0] * len(values)
    for group in groups:
        for rank, member in enumerate(group):
            places[member] = centre(group) + distance * (rank - (len(group) - 1) / 2)
    return places
