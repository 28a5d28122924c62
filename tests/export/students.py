# SPDX-License-Identifier: Apache-2.0
"""Small model files of networks that have learned nothing, for tests of what is exported from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pipeline.data import IntensityRule
from pipeline.networks import SavedModel, build_network, load_model, save_model
from tests.preprocessing import scan_preprocessing, tile_preprocessing

SEGRESNET = "monai.networks.nets.SegResNet"
WINDOW = IntensityRule("window", -100.0, 300.0)
LABELS = {0: "background", 1: "liver", 2: "spleen", 3: "kidney"}


def student(
    path: Path, name: str, size: Any = 32, rule: IntensityRule = WINDOW, tile_px: int | None = None, **options: Any
) -> SavedModel:
    """Write a network, always the same, and return it as it is loaded."""
    torch.manual_seed(0)
    channels = 1 if tile_px is None else 3
    save_model(
        path,
        build_network(name, channels, len(LABELS), **options),
        labels=LABELS,
        preprocessing=scan_preprocessing(rule) if tile_px is None else tile_preprocessing(rule),
        size=size,
        modality="CT",
        tile_px=tile_px,
    )
    return load_model(path)
