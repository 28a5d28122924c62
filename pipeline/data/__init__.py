# SPDX-License-Identifier: Apache-2.0
"""Datasets, volumes and slices: from files on disk to batches."""

from pipeline.data.dataset.dataset import (
    COLOUR_SLIDE,
    DATASET_FILE,
    GREY_SLIDE,
    SPLITS,
    Case,
    Dataset,
    load_dataset,
    parse_labels,
    write_dataset_json,
)
from pipeline.data.dataset.intensity import (
    CT_WINDOW,
    MR_PERCENTILES,
    SLIDE_INTENSITY,
    IntensityRule,
    default_intensity,
    doubt_hounsfield,
)
from pipeline.data.preprocessing import (
    Preprocessing,
    ScaleIntensityByRuled,
    check_preprocessing,
    preprocessing_of,
)
from pipeline.data.samples.augmentation import BatchAugmentation, SliceAugmentation
from pipeline.data.samples.patches import PatchDataset, patch_augmentation, patch_sides
from pipeline.data.samples.slices import SliceDataset, resize_images, resize_labels
from pipeline.data.samples.stain_augmentation import TileAugmentation
from pipeline.data.scans.geometry import Volume, check_same_grid, from_ras, to_ras
from pipeline.data.scans.volumes import VolumeReader, read_label, read_volume, scan_suffix, write_label_map
from pipeline.data.slides.pictures import (
    IMAGE_SUFFIXES,
    PictureReader,
    image_size,
    is_image,
    read_image,
    read_label_image,
    read_mask_colours,
    to_grey,
    write_png,
)

__all__ = [
    "COLOUR_SLIDE",
    "CT_WINDOW",
    "DATASET_FILE",
    "GREY_SLIDE",
    "IMAGE_SUFFIXES",
    "MR_PERCENTILES",
    "SLIDE_INTENSITY",
    "SPLITS",
    "BatchAugmentation",
    "Case",
    "Dataset",
    "IntensityRule",
    "PatchDataset",
    "PictureReader",
    "Preprocessing",
    "ScaleIntensityByRuled",
    "SliceAugmentation",
    "SliceDataset",
    "TileAugmentation",
    "Volume",
    "VolumeReader",
    "check_preprocessing",
    "check_same_grid",
    "default_intensity",
    "doubt_hounsfield",
    "from_ras",
    "image_size",
    "is_image",
    "load_dataset",
    "parse_labels",
    "patch_augmentation",
    "patch_sides",
    "preprocessing_of",
    "read_image",
    "read_label",
    "read_label_image",
    "read_mask_colours",
    "read_volume",
    "resize_images",
    "resize_labels",
    "scan_suffix",
    "to_grey",
    "to_ras",
    "write_dataset_json",
    "write_label_map",
    "write_png",
]
