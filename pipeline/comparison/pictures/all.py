# SPDX-License-Identifier: Apache-2.0
"""All pictures of a comparison: segmentations, box plots, cost, learning curves and graphs."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from pipeline.comparison.arms import ALONE, METHOD, TEACHER, Arm, Comparison
from pipeline.comparison.paired import main_metric
from pipeline.comparison.pictures.box_plots import FEWEST_FOR_A_BOX, box_figure, case_scores
from pipeline.comparison.pictures.cost_plot import cost_figure
from pipeline.comparison.pictures.curves import curve_figure
from pipeline.comparison.pictures.graphs import MOST_CHORDS, draws_graphs, graph_figure
from pipeline.comparison.pictures.paper_figure import MOST_BOXES, chosen_cases, paper_figure
from pipeline.comparison.pictures.style import (
    Picture,
    arm_styles,
    families,
    picture_style,
    save_picture,
)
from pipeline.comparison.tables.rows import ComparisonRow
from pipeline.data import Dataset
from pipeline.data.dataset.dataset import SCANS

METHODS_IN_A_ROW = 4  # more columns would be too small to see errors in


def draw_all(
    comparison: Comparison,
    rows: Sequence[ComparisonRow],
    dataset: Dataset | None,
    output_dir: str | os.PathLike[str],
) -> list[Picture]:
    """Write the pictures of a comparison as PNG and SVG and return them in the order of the page.

    Args:
        comparison: what is compared.
        rows: its figures.
        dataset: images and labels of the cases; without it segmentations and graphs are left out.
        output_dir: folder for the files, made if need be.

    Raises:
        InputError: the dataset is another one than the reports', a mask or checkpoint cannot be read, or the folder
            cannot be written.
    """
    album = _Album(Path(output_dir))
    with picture_style():
        for network, arms in families(comparison) if dataset is not None else ():
            _add_segmentations(album, dataset, network, arms)
        _add_boxes(album, comparison)
        _add_cost(album, comparison, rows)
        for network, arms in families(comparison):
            _add_curves(album, comparison, network, arms)
        for _, arms in families(comparison) if dataset is not None else ():
            _add_graphs(album, comparison, dataset, arms)
    return album.pictures


class _Album:
    """Saves figures under numbered names, which keeps equal names of arms apart."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.pictures = folder, []

    def add(self, figure: Figure, name: str, title: str, caption: str, alt: str) -> None:
        """Save a figure as the next picture."""
        stem = f"{len(self.pictures) + 1:02d}_{re.sub(r'[^a-z0-9]+', '_', name.lower()).strip('_')}"
        self.pictures.append(Picture(title, caption, alt, *save_picture(figure, self.folder / stem)))


def _reference(arms: Sequence[Arm]) -> Arm:
    """Return the arm that chooses cases: the student alone, else the first that is no teacher."""
    students = [arm for arm in arms if arm.role != TEACHER]
    return next((arm for arm in students if arm.role == ALONE), students[0])


def _add_segmentations(album: _Album, dataset: Dataset, network: str, arms: Sequence[Arm]) -> None:
    """Add the segmentations of a student's arms, in several pictures if there are many methods."""
    reference = _reference(arms)
    cases = chosen_cases(reference)
    always = [arm for arm in arms if arm.role != METHOD]
    methods = [arm for arm in arms if arm.role == METHOD]
    parts = [methods[start : start + METHODS_IN_A_ROW] for start in range(0, len(methods), METHODS_IN_A_ROW)] or [[]]
    shown = "the slice in which the label shows most" if dataset.kind == SCANS else "the whole image"
    for number, part in enumerate(parts, 1):
        columns = [*always, *part]
        seeds = ", ".join(f"{arm.label}: {arm.runs[0].seed}" for arm in columns)
        count = f", {number} of {len(parts)}" if len(parts) > 1 else ""
        album.add(
            paper_figure(dataset, columns, cases),
            f"segmentations {network}",
            f"What does {network} see in {dataset.name}? Worst, middle and best case{count}",
            f"Cases were chosen by rule: where {reference.label} is worst, in the middle and best by mean Dice. Shown "
            f"is {shown}; Dice is of the whole case. Boxes frame the {MOST_BOXES} largest connected errors of each "
            f"mask, thin rims aside. Masks are of the first seed of each model ({seeds}).",
            f"Rows {', '.join(cases)}; columns image, label, {', '.join(a.label for a in columns)}; errors are framed.",
        )


