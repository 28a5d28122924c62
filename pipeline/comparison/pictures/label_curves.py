# SPDX-License-Identifier: Apache-2.0
"""How each arm's main metric grows with the labels: one panel for each student, the mean over seeds with a band."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.comparison.label_efficiency import EfficiencyRow, by_arm
from pipeline.comparison.paired import main_metric
from pipeline.comparison.pictures.style import Picture, arm_styles, picture_style, save_picture
from pipeline.data.dataset.dataset import SCANS

_PANEL_INCHES = (4.6, 3.6)
# Read off the vector figure of the paper (IEEE TMI 42 (2023) 3159), +-0.0003: FANet, Mobile U-Net, + Graph Flow on
# labelled, + Graph Flow on labelled and unlabelled images.
_PUBLISHED = {
    SCANS: (
        "Synapse, mean Dice with 2, 6, 10, 14, 18 labelled cases: teacher .383, .628, .723, .760, .795; Mobile U-Net "
        ".262, .515, .613, .678, .733; with Graph Flow on labelled cases .328, .606, .687, .699, .787; on all cases "
        ".441, .627, .724, .743, .787"
    ),
    "slides": (
        "gastric slides, accuracy with 20, 40, 60, 80, 100 % of the labels: teacher .853, .881, .894, .894, .901; "
        "Mobile U-Net .770, .803, .825, .835, .854; with Graph Flow on labelled tiles .780, .831, .837, .842, .886; on "
        "all tiles .812, .840, .854, .858, .886"
    ),
}


def draw_label_curves(rows: Sequence[EfficiencyRow], folder: Path) -> Picture:
    """Draw the curves of all students into `folder`, as label_efficiency.png and .svg."""
    students = list(dict.fromkeys(row.student for row in rows))
    kind = rows[0].amount.comparison.kind
    with picture_style():
        width, height = _PANEL_INCHES
        figure = Figure(figsize=(width * len(students), height), layout="constrained")
        panels = figure.subplots(1, len(students), sharey=True, squeeze=False)[0]
        for panel, student in zip(panels, students, strict=True):
            _draw(panel, student, rows)
        panels[0].set_ylabel(main_metric(kind).title)
        folder.mkdir(parents=True, exist_ok=True)
        png, svg = save_picture(figure, folder / "label_efficiency")
    return Picture(
        title="Accuracy by the amount of labels",
        caption=(
            f"Mean over seeds of the test {main_metric(kind).title}; the band goes from the lowest to the highest "
            "seed, and the teacher has one. The paper's figures, of other data and longer trainings: "
            f"{_PUBLISHED[kind]}."
        ),
        alt="A line for each arm over the amounts of labels; the table above has the same figures.",
        png=png,
        svg=svg,
    )


def _draw(panel: Axes, student: str, rows: Sequence[EfficiencyRow]) -> None:
    amounts = list(dict.fromkeys(row.amount.label for row in rows))
    styles = {}
    for amount in {row.amount.name: row.amount for row in rows}.values():
        styles = {**arm_styles(amount.comparison), **styles}
    for label, points in by_arm(rows, student).items():
        style = styles[label]
        places = [amounts.index(row.amount.label) for row in points]
        panel.plot(
            places,
            [row.mean for row in points],
            color=style.colour,
            marker=style.marker,
            linestyle=style.line,
            label=label.removeprefix(f"{student} "),
        )
        low, high = ([pick(row.values) for row in points] for pick in (min, max))
        panel.fill_between(places, low, high, color=style.colour, alpha=0.15, linewidth=0)
    panel.set_title(student)
    panel.set_xticks(range(len(amounts)), amounts)
    panel.grid(axis="y", alpha=0.3)
    panel.legend(fontsize=8, frameon=False)
