# SPDX-License-Identifier: Apache-2.0
"""Tiles of slides: where they lie, how they are blended, and that a slide gives what an image in memory does."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import sliding_window_inference
from monai.networks.utils import eval_mode
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.data import IntensityRule, preprocessing_of
from pipeline.data.slides.base import UNREADABLE, ArraySlide, Unreadable
from pipeline.data.slides.pictures import to_grey
from pipeline.errors import InputError
from pipeline.inference import LabelBands, TileInferer
from pipeline.inference.slides.tile_grid import blending_window
from tests.preprocessing import tile_preprocessing

TO_ONE = preprocessing_of(tile_preprocessing(IntensityRule("window", 0.0, 255.0)))


class Dark(nn.Module):
    """Class 1 where the image is darker than a half: every pixel by itself."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.in_channels = channels
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.clone())
        grey = images.mean(dim=1, keepdim=True)
        return torch.cat([grey - 0.5, 0.5 - grey], dim=1)


class Everywhere(nn.Module):
    """Class 1 everywhere, whatever the image."""

    in_channels = 3

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([-images[:, :1] - 1, images[:, :1] + 1], dim=1)


class CountingSlide(ArraySlide):
    """Keeps which regions were read."""

    def __init__(self, pixels: np.ndarray) -> None:
        super().__init__(pixels)
        self.reads: list[tuple[int, int, int, int]] = []

    def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        self.reads.append((top, left, height, width))
        return super().read(top, left, height, width)


def convolutions(channels: int = 3, classes: int = 4) -> nn.Module:
    torch.manual_seed(3)
    layers = nn.Conv2d(channels, 8, 5, padding=2), nn.Tanh(), nn.Conv2d(8, classes, 5, padding=2)
    network = nn.Sequential(*layers).eval()
    with torch.no_grad():
        network[0].weight.mul_(3)
        network[2].bias.zero_()  # so that no class wins everywhere
    network.in_channels = channels
    return network


