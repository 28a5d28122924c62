# SPDX-License-Identifier: Apache-2.0
"""A faster copy of a network for inference on a CPU; its logits are equal but for rounding."""

from __future__ import annotations

import copy
from collections import Counter
from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pipeline.networks.base import SegmentationNetwork

_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_TRANSPOSED = (nn.ConvTranspose2d, nn.ConvTranspose3d)


def for_inference(network: nn.Module) -> nn.Module:
    """Return a copy of a network in evaluation mode that is faster on a CPU; it must not be trained or saved.

    Normalisation by running statistics is folded into the convolution before it. The weights of this package's networks
    are stored with channels last. Those of other networks are not, since their code may need views that this order does
    not have. A network on another device than a CPU is returned as it is, since the gain was not measured there.

    Args:
        network: on one device, with its final weights.
    """
    first = next(network.parameters(), None)
    if first is None or first.device.type != "cpu":
        return network
    network = copy.deepcopy(network).eval().requires_grad_(False)
    _fold(network)
    if isinstance(network, SegmentationNetwork):
        network.to(memory_format=torch.channels_last)
    return network


def _fold(network: nn.Module) -> None:
    """Fold each normalisation into the convolution that stands before it in a sequence."""
    uses = Counter(module for _, module in network.named_modules(remove_duplicate=False))
    for sequence in list(network.modules()):
        if not isinstance(sequence, nn.Sequential) or type(sequence).forward is not nn.Sequential.forward:
            continue
        for (name, convolution), (next_name, norm) in pairwise(list(sequence.named_children())):
            if uses[convolution] == uses[norm] == 1 and _can_fold(convolution, norm):
                folded = fuse_conv_bn_eval(convolution, norm, transpose=isinstance(convolution, _TRANSPOSED))
                setattr(sequence, name, folded)
                setattr(sequence, next_name, nn.Identity())


def _can_fold(convolution: nn.Module, norm: nn.Module) -> bool:
    """Tell whether both are torch's own, and no hook needs the values between them."""
    grouped = isinstance(convolution, _TRANSPOSED) and convolution.groups > 1  # torch folds these wrongly
    return (
        type(convolution) in _CONVOLUTIONS
        and isinstance(norm, nn.modules.batchnorm._BatchNorm)
        and norm.running_mean is not None
        and not grouped
        and not any(
            module._forward_hooks or module._forward_pre_hooks or hasattr(module, "parametrizations")
            for module in (convolution, norm)
        )
    )
