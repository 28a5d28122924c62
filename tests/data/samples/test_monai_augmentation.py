# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from monai.transforms import Compose, RandFlip, RandFlipd, RandGaussianNoised, RandRotate90d, Resized

from pipeline.data import SliceAugmentation, batch_augmentation
from pipeline.errors import InputError

KEYS = ["image", "label"]
FLIP = RandFlipd(keys=KEYS, prob=0.5, spatial_axis=0)


def batch(items: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images whose rows count up, and labels that tell them by row."""
    rows = torch.arange(6.0)[None, None, :, None].expand(items, 1, 6, 6)
    return rows / 6, rows.to(torch.uint8)


def test_image_and_label_change_together_item_by_item():
    images, labels = batch()
    new_images, new_labels = batch_augmentation(FLIP)(images, labels)
    assert torch.equal(new_images, new_labels / 6)
    flipped = (new_labels[:, 0, 0, 0] == 5).tolist()
    assert True in flipped
    assert False in flipped
    assert new_labels.dtype == torch.uint8
    assert type(new_images) is torch.Tensor
    assert torch.equal(images, batch()[0])


def test_the_same_seed_gives_the_same_and_a_state_goes_on_exactly():
    noise = RandGaussianNoised(keys="image", prob=1.0)
    first, second = (batch_augmentation([FLIP, noise], seed=3) for _ in range(2))
    assert torch.equal(first(*batch())[0], second(*batch())[0])
    assert not torch.equal(first(*batch())[0], first(*batch())[0])
    later = batch_augmentation([FLIP, noise], seed=4)
    later.load_state_dict(first.state_dict())
    assert torch.equal(first(*batch())[0], later(*batch())[0])


def test_what_takes_batches_stays_itself():
    own = SliceAugmentation("affine")
    assert batch_augmentation(own) is own
    assert batch_augmentation(None) is None


@pytest.mark.parametrize("given", [RandFlip(prob=1.0), [FLIP, RandFlip(prob=1.0)], Compose([RandFlip(prob=1.0)])])
def test_transforms_of_single_arrays_are_refused(given):
    with pytest.raises(InputError, match="such as RandFlipd with keys image and label"):
        batch_augmentation(given)


def test_another_size_is_refused():
    with pytest.raises(InputError, match="keep the size"):
        batch_augmentation(Resized(keys=KEYS, spatial_size=(3, 3)))(*batch())


def test_a_transform_that_fails_is_told_in_one_line():
    with pytest.raises(InputError, match="slice_augmentation fails"):
        batch_augmentation(RandRotate90d(keys=["picture"], prob=1.0))(*batch())
