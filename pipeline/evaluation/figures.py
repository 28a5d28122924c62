# SPDX-License-Identifier: Apache-2.0
"""The picture that people look for: one row a case, columns for the image, the label and each method's prediction."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from pipeline.atomic import replace_when_complete
from pipeline.data import Dataset, load_dataset, read_label, read_volume, to_ras
from pipeline.errors import InputError, run_command

# Okabe and Ito's palette, which colour-blind people can tell apart, and a violet; tab20 beyond eight organs.
PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#7F5FC7")
OPACITY = 0.6
FORMATS = (".png", ".svg", ".pdf")


def comparison_figure(
    dataset: Dataset, predictions: Mapping[str, Path], split: str = "test", cases: Sequence[str] | None = None
) -> Figure:
    """Draw axial slices of the cases: image, label, then each method's mask over the image.

    The slice of a case is the one in which the label shows most organs, and most of them. It is drawn as radiologists
    see it: the patient's right at the left, anterior at the top, pixels in their true proportion.

    Args:
        dataset: images and labels.
        predictions: for each method's name, the folder of its label maps, CASE.nii.gz.
        split: the split whose cases are shown.
        cases: names of the cases to show, all by default.

    Raises:
        InputError: a case or a prediction is missing, or lies on another grid than its image.
    """
    known = {case.case: case for case in dataset.split(split) if case.label is not None}
    unknown = [name for name in cases or () if name not in known]
    if unknown or not known:
        raise InputError(
            f"split '{split}' has no labelled case {', '.join(unknown)}; it has {', '.join(known) or 'none at all'}"
        )
    chosen = [known[name] for name in cases or known]
    columns = ["image", "label", *predictions]
    figure = Figure(figsize=(2.4 * len(columns), 2.4 * len(chosen) + 0.6), layout="constrained")
    axes = figure.subplots(len(chosen), len(columns), squeeze=False)
    for row, case in zip(axes, chosen, strict=True):
        _draw_case(row, dataset, case, predictions)
    for axis, title in zip(axes[0], columns, strict=True):
        axis.set_title(title, fontsize=9)
    legend = [Patch(color=_colour(value), label=organ) for value, organ in dataset.organs.items()]
    figure.legend(handles=legend, loc="outside lower center", ncols=min(len(legend), 2 * len(columns)), fontsize=8)
    return figure


def _draw_case(row: Sequence, dataset: Dataset, case, predictions: Mapping[str, Path]) -> None:
    image = read_volume(case.image)
    maps = [read_label(case.label, like=image, labels=dataset.labels)]
    maps += [read_label(Path(folder) / f"{case.case}.nii.gz", like=image) for folder in predictions.values()]
    scan, affine = to_ras(image.array, image.affine)
    masks = [to_ras(label.array, image.affine)[0] for label in maps]
    z = _telling_slice(masks[0])
    low, high = dataset.intensity.window(image.array)
    grey = np.clip((scan[..., z].astype(np.float32) - low) / max(high - low, 1e-6), 0, 1)
    width_mm, height_mm = np.linalg.norm(affine[:3, :2], axis=0)
    for axis, mask in zip(row, [None, *masks], strict=True):
        axis.imshow(_overlay(grey, None if mask is None else mask[..., z]), aspect=height_mm / width_mm)
        axis.set_xticks([])
        axis.set_yticks([])
    row[0].set_ylabel(case.case, fontsize=8)


def _telling_slice(mask: np.ndarray) -> int:
    """Return the index of the axial slice with most organs, and with most organ voxels among those."""
    organs = [np.unique(mask[..., z]).size for z in range(mask.shape[2])]
    voxels = np.count_nonzero(mask, axis=(0, 1))
    return int(np.lexsort((voxels, organs))[-1])


def _overlay(grey: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Return an RGB picture (rows, columns, 3) of an RAS slice (x, y), the patient's right at the left."""
    picture = np.repeat(grey[..., None], 3, axis=2)
    if mask is not None:
        for value in np.unique(mask[mask > 0]):
            inside = mask == value
            picture[inside] = (1 - OPACITY) * picture[inside] + OPACITY * np.array(to_rgb(_colour(int(value))))
    # In RAS x grows to the patient's right and y to the front: both run against the columns and rows of the picture.
    return picture.transpose(1, 0, 2)[::-1, ::-1]


def _colour(value: int) -> str:
    if value <= len(PALETTE):
        return PALETTE[value - 1]
    return matplotlib.colors.to_hex(matplotlib.colormaps["tab20"]((value - 1) % 20))


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as PNG, SVG or PDF by the ending of `path`, atomically; `InputError` for another ending."""
    if Path(path).suffix.lower() not in FORMATS:
        raise InputError(f"cannot draw {path}: choose a name that ends with {', '.join(FORMATS)}")
    with replace_when_complete(path) as temporary:
        figure.savefig(temporary, dpi=150)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the comparison that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.evaluation.figures", description=__doc__)
    parser.add_argument("--dataset", required=True, help="folder with a dataset.json")
    parser.add_argument("--predictions", required=True, nargs="+", metavar="NAME=DIR", help="label maps of each method")
    parser.add_argument("--split", default="test")
    parser.add_argument("--cases", help="names separated by commas; all by default")
    parser.add_argument("--output", required=True, help="PNG, SVG or PDF file")
    options = parser.parse_args(arguments)
    predictions = {}
    for pair in options.predictions:
        name, equals, folder = pair.partition("=")
        if not equals or not Path(folder).is_dir():
            raise InputError(f"--predictions {pair}: give NAME=DIR with an existing folder")
        if name in predictions:
            raise InputError(f"--predictions names {name} twice; give each method a name of its own")
        predictions[name] = Path(folder)
    cases = options.cases.split(",") if options.cases else None
    save_figure(comparison_figure(load_dataset(options.dataset), predictions, options.split, cases), options.output)
    return 0


if __name__ == "__main__":
    run_command(main)
