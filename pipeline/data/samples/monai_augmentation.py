# SPDX-License-Identifier: Apache-2.0
"""MONAI's random dictionary transforms, or a user's own, as the augmentation of batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.transforms import Compose, MapTransform, Randomizable, Transform
from monai.utils import convert_to_tensor
from torch import Tensor

from pipeline.data.samples.augmentation import BatchAugmentation
from pipeline.errors import InputError

OfBatches = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
_SEEDS = 2**31


class ItemTransforms(BatchAugmentation):
    """Applies dictionary transforms with the keys "image" and "label" to each item of a batch by itself.

    Before each item the transforms are seeded by the augmentation's own generator, so that a resumed run goes on
    exactly. MONAI's transforms keep random generators that no checkpoint holds.

    Raises:
        InputError: a transform fails, or gives an item another size.
    """

    kinds = ("transforms",)

    def __init__(self, transform: MapTransform | Compose, seed: int = 0) -> None:
        super().__init__("transforms", seed)
        self.transform = transform

    @torch.no_grad()
    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return new `images` (B, C, ...) and `labels` (B, 1, ...) of the dtypes given."""
        seeds = torch.randint(_SEEDS, (len(images),), generator=self._generator).tolist()
        items = [self._item(*item) for item in zip(images, labels, seeds, strict=True)]
        return torch.stack([image for image, _ in items]), torch.stack([label for _, label in items])

    def _item(self, image: Tensor, label: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        if isinstance(self.transform, Randomizable):
            self.transform.set_random_state(seed=seed)
        try:
            changed = self.transform({"image": image.clone(), "label": label.clone()})
        except Exception as error:  # transforms raise many kinds
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise InputError(
                f"slice_augmentation fails: {reason}; its transforms get image and label (C, H, W)"
            ) from error
        new_image, new_label = (convert_to_tensor(changed[key], track_meta=False) for key in ("image", "label"))
        if new_image.shape != image.shape or new_label.shape != label.shape:
            raise InputError(
                f"slice_augmentation makes {tuple(new_image.shape)} of an image {tuple(image.shape)}; "
                "take transforms that keep the size"
            )
        return new_image.to(image), new_label.to(label)


def batch_augmentation(augmentation: Any, seed: int = 0) -> OfBatches | None:
    """Return what a config names as augmentation in the form that trainers call.

    Args:
        augmentation: None; a function of batches, images (B, C, ...) and labels (B, 1, ...) to new ones; or dictionary
            transforms such as MONAI's `RandFlipd`, one, a list or a `Compose`.
        seed: of dictionary transforms; others have theirs.

    Raises:
        InputError: a transform of single arrays, which would not change the label with the image.
    """
    if isinstance(augmentation, Sequence):
        augmentation = Compose(augmentation)
    parts = augmentation.transforms if isinstance(augmentation, Compose) else [augmentation]
    for part in parts:
        if isinstance(part, Transform) and not isinstance(part, MapTransform | Compose):
            raise InputError(
                f"slice_augmentation has {type(part).__name__}, which changes one array; take a dictionary transform, "
                f"such as {type(part).__name__}d with keys image and label"
            )
    if isinstance(augmentation, MapTransform | Compose):
        return ItemTransforms(augmentation, seed)
    return augmentation
