# SPDX-License-Identifier: Apache-2.0
"""Augmentation: exact quarter turns by hand, frequencies, image and label together, resumable draws."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional as F

from pipeline.data import SliceAugmentation
from pipeline.data.samples import augmentation as module
from pipeline.errors import InputError


def numbered(batch: int, side: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Slices whose pixels all differ, and labels that say the same in uint8."""
    labels = torch.arange(side * side, dtype=torch.uint8).reshape(1, 1, side, side).repeat(batch, 1, 1, 1)
    return labels / 64, labels


def same_for_all(matrix: list[list[float]], batch: int = 1) -> torch.Tensor:
    return F.pad(torch.tensor([matrix] * batch), (0, 1))


def test_a_shift_by_hand():
    images = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    labels = images.to(torch.uint8)
    # Output column c reads input column c + 0.5 · 2: everything moves one to the left.
    matrices = torch.tensor([[[1.0, 0.0, 0.5], [0.0, 1.0, 0.0]]])
    warped, carried = module._warp(images, labels, matrices, image_mode="bilinear")
    assert warped.tolist() == [[[[2.0, 0.0], [4.0, 0.0]]]]
    assert carried.tolist() == [[[[2, 0], [4, 0]]]]


@pytest.mark.parametrize("side", [8, 9, 224])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_quarter_turns_are_exact(side, turns):
    images = torch.rand(2, 1, side, side)
    matrices = F.pad(module._rotation(torch.full((2,), 90.0 * turns)), (0, 1))
    warped, _ = module._warp(images, images.round().to(torch.uint8), matrices, image_mode="nearest")
    assert torch.equal(warped, torch.rot90(images, turns, (2, 3)))


def test_rotation_equals_scipy_inside():
    image = np.random.default_rng(0).random((64, 64)).astype(np.float32)
    tensor = torch.from_numpy(image)[None, None]
    matrices = F.pad(module._rotation(torch.tensor([-17.0])), (0, 1))
    warped, _ = module._warp(tensor, tensor.to(torch.uint8), matrices, image_mode="nearest")
    expected = ndimage.rotate(image, -17, order=0, reshape=False)
    # At the rim scipy ends half a pixel earlier; inside, only exact ties may differ.
    assert (warped[0, 0].numpy() == expected)[12:-12, 12:-12].mean() > 0.999


def test_rotation_keeps_right_angles_in_slices_that_are_not_square():
    images = torch.zeros(1, 1, 40, 80)
    images[..., 10:30, 30:50] = 1.0
    matrices = F.pad(module._rotation(torch.tensor([30.0])), (0, 1))
    warped, _ = module._warp(images, images.to(torch.uint8), matrices, image_mode="bilinear")
    assert warped.sum() == pytest.approx(400, rel=0.01)


def test_paper_draws_what_the_recipe_says():
    original = torch.rand(48, 48)
    images = original.expand(2000, 1, 48, 48)
    warped, _ = SliceAugmentation("paper", seed=0)(images, images.to(torch.uint8))
    flips = [torch.rot90(original, k, (0, 1)).flip(axis) for k in range(4) for axis in (0, 1)]
    flipped = torch.stack([(warped[:, 0] == flip).flatten(1).all(1) for flip in flips]).any(0)
    unchanged = (warped[:, 0] == original).flatten(1).all(1)
    assert flipped.float().mean() == pytest.approx(0.5, abs=0.03)
    # A quarter is left alone, and of the 40 angles of the other quarter one is 0.
    assert unchanged.float().mean() == pytest.approx(0.25 + 0.25 / 40, abs=0.03)


def test_a_turned_slice_is_always_flipped():
    """Four turns times two flips give four mirror images, never a mere turn."""
    images, labels = numbered(2000)
    warped, _ = SliceAugmentation("paper", seed=1)(images, labels)
    for turns in (1, 2, 3):
        assert not (warped == torch.rot90(images, turns, (2, 3))).flatten(1).all(1).any()


def test_affine_never_mirrors():
    matrices = SliceAugmentation("affine", seed=0)._draw_affine(5000)
    determinants = torch.linalg.det(matrices[:, :, :2])
    assert determinants.min() >= 1 / 1.15**2 - 1e-4
    assert determinants.max() <= 1 / 0.85**2 + 1e-4
    assert matrices[:, :, 2].abs().max() <= 0.1
    angles = torch.rad2deg(torch.atan2(matrices[:, 1, 0], matrices[:, 0, 0])).abs()
    assert 14.0 < angles.max() <= 15.001


