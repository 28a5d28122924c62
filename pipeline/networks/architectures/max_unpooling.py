# SPDX-License-Identifier: Apache-2.0
"""Max-pooling that remembers the places of the maxima, and un-pooling to these places, as in ENet.

There are two forms with equal values and gradients. On a CPU, torch's own functions are used, which take an eighth of
the time. But they scatter values, which is not deterministic on CUDA and poorly supported by export formats. There, a
map of the corners, 0 to 3 within each 2 x 2 window, takes the place of torch's indices.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def max_pool(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maxima (B, C, H / 2, W / 2) of 2 x 2 windows, and for `max_unpool` the place of the first of each.

    Args:
        features: (B, C, H, W), of even height and width.
    """
    if _scatters(features):
        return F.max_pool2d(features, 2, return_indices=True)
    return F.max_pool2d(features, 2), _corners(features.detach())


def max_unpool(features: Tensor, places: Tensor) -> Tensor:
    """Return (B, C, 2 H, 2 W): each value where the maximum of its window was, and 0 elsewhere.

    Args:
        features: values (B, C, H, W).
        places: as `max_pool` returns them, called under the same conditions.
    """
    if _scatters(features):
        return F.max_unpool2d(features, places, 2)
    at_corners = [torch.where(places == corner, features, 0) for corner in range(4)]
    return F.pixel_shuffle(torch.stack(at_corners, dim=2).flatten(1, 2), 2)


def _scatters(features: Tensor) -> bool:
    """Tell whether torch's own pair can serve."""
    if not torch.jit.is_scripting():
        captured = torch.jit.is_tracing() or torch.compiler.is_compiling()  # the latter in torch.export too
        return features.device.type == "cpu" and not captured and not torch.are_deterministic_algorithms_enabled()
    return False


def _corners(features: Tensor) -> Tensor:
    """Return the number (B, C, H / 2, W / 2) uint8 of the first maximum in each window, read row by row."""
    upper_left, upper_right = features[..., ::2, ::2], features[..., ::2, 1::2]
    lower_left, lower_right = features[..., 1::2, ::2], features[..., 1::2, 1::2]
    lower = torch.maximum(lower_left, lower_right) > torch.maximum(upper_left, upper_right)
    # By logic, since onnxruntime can't choose between truth values.
    right = (lower & (lower_right > lower_left)) | (~lower & (upper_right > upper_left))
    return 2 * lower.to(torch.uint8) + right.to(torch.uint8)
