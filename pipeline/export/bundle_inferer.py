# SPDX-License-Identifier: Apache-2.0
"""What MONAI's tools ask of the inferer of a bundle beside giving labels."""

from __future__ import annotations

from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor

from pipeline.inference.logits import Network


class LabelsOnDevice(Inferer):
    """Another inferer whose labels go to a device.

    Args:
        inferer: gives the labels; it brings what it needs to the network's device itself.
        device: where the labels are to be, by the name by which Slicer sets it; None leaves them with the image.
    """

    def __init__(self, inferer: Inferer, device: str | torch.device | None = None) -> None:
        super().__init__()
        self.inferer, self.device = inferer, device

    def __call__(self, inputs: Tensor, network: Network, *args: Any, **kwargs: Any) -> Tensor:
        """Return the labels of `inputs`, as the inferer shapes them."""
        labels = self.inferer(inputs, network, *args, **kwargs)
        return labels if self.device is None else labels.to(self.device)