def _add_boxes(album: _Album, comparison: Comparison) -> None:
    first = comparison.arms[0].runs[0]
    unit = "case" if comparison.kind == SCANS else "image"
    medians = (
        f"{part}: "
        + ", ".join(
            f"{arm.label} {scores.median():.2f}" for arm in comparison.arms if len(scores := case_scores(arm, part))
        )
        for part in first.organs
    )
    album.add(
        box_figure(comparison),
        "dice",
        f"How good is each model, {unit} by {unit}? Dice in {comparison.dataset}",
        f"A point is one {unit}, the mean over seeds; {unit}s that have the structure neither in label nor in "
        f"prediction are left out. The box spans the quartiles, its line is the median, whiskers reach the last {unit} "
        f"within 1.5 interquartile ranges; fewer than {FEWEST_FOR_A_BOX} get the median alone.",
        f"Median Dice. {'; '.join(medians)}.",
    )


def _add_cost(album: _Album, comparison: Comparison, rows: Sequence[ComparisonRow]) -> None:
    metric = main_metric(comparison.kind)
    figures = (
        f"{row.arm.label} {row.metrics[metric.name].mean:.{metric.decimals}f} at {row.cost.multiply_adds / 1e9:.2f} G"
        for row in rows
    )
    figure = cost_figure(comparison, rows)
    if figure is None:
        return
    album.add(
        figure,
        "cost",
        f"What does accuracy cost? {metric.title} in {comparison.dataset} against multiply-adds",
        "Multiply-adds are of one image of the training size; models of equal cost stand side by side about it. "
        "Bars are one sample deviation over seeds to each side; a model of one seed has none. "
        f"The axis of {metric.title} does not begin at 0.",
        f"{metric.title} and multiply-adds: {'; '.join(figures)}.",
    )


def _add_curves(album: _Album, comparison: Comparison, network: str, arms: Sequence[Arm]) -> None:
    figure = curve_figure(arms, arm_styles(comparison))
    if figure is None:
        return
    album.add(
        figure,
        f"curves {network}",
        f"How did {network} learn? Validation and losses",
        "Lines are means over seeds, bands span the lowest to the highest seed. Terms of the loss are as logged, "
        "averaged over stretches of a hundredth of the training; each has an axis of its own.",
        f"Validation metric by epoch and terms of the loss by training step of {', '.join(a.label for a in arms)}.",
    )


def _add_graphs(album: _Album, comparison: Comparison, dataset: Dataset, arms: Sequence[Arm]) -> None:
    cases = chosen_cases(_reference(arms))
    case = cases[1] if len(cases) > 2 else cases[0]
    for arm in arms:
        run = arm.runs[0].of_case(case)
        teachers = comparison.teacher.parts if comparison.teacher is not None else ()
        teacher = next((other for other in teachers if other.model_sha256 == run.teacher_sha256), None)
        drawn = graph_figure(dataset, case, run, teacher) if draws_graphs(run) and teacher is not None else None
        if drawn is None:
            continue
        figure, remark = drawn
        album.add(
            figure,
            f"graphs {arm.label}",
            f"What did the teacher show {arm.label}? Graphs of its features",
            f"{case}, seed {run.seed}. Nodes are channels: colours tell how many have their salient window at a place. "
            "Edges are drawn as matrices of channels, in the order of a clustering of the teacher's deep edges; the "
            f"change is deep minus shallow. On the circle are the {MOST_CHORDS} edges that change most: solid purple "
            f"grew, dashed orange fell; larger dots are nodes that change more. {remark}",
            f"Salience and variation graphs of teacher and student in {case}. {remark}",
        )
