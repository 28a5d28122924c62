# SPDX-License-Identifier: Apache-2.0
"""The base of the inferers of volumes: volumes in, label maps out, one volume at a time."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor

from pipeline.inference.logits import Network


class VolumeInferer(Inferer):
    """Maps volumes (B, 1, X, Y, Z) to labels (B, 1, X, Y, Z) uint8; metadata of a `MetaTensor` stay on the labels."""

    def __call__(self, inputs: Tensor, network: Network, *args: Any, **kwargs: Any) -> Tensor:
        """Return the labels (B, 1, X, Y, Z) of `inputs` (B, 1, X, Y, Z); further arguments go to the network."""
        if inputs.ndim != 5 or inputs.shape[1] != 1:
            raise ValueError(f"inputs must be (B, 1, X, Y, Z), not {tuple(inputs.shape)}")
        volumes = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        labels = torch.empty(volumes.shape, dtype=torch.uint8, device=volumes.device)
        with torch.inference_mode():
            for volume, target in zip(volumes[:, 0], labels[:, 0], strict=True):
                self._segment(volume, target, network, *args, **kwargs)
        return MetaTensor(labels).copy_meta_from(inputs) if isinstance(inputs, MetaTensor) else labels

    @abstractmethod
    def _segment(self, volume: Tensor, target: Tensor, network: Network, *args: Any, **kwargs: Any) -> None:
        """Fill `target` (X, Y, Z) with the labels of `volume` (X, Y, Z)."""
