# SPDX-License-Identifier: Apache-2.0
"""Whether an exported network segments as the network itself does: the gate before any file is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.networks import PaddedInferer, SavedModel
from pipeline.segment.runtimes import Run

LEAST_DICE = 0.999
LEAST_DICE_INT8 = 0.995
_BATCH = 4
_COARSE = 8  # sides of the random map that smooth images are made of


class ParityError(Exception):
    """An exported network that doesn't segment as the network itself; the message is one line."""


@dataclass(frozen=True)
class Agreement:
    """How far two label maps of the same images agree.

    Attributes:
        dice: organ -> Dice of the two over all images, for each organ that either has; the background stands there
            where it is the only class.
        pixels: number of pixels compared.
        differing: number of pixels of different class.
    """

    dice: dict[str, float]
    pixels: int
    differing: int

    @property
    def worst(self) -> float:
        """The lowest Dice."""
        return min(self.dice.values())

    def lines(self) -> list[str]:
        """Return a table of the organs, a line each."""
        width = max(map(len, self.dice))
        rows = [f"{name:{width}}  Dice {value:.5f}" for name, value in self.dice.items()]
        return [*rows, f"{self.differing} of {self.pixels} pixels differ"]


def agreement(network: nn.Module, run: Run, images: Tensor, labels: Mapping[int, str]) -> Agreement:
    """Return how far a network and its exported form agree on images (N, C, H, W) or volumes, sides of any length.

    Raises `ParityError` for an exported network that doesn't run, and for logits that are not finite or of another
    shape than the network's.
    """
    classes = len(labels)
    counts = np.zeros((classes, classes), dtype=np.int64)
    for own, exported in _pairs(network, run, images):
        counts += np.bincount(own * classes + exported, minlength=classes**2).reshape(classes, classes)
    own, exported, both = counts.sum(axis=1), counts.sum(axis=0), counts.diagonal()
    present = [value for value in range(1, classes) if own[value] + exported[value]] or [0]
    dice = {labels[value]: float(2 * both[value] / (own[value] + exported[value])) for value in present}
    return Agreement(dice, int(counts.sum()), int(counts.sum() - both.sum()))


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
        yield own.argmax(dim=1).flatten().numpy(), exported.argmax(dim=1).flatten().numpy()


def _run(run: Run, images: np.ndarray) -> np.ndarray:
    try:
        return run(images)
    except Exception as error:  # each runtime raises its own kinds
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ParityError(f"the exported network doesn't run on images {images.shape} ({reason})") from error


def smooth_images(model: SavedModel) -> Tensor:
    """Return eight random images of the training size whose grey values change slowly, always the same."""
    sides = (model.size,) * 2 if isinstance(model.size, int) else tuple(model.size)
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(8, model.network.in_channels, *(_COARSE for _ in sides), generator=generator)
    mode = "bilinear" if len(sides) == 2 else "trilinear"
    return F.interpolate(coarse, size=sides, mode=mode, align_corners=False)


def check_parity(found: Agreement, int8: bool) -> None:
    """Raise `ParityError`, naming the organs, where the masks agree too little."""
    least = LEAST_DICE_INT8 if int8 else LEAST_DICE
    short = [f"{name} {value:.5f}" for name, value in found.dice.items() if not value >= least]
    if short:
        raise ParityError(f"the exported masks differ from torch's: Dice {', '.join(short)}, less than {least}")
