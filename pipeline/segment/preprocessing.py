# SPDX-License-Identifier: Apache-2.0
"""The usual preprocessing of a scan in numpy: the axes turned to RAS, intensities to [0, 1].

A model file lists its preprocessing as MONAI's transforms. The list of the bundle for scans is known here, step by step
and argument by argument; with any other list the network would see other images than it learned from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.data.dataset.intensity import IntensityRule
from pipeline.errors import InputError

IMAGE = "image"
_TARGET = "_target_"
_SCALING = "ScaleIntensityByRuled"
# For each step the arguments that it may have, with the values that they must have (None: of no effect on an image).
_USUAL: dict[str, dict[str, Sequence[Any] | None]] = {
    "LoadImaged": {
        "reader": ("pipeline.data.VolumeReader", "pipeline.data.scans.monai_reader.VolumeReader"),
        "dtype": (None,),
        "image_only": (True, False),
    },
    "EnsureChannelFirstd": {"channel_dim": ("no_channel",)},
    "Orientationd": {"axcodes": ("RAS",), "labels": (None,)},
    _SCALING: {"rule": None, "low": None, "high": None},
}
_REQUIRED = {"LoadImaged": ("reader",), "EnsureChannelFirstd": ("channel_dim",), "Orientationd": ("axcodes",)}
_PACKAGES = ("monai.transforms.", "pipeline.data.")


def intensity_rule_of(description: Sequence[Mapping[str, Any]]) -> IntensityRule:
    """Return the intensity rule of a preprocessing that is the usual list for scans.

    Raises:
        InputError: a step, an order or an argument that the numpy form does not know.
    """
    names = [_name_of(step) for step in description]
    for name in names:
        if name not in _USUAL:
            raise _unknown(name)
    if names != list(_USUAL):
        raise _unknown(f"the steps {', '.join(names) or 'of an empty list'}")
    for name, step in zip(names, description, strict=True):
        _check_arguments(name, step)
    scaling = description[-1]
    return IntensityRule(scaling.get("rule"), scaling.get("low"), scaling.get("high"))


def _name_of(step: Mapping[str, Any]) -> str:
    """Return the class of a step; the full name of one that is neither MONAI's nor of this package."""
    target = str(step.get(_TARGET))
    return target.rpartition(".")[2] if target.startswith(_PACKAGES) else target


def _check_arguments(name: str, step: Mapping[str, Any]) -> None:
    known = {**_USUAL[name], "keys": None, "allow_missing_keys": None}
    keys = step.get("keys")
    if IMAGE not in ([keys] if isinstance(keys, str) else list(keys or ())):
        raise _unknown(f"{name} of keys {keys!r}")
    for argument in _REQUIRED.get(name, ()):
        if argument not in step:
            raise _unknown(f"{name} without {argument}")
    for argument, value in step.items():
        if argument == _TARGET:
            continue
        if argument not in known or (known[argument] is not None and value not in known[argument]):
            raise _unknown(f"{name} with {argument} {value!r}")


def _unknown(what: str) -> InputError:
    return InputError(
        f"this student's preprocessing has {what}, which the light way doesn't know; use python -m monai.bundle run "
        "with the bundle's inference.yaml and the model.pt"
    )


def scaled(raw: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return `raw`, any shape, as float32 scaled from `low`..`high` to 0..1, clipped as in `ScaleIntensityByRuled`."""
    width = high - low if high > low else 1.0  # a constant volume becomes zeros
    values = raw.astype(np.float32)
    values -= np.float32(low)
    values /= np.float32(width)
    return np.clip(values, 0.0, 1.0, out=values)
