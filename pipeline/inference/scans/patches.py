# SPDX-License-Identifier: Apache-2.0
"""A 3D network over a whole volume in overlapping patches, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from monai.data import dense_patch_slices
from monai.inferers import SlidingWindowInferer
from torch import Tensor

from pipeline.data.samples.patches import patch_sides
from pipeline.errors import InputError
from pipeline.inference.logits import Network, amp_dtype_of, check_finite, device_of
from pipeline.inference.scans.volume_inferer import VolumeInferer
from pipeline.networks import PaddedInferer

_MOST_CLASSES = 256  # label maps are uint8


class PatchInferer(VolumeInferer):
    """Segments preprocessed volumes (B, 1, X, Y, Z) into label maps (B, 1, X, Y, Z) uint8.

    Patches overlap, and MONAI's `SlidingWindowInferer` blends their logits. A volume smaller than a patch is padded
    with zeros, as in training. By itself, MONAI's inferer keeps the float logits of all classes for the whole volume:
    7.5 GB for nine classes of 512 x 512 x 800. Here it gets one slab of axial slices after another, with all patches
    that reach into the slab. The logits of a slab become labels before the next slab begins. The labels are the same as
    those of the whole volume at once; patches that reach into two slabs run twice. A slab takes about 8 (K + 1) X Y
    (slab + patch depth) bytes in addition to the network's memory: 1 GB for that volume.

    Args:
        patch_size: sides of the patches (x, y, z) that the network was trained on, in voxels.
        overlap: share of a patch's side that its neighbour covers too, from 0 to less than 1.
        patches_per_batch: how many patches the network sees at once; memory grows with it.
        slices_per_slab: axial slices that are finished together; rounded to whole steps from patch to patch.
        amp_dtype: "bfloat16" or "float16" to run the network under autocast, None for full precision.

    For a `MetaTensor` the result is a `MetaTensor` with the same metadata. The network may be on another device than
    the volume: slabs are sent there, and labels come back. Raises `InputError` for logits that are not finite.
    """

    def __init__(
        self,
        patch_size: Sequence[int],
        overlap: float = 0.5,
        patches_per_batch: int = 1,
        slices_per_slab: int = 32,
        amp_dtype: str | torch.dtype | None = None,
    ) -> None:
        if not 0 <= overlap < 1:
            raise InputError(f"overlap is {overlap!r}; give a share of the patch from 0 to less than 1")
        if patches_per_batch < 1 or slices_per_slab < 1:
            raise InputError(
                f"patches_per_batch {patches_per_batch} and slices_per_slab {slices_per_slab} must be 1 or more"
            )
        self.patch_size = tuple(patch_sides(patch_size))
        self.overlap, self.slices_per_slab, self.amp_dtype = overlap, slices_per_slab, amp_dtype_of(amp_dtype)
        self._run_network = PaddedInferer()
        self._blend = SlidingWindowInferer(
            self.patch_size, sw_batch_size=patches_per_batch, overlap=overlap, mode="gaussian", with_coord=True
        )

    def _segment(self, volume: Tensor, target: Tensor, network: Network, *args: Any, **kwargs: Any) -> None:
        """Fill `target` (X, Y, Z) with the labels of `volume` (X, Y, Z)."""
        device = device_of(network, volume.device)
        for seen, done in self._slabs(volume.shape[2]):
            slab = volume[None, None, ..., seen].to(device)

            def run(patches: Tensor, locations: list[list[slice]], start: int = seen.start) -> Tensor:
                """Return the checked logits of patches of this slab."""
                return self._logits(patches, locations, start, network, *args, **kwargs)

            logits = self._blend(slab, run)
            logits = logits[0, ..., done.start - seen.start : done.stop - seen.start]
            # max gives the indices of argmax, the first of equals, in a sixth of the time on CPU (torch 2.13).
            target[..., done] = logits.max(dim=0).indices.to(torch.uint8).to(target.device)

    def _slabs(self, depth: int) -> Iterator[tuple[slice, slice]]:
        """Yield slices that MONAI is to see, and those among them whose labels are then final, from below upwards.

        A slab ends where the first patch of the next begins. With every patch that reaches into it, it is blended as
        in the whole volume.
        """
        patch = min(self.patch_size[2], depth)
        step = max(int(patch * (1 - self.overlap)), 1)
        starts = [int(location[0].start) for location in dense_patch_slices((depth,), (patch,), (step,))]
        each = max(self.slices_per_slab // step, 1)
        for first in range(0, len(starts), each):
            last = min(first + each, len(starts)) - 1
            begin, end = starts[first], starts[last + 1] if last + 1 < len(starts) else depth
            reaching = next(start for start in starts if start + patch > begin)
            yield slice(reaching, starts[last] + patch), slice(begin, end)

    def _logits(
        self, patches: Tensor, locations: list[list[slice]], start: int, network: Network, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Return float32 logits (N, K, x, y, z) of patches at `locations` of a slab that begins at `start`."""
        with torch.autocast(patches.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
            logits = self._run_network(patches, network, *args, **kwargs)
        if logits.shape[1] > _MOST_CLASSES:
            raise InputError(f"the network gives {logits.shape[1]} classes; a label map holds {_MOST_CLASSES} at most")
        check_finite(logits, lambda i: f"the patch that begins at voxel {_corner(locations[i], start)}")
        return logits.float()


def _corner(location: list[slice], start: int) -> tuple[int, int, int]:
    x, y, z = (int(axis.start) for axis in location[-3:])
    return x, y, z + start
