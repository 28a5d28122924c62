# SPDX-License-Identifier: Apache-2.0
"""Volumes in overlapping patches: the right voxels, the labels of MONAI's sliding window, memory in slabs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.inference import PatchInferer


class Threshold(nn.Module):
    """Class 1 where the image is above 0.5; keeps the shapes of what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(tuple(images.shape))
        return torch.cat([0.5 - images, images - 0.5], dim=1)


def convolution(classes: int = 4) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv3d(1, 6, 5, padding=2), nn.Tanh(), nn.Conv3d(6, classes, 3, padding=1)).eval()


def volume(*sides: int) -> Tensor:
    """Return a preprocessed volume (1, 1, X, Y, Z)."""
    return torch.rand(1, 1, *sides, generator=torch.Generator().manual_seed(1))


def test_bright_voxels_get_their_label_in_place():
    image = torch.zeros(1, 1, 9, 7, 5)
    image[0, 0, 8, 0, 4], image[0, 0, 2, 3, 1] = 0.51, 0.49
    labels = PatchInferer([4, 4, 2])(image, Threshold())
    assert labels.dtype == torch.uint8
    assert labels.nonzero().tolist() == [[0, 0, 8, 0, 4]]


def test_slabs_by_hand():
    """Patches of 4 slices every 2, so they begin at 0, 2, 4, 6 and, for the last of 11 slices, 7."""
    slabs = PatchInferer([4, 4, 4], overlap=0.5, slices_per_slab=4)._slabs(11)
    assert [(seen.start, seen.stop, done.start, done.stop) for seen, done in slabs] == [
        (0, 6, 0, 4),  # patches 0 and 2
        (2, 10, 4, 7),  # 4 and 6, and 2 again, which reaches into slice 5
        (4, 11, 7, 11),  # 7, and 4 and 6 again
    ]


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.7])
@pytest.mark.parametrize("slab", [1, 5, 1000])
@pytest.mark.parametrize("sides", [(13, 9, 23), (5, 8, 3)])
def test_equals_monais_sliding_window_followed_by_argmax(overlap, slab, sides):
    image, network = volume(*sides), convolution()
    inferer = PatchInferer([6, 8, 4], overlap, slices_per_slab=slab)
    with torch.no_grad():
        logits = SlidingWindowInferer((6, 8, 4), overlap=overlap, mode="gaussian")(image, network)
    torch.testing.assert_close(inferer(image, network), logits.argmax(1, keepdim=True).to(torch.uint8))


def test_slabs_bound_what_is_held_at_once(monkeypatch):
    shapes = []

    class Watched(SlidingWindowInferer):
        def __call__(self, inputs, network, *args, **kwargs):
            shapes.append(tuple(inputs.shape[2:]))
            return super().__call__(inputs, network, *args, **kwargs)

    monkeypatch.setattr("pipeline.inference.scans.patches.SlidingWindowInferer", Watched)
    PatchInferer([4, 4, 4], slices_per_slab=8)(volume(4, 4, 101), Threshold())
    assert max(shape[2] for shape in shapes) <= 8 + 4


def test_patches_per_batch_go_to_the_network_together():
    network = Threshold()
    PatchInferer([4, 4, 4], overlap=0, patches_per_batch=3)(volume(8, 8, 4), network)
    assert network.seen == [(3, 1, 4, 4, 4), (1, 1, 4, 4, 4)]


def test_networks_that_need_padding_are_padded_and_cropped():
    network = Threshold()
    network.size_divisor = 8
    assert PatchInferer([4, 8, 4])(volume(5, 8, 4), network).shape == (1, 1, 5, 8, 4)
    assert set(network.seen) == {(1, 1, 8, 8, 8)}


def test_metadata_stay_on_the_labels():
    affine = torch.diag(torch.tensor([2.0, 2.0, 3.0, 1.0]))
    labels = PatchInferer([4, 4, 4])(MetaTensor(volume(4, 4, 4), affine=affine), Threshold())
    assert isinstance(labels, MetaTensor)
    np.testing.assert_array_equal(labels.affine, affine)


def test_autocast_runs_the_network_in_the_narrow_type():
    kinds = []
    network = convolution()
    network[0].register_forward_hook(lambda module, inputs, output: kinds.append(output.dtype))
    PatchInferer([4, 4, 4], amp_dtype="bfloat16")(volume(4, 4, 4), network)
    assert kinds == [torch.bfloat16]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_name_the_patch(value):
    image = torch.zeros(1, 1, 8, 4, 12)
    image[0, 0, 6, 0, 10] = 0.75

    def network(images: Tensor) -> Tensor:
        return torch.where(images > 0.5, value, images).repeat(1, 2, 1, 1, 1)

    with pytest.raises(InputError, match=r"in the patch that begins at voxel \(4, 0, 8\)"):
        PatchInferer([4, 4, 4], overlap=0, slices_per_slab=4)(image, network)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"patch_size": [96, 96]}, "three whole numbers"),
        ({"patch_size": 96}, "three whole numbers"),
        ({"patch_size": [96, 96, 0]}, "three whole numbers"),
        ({"overlap": 1}, "overlap is 1"),
        ({"patches_per_batch": 0}, "must be 1 or more"),
        ({"slices_per_slab": 0}, "must be 1 or more"),
        ({"amp_dtype": "float8"}, "float8"),
    ],
)
def test_bad_arguments_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        PatchInferer(**{"patch_size": [4, 4, 4], **given})


def test_more_classes_than_a_label_map_holds_are_refused():
    with pytest.raises(InputError, match="257 classes"):
        PatchInferer([4, 4, 4])(volume(4, 4, 4), lambda images: images.repeat(1, 257, 1, 1, 1))


def test_slices_are_no_volume():
    with pytest.raises(ValueError, match=r"must be \(B, 1, X, Y, Z\)"):
        PatchInferer([4, 4, 4])(torch.zeros(1, 1, 8, 8), Threshold())
