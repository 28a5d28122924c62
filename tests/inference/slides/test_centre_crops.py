# SPDX-License-Identifier: Apache-2.0
"""The paper's test protocol: which pixels of which crop end where, what is mirrored and left out, and bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor
from torch.nn import functional as F

from pipeline.data import SLIDE_INTENSITY, IntensityRule, preprocessing_of
from pipeline.errors import InputError
from pipeline.evaluation.slides.protocols import unscored_px
from pipeline.inference import CentreCropInferer
from tests.preprocessing import tile_preprocessing


def bright(images: Tensor) -> Tensor:
    """A network that calls everything brighter than half class 1, and what is red beside that class 2."""
    value = images[:, :1] - 0.5
    red = images[:, :1] - images[:, 1:2] if images.shape[1] == 3 else torch.full_like(value, -2.0)
    return torch.cat([-value, value, red], dim=1)


def inferer(size: int = 32, tile_px: int = 32, **more) -> CentreCropInferer:
    return CentreCropInferer(size, tile_px, preprocessing_of(tile_preprocessing(SLIDE_INTENSITY)), **more)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_the_papers_numbers():
    """2048 x 2048 become 8 x 8 centres of 64 x 64: a rectangle comes back at a quarter of its place and size."""
    image = torch.zeros(1, 1, 2048, 2048, dtype=torch.uint8)
    image[..., 512:1000, 300:1500] = 255
    expected = torch.zeros(1, 1, 512, 512, dtype=torch.uint8)
    expected[..., 128:250, 75:375] = 1
    seen = []

    def network(images: Tensor) -> Tensor:
        seen.append(tuple(images.shape))
        return bright(images)

    centres = inferer(256, 1024)
    assert torch.equal(centres(image, network), expected)
    assert seen == [(8, 1, 256, 256)] * 8
    assert torch.equal(centres.centres_of((image > 0).to(torch.uint8)), expected)


def test_rows_kept_and_the_published_ones():
    assert inferer(256, 1024).settings == {
        "size": 256,
        "tile_px": 1024,
        "stride_px": 256,
        "first_kept_row": 96,
        "last_kept_row": 159,
        "published_centre": False,
    }
    published = inferer(256, 1024, published_centre=True).settings
    assert (published["first_kept_row"], published["last_kept_row"]) == (95, 158)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (43, 50), (8, 31), (33, 8)])
def test_without_resizing_every_pixel_is_where_it_was(height, width):
    image = noise(1, 1, height, width)
    scored = image[..., : height // 8 * 8, : width // 8 * 8]
    assert torch.equal(inferer()(image, bright), (scored > 127).to(torch.uint8))
    assert torch.equal(inferer().centres_of(image), scored)
    assert unscored_px(height, width, inferer().stride_px) == image.numel() - scored.numel()


def test_labels_are_those_at_the_centres_of_the_pixels():
    labels = noise(2, 1, 72, 64)
    assert torch.equal(inferer(8, 32).centres_of(labels), labels[..., 2::4, 2::4])


def test_published_centre_is_one_pixel_of_the_network_off():
    image = noise(1, 1, 64, 48)
    right, published = inferer()(image, bright), inferer(published_centre=True)(image, bright)
    assert torch.equal(published[..., 1:, 1:], right[..., :-1, :-1])
    assert torch.equal(published[..., 0, 1:], right[..., 1, :-1])  # the mirrored image begins with row 1
    labels = inferer(published_centre=True).centres_of(image)
    assert torch.equal(labels[..., 1:, 1:], image[..., :-1, :-1])


@pytest.mark.parametrize("shape", [(40, 48), (13, 13)])
def test_crops_see_the_mirrored_image_beyond_the_border(shape):
    """A network that shifts its map by 3/8 puts the first quarter of each crop where the centre is kept."""
    image = noise(1, 1, *shape)
    shifted = inferer()(image, lambda images: bright(images).roll((12, 12), dims=(-2, -1)))
    mirrored = F.pad(image.float(), (12, 12, 12, 12), mode="reflect")
    high, wide = (length // 8 * 8 for length in shape)
    assert torch.equal(shifted, (mirrored[..., :high, :wide] > 127).to(torch.uint8))


def test_an_image_shorter_than_the_margin_is_mirrored_again():
    image = noise(1, 1, 9, 40)
    shifted = inferer()(image, lambda images: bright(images).roll((12, 12), dims=(-2, -1)))
    mirrored = np.pad(image[0, 0].numpy(), 12, mode="reflect")
    assert np.array_equal(shifted[0, 0].numpy(), mirrored[:8, :40] > 127)


def test_images_of_a_batch_and_size_of_batches_do_not_mix():
    images = noise(2, 1, 40, 48)
    together = inferer(16, 32, crops_per_batch=7)(images, bright)
    alone = [inferer(16, 32, crops_per_batch=1)(image[None], bright)[0] for image in images]
    assert torch.equal(together, torch.stack(alone))
    assert not torch.equal(*alone)


def test_colour_reaches_the_network():
    image = noise(1, 3, 32, 32)
    image[:, 0, :, 16:], image[:, 1:, :, 16:] = 255, 0
    labels = inferer()(image, bright)
    assert (labels[..., 16:] == 2).all()
    assert labels.dtype == torch.uint8


def test_each_crop_is_preprocessed_as_a_tile_of_training_is():
    """By percentiles every crop spans the whole range, however dim its part of the image."""
    image = torch.arange(64 * 64).reshape(1, 1, 64, 64).float()
    seen = []

    def network(images: Tensor) -> Tensor:
        seen.append(images)
        return bright(images)

    by_percentiles = preprocessing_of(tile_preprocessing(IntensityRule("percentiles", 0.0, 100.0)))
    CentreCropInferer(32, 32, by_percentiles)(image, network)
    crops = torch.cat(seen)
    assert len(crops) == 64
    assert (crops.amin(dim=(1, 2, 3)) == 0).all()
    assert (crops.amax(dim=(1, 2, 3)) == 1).all()


def test_a_metatensor_gives_a_plain_tensor():
    image = MetaTensor(noise(1, 1, 32, 32), affine=torch.eye(4))
    for result in (inferer()(image, bright), inferer().centres_of(image)):
        assert type(result) is Tensor


def test_further_arguments_go_to_the_network():
    labels = inferer()(noise(1, 1, 32, 32), lambda images, sign, offset: bright(sign * images + offset), -1.0, offset=1)
    assert torch.equal(labels, 1 - inferer()(noise(1, 1, 32, 32), bright))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 20}, "size is 20; .* multiple of 8"),
        ({"size": 0}, "size is 0"),
        ({"tile_px": 36}, "tile_px is 36; .* multiple of 8"),
        ({"crops_per_batch": 0}, "crops_per_batch 0"),
        ({"amp_dtype": "float8"}, "amp_dtype 'float8' is unknown"),
    ],
)
def test_arguments_that_cannot_be_used(arguments, message):
    with pytest.raises(InputError, match=message):
        inferer(**arguments)


def test_an_image_without_a_single_centre():
    with pytest.raises(InputError, match="an image of 40 x 7 pixels is smaller than the stride of 8"):
        inferer()(noise(1, 1, 7, 40), bright)
    with pytest.raises(InputError, match="smaller than the stride"):
        inferer().centres_of(noise(1, 1, 40, 7))


def test_logits_that_are_not_finite_name_the_crop():
    def network(images: Tensor) -> Tensor:
        return bright(images).masked_fill(images.mean(dim=(1, 2, 3), keepdim=True) > 0.9, float("nan"))

    image = torch.zeros(1, 1, 64, 80, dtype=torch.uint8)
    image[..., 32:, 40:] = 255
    # The first crop that lies in the bright part whole has its corner at (36, 44), its centre at (48, 56).
    with pytest.raises(InputError, match="NaN or infinite in the crop around x=60, y=52;"):
        inferer()(image, network)


@pytest.mark.parametrize("call", [lambda images: inferer()(images, bright), inferer().centres_of])
def test_decollated_images_are_refused(call):
    with pytest.raises(ValueError, match="decollate=False"):
        call(noise(1, 32, 32))
