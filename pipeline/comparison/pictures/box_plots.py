# SPDX-License-Identifier: Apache-2.0
"""Dice of every case as points and boxes: one axis for each organ, one row for each arm."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.comparison.arms import Arm, Comparison
from pipeline.comparison.pictures.style import ArmStyle, arm_styles
from pipeline.comparison.run_files import CASE_COLUMN, ORGAN_COLUMN

# The quartiles of fewer cases than this are the cases themselves.
FEWEST_FOR_A_BOX = 5
_COLUMNS = 3
_GOLDEN = 0.618034  # its multiples never bunch up: points are spread alike in every run


def case_scores(arm: Arm, part: str) -> pd.Series:
    """Return the Dice of each case in an organ or class, the mean over the arm's seeds; cases without it are left out.

    The index holds the cases, sorted.
    """
    kind = arm.runs[0].kind
    tables = pd.concat([run.scores[run.scores[ORGAN_COLUMN[kind]] == part] for run in arm.runs])
    return tables.groupby(CASE_COLUMN[kind])["dice"].mean().dropna().sort_index()


def box_figure(comparison: Comparison) -> Figure:
    """Draw the Dice of all cases: a box for the quartiles, points below it, the median as a line and in figures.

    Whiskers reach the last case within 1.5 interquartile ranges. Fewer than `FEWEST_FOR_A_BOX` cases get no box.
    """
    parts, styles = comparison.arms[0].runs[0].organs, arm_styles(comparison)
    columns = 2 if len(parts) == 4 else min(_COLUMNS, len(parts))
    rows = -(-len(parts) // columns)
    height = rows * (0.7 + 0.4 * len(comparison.arms)) + 0.3
    figure = Figure(figsize=(2.2 + 2.9 * columns if columns > 1 else 6.5, max(height, 2.2)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12)
    axes = list(figure.subplots(rows, columns, squeeze=False, sharey=True, sharex=True).flat)
    scores = {part: {arm.label: case_scores(arm, part) for arm in comparison.arms} for part in parts}
    lowest = min((values.min() for by_arm in scores.values() for values in by_arm.values() if len(values)), default=0)
    for axis, part in zip(axes, parts, strict=False):
        for row, arm in enumerate(comparison.arms):
            _draw_arm(axis, row, scores[part][arm.label].to_numpy(), styles[arm.label])
        axis.set_title(part)
        axis.text(1.01, -0.62, "median", transform=axis.get_yaxis_transform(), fontsize=7.5, style="italic")
        axis.set_xlabel("Dice")
        axis.xaxis.set_tick_params(labelbottom=True)
        # From zero, unless that would press everything against the right edge.
        axis.set_xlim(-0.03 if lowest < 0.5 else lowest - 0.05, 1.03)
        axis.set_ylim(len(comparison.arms) - 0.4, -0.6)
        axis.set_yticks(range(len(comparison.arms)), [arm.label for arm in comparison.arms])
        axis.grid(axis="x", color="#DDDDDD", linewidth=0.6)
        axis.set_axisbelow(True)
    for axis in axes[len(parts) :]:
        axis.set_axis_off()
    return figure


def _draw_arm(axis: Axes, row: int, values: np.ndarray, style: ArmStyle) -> None:
    if not len(values):
        axis.text(0.5, row, "no case", transform=axis.get_yaxis_transform(), ha="center", va="center", fontsize=7.5)
        return
    above = row - 0.2
    if len(values) >= FEWEST_FOR_A_BOX:
        box = axis.boxplot(
            values, positions=[above], orientation="horizontal", widths=0.3, patch_artist=True, showfliers=False,
            manage_ticks=False, medianprops={"color": "black", "linewidth": 1.8},
        )  # fmt: skip
        box["boxes"][0].set(facecolor=f"{style.colour}33", edgecolor=style.colour, hatch=style.hatch, linewidth=1)
    else:
        axis.vlines(np.median(values), above - 0.15, above + 0.15, color="black", linewidth=1.8)
    spread = row + 0.05 + 0.35 * (np.arange(1, len(values) + 1) * _GOLDEN % 1)
    size, opacity = (22, 0.9) if len(values) <= 30 else (7, 0.55)
    size *= 2.5 if style.marker == "*" else 1  # a star fills little of its square
    axis.scatter(
        values, spread, s=size, marker=style.marker, color=style.colour, alpha=opacity, linewidths=0.3,
        edgecolors="white", zorder=3, rasterized=len(values) > 30,
    )  # fmt: skip
    axis.text(1.01, row, f"{np.median(values):.2f}", transform=axis.get_yaxis_transform(), fontsize=7.5, va="center")
