# SPDX-License-Identifier: Apache-2.0
"""The check that an exported network gives the masks of the network itself, before any file is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.networks import PaddedInferer, SavedModel
from pipeline.runtimes.runners import Run

LEAST_DICE = 0.999
LEAST_DICE_INT8 = 0.995
MOST_LOST_INT8 = 0.005
_BATCH = 4
_COARSE = 8  # sides of the random map that smooth images are made of
_GRAIN = 0.1  # share of noise in them


class ParityError(Exception):
    """An exported network that doesn't segment as the network itself; the message is one line."""


@dataclass(frozen=True)
class Agreement:
    """How far two label maps of the same images agree.

    Attributes:
        dice: organ -> Dice of the two maps over all images, for each organ that either has; the background is listed
            only if it is the only class.
        pixels: number of pixels compared.
        differing: number of pixels of different class.
        lost: organ -> Dice of the network with the truth minus that of the exported network, for each organ of the
            truth; None without a truth.
    """

    dice: dict[str, float]
    pixels: int
    differing: int
    lost: dict[str, float] | None = None

    @property
    def worst(self) -> float:
        """The lowest Dice."""
        return min(self.dice.values())

    def lines(self) -> list[str]:
        """Return a table of the organs, a line each."""
        width = max(map(len, self.dice))
        rows = [f"{name:{width}}  Dice {value:.5f}" for name, value in self.dice.items()]
        for number, name in enumerate(self.dice):
            if self.lost is not None and name in self.lost:
                rows[number] += f", {100 * self.lost[name]:+.2f} points lost against the labels"
        return [*rows, f"{self.differing} of {self.pixels} pixels differ"]


def agreement(
    network: nn.Module, run: Run, images: Tensor, labels: Mapping[int, str], truth: Tensor | None = None
) -> Agreement:
    """Return how far a network and its exported form agree on images (N, C, H, W) or volumes, sides of any length.

    `truth` (N, 1, ...) are the classes of the images' pixels. Raises `ParityError` for an exported network that
    doesn't run, and for logits that are not finite or of another shape than the network's.
    """
    own, exported = (np.concatenate(parts) for parts in zip(*_pairs(network, run, images), strict=True))
    return agreement_of_masks(own, exported, labels, None if truth is None else truth.flatten().numpy())


def agreement_of_masks(
    own: np.ndarray, exported: np.ndarray, labels: Mapping[int, str], true: np.ndarray | None = None
) -> Agreement:
    """Return how far two flat arrays (N,) of classes agree; `true` (N,) are those that the pixels really have."""
    classes = len(labels)
    dice = _dice(own, exported, classes)
    present = {labels[value]: dice[value] for value in range(1, classes) if value in dice} or {labels[0]: dice[0]}
    lost = None
    if true is not None:
        before, after = _dice(own, true, classes), _dice(exported, true, classes)
        lost = {labels[value]: before[value] - after[value] for value in np.unique(true).tolist() if value}
    return Agreement(present, own.size, int(np.count_nonzero(own != exported)), lost)


def _dice(first: np.ndarray, second: np.ndarray, classes: int) -> dict[int, float]:
    """Return the Dice of each class that either map has."""
    sizes = np.bincount(first, minlength=classes) + np.bincount(second, minlength=classes)
    both = np.bincount(first[first == second], minlength=classes)
    return {value: float(2 * both[value] / sizes[value]) for value in range(classes) if sizes[value]}


def _pairs(network: nn.Module, run: Run, images: Tensor) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the classes of all pixels, flat, by the network and by its exported form, a few images at a time."""
    padded = PaddedInferer(network.size_divisor)
    # One image, then several: an exporter may have taken the number of its example for a rule.
    for batch in (images[:1], *(images[1:].split(_BATCH) if len(images) > 1 else ())):
        with torch.inference_mode():
            own = padded(batch, network)
        exported = padded(batch, lambda given: torch.from_numpy(_run(run, given.contiguous().numpy())))
        if exported.shape != own.shape:
            raise ParityError(f"the exported network gives {tuple(exported.shape)}, not {tuple(own.shape)}")
        if not torch.isfinite(exported).all():
            raise ParityError("the exported network gives logits that are NaN or infinite")
        yield tuple(logits.argmax(dim=1).to(torch.uint8).flatten().numpy() for logits in (own, exported))


def _run(run: Run, images: np.ndarray) -> np.ndarray:
    try:
        return run(images)
    except Exception as error:  # each runtime raises its own kinds
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ParityError(f"the exported network doesn't run on images {images.shape} ({reason})") from error


def smooth_images(model: SavedModel) -> Tensor:
    """Return eight random images (8, C, H, W), or volumes, of the training size: slow changes of grey, and grain.

    They are always the same. Without grain, neighbouring pixels would be almost equal, and rounding would decide which
    is largest. ENet, which puts values back to the places of the maxima, would then differ.
    """
    sides = (model.size,) * 2 if isinstance(model.size, int) else tuple(model.size)
    return smooth_noise(8, model.network.in_channels, sides)


def smooth_noise(number: int, channels: int, sides: Sequence[int]) -> Tensor:
    """Return random images (number, channels, *sides) in [0, 1], always the same: slow changes of grey, and grain."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(number, channels, *(_COARSE for _ in sides), generator=generator)
    mode = "bilinear" if len(sides) == 2 else "trilinear"
    smooth = F.interpolate(coarse, size=tuple(sides), mode=mode, align_corners=False)
    return (1 - _GRAIN) * smooth + _GRAIN * torch.rand(smooth.shape, generator=generator)


def check_parity(found: Agreement, int8: bool) -> None:
    """Raise `ParityError`, naming the organs, where the masks agree too little.

    In full precision each organ needs a Dice of 0.999 with torch's. Of 8 bits none may lose more than 0.5 Dice points
    against the labels; where there are none, its Dice with torch's must be 0.995.
    """
    if int8 and found.lost is not None:
        lost = [f"{name} {100 * value:.2f}" for name, value in found.lost.items() if not value <= MOST_LOST_INT8]
        if lost:
            raise ParityError(f"8 bits lose more than {100 * MOST_LOST_INT8} Dice points: {', '.join(lost)}")
        return
    least = LEAST_DICE_INT8 if int8 else LEAST_DICE
    short = [f"{name} {value:.5f}" for name, value in found.dice.items() if not value >= least]
    if short:
        raise ParityError(f"the exported masks differ from torch's: Dice {', '.join(short)}, less than {least}")
