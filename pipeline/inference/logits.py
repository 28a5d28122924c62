# SPDX-License-Identifier: Apache-2.0
"""Logits of images at the training size of a network, for the inferers of scans and of slides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipeline.data.samples.slices import resize_images
from pipeline.errors import InputError
from pipeline.networks import PaddedInferer

Network = Callable[..., Tensor]
AMP_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class LogitsAtTrainingSize:
    """Resizes images (B, C, H, W) float in [0, 1] to `size` and gives a network's logits there, (B, K, size, size).

    Args:
        size: side in pixels of the square images that the network was trained on.
        amp_dtype: "bfloat16" or "float16" to run the network under autocast, None for full precision.
        most_classes: most classes that a label map can hold; `InputError` for a network with more.
    """

    def __init__(self, size: int, amp_dtype: str | torch.dtype | None, most_classes: int) -> None:
        self.size, self.amp_dtype, self.most_classes = size, amp_dtype_of(amp_dtype), most_classes
        self._run_network = PaddedInferer()

    def resize(self, images: Tensor) -> Tensor:
        """Return images (B, C, H, W) as (B, C, size, size), resized as in training."""
        return resize_images(images, (self.size, self.size))

    def __call__(self, images: Tensor, network: Network, *args: Any, **kwargs: Any) -> Tensor:
        """Return float32 logits (B, K, size, size) of images (B, C, H, W); further arguments go to the network."""
        images = self.resize(images)
        with torch.autocast(images.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
            logits = self._run_network(images, network, *args, **kwargs)
        if logits.shape[1] > self.most_classes:
            raise InputError(
                f"the network gives {logits.shape[1]} classes; a label map holds {self.most_classes} at most"
            )
        return logits.float()


def amp_dtype_of(given: str | torch.dtype | None) -> torch.dtype | None:
    """Return the type to autocast to by its name, None for full precision; `InputError` for another name."""
    if given is None or given in AMP_DTYPES.values():
        return given
    if given not in AMP_DTYPES:
        raise InputError(f"amp_dtype {given!r} is unknown; choose {', '.join(AMP_DTYPES)} or none")
    return AMP_DTYPES[given]


def device_of(network: Network, default: torch.device) -> torch.device:
    """Return where the network's weights are; functions and networks without weights run on `default`."""
    parameters = network.parameters() if isinstance(network, torch.nn.Module) else iter(())
    first = next(parameters, None)
    return default if first is None else first.device


def check_finite(logits: Tensor, location_of: Callable[[int], str]) -> None:
    """Raise `InputError` for NaN or infinite logits (B, K, ...): their argmax would look like a valid class.

    `location_of` returns in words where image number i of the batch lies.
    """
    finite = torch.isfinite(logits).flatten(1).all(dim=1)
    if not finite.all():
        where = location_of(int((~finite).nonzero()[0, 0]))
        raise InputError(
            f"the network's logits are NaN or infinite in {where};"
            " the checkpoint is damaged, or amp_dtype too narrow for it"
        )
