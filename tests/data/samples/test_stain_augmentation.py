# SPDX-License-Identifier: Apache-2.0
"""Tiles: flips and stains by hand, all eight symmetries, parity with scikit-image, resumable draws."""

import numpy as np
import pytest
import torch
from skimage import color

from pipeline.data import BatchAugmentation, SliceAugmentation, TileAugmentation
from pipeline.data.samples import stain_augmentation as module
from pipeline.data.samples.stain_augmentation import STAIN_JITTER, STAIN_VECTORS, jitter_stains
from pipeline.errors import InputError

HAEMATOXYLIN, EOSIN, REST = (torch.tensor(vector) for vector in STAIN_VECTORS)


def numbered(batch: int, channels: int = 1, side: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Tiles whose pixels all differ, darker to brighter, and labels that say the same in uint8."""
    labels = torch.arange(side * side, dtype=torch.uint8).reshape(1, 1, side, side).repeat(batch, 1, 1, 1)
    return ((labels + 1) / 80).repeat(1, channels, 1, 1), labels


def pixels(densities: torch.Tensor) -> torch.Tensor:
    """One image (1, 3, 1, N) with the decimal optical densities (N, 3)."""
    return (10.0**-densities).T[None, :, None, :]


def symmetries(tile: torch.Tensor) -> list[torch.Tensor]:
    turned = [torch.rot90(tile, turns, (-2, -1)) for turns in range(4)]
    return turned + [tile.flip(-1) for tile in turned]


@pytest.mark.parametrize(
    ("rows", "columns", "diagonal", "expected"),
    [
        (0, 0, 0, [[1, 2], [3, 4]]),
        (1, 0, 0, [[3, 4], [1, 2]]),
        (0, 1, 0, [[2, 1], [4, 3]]),
        (0, 0, 1, [[1, 3], [2, 4]]),
        (1, 1, 0, [[4, 3], [2, 1]]),
        (1, 0, 1, [[3, 1], [4, 2]]),
        (0, 1, 1, [[2, 4], [1, 3]]),
        (1, 1, 1, [[4, 2], [3, 1]]),
    ],
)
def test_the_eight_symmetries_by_hand(rows, columns, diagonal, expected):
    tiles = torch.tensor([[[[1, 2], [3, 4]]], [[[5, 6], [7, 8]]]], dtype=torch.uint8)
    mirrored = torch.tensor([[rows, columns, diagonal], [0, 0, 0]]).bool()
    moved = module._move(tiles, mirrored)
    assert moved[0, 0].tolist() == expected
    assert torch.equal(moved[1], tiles[1])


def test_pure_stains_by_hand():
    images = pixels(torch.stack([0.5 * HAEMATOXYLIN, 0.5 * EOSIN, torch.zeros(3)]))
    more_haematoxylin = jitter_stains(images, torch.tensor([[0.2, 0.0, 0.0]]), torch.zeros(1, 3))
    # 0.5 · 1.2 of haematoxylin; what is eosin alone, or clear glass, stays.
    expected = pixels(torch.stack([0.6 * HAEMATOXYLIN, 0.5 * EOSIN, torch.zeros(3)]))
    assert torch.allclose(more_haematoxylin, expected, atol=1e-6)
    eosin_everywhere = jitter_stains(images, torch.zeros(1, 3), torch.tensor([[0.0, 0.1, 0.0]]))
    expected = pixels(torch.stack([0.5 * HAEMATOXYLIN + 0.1 * EOSIN, 0.6 * EOSIN, 0.1 * EOSIN]))
    assert torch.allclose(eosin_everywhere, expected, atol=1e-6)


def test_less_than_no_stain_is_white():
    bleached = jitter_stains(torch.ones(1, 3, 2, 2), torch.zeros(1, 3), torch.full((1, 3), -0.05))
    assert torch.equal(bleached, torch.ones(1, 3, 2, 2))


def test_a_grey_tile_has_one_density():
    changed = jitter_stains(torch.full((1, 1, 1, 1), 0.1), torch.tensor([[0.1]]), torch.tensor([[0.05]]))
    # A tenth of the light is density 1; 1 · 1.1 + 0.05 = 1.15.
    assert changed.item() == pytest.approx(10**-1.15, rel=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_no_jitter_is_the_identity(channels, monkeypatch):
    # Random colours: most hold a negative amount of some stain.
    images = torch.rand(4, channels, 16, 16)
    images[:, :, 0, 0], images[:, :, 0, 1] = 0, 1
    unchanged = jitter_stains(images, torch.zeros(4, channels), torch.zeros(4, channels))
    assert torch.allclose(unchanged, images, rtol=0, atol=2e-6)
    monkeypatch.setattr(module, "STAIN_JITTER", 0.0)
    moved, _ = TileAugmentation("stain", seed=0)(images, torch.zeros(4, 1, 16, 16))
    for tile, original in zip(moved, images, strict=True):
        assert min((tile - symmetry).abs().max() for symmetry in symmetries(original)) < 2e-6


def test_stains_equal_those_of_scikit_image():
    assert np.array_equal(color.rgb_from_hed, np.array(STAIN_VECTORS))
    random = np.random.default_rng(0)
    # scikit-image cuts negative amounts off, so these have none; its unit is a density of 6.
    images = color.hed2rgb(random.uniform(0, 0.1, (2, 16, 16, 3)))
    alpha, beta = random.uniform(-0.2, 0.2, (2, 2, 3))
    expected = [
        color.hed2rgb(color.rgb2hed(image) * (1 + a) + b / 6) for image, a, b in zip(images, alpha, beta, strict=True)
    ]
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    changed = jitter_stains(tensor, torch.from_numpy(alpha), torch.from_numpy(beta))
    assert np.allclose(changed.permute(0, 2, 3, 1).numpy(), np.stack(expected), atol=1e-5)


@pytest.mark.parametrize(("kind", "count"), [("stain", 8), ("paper", 4)])
def test_every_symmetry_is_equally_likely(kind, count):
    images, labels = numbered(4000)
    _, moved = TileAugmentation(kind, seed=0)(images, labels)
    reached = torch.stack([(moved == symmetry).flatten(1).all(1) for symmetry in symmetries(labels[0])])
    assert reached.any(0).all()
    shares = reached.float().mean(1)
    assert (shares > 0).sum() == count
    assert shares[shares > 0].tolist() == pytest.approx([1 / count] * count, abs=0.03)
    # Both flips together are half a turn; quarter turns and transposes belong to "stain" alone.
    paper = (torch.rot90(labels[0], 2, (-2, -1)), labels[0].flip(-1), labels[0].flip(-2))
    assert all((moved == symmetry).flatten(1).all(1).any() for symmetry in paper)


def test_paper_moves_images_and_changes_no_value():
    images, labels = numbered(64, channels=3)
    moved, carried = TileAugmentation("paper", seed=1)(images, labels)
    assert torch.equal(moved, ((carried + 1) / 80).expand_as(moved))
    assert carried.dtype == torch.uint8


@pytest.mark.parametrize("channels", [1, 3])
def test_labels_move_with_stained_images(channels):
    images, labels = numbered(64, channels)
    moved, carried = TileAugmentation("stain", seed=1)(images, labels)
    assert not torch.allclose(moved, ((carried + 1) / 80).expand_as(moved), atol=1e-3)
    # A change of density keeps the order from dark to bright, in every channel of a colourless tile.
    order = carried.flatten(2).long().argsort(-1).expand(-1, channels, -1)
    assert (moved.flatten(2).gather(2, order).diff(dim=2) > 0).all()


def test_tiles_that_are_not_square_can_be_flipped():
    images = torch.rand(16, 3, 4, 6)
    moved, _ = TileAugmentation("paper", seed=0)(images, torch.zeros(16, 1, 4, 6))
    assert moved.shape == images.shape


def test_jitter_is_uniform_within_its_width_and_drawn_for_each_image_and_stain():
    # Densities 1 and 2 become d1 = 1 + α + β and d2 = 2 + 2α + β.
    images = torch.tensor([0.1, 0.01]).repeat(4000, 1)[:, None, :, None].repeat(1, 1, 1, 2)
    stained, _ = TileAugmentation("stain", seed=0)(images, torch.zeros_like(images))
    density = -stained.log10().flatten(1)
    low, high = density.amin(1), density.amax(1)
    alpha = high - low - 1
    beta = low - 1 - alpha
    for draws in (alpha, beta):
        assert draws.abs().max() == pytest.approx(STAIN_JITTER, rel=0.01)
        assert draws.std() == pytest.approx(STAIN_JITTER / 3**0.5, rel=0.05)
        assert draws.mean() == pytest.approx(0, abs=0.002)
    assert torch.corrcoef(torch.stack([alpha, beta]))[0, 1] == pytest.approx(0, abs=0.05)


def test_stains_vary_apart_in_colour():
    images = pixels(torch.stack([HAEMATOXYLIN, EOSIN, REST, torch.full((3,), 0.2)])).reshape(1, 3, 2, 2)
    stained, _ = TileAugmentation("stain", seed=0)(images.expand(200, 3, 2, 2), torch.zeros(200, 1, 2, 2))
    assert stained.min() >= 0
    assert stained.max() <= 1
    assert len({tuple(tile.flatten().tolist()) for tile in stained}) == 200
    ratios = stained.flatten(2).amax(2)
    assert (ratios[:, 0] / ratios[:, 2]).std() > 0.005


def test_none_changes_nothing():
    images, labels = numbered(3, channels=3)
    stained, carried = TileAugmentation("none", seed=0)(images, labels)
    assert torch.equal(stained, images)
    assert torch.equal(carried, labels)


@pytest.mark.parametrize("kind", ["stain", "paper"])
def test_inputs_are_left_as_they_are(kind):
    images, labels = numbered(4, channels=3)
    before = images.clone(), labels.clone()
    TileAugmentation(kind, seed=0)(images, labels)
    assert torch.equal(images, before[0])
    assert torch.equal(labels, before[1])


@pytest.mark.parametrize("kind", ["stain", "paper"])
def test_draws_resume_exactly(kind, tmp_path):
    images, labels = numbered(16, channels=3)
    first = TileAugmentation(kind, seed=5)
    first(images, labels)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    expected = first(images, labels)
    second = TileAugmentation(kind, seed=99)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert all(torch.equal(a, b) for a, b in zip(second(images, labels), expected, strict=True))


def test_draws_leave_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    TileAugmentation("stain", seed=0)(*numbered(4))
    assert torch.equal(torch.rand(3), expected)


def test_seeds_differ_and_repeat():
    runs = [TileAugmentation("stain", seed=seed)(*numbered(16))[0] for seed in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_neither_memory_format_nor_autocast_nor_precision_changes_the_draws():
    images, labels = numbered(16, channels=3)
    expected, carried = TileAugmentation("stain", seed=0)(images, labels)
    strided, _ = TileAugmentation("stain", seed=0)(images.to(memory_format=torch.channels_last), labels)
    assert torch.equal(strided, expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(TileAugmentation("stain", seed=0)(images, labels)[0], expected)
    half, moved = TileAugmentation("stain", seed=0)(images.half(), labels)
    assert half.dtype == torch.float16
    assert torch.allclose(half.float(), expected, atol=2e-3)
    assert torch.equal(moved, carried)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("kind", ["stain", "paper"])
def test_gpu_equals_cpu(kind):
    images, labels = torch.rand(8, 3, 64, 64), torch.randint(0, 2, (8, 1, 64, 64))
    on_cpu = TileAugmentation(kind, seed=0)(images, labels)
    on_gpu = TileAugmentation(kind, seed=0)(images.cuda(), labels.cuda())
    assert torch.equal(on_cpu[1], on_gpu[1].cpu())
    assert torch.allclose(on_cpu[0], on_gpu[0].cpu(), atol=1e-5)


def test_unknown_kind():
    with pytest.raises(InputError, match="'affine' is unknown; choose one of stain, paper, none"):
        TileAugmentation("affine", seed=0)


def test_the_state_of_another_kind():
    state = TileAugmentation("paper", seed=0).state_dict()
    with pytest.raises(InputError, match="augmented by 'paper', not 'stain'"):
        TileAugmentation("stain", seed=0).load_state_dict(state)


def test_checkpoints_know_both_by_their_base():
    assert isinstance(TileAugmentation("stain"), BatchAugmentation)
    assert isinstance(SliceAugmentation("affine"), BatchAugmentation)


@pytest.mark.parametrize(
    ("image_shape", "label_shape"),
    [
        ((2, 3, 8, 8), (2, 1, 8, 9)),
        ((2, 3, 8, 8), (2, 3, 8, 8)),
        ((2, 3, 8, 8), (1, 1, 8, 8)),
        ((2, 4, 8, 8), (2, 1, 8, 8)),
        ((2, 8, 8), (2, 1, 8, 8)),
    ],
)
@pytest.mark.parametrize("kind", ["stain", "paper", "none"])
def test_shapes_that_do_not_fit(kind, image_shape, label_shape):
    with pytest.raises(ValueError, match=r"must be \(B, 1 or 3, H, W\)"):
        TileAugmentation(kind)(torch.zeros(image_shape), torch.zeros(label_shape))


def test_tiles_that_are_not_square_cannot_be_turned():
    with pytest.raises(ValueError, match="square tiles, not 8 x 9"):
        TileAugmentation("stain")(torch.zeros(2, 3, 8, 9), torch.zeros(2, 1, 8, 9))


def test_whole_numbers_are_no_images():
    with pytest.raises(ValueError, match=r"floats in \[0, 1\], not torch.uint8"):
        TileAugmentation("stain")(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, 1, 8, 8))
