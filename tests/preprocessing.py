# SPDX-License-Identifier: Apache-2.0
"""What model files of the tests say of their preprocessing: that of the bundles, with another rule of intensities."""

from __future__ import annotations

from typing import Any

from pipeline.data import IntensityRule

_SCALING = "pipeline.data.preprocessing.ScaleIntensityByRuled"


def scan_preprocessing(rule: IntensityRule) -> list[dict[str, Any]]:
    """Return the description of what the Synapse bundle does to a scan."""
    keys = ["image", "label"]
    return [
        {
            "_target_": "monai.transforms.io.dictionary.LoadImaged",
            "dtype": None,
            "image_only": True,
            "keys": keys,
            "reader": "pipeline.data.VolumeReader",
        },
        {
            "_target_": "monai.transforms.utility.dictionary.EnsureChannelFirstd",
            "channel_dim": "no_channel",
            "keys": keys,
        },
        {
            "_target_": "monai.transforms.spatial.dictionary.Orientationd",
            "axcodes": "RAS",
            "keys": keys,
            "labels": None,
        },
        *tile_preprocessing(rule),
    ]


def tile_preprocessing(rule: IntensityRule) -> list[dict[str, Any]]:
    """Return the description of what the gastric bundle does to a tile of a slide."""
    return [{"_target_": _SCALING, "high": rule.high, "keys": "image", "low": rule.low, "rule": rule.kind}]
