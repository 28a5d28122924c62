# SPDX-License-Identifier: Apache-2.0
"""Training and inference must do the same to the voxels: the one is written in a config, the other in the inferer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.utils import convert_to_tensor
from torch import Tensor

from pipeline.data.dataset.intensity import IntensityRule
from pipeline.errors import InputError

_TOLERANCE = 1e-3  # of the range [0, 1]: rounding of float32 percentiles stays far below, a wrong window does not


class SamePreprocessing:
    """A `check` of `SliceDataset`: refuses a training preprocessing that inference would not repeat.

    Checkpoints carry orientation and intensity rule, not a user's edit of the transforms in train.yaml: a network
    trained on smoothed or otherwise scaled images would meet other ones at inference, and give silently worse masks.
    The first volume tells.

    Args:
        datalist: the entries that the slices are made of.
        loading: the transform that reads an image (and orients a scan), as inference does.
        intensity: the rule by which inference scales it.
    """

    def __init__(
        self,
        datalist: Sequence[Mapping[str, str]],
        loading: Callable[[Mapping[str, str]], Mapping[str, Any]],
        intensity: IntensityRule,
    ) -> None:
        self.entries = {entry["case"]: entry for entry in datalist}
        self.loading, self.intensity = loading, intensity
        self._done = False

    def __call__(self, case: str, image: Tensor, label: Tensor) -> None:
        """Compare the first prepared `image` (1, X, Y, Z) or (C, H, W) with what inference makes of the same file.

        Raises:
            InputError: they differ in shape or by more than a thousandth of the intensity range.
        """
        if self._done:
            return
        self._done = True
        scan = convert_to_tensor(self.loading(dict(self.entries[case]))["image"], track_meta=False)
        expected = self.intensity.scale(scan, self.intensity.window(scan))
        if expected.shape != image.shape:
            raise InputError(f"case {case}: {_advice(f'{tuple(image.shape)} voxels, not {tuple(expected.shape)}')}")
        difference = float(torch.max(torch.abs(expected - image)))
        if not difference <= _TOLERANCE:
            raise InputError(f"case {case}: {_advice(f'intensities that differ by up to {difference:.3g}')}")


def _advice(difference: str) -> str:
    return (
        f"train::preprocessing of the config gives {difference} from what inference would; scale intensities by the "
        "rule in dataset.json, and put random changes into the augmentation"
    )
