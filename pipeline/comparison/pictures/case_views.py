# SPDX-License-Identifier: Apache-2.0
"""One case as it is drawn: one slice of a scan or a slide made small, with its masks on the same pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from pipeline.data import Case, Dataset, read_label, read_volume, to_ras
from pipeline.data.scans.axial_view import radiological_view, slice_with_most_organs
from pipeline.data.slides.base import UNREADABLE
from pipeline.data.slides.open import open_slide
from pipeline.data.slides.palette import class_colour, tinted
from pipeline.errors import InputError
from pipeline.evaluation.masks.files import MASK_SUFFIXES, read_mask

OPACITY = 0.6
# Stain must show through; the outline tells where a class ends.
SLIDE_OPACITY = 0.3
SLIDE_PX = 1024


@dataclass(frozen=True)
class CaseView:
    """A case ready to be drawn.

    Attributes:
        picture: (h, w, 3), float in [0, 1] or uint8.
        masks: the label, then each prediction, (h, w) of class indices.
        aspect: height of a pixel over its width.
        outlined: whether classes are outlined, as for slides, so that the tissue's own colours stay visible.
    """

    picture: np.ndarray
    masks: tuple[np.ndarray, ...]
    aspect: float
    outlined: bool

    def draw(self, axis: Axes, mask: np.ndarray | None = None) -> None:
        """Draw the picture, with one of its masks (h, w) over it if that is given."""
        opacity = SLIDE_OPACITY if self.outlined else OPACITY
        axis.imshow(self.picture if mask is None else tinted(self.picture, mask, opacity), aspect=self.aspect)
        if self.outlined:
            self._outline(axis, mask)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)

    def _outline(self, axis: Axes, mask: np.ndarray | None) -> None:
        for value in [] if mask is None else np.unique(mask[mask > 0]):
            # A frame of background closes the contours of what touches the border.
            inside = np.pad(mask == value, 1).astype(np.float32)
            places = [np.arange(-1, length + 1) for length in reversed(mask.shape)]
            axis.contour(*places, inside, levels=[0.5], colors=[class_colour(value)], linewidths=1)
        height, width = self.picture.shape[:2]
        axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def scan_view(dataset: Dataset, case: Case, predictions: Sequence[Path]) -> CaseView:
    """Return the axial slice in which the label shows most organs, and most of them.

    It is drawn as radiologists see it: the patient's right at the left, anterior at the top, pixels in their true
    proportion. Raises `InputError` for a file that is missing, damaged or on another grid than the image.
    """
    image = read_volume(case.image)
    maps = [read_label(case.label, like=image, labels=dataset.labels)]
    maps += [read_label(path, like=image) for path in predictions]
    scan, affine = to_ras(image.array, image.affine)
    masks = [to_ras(label.array, image.affine)[0] for label in maps]
    z = slice_with_most_organs(masks[0])
    low, high = dataset.intensity.window(image.array)
    grey = np.clip((scan[..., z].astype(np.float32) - low) / max(high - low, 1e-6), 0, 1)
    width_mm, height_mm = np.linalg.norm(affine[:3, :2], axis=0)
    picture = np.repeat(radiological_view(grey)[..., None], 3, axis=2)
    return CaseView(
        picture, tuple(radiological_view(mask[..., z]) for mask in masks), height_mm / width_mm, outlined=False
    )


def slide_view(dataset: Dataset, case: Case, predictions: Sequence[Path | np.ndarray]) -> CaseView:
    """Return a whole slide with at most `SLIDE_PX` pixels a side; predictions are files or masks (H, W) in memory.

    Raises `InputError` for a file that is missing, damaged or of another size than the slide.
    """
    with open_slide(case.image) as slide:
        picture, shape = slide.thumbnail(SLIDE_PX), (slide.height, slide.width)
    known = {*dataset.labels, UNREADABLE}
    masks = [read_mask(case.label, dataset.labels, shape)]
    masks += [mask if isinstance(mask, np.ndarray) else read_mask(mask, known, shape) for mask in predictions]
    return CaseView(picture, tuple(_sampled(mask, picture.shape[:2]) for mask in masks), aspect=1.0, outlined=True)


def mask_file(folder: Path, case: Case) -> Path:
    """Return the one mask of a case of slides in a folder; `InputError` where there is none or several."""
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
