# SPDX-License-Identifier: Apache-2.0
"""A 2D network over all slices of a volume, labels first.

MONAI's `SliceInferer` keeps the float logits of all classes for the whole volume: 7.5 GB for nine classes of
512 x 512 x 800. Here the labels of a chunk of slices are complete before the next chunk begins.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.errors import InputError
from pipeline.inference.label_upsampling import resized_classes
from pipeline.inference.logits import LogitsAtTrainingSize, Network, check_finite, device_of
from pipeline.inference.scans.volume_inferer import VolumeInferer

_MOST_CLASSES = 256  # label maps are uint8
_SLICES_ON_CPU, _SLICES_ELSEWHERE = 4, 16


class SliceWiseInferer(VolumeInferer):
    """Segments preprocessed volumes (B, 1, X, Y, Z) into label maps (B, 1, X, Y, Z) uint8, slice by slice along z.

    Each chunk of slices is resized to the training size and segmented. Logits are then interpolated bilinearly to the
    voxels, and the class of a voxel is that of its largest logit; classes themselves are never interpolated. The size
    of the chunks does not change the result.

    Args:
        size: side in pixels of the square slices that the network was trained on.
        slices_per_chunk: number of slices that the network sees at once; memory grows with it. None chooses by the
            device: with large chunks a CPU needs more time per slice, since the feature maps don't fit into its caches.
        amp_dtype: "bfloat16" or "float16" to run the network under autocast, None for full precision.

    For a `MetaTensor` the result is a `MetaTensor` with the same metadata. The network may be on another device than
    the volume: chunks are sent there, and labels come back. Raises `InputError` for logits that are not finite.
    """

    def __init__(
        self,
        size: int,
        slices_per_chunk: int | None = None,
        amp_dtype: str | torch.dtype | None = None,
    ) -> None:
        if size < 1 or (slices_per_chunk is not None and slices_per_chunk < 1):
            raise InputError(f"size {size} and slices_per_chunk {slices_per_chunk} must be 1 or more")
        self.size = size
        self.slices_per_chunk = slices_per_chunk
        self._logits = LogitsAtTrainingSize(size, amp_dtype, _MOST_CLASSES)

    def _segment(self, volume: Tensor, target: Tensor, network: Network, *args: Any, **kwargs: Any) -> None:
        """Fill `target` (X, Y, Z) with the labels of `volume` (X, Y, Z)."""
        device, depth = device_of(network, volume.device), volume.shape[2]
        step = self.slices_per_chunk or (_SLICES_ON_CPU if device.type == "cpu" else _SLICES_ELSEWHERE)
        for start in range(0, depth, step):
            chosen = slice(start, start + step)
            slices = volume[..., chosen].permute(2, 0, 1).unsqueeze(1).contiguous().to(device)
            logits = self._logits(slices, network, *args, **kwargs)
            check_finite(logits, lambda i, start=start: f"slice {start + i} of {depth} (0 is the lowest)")
            labels = resized_classes(logits, (volume.shape[0], volume.shape[1]))
            target[..., chosen] = labels.permute(1, 2, 0).to(target.device)
