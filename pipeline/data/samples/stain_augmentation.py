# SPDX-License-Identifier: Apache-2.0
"""Random changes to a batch of tissue tiles, on whatever device holds it: mirrored, turned, and stained anew."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.data.samples.augmentation import BatchAugmentation

# Optical density (red, green, blue) of haematoxylin, eosin and DAB: Ruifrok & Johnston, Anal. Quant. Cytol. Histol. 23
# (2001) 291-299. H&E holds no DAB; the third row takes what the first two do not explain.
STAIN_VECTORS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
# Half the width of both draws: "HED-light" of Tellez et al., Med. Image Anal. 58 (2019) 101544, is 0.05, "HED-strong"
# 0.2. Here the offset counts in decimal optical density, where 0.2 already tints clear glass by a third.
STAIN_JITTER = 0.05
# Black has no finite density; an 8-bit scanner's darkest step above it is 2.4.
_DARKEST = 1e-6


class TileAugmentation(BatchAugmentation):
    """Augment tiles of tissue and their labels together.

    Kinds:
        stain: one of the eight ways to lay a square down (flips and right-angle turns, equally likely: tissue has no
            up), then `jitter_stains` with both draws uniform within `STAIN_JITTER`, for each image and stain.
        paper: the recipe for gastric slides: a horizontal and a vertical flip, each with probability 0.5.
        none: everything stays.

    Flips and turns move pixels and never resample them. Images are expected in [0, 1].
    """

    kinds = ("stain", "paper", "none")

    @torch.no_grad()
    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return new `images` (B, C, H, W) float, C 1 or 3, and `labels` (B, 1, H, W) of the dtype given.

        Raises `ValueError` for other shapes or whole numbers as images, and for tiles that are not square where turns
        need it.
        """
        _check_tiles(images, labels, square=self.kind == "stain")
        if self.kind == "none":
            return images, labels
        mirrored = self._uniform(len(images), 3 if self.kind == "stain" else 2) < 0.5
        images, labels = _move(images, mirrored), _move(labels, mirrored)
        if self.kind == "stain":
            draws = (2 * self._uniform(len(images), 2 * images.shape[1]) - 1) * STAIN_JITTER
            images = jitter_stains(images, *draws.chunk(2, dim=1))
        return images, labels


def jitter_stains(images: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Return `images` (B, C, H, W) in [0, 1] with the amount of each stain times 1 + `alpha` plus `beta`.

    `alpha`, `beta`: (B, C), on any device. With three channels the stains are haematoxylin, eosin and the rest, told
    apart by colour deconvolution (Ruifrok & Johnston 2001) and changed as Tellez et al. (IEEE Trans. Med. Imaging 37
    (2018) 2126-2136) do; a grey image has one optical density, changed alike. Amounts are decimal optical densities,
    and negative ones stay as they are (scikit-image cuts them off), so that no change is the identity.
    """
    stains = torch.tensor(STAIN_VECTORS if images.shape[1] == 3 else ((1.0,),), dtype=torch.float64)
    # Separate, scale, combine: one small matrix an image. In double, so that no change gives exact zeros and ones.
    mixing = torch.linalg.inv(stains) @ torch.diag_embed(1 + alpha.double().cpu()) @ stains
    offset = beta.double().cpu() @ stains
    mixing, offset = (part.to(images.device, torch.float32) for part in (mixing, offset))
    density = images.float().clamp(min=_DARKEST).log10().neg_()
    changed = offset[:, :, None, None].expand_as(density).clone()
    # Not a matrix product: those may run in 19 bits (TF32), or in 16 under autocast.
    for stain in range(len(stains)):
        changed.addcmul_(density[:, stain, None], mixing[:, stain, :, None, None])
    return changed.neg_().mul_(math.log(10)).exp_().clamp_(0, 1).to(images.dtype)


def _move(tiles: Tensor, mirrored: Tensor) -> Tensor:
    """Return `tiles` (B, C, H, W) flipped in rows, in columns and across the diagonal where `mirrored` (B, 1..3) says.

    The three flips generate all eight symmetries of the square; a turn by 90 degrees is two of them.
    """
    flips = (lambda part: part.flip(-2), lambda part: part.flip(-1), lambda part: part.transpose(-1, -2))
    for flip, chosen in zip(flips, mirrored.to(tiles.device).unbind(1), strict=False):
        tiles = torch.where(chosen[:, None, None, None], flip(tiles), tiles)
    return tiles


def _check_tiles(images: Tensor, labels: Tensor, square: bool) -> None:
    expected = (len(images), 1, *images.shape[2:])
    if images.ndim != 4 or images.shape[1] not in (1, 3) or tuple(labels.shape) != expected:
        raise ValueError(
            f"images {tuple(images.shape)} must be (B, 1 or 3, H, W), and labels {tuple(labels.shape)} (B, 1, H, W)"
        )
    if not images.is_floating_point():
        raise ValueError(f"images must be floats in [0, 1], not {images.dtype}")
    if square and images.shape[-1] != images.shape[-2]:
        raise ValueError(f"turns by 90 degrees need square tiles, not {images.shape[-2]} x {images.shape[-1]}")
