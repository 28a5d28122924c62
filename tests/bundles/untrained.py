# SPDX-License-Identifier: Apache-2.0
"""Model files of networks that have learned nothing, for any dataset."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.data import load_dataset
from pipeline.networks import build_network, save_model
from tests.preprocessing import scan_preprocessing, tile_preprocessing


def untrained(path: Path, dataset_dir: Path, network: str = "enet", size: int = 32) -> Path:
    """Write a network, always the same, that fits a dataset of scans or slides; return its file."""
    dataset = load_dataset(dataset_dir)
    torch.manual_seed(0)
    save_model(
        path,
        build_network(network, in_channels=dataset.in_channels, out_channels=dataset.out_channels),
        labels=dataset.labels,
        preprocessing=(scan_preprocessing if dataset.tile_px is None else tile_preprocessing)(dataset.intensity),
        size=size,
        modality=dataset.modality,
        tile_px=dataset.tile_px,
    )
    return path
