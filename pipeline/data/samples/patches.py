# SPDX-License-Identifier: Apache-2.0
"""Random patches of the volumes of a split, for 3D networks."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.data import CacheDataset
from monai.transforms import Compose, RandAdjustContrastd, RandAffined, RandScaleIntensityd, Transform
from monai.utils import convert_to_tensor
from torch import Tensor

from pipeline.data.samples.slices import Preprocess, prepared_volume
from pipeline.errors import InputError
from pipeline.unlabelled import UNLABELLED

logger = logging.getLogger(__name__)

AUGMENTATIONS = ("affine", "none")
_KEYS = ("image", "label")
_LARGEST_SEED = 2**31


def patch_sides(patch_size: Any) -> list[int]:
    """Return the sides (x, y, z) of a patch in voxels; `InputError` for anything but three whole numbers from 1."""
    sides = list(patch_size) if isinstance(patch_size, Sequence) and not isinstance(patch_size, str) else []
    if len(sides) != 3 or any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in sides):
        raise InputError(f"patch_size is {patch_size!r}; give three whole numbers from 1, such as [96, 96, 16]")
    return sides


class PreparedVolume(Transform):
    """Turns an entry of a datalist into `{"image": (1, X, Y, Z) float32, "label": (1, X, Y, Z) uint8}`, and checks it.

    For an entry without a label, the label is zeros.

    Args:
        preprocessing: reads one entry and scales its image to [0, 1], as for `SliceDataset`.
        out_channels: number of classes; a label value at or above it is refused.
    """

    def __init__(self, preprocessing: Preprocess, out_channels: int) -> None:
        self.preprocessing, self.out_channels = preprocessing, out_channels

    def __call__(self, entry: Mapping[str, str]) -> dict[str, Tensor]:
        """Return image and label (1, X, Y, Z) of a case; `InputError` that names the case where these are unusable."""
        image, label = prepared_volume(entry, self.preprocessing, self.out_channels)
        if image.ndim != 4:
            raise InputError(f"case {entry['case']}: a picture has no patches of volumes; train without volumes.yaml")
        # Patches are centred on voxels of all classes; without a label, all voxels count as one class.
        return {"image": image, "label": label if "label" in entry else torch.zeros_like(label)}


class PatchDataset(CacheDataset):
    """MONAI's cache of prepared volumes; each item is a list of random patches of one volume.

    It differs from MONAI's class in the seeds of the random transforms. Each item draws a seed from torch's generator,
    whose state a run keeps in last.pt. So a resumed run sees the same patches as without a stop. This needs a loader
    without workers, which have generators of their own.

    Args:
        datalist: entries with `case`, `image` and `label`, as `Dataset.training_datalist` gives them; those without a
            label come last and get one of `UNLABELLED`.
        preprocessing: called once per volume with an entry; gives `image` (1, X, Y, Z) float in [0, 1] and `label`.
        patches: MONAI's dictionary transforms that cut a prepared volume into a list of patches of one size.
        out_channels: number of classes; a label value at or above it is refused.

    Items are lists of `{"image": (1, x, y, z) float32, "label": (1, x, y, z) uint8}`; a loader's batch holds the
    patches of all its volumes. Raises `InputError`, with the name of the case, like `SliceDataset`.
    """

    def __init__(
        self,
        datalist: Sequence[Mapping[str, str]],
        preprocessing: Preprocess,
        patches: Compose,
        out_channels: int,
    ) -> None:
        if not datalist:
            raise InputError("no case to take patches from; give a split with cases")
        prepared = PreparedVolume(preprocessing, out_channels)
        self.unlabelled_from = sum("label" in entry for entry in datalist)  # index of the first volume without a label
        # One worker: the cases come in order, so that an error names the first bad one.
        super().__init__(datalist, Compose([prepared, *patches.transforms]), num_workers=None, progress=False)
        logger.info("volumes of %d cases in memory", len(datalist))

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Tensor]]:
        # Torch's loader asks for a whole batch by this name: its collate then finds one patch after another.
        return [patch for index in indices for patch in self[index]]

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return random patches of volumes as one batch `{"image": (B, 1, x, y, z), "label": (B, 1, x, y, z)}`."""
        patches = self.__getitems__([int(index) for index in indices])
        return {key: torch.stack([patch[key] for patch in patches]) for key in _KEYS}

    def _transform(self, index: int) -> list[dict[str, Tensor]]:
        self.transform.set_random_state(seed=int(torch.randint(_LARGEST_SEED, ())))
        patches = super()._transform(index)
        patches = [{key: convert_to_tensor(patch[key], track_meta=False) for key in _KEYS} for patch in patches]
        if index >= self.unlabelled_from:
            for patch in patches:
                patch["label"].fill_(UNLABELLED)
        return patches


def patch_augmentation(kind: str) -> Compose:
    """Return MONAI's random transforms for patches: "affine" or "none".

    Affine is that of `SliceAugmentation` without the shift, since patches have a random place already: a rotation
    within 15 degrees about the patient's long axis (z), scale 0.85..1.15, mild gamma and contrast. No flips: left and
    right organs have labels of their own.

    Raises:
        InputError: another kind.
    """
    if kind not in AUGMENTATIONS:
        raise InputError(f"augmentation {kind!r} is unknown for volumes; choose one of {', '.join(AUGMENTATIONS)}")
    if kind == "none":
        return Compose([])
    turned = RandAffined(
        _KEYS,
        prob=1.0,
        rotate_range=(0.0, 0.0, math.radians(15)),
        scale_range=0.15,
        mode=("bilinear", "nearest"),
        padding_mode="zeros",
    )
    contrast = RandAdjustContrastd("image", prob=1.0, gamma=(0.8, 1.25))
    return Compose([turned, contrast, RandScaleIntensityd("image", factors=0.1, prob=1.0)])