@pytest.mark.parametrize("kind", ["paper", "affine"])
def test_image_and_label_move_together(kind):
    images = torch.zeros(64, 1, 48, 48)
    images[..., 12:30, 18:40] = 1.0
    warped, labels = SliceAugmentation(kind, seed=3)(images, images.to(torch.uint8))
    inside = warped[labels == 1]
    assert inside.numel() > 0
    # Bilinear blending at a corner leaves a quarter of the object; contrast and brightness move it a little.
    assert (inside > 0.15).all()
    assert inside.median() > 0.85
    assert (warped[labels == 0] < 0.7).all()
    assert warped[labels == 0].median() < 0.15


@pytest.mark.parametrize("kind", ["paper", "affine"])
def test_labels_are_never_blended(kind):
    labels = torch.randint(0, 2, (16, 1, 32, 32), dtype=torch.uint8) * 8
    _, warped = SliceAugmentation(kind, seed=0)(labels / 8, labels)
    assert warped.dtype == torch.uint8
    assert set(warped.unique().tolist()) == {0, 8}


def test_affine_images_stay_in_range():
    images = torch.rand(32, 1, 32, 32)
    warped, _ = SliceAugmentation("affine", seed=0)(images, images.to(torch.uint8))
    assert warped.dtype == torch.float32
    assert warped.min() >= 0
    assert warped.max() <= 1
    assert torch.isfinite(warped).all()


def test_none_changes_nothing():
    images, labels = numbered(3)
    warped, carried = SliceAugmentation("none", seed=0)(images, labels)
    assert torch.equal(warped, images)
    assert torch.equal(carried, labels)


@pytest.mark.parametrize("kind", ["paper", "affine"])
def test_inputs_are_left_as_they_are(kind):
    images, labels = numbered(4)
    before = images.clone(), labels.clone()
    SliceAugmentation(kind, seed=0)(images, labels)
    assert torch.equal(images, before[0])
    assert torch.equal(labels, before[1])


@pytest.mark.parametrize("kind", ["paper", "affine"])
def test_draws_resume_exactly(kind, tmp_path):
    images, labels = numbered(16)
    first = SliceAugmentation(kind, seed=5)
    first(images, labels)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    expected = first(images, labels)
    second = SliceAugmentation(kind, seed=99)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert all(torch.equal(a, b) for a, b in zip(second(images, labels), expected, strict=True))


def test_draws_leave_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    SliceAugmentation("affine", seed=0)(*numbered(4))
    assert torch.equal(torch.rand(3), expected)


def test_seeds_differ_and_repeat():
    images, labels = numbered(16)
    runs = [SliceAugmentation("affine", seed=seed)(images, labels)[0] for seed in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("kind", ["paper", "affine"])
def test_gpu_equals_cpu(kind):
    images = torch.rand(8, 1, 64, 64)
    labels = (images * 9).to(torch.uint8)
    on_cpu = SliceAugmentation(kind, seed=0)(images, labels)
    on_gpu = SliceAugmentation(kind, seed=0)(images.cuda(), labels.cuda())
    # A position that falls between two pixels may round either way.
    assert (on_cpu[1] == on_gpu[1].cpu()).float().mean() > 0.999
    assert ((on_cpu[0] - on_gpu[0].cpu()).abs() < 1e-4).float().mean() > 0.999


def test_unknown_kind():
    with pytest.raises(InputError, match="--augmentation 'papr' is unknown; choose one of paper, affine, none"):
        SliceAugmentation("papr", seed=0)


def test_the_state_of_another_kind():
    state = SliceAugmentation("paper", seed=0).state_dict()
    with pytest.raises(InputError, match="augmented by 'paper', not 'affine'"):
        SliceAugmentation("affine", seed=0).load_state_dict(state)


def test_shapes_that_do_not_fit():
    images = torch.zeros(2, 1, 8, 8)
    with pytest.raises(ValueError, match="must both be"):
        SliceAugmentation("affine")(images, torch.zeros(2, 1, 8, 9))
    with pytest.raises(ValueError, match="square slices, not 8 x 9"):
        SliceAugmentation("paper")(torch.zeros(2, 1, 8, 9), torch.zeros(2, 1, 8, 9))
