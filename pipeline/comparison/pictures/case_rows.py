# SPDX-License-Identifier: Apache-2.0
"""One picture of many cases: a row for each case, columns for the image, the label and each method's prediction."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from pipeline.comparison.pictures.case_views import mask_file, scan_view, slide_view
from pipeline.data import Case, Dataset
from pipeline.data.dataset.dataset import SLIDES
from pipeline.data.slides.base import UNREADABLE
from pipeline.data.slides.palette import GREY, colour_of
from pipeline.errors import InputError
from pipeline.files.atomic import replace_when_complete

MOST_CASES = 64  # matplotlib draws 65,536 pixels at most
FORMATS = (".png", ".svg", ".pdf")


def comparison_figure(
    dataset: Dataset, predictions: Mapping[str, Path], split: str = "test", cases: Sequence[str] | None = None
) -> Figure:
    """Draw the cases: image, label, then each method's mask over the image.

    Of a scan it is the axial slice in which the label shows most organs, and most of them, drawn as radiologists see
    it: the patient's right at the left, anterior at the top, pixels in their true proportion. A slide is drawn whole,
    in its own colours, with classes tinted and outlined; what a method could not read is grey.

    Args:
        dataset: images and labels.
        predictions: for each method's name, the folder of its label maps: CASE.nii.gz, of slides CASE.tif or CASE.png.
        split: the split whose cases are shown.
        cases: names of the cases to show, all by default.

    Raises:
        InputError: a case or a prediction is missing, or lies on another grid than its image; there are more cases
            than one picture can hold.
    """
    known = {case.case: case for case in dataset.split(split) if case.label is not None}
    unknown = [name for name in cases or () if name not in known]
    if unknown or not known:
        raise InputError(
            f"split '{split}' has no labelled case {', '.join(unknown)}; it has {', '.join(known) or 'none at all'}"
        )
    chosen = [known[name] for name in cases or known]
    if len(chosen) > MOST_CASES:
        raise InputError(f"{len(chosen)} cases are too many for one picture; name up to {MOST_CASES} with --cases")
    columns = ["image", "label", *predictions]
    figure = Figure(figsize=(2.4 * len(columns), 2.4 * len(chosen) + 0.6), layout="constrained")
    axes = figure.subplots(len(chosen), len(columns), squeeze=False)
    gaps = [_draw_row(row, dataset, case, predictions) for row, case in zip(axes, chosen, strict=True)]
    for axis, title in zip(axes[0], columns, strict=True):
        axis.set_title(title, fontsize=9)
    legend = [Patch(color=colour_of(value), label=organ) for value, organ in dataset.organs.items()]
    legend += [Patch(color=GREY, label="unreadable")] if any(gaps) else []
    figure.legend(handles=legend, loc="outside lower center", ncols=min(len(legend), 2 * len(columns)), fontsize=8)
    return figure


def _draw_row(row: Sequence[Axes], dataset: Dataset, case: Case, predictions: Mapping[str, Path]) -> bool:
    """Draw a case; returns whether a method has marked parts of it as unreadable, which scans never have."""
    folders = [Path(folder) for folder in predictions.values()]
    if dataset.kind == SLIDES:
        view = slide_view(dataset, case, [mask_file(folder, case) for folder in folders])
    else:
        view = scan_view(dataset, case, [folder / f"{case.case}.nii.gz" for folder in folders])
    for axis, mask in zip(row, [None, *view.masks], strict=True):
        view.draw(axis, mask)
    row[0].set_ylabel(case.case, fontsize=8)
    return any((mask == UNREADABLE).any() for mask in view.masks) if dataset.kind == SLIDES else False


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as PNG, SVG or PDF by the ending of `path`, atomically; `InputError` for another ending."""
    if Path(path).suffix.lower() not in FORMATS:
        raise InputError(f"cannot draw {path}: choose a name that ends with {', '.join(FORMATS)}")
    with replace_when_complete(path) as temporary:
        figure.savefig(temporary, dpi=150)
