# SPDX-License-Identifier: Apache-2.0
"""Padding of images for networks that only take sides that are multiples of a number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from monai.inferers import Inferer
from torch import Tensor, nn
from torch.nn import functional as F


class PaddedInferer(Inferer):
    """Runs a network on images padded to its `size_divisor`, and crops the output back to the images' size.

    Padding is split between both sides and mirrors the image (without repeating its border), so that the network sees
    no artificial edge; an axis too short to mirror repeats its border instead, down to a single pixel. An image of a
    fitting size is passed on untouched.

    Args:
        size_divisor: multiple in pixels to pad to; by default the network's own attribute, or 1 if it has none.
    """

    def __init__(self, size_divisor: int | None = None) -> None:
        super().__init__()
        if size_divisor is not None and size_divisor < 1:
            raise ValueError(f"size_divisor is {size_divisor}; it must be 1 or more")
        self.size_divisor = size_divisor

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Return the network's output (B, K, H, W) for `inputs` (B, C, H, W); further arguments go to the network.

        Volumes (B, C, D, H, W) are padded along depth too.

        Raises:
            ValueError: `inputs` are not images, or the network changes their size so that nothing can be cropped.
        """
        if inputs.ndim not in (4, 5) or 0 in inputs.shape[2:]:
            raise ValueError(
                f"images must be (B, C, H, W) or (B, C, D, H, W) with at least one pixel, not {tuple(inputs.shape)}"
            )
        sides = inputs.shape[2:]
        divisor = self.size_divisor or _divisor_of(network)
        missing = [_split(side, divisor) for side in sides]
        if not any(after for _, after in missing):
            return network(inputs, *args, **kwargs)
        padded = inputs
        for axis, (before, after) in enumerate(missing):
            padded = _pad(padded, axis, before, after) if after else padded
        output = network(padded, *args, **kwargs)
        if output.shape[2:] != padded.shape[2:]:
            raise ValueError(
                f"the network turns {tuple(padded.shape[2:])} pixels into {tuple(output.shape[2:])}; "
                "PaddedInferer crops outputs of the input's size only"
            )
        return output[(..., *(slice(before, before + side) for (before, _), side in zip(missing, sides, strict=True)))]


def with_size_divisor(network: nn.Module, size_divisor: int) -> nn.Module:
    """Return the network itself, which now tells `PaddedInferer` the multiple of pixels that it takes."""
    network.size_divisor = size_divisor
    return network


def _divisor_of(network: Callable[..., Tensor]) -> int:
    """Return the network's `size_divisor`, looking through the wrapper of distributed training."""
    if isinstance(network, nn.parallel.DistributedDataParallel | nn.DataParallel):
        network = network.module
    return getattr(network, "size_divisor", 1)


def _split(size: int, divisor: int) -> tuple[int, int]:
    """Return the pixels to add before and after an axis of `size`; the larger half comes after."""
    missing = -size % divisor
    return missing // 2, missing - missing // 2


def _pad(images: Tensor, axis: int, before: int, after: int) -> Tensor:
    """Pad one spatial axis, counted from 0: mirrored if it is long enough for that."""
    padding = [0, 0] * (images.ndim - 2)
    last_first = 2 * (images.ndim - 3 - axis)
    padding[last_first : last_first + 2] = before, after
    return F.pad(images, padding, mode="reflect" if after < images.shape[2 + axis] else "replicate")
