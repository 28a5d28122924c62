# SPDX-License-Identifier: Apache-2.0
"""The cost of a network on any machine: its parameters and its multiply-adds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.errors import InputError
from pipeline.networks.padding import PaddedInferer
from pipeline.networks.shapes import without_values


def parameter_count(network: nn.Module) -> int:
    """Return the number of parameters; shared parameters count once, buffers not at all."""
    return sum(parameter.numel() for parameter in network.parameters())


def multiply_adds(network: nn.Module, image_shape: Sequence[int]) -> int:
    """Return the multiply-adds of one image in evaluation, padded as `PaddedInferer` pads it.

    Convolutions, transposed convolutions (one per input value, output channel and kernel place), linear layers and
    matrix products are counted, also those of attention. Biases, normalisation, activations, pooling, interpolation and
    products of equal shapes are not. torch counts two operations for each multiply-add. Nothing is computed: a copy of
    the network runs on the meta device, and the network itself is not changed.

    Args:
        network: the network.
        image_shape: (channels, height, width) or (channels, depth, height, width) of the image.

    Raises:
        InputError: the network takes no image of this shape.
    """
    bare = without_values(network).eval()
    images = torch.empty(1, *image_shape, device="meta")
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            PaddedInferer()(images, bare)
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"{type(network).__name__} takes no image of {' x '.join(map(str, image_shape))} (channels first): {reason}"
        ) from error
    return counter.get_total_flops() // 2
