# SPDX-License-Identifier: Apache-2.0
"""The student's own view of a batch: other intensities, noise, blur and pasted rectangles, where the teacher has none.

With a strong view, the student must match the answer that the teacher gives to the unchanged, easier image. FixMatch
(arXiv 2001.07685) and UniMatch (arXiv 2208.09910) call this weak-to-strong consistency; they use the student itself in
place of a teacher. No pixel is moved. Rectangles of other images are pasted with their labels, as in CutMix (arXiv
1905.04899), and `Cut` does the same to the teacher's maps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from monai.networks.layers import GaussianFilter
from torch import Tensor
from torch.nn import functional as F

from pipeline.data.samples.augmentation import BatchAugmentation, between, change_intensity
from pipeline.unlabelled import labelled_items

# Wider than the ranges of `SliceAugmentation`: those imitate scanners, these make the image hard to read.
_GAMMA = (0.5, 2.0)
_CONTRAST = (0.6, 1.4)
_BRIGHTNESS = 0.2
_NOISE = 0.1  # largest standard deviation, of intensities in [0, 1]
_BLUR_PX = (0.5, 1.5)  # standard deviation
_BLUR_SHARE, _CUT_SHARE = 0.5, 0.5  # of the items
_CUT_AREA = (0.02, 0.4)  # of an image, UniMatch's


@dataclass(frozen=True)
class Cut:
    """Rectangles that each item of a batch takes from another.

    Attributes:
        inside: (B, 1, ...) booleans of the images' size.
        partners: (B,) index of the item that each takes from.
    """

    inside: Tensor
    partners: Tensor

    def __call__(self, maps: Tensor) -> Tensor:
        """Return `maps` (B, C, ...), of any size, with the rectangles taken from the partners' maps."""
        inside = F.interpolate(self.inside.float(), maps.shape[2:], mode="nearest-exact") > 0.5
        return torch.where(inside, maps[self.partners], maps)


class StudentView(BatchAugmentation):
    """The student's view of a batch that the teacher sees as it is.

    Kinds:
        same: no other view.
        strong: gamma 0.5..2, contrast 0.6..1.4 and brightness within 0.2 of every image, noise of a standard deviation
            up to 0.1, half of them blurred by 0.5 to 1.5 pixels, and half of them with a rectangle of 2 to 40 % of the
            next image of the same kind, labelled or not.

    Images are expected in [0, 1].
    """

    kinds = ("same", "strong")
    option = "student_view"

    @torch.no_grad()
    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Cut | None]:
        """Return the student's images (B, C, ...), their labels (B, 1, ...) and the pasted rectangles, or None."""
        if self.kind == "same":
            return images, labels, None
        draws = self._uniform(len(images), 3)
        changed = change_intensity(images, draws, _GAMMA, _CONTRAST, _BRIGHTNESS)
        changed = self._blurred(self._noisy(changed))
        cut = self._cut(images, labels)
        return cut(changed), torch.where(cut.inside, labels[cut.partners], labels), cut

    def _noisy(self, images: Tensor) -> Tensor:
        deviation = _a_number_each(_NOISE * self._uniform(len(images), 1)[:, 0], images)
        noise = torch.randn(images.shape, generator=self._generator).to(images)
        return (images + deviation * noise).clamp(0, 1)

    def _blurred(self, images: Tensor) -> Tensor:
        """Return images of which some are blurred, in one batch by the same width: it is one convolution."""
        sigma = between(self._uniform(1, 1), *_BLUR_PX).item()
        chosen = _a_number_each(self._uniform(len(images), 1)[:, 0] < _BLUR_SHARE, images)
        blurred = GaussianFilter(images.ndim - 2, sigma).to(images.device)(images)
        return torch.where(chosen > 0, blurred, images)

    def _cut(self, images: Tensor, labels: Tensor) -> Cut:
        sides = torch.tensor(images.shape[2:], dtype=torch.float32)
        is_cut, area, *corners = self._uniform(len(images), 2 + len(sides)).unbind(1)
        share = between(area, *_CUT_AREA) ** (1 / len(sides))
        lengths = share[:, None] * sides * (is_cut < _CUT_SHARE)[:, None]
        starts = torch.stack(corners, 1) * (sides - lengths)
        inside = torch.ones(len(images), 1, *images.shape[2:], dtype=torch.bool)
        for axis, side in enumerate(images.shape[2:]):
            centres = torch.arange(side) + 0.5
            within = (centres >= starts[:, axis, None]) & (centres < (starts + lengths)[:, axis, None])
            inside &= within.reshape(len(images), 1, *[side if other == axis else 1 for other in range(len(sides))])
        return Cut(inside.to(images.device), _next_of_its_kind(labelled_items(labels)))


def _a_number_each(values: Tensor, images: Tensor) -> Tensor:
    """Return (B,) values as (B, 1, 1, ...) of the images' kind and device."""
    return values.to(images).reshape(-1, *[1] * (images.ndim - 1))


def _next_of_its_kind(labelled: Tensor) -> Tensor:
    """Return for each item the index of the next one that is labelled or not as it is; after the last, the first."""
    partners = torch.empty_like(labelled, dtype=torch.long)
    for kind in (labelled, ~labelled):
        members = kind.nonzero()[:, 0]
        partners[members] = members.roll(-1)
    return partners
