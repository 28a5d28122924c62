# SPDX-License-Identifier: Apache-2.0
"""Learning curves from the event files of TensorBoard: the validation metric and every term of the loss."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.comparison.arms import Arm
from pipeline.comparison.pictures.style import ArmStyle

logger = logging.getLogger(__name__)

VALIDATION = "val_"
_POINTS = 100  # a term of thousands of steps is averaged to this many
_COLUMNS = 3
_FIRST = ("segmentation", "total")


class Curve(NamedTuple):
    """A scalar over training: steps (epochs for validation metrics) and values, both (N,) float."""

    steps: np.ndarray
    values: np.ndarray


class Band(NamedTuple):
    """The curves of several seeds, and folds, on common steps: mean, lowest and highest, each (N,) float."""

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def read_curves(folder: Path) -> dict[str, Curve]:
    """Return every scalar in the event files of a folder; nothing where there are none."""
    if not any(folder.glob("*tfevents*")):
        return {}
    logging.getLogger("tensorboard").setLevel(logging.WARNING)  # it tells of every file that it has read to its end
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    curves = {}
    for tag in events.Tags()["scalars"]:
        steps, values = np.array([(event.step, event.value) for event in events.Scalars(tag)], float).T
        finite = np.isfinite(values)
        curves[tag] = Curve(steps[finite], values[finite])
    return {tag: curve for tag, curve in curves.items() if len(curve.steps)}


def averaged(curve: Curve, points: int = _POINTS) -> Curve:
    """Return a curve as the means of `points` consecutive parts of equal length; a shorter one stays as it is."""
    if len(curve.steps) <= points:
        return curve
    parts = [np.array_split(column, points) for column in curve]
    return Curve(*(np.array([part.mean() for part in column]) for column in parts))


def over_seeds(curves: Sequence[Curve]) -> Band:
    """Return mean and range of several curves at the steps of the first, as far as all of them reach.

    Runs of very different lengths may have no step in common; the band is empty then.
    """
    begin, end = max(curve.steps[0] for curve in curves), min(curve.steps[-1] for curve in curves)
    steps = curves[0].steps[(curves[0].steps >= begin) & (curves[0].steps <= end)]
    values = np.array([np.interp(steps, *curve) for curve in curves])
    return Band(steps, values.mean(axis=0), values.min(axis=0), values.max(axis=0))


def arm_bands(arm: Arm) -> dict[str, Band]:
    """Return mean and range of each scalar over the runs of an arm that have it, where these have a step in common.

    Warns of runs without event files.
    """
    by_tag: dict[str, list[Curve]] = {}
    for run in arm.parts:
        found = read_curves(run.tensorboard)
        if not found:
            logger.warning("%s has no event files; its learning curves are not drawn", run.tensorboard)
        for tag, curve in found.items():
            by_tag.setdefault(tag, []).append(averaged(curve))
    bands = {tag: over_seeds(curves) for tag, curves in by_tag.items()}
    return {tag: band for tag, band in bands.items() if len(band.steps)}


def curve_figure(arms: Sequence[Arm], styles: Mapping[str, ArmStyle]) -> Figure | None:
    """Draw the scalars of some arms, a small axis each: the validation metric first; None where no arm has any.

    A band spans the lowest to the highest seed. Terms of the loss over more than a factor of 20 get a logarithmic axis.
    """
    bands = {arm.label: arm_bands(arm) for arm in arms}
    tags = sorted({tag for by_tag in bands.values() for tag in by_tag}, key=_order)
    if not tags:
        return None
    columns = min(_COLUMNS, len(tags))
    rows = -(-len(tags) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.3 * rows + 0.5), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, tag in zip(axes, tags, strict=False):
        _draw_tag(axis, tag, {label: by_tag[tag] for label, by_tag in bands.items() if tag in by_tag}, styles)
    for axis in axes[len(tags) :]:
        axis.set_axis_off()
    handles = {line.get_label(): line for axis in axes for line in axis.get_lines()}
    shown = [label for label in bands if label in handles]
    legend_columns = max(1, min(len(shown), columns))
    figure.legend([handles[label] for label in shown], shown, loc="outside lower center", ncols=legend_columns)
    return figure


def _order(tag: str) -> tuple[bool, int, str]:
    return not tag.startswith(VALIDATION), _FIRST.index(tag) if tag in _FIRST else len(_FIRST), tag


def _draw_tag(axis: Axes, tag: str, bands: Mapping[str, Band], styles: Mapping[str, ArmStyle]) -> None:
    for label, band in bands.items():
        style = styles[label]
        axis.plot(
            band.steps, band.mean, label=label, color=style.colour, linestyle=style.line, linewidth=1.3,
            marker=style.marker, markersize=4, markevery=max(1, len(band.steps) // 6),
        )  # fmt: skip
        axis.fill_between(band.steps, band.low, band.high, color=style.colour, alpha=0.2, linewidth=0)
    validation = tag.startswith(VALIDATION)
    lowest, highest = min(band.low.min() for band in bands.values()), max(band.high.max() for band in bands.values())
    if not validation and lowest > 0 and highest / lowest > 20:  # of a score, the differences at its upper end matter
        axis.set_yscale("log")
    axis.set_title(f"validation: {tag.removeprefix(VALIDATION)}" if validation else f"loss term: {tag}")
    axis.set_xlabel("epoch" if validation else "training step")
    axis.grid(color="#DDDDDD", linewidth=0.6)
