# SPDX-License-Identifier: Apache-2.0
"""Which raw voxel values become 0 and 1 for a network: one rule for each dataset."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import InputError

if TYPE_CHECKING:
    import torch

WINDOW = "window"
PERCENTILES = "percentiles"
_AIR_HU = -500.0  # below it lies the air of a CT; MR has no such values


def _number(name: str, value: object) -> float:
    """Return `value` as a finite float; true and false are no numbers here."""
    try:
        number = float("nan") if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError, OverflowError):  # the last for whole numbers of hundreds of digits
        number = float("nan")
    if not math.isfinite(number):
        raise InputError(f"intensity rule: {name} is {value!r}; it must be a finite number")
    return number


@dataclass(frozen=True)
class IntensityRule:
    """What maps raw values to [0, 1]: a fixed window (CT, in HU) or percentiles of each volume (MR).

    `kind` is "window" (`low` and `high` in raw units) or "percentiles" (`low` and `high` in percent, 0..100).
    Raises `InputError` for an unknown kind, a value that is not finite, or `low` not below `high`.
    """

    kind: str
    low: float
    high: float

    def __post_init__(self) -> None:
        if self.kind not in (WINDOW, PERCENTILES):
            raise InputError(f"intensity rule {self.kind!r} is unknown; choose '{WINDOW}' or '{PERCENTILES}'")
        for name in ("low", "high"):
            object.__setattr__(self, name, _number(name, getattr(self, name)))
        if not self.low < self.high:
            raise InputError(f"intensity rule: low {self.low:g} is not below high {self.high:g}; swap or correct them")
        if self.kind == PERCENTILES and (self.low < 0 or self.high > 100):
            raise InputError(f"intensity rule: percentiles {self.low:g}, {self.high:g}; they must lie in 0..100")

    def window(self, array: np.ndarray | torch.Tensor) -> tuple[float, float]:
        """Return the raw values that become 0 and 1 for the volume `array` (any shape; all its voxels count).

        Percentiles interpolate linearly, as `numpy.percentile` does. Raises `InputError` where the volume holds voxels
        that are not finite, since every percentile would then be NaN.
        """
        if self.kind == WINDOW:
            return self.low, self.high
        values = array.detach().cpu().numpy() if hasattr(array, "detach") else np.asarray(array)
        low, high = (float(value) for value in np.percentile(values, (self.low, self.high)))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise InputError("the volume holds NaN or infinite voxels, so it has no percentiles; repair the scan")
        return low, high

    def to_dict(self) -> dict[str, str | float]:
        """Return the form that `dataset.json` and checkpoints hold: `{"rule", "low", "high"}`."""
        return {"rule": self.kind, "low": self.low, "high": self.high}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> IntensityRule:
        """Read what `to_dict` wrote; raises `InputError` naming the key that is missing or unusable."""
        if not isinstance(content, Mapping):
            raise InputError('intensity must be an object; write {"rule": "window", "low": -125, "high": 275}')
        missing = [key for key in ("rule", "low", "high") if key not in content]
        if missing:
            raise InputError(f"intensity lacks {', '.join(missing)}; give rule, low and high")
        return cls(content["rule"], content["low"], content["high"])


# The abdominal soft-tissue window of the Synapse benchmark (TransUNet's preparation), in HU.
CT_WINDOW = IntensityRule(WINDOW, -125.0, 275.0)
# MR has no unit. The half percent at each end holds hot spots near the coils and the empty background.
MR_PERCENTILES = IntensityRule(PERCENTILES, 0.5, 99.5)
# Slides are stored with 8 bits a channel.
SLIDE_INTENSITY = IntensityRule(WINDOW, 0.0, 255.0)


def default_intensity(modality: str) -> IntensityRule:
    """Return the rule for a `modality`: the soft-tissue window in HU for CT, percentiles per volume for all others."""
    return CT_WINDOW if modality.upper() == "CT" else MR_PERCENTILES


def doubt_modality(modality: str, low: float, high: float, told: str | None = None) -> str | None:
    """Return why a scan seems to be of another modality than a model was trained on, or None.

    Args:
        modality: of the training data; scans for others than CT and MR are not judged.
        low: the smallest raw value of the scan.
        high: the largest raw value of the scan.
        told: the modality in the scan's header, such as "MR"; None where it has none.
    """
    if modality not in ("CT", "MR"):
        return None
    if told in ("CT", "MR") and told != modality:
        return f"the scan is {told}, but the model was trained on {modality}: don't trust the labels"
    if modality == "CT" and (doubt := doubt_hounsfield(low, high)) is not None:
        return f"unlike the CT that the model was trained on: {doubt}; don't trust the labels"
    if modality == "MR" and low <= _AIR_HU:
        return f"values {low:g}..{high:g} look like CT, but the model was trained on MR: don't trust the labels"
    return None


def doubt_hounsfield(low: float, high: float) -> str | None:
    """Return why a CT with values from `low` to `high` seems not to be in HU, and what to do, or None.

    Air is -1000 HU and lies around every patient; bone and contrast lie above 100.
    """
    if low >= 0 and high <= 255:
        return f"values {low:g}..{high:g} do not look like Hounsfield units but like grey values; export the CT in HU"
    if low >= 0:
        return f"values {low:g}..{high:g} do not look like Hounsfield units; subtract the offset, likely 1024"
    if high <= 100:
        return f"values {low:g}..{high:g} do not look like Hounsfield units; export the CT in HU, not a window of it"
    return None
