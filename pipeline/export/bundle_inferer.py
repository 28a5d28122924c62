# SPDX-License-Identifier: Apache-2.0
"""The inferer of a bundle with the options that MONAI's tools set."""

from __future__ import annotations

from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor

from pipeline.inference.logits import Network


class LabelsOnDevice(Inferer):
    """Wraps an inferer and moves its labels to a device.

    Args:
        inferer: computes the labels; it moves its inputs to the network's device itself.
        device: device of the labels (Slicer sets it by this name); None leaves them with the image.
    """

    def __init__(self, inferer: Inferer, device: str | torch.device | None = None) -> None:
        super().__init__()
        self.inferer, self.device = inferer, device

    def __call__(self, inputs: Tensor, network: Network, *args: Any, **kwargs: Any) -> Tensor:
        """Return the labels of `inputs`, in the shapes of the wrapped inferer."""
        labels = self.inferer(inputs, network, *args, **kwargs)
        return labels if self.device is None else labels.to(self.device)
