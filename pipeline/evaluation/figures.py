# SPDX-License-Identifier: Apache-2.0
"""The picture that people look for: one row a case, columns for the image, the label and each method's prediction.

Scans and slides alike: `dataset.json` tells which they are.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from pipeline.atomic import replace_when_complete
from pipeline.data import Case, Dataset, load_dataset, read_label, read_volume, to_ras
from pipeline.data.dataset import SLIDES
from pipeline.data.palette import colour_of
from pipeline.data.slides import UNREADABLE, open_slide
from pipeline.errors import InputError, run_command
from pipeline.evaluation.mask_files import MASK_SUFFIXES, read_mask

OPACITY = 0.6
# Stain must show through; the outline tells where a class ends.
SLIDE_OPACITY = 0.3
SLIDE_PX = 1024
GREY = "#808080"
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
    draw = _draw_slide if dataset.kind == SLIDES else _draw_scan
    gaps = [draw(row, dataset, case, predictions) for row, case in zip(axes, chosen, strict=True)]
    for axis, title in zip(axes[0], columns, strict=True):
        axis.set_title(title, fontsize=9)
    legend = [Patch(color=colour_of(value), label=organ) for value, organ in dataset.organs.items()]
    legend += [Patch(color=GREY, label="unreadable")] if any(gaps) else []
    figure.legend(handles=legend, loc="outside lower center", ncols=min(len(legend), 2 * len(columns)), fontsize=8)
    return figure


def _draw_scan(row: Sequence[Axes], dataset: Dataset, case: Case, predictions: Mapping[str, Path]) -> bool:
    """Draw a scan; returns False, since scans have no unreadable parts."""
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
    _label_row(row, case)
    return False


def _draw_slide(row: Sequence[Axes], dataset: Dataset, case: Case, predictions: Mapping[str, Path]) -> bool:
    """Draw a slide; returns whether a method has marked parts of it as unreadable."""
    with open_slide(case.image) as slide:
        picture, shape = slide.thumbnail(SLIDE_PX), (slide.height, slide.width)
    masks = [read_mask(case.label, dataset.labels, shape)]
    for folder in predictions.values():
        masks.append(read_mask(_mask_file(Path(folder), case), {*dataset.labels, UNREADABLE}, shape))
    small = [_sampled(mask, picture.shape[:2]) for mask in masks]
    for axis, mask in zip(row, [None, *small], strict=True):
        axis.imshow(picture if mask is None else _tinted(picture, mask))
        for value in [] if mask is None else np.unique(mask[mask > 0]):
            # A frame of background closes the contours of what touches the border.
            inside = np.pad(mask == value, 1).astype(np.float32)
            places = [np.arange(-1, length + 1) for length in reversed(mask.shape)]
            axis.contour(*places, inside, levels=[0.5], colors=[_slide_colour(value)], linewidths=1)
        axis.set(xlim=(-0.5, picture.shape[1] - 0.5), ylim=(picture.shape[0] - 0.5, -0.5))
    _label_row(row, case)
    return any((mask == UNREADABLE).any() for mask in small)


def _mask_file(folder: Path, case: Case) -> Path:
    """Return the one mask of a case in a folder."""
    names = [f"{case.case}{suffix}" for suffix in MASK_SUFFIXES]
    found = [folder / name for name in names if (folder / name).is_file()]
    if len(found) != 1:
        which = "no mask" if not found else "several masks"
        raise InputError(f"{folder} holds {which} of case {case.case}; give one of {', '.join(names)}")
    return found[0]


def _sampled(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return a mask (H, W) at the size of a picture, the nearest to the centre of each pixel."""
    rows, columns = (
        (2 * np.arange(small) + 1) * whole // (2 * small) for small, whole in zip(shape, mask.shape, strict=True)
    )
    return mask[rows[:, None], columns]


def _tinted(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return a picture (h, w, 3) uint8 with the classes of a mask (h, w) in their colours, as floats in [0, 1]."""
    tinted = picture.astype(np.float32) / 255
    for value in np.unique(mask[mask > 0]):
        inside = mask == value
        opacity = 1.0 if value == UNREADABLE else SLIDE_OPACITY
        tinted[inside] = (1 - opacity) * tinted[inside] + opacity * np.array(to_rgb(_slide_colour(value)))
    return tinted


def _slide_colour(value: int) -> str:
    return GREY if value == UNREADABLE else colour_of(int(value))


def _label_row(row: Sequence[Axes], case: Case) -> None:
    for axis in row:
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
            picture[inside] = (1 - OPACITY) * picture[inside] + OPACITY * np.array(to_rgb(colour_of(int(value))))
    # In RAS x grows to the patient's right and y to the front: both run against the columns and rows of the picture.
    return picture.transpose(1, 0, 2)[::-1, ::-1]


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
