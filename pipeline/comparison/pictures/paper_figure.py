# SPDX-License-Identifier: Apache-2.0
"""The figure of the papers: a few cases, the label, and every arm's mask with its connected errors boxed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from scipy import ndimage

from pipeline.comparison.arms import Arm
from pipeline.comparison.pictures.case_views import CaseView, mask_file, scan_view, slide_view
from pipeline.comparison.run_files import CASE_COLUMN
from pipeline.comparison.runs import Run
from pipeline.data import Case, Dataset
from pipeline.data.dataset.dataset import SLIDES
from pipeline.data.slides.base import UNREADABLE
from pipeline.data.slides.open import open_slide
from pipeline.data.slides.palette import GREY, colour_of
from pipeline.errors import InputError
from pipeline.inference import tile_inferer_of
from pipeline.networks import load_model

MOST_BOXES = 4
SMALLEST_SHARE = 0.001  # of the picture: smaller errors get no box
# Of the longer side of the picture: thinner errors are rims, nearer ones share a box.
_RIM_SHARE, _APART_SHARE = 0.006, 0.02
MOST_SLIDE_PX = 64_000_000  # segmenting a larger slide for one picture would take minutes an arm
_PANEL_IN = 1.75


def mean_dice(run: Run) -> dict[str, float]:
    """Return the mean Dice of each case over its organs or classes; cases without any are left out."""
    means = run.scores.groupby(CASE_COLUMN[run.kind])["dice"].mean().dropna()
    return {str(case): float(value) for case, value in means.items()}


def chosen_cases(arm: Arm) -> list[str]:
    """Return the cases on which an arm is worst, in the middle and best by mean Dice over organs and seeds.

    With an even number of cases, the lower middle one is taken; equal cases are ordered by name. Fewer than three cases
    are all shown.
    """
    scores = [mean_dice(run) for run in arm.runs]
    known = set.intersection(*(set(score) for score in scores))
    ranked = sorted(known, key=lambda case: (np.mean([score[case] for score in scores]), case))
    return list(dict.fromkeys(ranked[place] for place in (0, (len(ranked) - 1) // 2, -1))) if ranked else []


def error_boxes(label: np.ndarray, prediction: np.ndarray) -> list[tuple[slice, slice]]:
    """Return the bounding boxes of the largest connected errors, at most `MOST_BOXES`, the largest first.

    Args:
        label: class indices (h, w).
        prediction: the same shape; what could not be read counts as no error.

    Thin rims, along borders that are right within about a pixel, are removed first (opening). Errors that almost touch
    count as one. Errors smaller than `SMALLEST_SHARE` of the picture are left out, and so are those whose box lies
    inside a larger one.
    """
    side = max(label.shape)
    wrong = (label != prediction) & (prediction != UNREADABLE)
    wrong = ndimage.binary_opening(wrong, iterations=max(1, round(_RIM_SHARE * side)))
    regions, _ = ndimage.label(ndimage.binary_dilation(wrong, iterations=max(1, round(_APART_SHARE * side / 2))))
    regions = np.where(wrong, regions, 0)
    sizes = np.bincount(regions.ravel(), minlength=1)
    places = ndimage.find_objects(regions)
    boxes: list[tuple[slice, slice]] = []
    for region in np.argsort(-sizes[1:], kind="stable") + 1:
        large = sizes[region] >= SMALLEST_SHARE * wrong.size
        if large and len(boxes) < MOST_BOXES and not any(_within(places[region - 1], box) for box in boxes):
            boxes.append(places[region - 1])
    return boxes


def _within(inner: tuple[slice, slice], outer: tuple[slice, slice]) -> bool:
    return all(
        small.start >= large.start and small.stop <= large.stop for small, large in zip(inner, outer, strict=True)
    )


def paper_figure(dataset: Dataset, arms: Sequence[Arm], cases: Sequence[str]) -> Figure:
    """Draw cases as rows: image, label, and the mask of each arm's first seed with its Dice in that case.

    Args:
        dataset: images and labels; the cases are in its test split.
        arms: the columns. Masks of scans are those of the reports; slides are segmented by the checkpoints.
        cases: names of the cases.

    Raises:
        InputError: the dataset lacks a case, a report its mask, or a slide has more than `MOST_SLIDE_PX` pixels.
    """
    known = {case.case: case for case in dataset.test if case.label is not None}
    missing = [name for name in cases if name not in known]
    if missing:
        raise InputError(
            f"dataset '{dataset.name}' in {dataset.folder} has no labelled test case {', '.join(missing)}, which the "
            "reports have; give the dataset that the runs were evaluated on with --dataset"
        )
    runs = [arm.runs[0] for arm in arms]
    columns = 2 + len(arms)
    figure = Figure(figsize=(_PANEL_IN * columns + 0.3, (_PANEL_IN + 0.25) * len(cases) + 0.75), layout="constrained")
    axes = figure.subplots(len(cases), columns, squeeze=False)
    views = views_of(dataset, [known[name] for name in cases], runs)
    scores = [mean_dice(run) for run in runs]
    for row, name, view in zip(axes, cases, views, strict=True):
        _draw_row(row, view)
        row[0].set_ylabel(_shortened(name), fontsize=8)
        for axis, score in zip(row[2:], scores, strict=True):
            axis.set_xlabel(f"Dice {score[name]:.2f}" if name in score else "no Dice", fontsize=8)
    for axis, title in zip(axes[0], ["image", "label", *(arm.label for arm in arms)], strict=True):
        axis.set_title(_wrapped(title), fontsize=8.5)
    unreadable = any((mask == UNREADABLE).any() for view in views for mask in view.masks)
    _add_legend(figure, dataset, unreadable and dataset.kind == SLIDES, columns)
    return figure


def views_of(dataset: Dataset, cases: Sequence[Case], runs: Sequence[Run]) -> list[CaseView]:
    """Return each case with the label and the masks of some runs."""
    if dataset.kind != SLIDES:
        return [scan_view(dataset, case, [_scan_mask(run.of_case(case.case), case) for run in runs]) for case in cases]
    return [slide_view(dataset, case, [_slide_mask(run.of_case(case.case), case) for run in runs]) for case in cases]


def _scan_mask(run: Run, case: Case) -> Path:
    path = run.report / "predictions" / f"{case.case}.nii.gz"
    if not path.is_file():
        raise InputError(f"no mask at {path}; evaluate the run {run.path} anew, which writes it")
    return path


def _slide_mask(run: Run, case: Case) -> Path | np.ndarray:
    """Return the mask of a slide: the file where the report has it, else what the checkpoint makes of the slide."""
    folder = run.report / "predictions"
    if folder.is_dir():
        return mask_file(folder, case)
    with open_slide(case.image) as slide:
        if slide.height * slide.width > MOST_SLIDE_PX:
            raise InputError(
                f"{case.image} has {slide.width} x {slide.height} pixels, more than the {MOST_SLIDE_PX:,} that are "
                f"segmented for a picture; put its mask into {folder}"
            )
        model = load_model(run.checkpoint)
        return np.concatenate(list(tile_inferer_of(model).bands(slide, model.network)))


def _draw_row(row: Sequence[Axes], view: CaseView) -> None:
    for axis, mask in zip(row, [None, *view.masks], strict=True):
        view.draw(axis, mask)
    for axis, mask in zip(row[2:], view.masks[1:], strict=True):
        for box in error_boxes(view.masks[0], mask):
            _draw_box(axis, box, mask.shape)


def _draw_box(axis: Axes, box: tuple[slice, slice], shape: tuple[int, int]) -> None:
    """Draw a white frame with a black rim, which shows on dark scans and on bright slides, inside the picture."""
    margin = 0.012 * max(shape)
    (top, bottom), (left, right) = (
        (max(part.start - 1.5, margin - 0.5), min(part.stop + 0.5, length - margin - 0.5))
        for part, length in zip(box, shape, strict=True)
    )
    frame = Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="white", linewidth=1.2)
    frame.set_path_effects([patheffects.Stroke(linewidth=2.8, foreground="black"), patheffects.Normal()])
    axis.add_patch(frame)


def _add_legend(figure: Figure, dataset: Dataset, unreadable: bool, columns: int) -> None:
    handles = [Patch(color=colour_of(value), label=organ) for value, organ in dataset.organs.items()]
    handles += [Patch(color=GREY, label="unreadable")] if unreadable else []
    handles.append(Patch(facecolor="white", edgecolor="black", label="connected error"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), columns + 1), fontsize=8)


def _shortened(name: str, length: int = 24) -> str:
    """Return a name that fits beside a panel: the beginning and the end of a long one."""
    return name if len(name) <= length else f"{name[: length // 2 - 1]}…{name[-length // 2 :]}"


def _wrapped(title: str, length: int = 18) -> str:
    """Return a title in lines of about `length` characters."""
    lines = [""]
    for word in title.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > length:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
