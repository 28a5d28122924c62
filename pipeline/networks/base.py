# SPDX-License-Identifier: Apache-2.0
"""The base class of all segmentation networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SegmentationNetwork(nn.Module):
    """A network that maps images (B, in_channels, H, W) to logits (B, out_channels, H, W) and returns only these.

    Networks of MONAI, which `build_network` makes too, are no subclasses but have the same attributes.

    Args:
        in_channels: channels of the images.
        out_channels: number of classes K, the background included.

    Attributes:
        spatial_dims: 2 for images; networks of MONAI may have 3, for volumes.
        size_divisor: sides of an image in pixels must be multiples of it; `PaddedInferer` takes any size.
        fixed_size: True if the network only takes images with sides of exactly `size_divisor` pixels.
        taps: dotted names of the modules whose outputs are the feature maps for distillation, shallow to deep. The
            networks of this package have two, both at a quarter of the resolution.
        tap_channels: channels of these feature maps.
        arguments: the arguments of `build_network`, so that a checkpoint can store how to build the network again;
            empty for a network built by its class.
    """

    spatial_dims: int = 2
    size_divisor: int
    fixed_size: bool = False
    taps: tuple[str, ...]
    tap_channels = ()  # without an annotation: TorchScript knows no tuples of any length

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.arguments: dict[str, Any] = {}

    @torch.jit.unused
    def check_images(self, images: Tensor) -> None:
        """Raise `ValueError` for images of a shape that the network cannot take; call it first in `forward`."""
        if images.ndim != 4 or images.shape[1] != self.in_channels:
            raise ValueError(
                f"{type(self).__name__} takes images (B, {self.in_channels}, H, W), not {tuple(images.shape)}"
            )
        height, width = images.shape[-2:]
        if min(height, width) < 1 or height % self.size_divisor or width % self.size_divisor:
            raise ValueError(
                f"{type(self).__name__} takes heights and widths that are multiples of {self.size_divisor}, "
                f"not {height} x {width}: call it through PaddedInferer, which pads and crops back"
            )


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that also trains on a single value per channel: a batch of one with maps of 1 x 1.

    Such a value is its own mean and has no variance, and torch refuses it. Here the running statistics normalise it, as
    they do in evaluation, and are left as they are; `weight` and `bias` still learn. Everything else, the names of
    parameters and buffers too, is `torch.nn.BatchNorm2d`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return `input` (B, C, H, W) normalised."""
        # Torch's own forward written out, since TorchScript knows no super().
        by_batch, momentum = self.training and input.numel() > input.shape[1], self.momentum
        if momentum is None or not by_batch:
            momentum = 0.0
        if by_batch:
            self.num_batches_tracked.add_(1)
        return F.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, by_batch, momentum, self.eps
        )
