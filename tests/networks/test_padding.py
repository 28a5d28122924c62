# SPDX-License-Identifier: Apache-2.0
"""PaddedInferer: what the network sees, and that the crop gives back the very pixels that went in."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from torch import nn

from pipeline.networks import PaddedInferer


class Copy(nn.Module):
    """Returns its input and remembers it."""

    size_divisor = 4

    def forward(self, images: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        self.seen = images
        return images * scale


def test_mirrored_by_hand():
    network = Copy()
    output = PaddedInferer()(torch.tensor([[[[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]] * 4]]), network)
    assert network.seen[0, 0, 0].tolist() == [2, 1, 2, 3, 4, 5, 6, 5]
    assert output[0, 0, 0].tolist() == [1, 2, 3, 4, 5, 6]


def test_axis_too_short_to_mirror_repeats_its_border():
    network = Copy()
    PaddedInferer()(torch.tensor([[[[7.0]] * 4]]), network)
    assert network.seen[0, 0, 0].tolist() == [7, 7, 7, 7]
    PaddedInferer(8)(torch.tensor([[[[1.0, 2.0, 3.0]] * 8]]), network)
    assert network.seen[0, 0, 0].tolist() == [1, 1, 1, 2, 3, 3, 3, 3]


@pytest.mark.parametrize("divisor", [1, 3, 8, 32])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (7, 9), (32, 31), (64, 32)])
def test_crop_returns_every_pixel_to_its_place(divisor, size):
    network, images = Copy(), torch.rand(2, 3, *size)
    output = PaddedInferer(divisor)(images, network)
    assert torch.equal(output, images)
    padded = network.seen.shape[-2:]
    assert all(side % divisor == 0 and side - given < divisor for side, given in zip(padded, size, strict=True))


def test_fitting_images_are_passed_on_untouched():
    network, images = Copy(), torch.rand(1, 1, 8, 4)
    PaddedInferer()(images, network)
    assert network.seen is images


def test_further_arguments_reach_the_network():
    assert torch.equal(PaddedInferer()(torch.ones(1, 1, 3, 3), Copy(), scale=2.0), torch.full((1, 1, 3, 3), 2.0))
    assert torch.equal(PaddedInferer()(torch.ones(1, 1, 3, 3), Copy(), 3.0), torch.full((1, 1, 3, 3), 3.0))


def test_wrapped_and_plain_callables():
    network = Copy()
    PaddedInferer()(torch.rand(1, 1, 5, 5), nn.DataParallel(network))
    assert network.seen.shape == (1, 1, 8, 8)
    assert PaddedInferer()(torch.rand(1, 1, 5, 5), lambda images: images).shape == (1, 1, 5, 5)


def test_gradient_flows_through_padding_and_crop():
    images = torch.rand(1, 1, 5, 6, requires_grad=True)
    PaddedInferer()(images, Copy()).sum().backward()
    assert torch.equal(images.grad, torch.ones_like(images))  # the mirrored pixels are cropped and count once


def test_metadata_are_kept():
    images = MetaTensor(torch.rand(1, 1, 5, 6), meta={"filename_or_obj": "scan"})
    assert PaddedInferer()(images, Copy()).meta["filename_or_obj"] == "scan"


@pytest.mark.parametrize("shape", [(1, 1, 0, 4), (1, 5, 5), (1, 1, 4, 0, 4), (1, 1, 4, 4, 4, 4)])
def test_what_is_no_image_is_refused(shape):
    with pytest.raises(ValueError, match=r"images must be \(B, C, H, W\)"):
        PaddedInferer()(torch.empty(shape), Copy())


def test_network_that_changes_the_size_is_refused():
    with pytest.raises(ValueError, match=r"\(8, 8\) pixels into \(4, 4\)"):
        PaddedInferer(8)(torch.rand(1, 1, 5, 5), nn.MaxPool2d(2))


def test_divisor_below_one_is_refused():
    with pytest.raises(ValueError, match="1 or more"):
        PaddedInferer(0)
