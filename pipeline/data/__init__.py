# SPDX-License-Identifier: Apache-2.0
"""Datasets, volumes and slices: from files on disk to batches."""

from pipeline.data.agreement import SamePreprocessing
from pipeline.data.augmentation import SliceAugmentation
from pipeline.data.dataset import DATASET_FILE, SPLITS, Case, Dataset, load_dataset, parse_labels, write_dataset_json
from pipeline.data.geometry import Volume, check_same_grid, from_ras, to_ras
from pipeline.data.intensity import CT_WINDOW, MR_PERCENTILES, IntensityRule, default_intensity
from pipeline.data.slices import SliceDataset, resize_images, resize_labels
from pipeline.data.volumes import VolumeReader, read_label, read_volume, scan_suffix, write_label_map

__all__ = [
    "CT_WINDOW",
    "DATASET_FILE",
    "MR_PERCENTILES",
    "SPLITS",
    "Case",
    "Dataset",
    "IntensityRule",
    "SamePreprocessing",
    "SliceAugmentation",
    "SliceDataset",
    "Volume",
    "VolumeReader",
    "check_same_grid",
    "default_intensity",
    "from_ras",
    "load_dataset",
    "parse_labels",
    "read_label",
    "read_volume",
    "resize_images",
    "resize_labels",
    "scan_suffix",
    "to_ras",
    "write_dataset_json",
    "write_label_map",
]