def tissue(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Return smooth random colours (H, W, C) uint8, from black to white."""
    coarse = torch.rand(1, channels, height // 4 + 2, width // 4 + 2, generator=torch.Generator().manual_seed(seed))
    smooth = F.interpolate(coarse, size=(height, width), mode="bilinear")[0]
    return (smooth * 255).to(torch.uint8).permute(1, 2, 0).numpy()


def batch_of(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None]


def labels_of(bands: object) -> np.ndarray:
    return np.concatenate(list(bands))


def naive(pixels: np.ndarray, network: nn.Module, size: int, tile_px: int, step: int) -> np.ndarray:
    """Segment (H, W, C) uint8 the plain way: the whole image padded, the sums of the whole image."""
    height, width, _ = pixels.shape
    rows, columns = (-(-(length - tile_px) // step) + 1 for length in (height, width))
    below, beyond = (rows - 1) * step + tile_px - height, (columns - 1) * step + tile_px - width
    padded = torch.from_numpy(np.pad(pixels, ((0, below), (0, beyond), (0, 0)), mode="reflect"))
    overlap, sums = tile_px - step, 0
    ramp = [min(1.0, (i + 1) / (overlap + 1), (tile_px - i) / (overlap + 1)) for i in range(tile_px)]
    for top in range(0, rows * step, step):
        for left in range(0, columns * step, step):
            tile = padded[top : top + tile_px, left : left + tile_px].permute(2, 0, 1)[None] / 255
            with torch.no_grad():
                logits = network(F.interpolate(tile, size=(size, size), mode="bilinear", antialias=True))
            logits = F.interpolate(logits, size=(tile_px, tile_px), mode="bilinear")[0]
            whole = torch.zeros(len(logits), *padded.shape[:2])
            whole[:, top : top + tile_px, left : left + tile_px] = (
                logits * torch.tensor(ramp) * torch.tensor(ramp)[:, None]
            )
            sums = sums + whole
    return sums.argmax(0)[:height, :width].numpy()


# --- labels by hand ---------------------------------------------------------------------------------------------------


def test_labels_where_two_tiles_disagree() -> None:
    class ByColumn(nn.Module):
        in_channels = 1

        def forward(self, images: Tensor) -> Tensor:
            return torch.cat([0 * images, torch.tensor([5.0, -1, -1, -2]).expand_as(images)], dim=1)

    # Tiles at columns 0 and 3. In column 3 they say -2 and 5 with equal weights: together 1.5, class 1.
    labels = TileInferer(4, 4, TO_ONE, overlap=0.25)(torch.zeros(1, 1, 4, 7), ByColumn())
    assert labels.tolist() == [[[[1, 0, 0, 1, 0, 0, 0]] * 4]]


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.8])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 9), (21, 30), (16, 15)])
def test_pixels_keep_their_place(height: int, width: int, overlap: float) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 1), dtype=np.uint8)
    inferer = TileInferer(8, 8, TO_ONE, overlap, tiles_per_batch=3, background=None)
    expected = pixels[..., 0] <= 127
    assert np.array_equal(inferer(batch_of(pixels), Dark())[0, 0].numpy(), expected)
    assert np.array_equal(labels_of(inferer.bands(ArraySlide(pixels), Dark())), expected)


@pytest.mark.parametrize(("size", "tile_px", "overlap"), [(16, 16, 0.25), (8, 16, 0.3), (16, 20, 0.5), (24, 16, 0.75)])
def test_equals_the_plain_way_with_the_sums_of_the_whole_image(size: int, tile_px: int, overlap: float) -> None:
    pixels, network = tissue(53, 61), convolutions()
    inferer = TileInferer(size, tile_px, TO_ONE, overlap, background=None)
    expected = naive(pixels, network, size, tile_px, round(tile_px * (1 - overlap)))
    labels = inferer(batch_of(pixels), network)
    assert labels.dtype == torch.uint8
    assert np.array_equal(labels[0, 0].numpy(), expected)
    assert len(np.unique(expected)) >= 3


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_equals_monais_sliding_window_with_the_same_weights(overlap: float) -> None:
    step = round(16 * (1 - overlap))
    pixels, network = tissue(16 + 2 * step, 16 + 3 * step), convolutions()  # where MONAI moves no window
    window = blending_window(16, step, torch.device("cpu"))
    with torch.no_grad():
        sums = sliding_window_inference(
            batch_of(pixels) / 255, (16, 16), 4, network, overlap=overlap, roi_weight_map=window
        )
    labels = TileInferer(16, 16, TO_ONE, overlap, background=None)(batch_of(pixels), network)
    assert torch.equal(labels, sums.argmax(1, keepdim=True).to(torch.uint8))


# --- slides and images ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tiles_per_batch", [1, 2, 5, 100])
def test_neither_the_batch_nor_the_source_changes_the_result(tiles_per_batch: int) -> None:
    pixels, network = tissue(70, 90), convolutions()
    expected = TileInferer(12, 24, TO_ONE, tiles_per_batch=3)(batch_of(pixels), network)[0, 0].numpy()
    inferer = TileInferer(12, 24, TO_ONE, tiles_per_batch=tiles_per_batch)
    assert np.array_equal(inferer(batch_of(pixels), network)[0, 0].numpy(), expected)
    assert np.array_equal(labels_of(inferer.bands(ArraySlide(pixels), network)), expected)
    assert len(np.unique(expected)) >= 3


def test_a_region_by_itself_has_the_labels_that_it_has_in_the_slide() -> None:
    pixels, network = tissue(230, 250), convolutions()
    inferer = TileInferer(12, 24, TO_ONE)
    tile, top, left, height, width = 24, 3 * inferer.step, 2 * inferer.step, 131, 142
    whole = labels_of(inferer.bands(ArraySlide(pixels), network))
    region = inferer(batch_of(pixels[top : top + height, left : left + width]), network)[0, 0].numpy()
    inner = (slice(tile, height - tile), slice(tile, width - tile))
    assert np.array_equal(region[inner], whole[top : top + height, left : left + width][inner])
    assert len(np.unique(region[inner])) >= 3


def test_grey_models_see_a_slide_as_the_grey_image() -> None:
    pixels, network = tissue(50, 60), convolutions(channels=1)
    inferer = TileInferer(12, 24, TO_ONE)
    expected = inferer(batch_of(to_grey(pixels)), network)[0, 0].numpy()
    assert np.array_equal(labels_of(inferer.bands(ArraySlide(pixels), network)), expected)
    assert np.array_equal(labels_of(inferer.bands(ArraySlide(to_grey(pixels)), network)), expected)
    wrapped = nn.DataParallel(network)  # which has no in_channels of its own
    assert np.array_equal(labels_of(inferer.bands(ArraySlide(pixels), wrapped)), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32])
def test_images_of_a_batch_in_any_number_type_and_their_metadata(dtype: torch.dtype) -> None:
    both = torch.cat([batch_of(tissue(30, 33, seed=seed)) for seed in (0, 1)])
    inferer, network = TileInferer(8, 16, TO_ONE), convolutions()
    expected = torch.cat([inferer(image[None], network) for image in both])
    affine = torch.diag(torch.tensor([2.0, 2, 1, 1], dtype=torch.float64))
    labels = inferer(MetaTensor(both.to(dtype), affine=affine, meta={"filename_or_obj": "a.png"}), network)
    assert isinstance(labels, MetaTensor)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels.as_tensor(), expected)
    assert torch.equal(labels.affine, affine)
    assert labels.meta["filename_or_obj"] == "a.png"
    assert not isinstance(inferer(both, network), MetaTensor)


def test_network_sees_the_tile_scaled_and_resized_as_in_training() -> None:
    pixels, network = tissue(16, 16, 1), Dark()
    TileInferer(8, 16, TO_ONE)(batch_of(pixels), network)
    expected = F.interpolate(batch_of(pixels) / 255, size=(8, 8), mode="bilinear", align_corners=False, antialias=True)
    assert torch.equal(network.seen[0], expected)


def test_bands_come_while_the_rest_of_the_slide_is_unread() -> None:
    slide = CountingSlide(tissue(400, 40))
    bands = TileInferer(20, 20, TO_ONE, tiles_per_batch=2, background=None).bands(slide, convolutions())
    assert next(bands).shape == (15, 40)
    assert max(top + height for top, _, height, _ in slide.reads) <= 3 * 20  # two batches ahead at most
    assert 15 + sum(len(band) for band in bands) == 400


# --- glass ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["image", "slide"])
@pytest.mark.parametrize(
    ("value", "background", "expected"), [(220, 220, 1), (221, 220, 0), (255, 220, 0), (255, None, 1)]
)
def test_tiles_of_glass_are_not_run(source: str, value: int, background: int | None, expected: int) -> None:
    pixels = np.full((24, 24, 3), value, np.uint8)
    inferer = TileInferer(8, 8, TO_ONE, background=background)
    labels = inferer(batch_of(pixels), Everywhere())[0, 0].numpy()
    if source == "slide":
        labels = labels_of(inferer.bands(ArraySlide(pixels), Everywhere()))
    assert np.array_equal(labels, np.full((24, 24), expected))


@pytest.mark.parametrize("source", ["image", "slide"])
@pytest.mark.parametrize("rule", [IntensityRule("window", 0.0, 100.0), IntensityRule("percentiles", 0.0, 100.0)])
def test_glass_is_judged_by_raw_values_whatever_the_preprocessing(source: str, rule: IntensityRule) -> None:
    pixels = np.full((16, 16, 3), 250, np.uint8)
    pixels[:8, :8] = 200  # as bright as glass where 100 is white
    inferer = TileInferer(8, 8, preprocessing_of(tile_preprocessing(rule)), overlap=0)
    labels = inferer(batch_of(pixels), Everywhere())[0, 0].numpy()
    if source == "slide":
        labels = labels_of(inferer.bands(ArraySlide(pixels), Everywhere()))
    expected = np.zeros((16, 16))
    expected[:8, :8] = 1
    assert np.array_equal(labels, expected)


def test_one_channel_of_one_dark_pixel_makes_a_tile_tissue() -> None:
    pixels = np.full((8, 16, 3), 250, np.uint8)
    pixels[3, 2, 1] = 220
    inferer = TileInferer(8, 8, TO_ONE, overlap=0)
    expected = np.repeat([[1] * 8 + [0] * 8], 8, axis=0)
    assert np.array_equal(inferer(batch_of(pixels), Everywhere())[0, 0].numpy(), expected)
    assert np.array_equal(labels_of(inferer.bands(ArraySlide(pixels), Everywhere())), expected)


def test_a_thumbnail_spares_reading_what_is_surely_glass() -> None:
    pixels = np.full((160, 160, 3), 245, np.uint8)
    pixels[100:110, 60:70] = 90
    pixels[:16, 96:160] = 225  # glass, but not by a margin: read and not run
    slide, network = CountingSlide(pixels), Dark(3)
    bands = TileInferer(8, 16, TO_ONE, overlap=0, tiles_per_batch=1)(slide, network)
    labels = labels_of(bands)
    read = {(top // 16, left // 16) for top, left, height, _ in slide.reads if height == 16}
    dim = {(0, column) for column in range(5, 10)} | {(1, column) for column in range(5, 10)}  # and its neighbours
    assert {(6, 3), (6, 4)} <= read
    assert read - dim <= {(row, column) for row in range(5, 8) for column in range(2, 6)}
    assert (bands.tiles.total, bands.tiles.run) == (100, 2)
    assert len(network.seen) == 2
    expected = np.zeros((160, 160))
    expected[100:110, 60:70] = 1
    assert (labels != expected).mean() < 0.002  # half the resolution rounds the corners
    everything = TileInferer(8, 16, TO_ONE, overlap=0, background=None)
    assert np.array_equal(labels_of(everything.bands(slide, network)), labels)


def test_tissue_beside_glass_is_the_same_in_image_and_slide() -> None:
    pixels = tissue(200, 220)
    pixels[60:] = 240
    pixels[150:153, 100:104] = 60
    inferer, network = TileInferer(12, 24, TO_ONE, tiles_per_batch=3), convolutions()
    labels = inferer(batch_of(pixels), network)[0, 0].numpy()
    assert np.array_equal(labels_of(inferer.bands(ArraySlide(pixels), network)), labels)
    assert not labels[90:130].any()
    assert labels[150:153, 100:104].any()


# --- damage -----------------------------------------------------------------------------------------------------------


def test_unreadable_pixels_have_a_value_of_their_own() -> None:
    class Damaged(ArraySlide):
        def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
            if top <= 37 < top + height and left < 20 and not self.unreadable:
                self.unreadable.append(Unreadable(0, 30, 10, 15, 9, "damaged"))
            return super().read(top, left, height, width)

    pixels = np.full((80, 60, 3), 40, np.uint8)
    expected = np.ones((80, 60))
    expected[30:45, 10:19] = UNREADABLE
    for tiles_per_batch in (1, 100):
        slide = Damaged(pixels)
        inferer = TileInferer(16, 16, TO_ONE, tiles_per_batch=tiles_per_batch)
        assert np.array_equal(labels_of(inferer.bands(slide, Dark(3))), expected)


def test_damage_of_a_smaller_level_leaves_the_labels_as_they_are() -> None:
    slide = ArraySlide(np.full((20, 20, 3), 40, np.uint8))
    slide.unreadable.append(Unreadable(2, 0, 0, 20, 20, "damaged"))
    assert np.array_equal(labels_of(TileInferer(16, 16, TO_ONE).bands(slide, Dark(3))), np.ones((20, 20)))


def test_errors_of_the_reading_thread_arrive() -> None:
    class Broken(ArraySlide):
        def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
            if top > 20:
                raise InputError("nothing of it can be read")
            return super().read(top, left, height, width)

    bands = TileInferer(16, 16, TO_ONE).bands(Broken(tissue(80, 40)), convolutions())
    assert len(next(bands)) == 12
    with pytest.raises(InputError, match="nothing of it can be read"):
        list(bands)


# --- the network ------------------------------------------------------------------------------------------------------


def test_late_bands_run_in_the_mode_that_the_evaluator_had_chosen() -> None:
    modes = []

    class Probe(Dark):
        def forward(self, images: Tensor) -> Tensor:
            modes.append((self.training, torch.is_grad_enabled()))
            return super().forward(images)

    network, inferer = Probe(3).train(), TileInferer(16, 16, TO_ONE)
    with eval_mode(network):
        bands = inferer(ArraySlide(tissue(40, 20)), network)
    assert isinstance(bands, LabelBands)
    assert bands.shape == (40, 20)
    assert not modes, "nothing is computed before the bands are asked for"
    for _ in bands:
        assert network.training
        assert torch.is_grad_enabled()
    assert len(bands) == 3
    assert set(modes) == {(False, False)}
    list(inferer.bands(ArraySlide(tissue(40, 20)), network))
    assert modes[-1] == (True, False)


def test_networks_that_need_padding_are_padded_and_cropped() -> None:
    class Strided(Dark):
        size_divisor = 8

        def forward(self, images: Tensor) -> Tensor:
            assert images.shape[-1] % 8 == 0
            return super().forward(images)

    pixels = tissue(25, 23, 1)
    assert np.array_equal(TileInferer(12, 12, TO_ONE)(batch_of(pixels), Strided())[0, 0].numpy(), pixels[..., 0] <= 127)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_name_the_tile(value: float) -> None:
    def network(images: Tensor) -> Tensor:
        logits = images[:, :2].clone()
        logits[images.amin(dim=(1, 2, 3)) < 0.1, 0, 0, 0] = value
        return logits

    pixels = np.full((40, 40, 3), 150, np.uint8)
    pixels[:24] = 250
    pixels[24:32, :8] = 250  # glass in the batch, which does not shift the count
    pixels[30, 33] = 0
    with pytest.raises(InputError, match=r"NaN or infinite in the tile at x=32, y=24; the checkpoint is damaged"):
        list(TileInferer(8, 8, TO_ONE, overlap=0).bands(ArraySlide(pixels), network))


@pytest.mark.parametrize(("height", "width"), [(15, 16), (16, 15), (3, 400)])
def test_images_smaller_than_a_tile_are_refused(height: int, width: int) -> None:
    inferer, pixels = TileInferer(8, 16, TO_ONE), tissue(height, width)
    with pytest.raises(InputError, match=f"the image has {width} x {height} pixels, fewer than the 16 x 16 of a tile"):
        inferer(batch_of(pixels), convolutions())
    with pytest.raises(InputError, match=f"a.png has {width} x {height} pixels, .*; give more of the slide"):
        inferer.bands(ArraySlide(pixels, "a.png"), convolutions())


def test_networks_that_fit_no_slide_are_refused() -> None:
    pixels = tissue(8, 8)
    with pytest.raises(InputError, match="256 classes; a label map holds 255 at most"):
        TileInferer(8, 8, TO_ONE)(batch_of(pixels), lambda images: images[:, :1].expand(-1, 256, -1, -1))
    with pytest.raises(InputError, match="takes 4 channels, a slide has 3 or 1"):
        TileInferer(8, 8, TO_ONE).bands(ArraySlide(pixels), SimpleNamespace(in_channels=4))
    with pytest.raises(ValueError, match=r"must be \(B, C, H, W\) or a Slide"):
        TileInferer(8, 8, TO_ONE)(torch.zeros(1, 1, 8, 8, 8), Dark())
