# SPDX-License-Identifier: Apache-2.0
"""Datasets, volumes and slices: from files on disk to batches."""

from pipeline.lazy_names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "dataset.dataset": (
            "COLOUR_SLIDE",
            "DATASET_FILE",
            "GREY_SLIDE",
            "SPLITS",
            "Case",
            "Dataset",
            "load_dataset",
            "parse_labels",
            "write_dataset_json",
        ),
        "dataset.intensity": (
            "CT_WINDOW",
            "MR_PERCENTILES",
            "SLIDE_INTENSITY",
            "IntensityRule",
            "default_intensity",
            "doubt_hounsfield",
        ),
        "preprocessing": ("Preprocessing", "ScaleIntensityByRuled", "check_preprocessing", "preprocessing_of"),
        "samples.augmentation": ("BatchAugmentation", "SliceAugmentation"),
        "samples.monai_augmentation": ("batch_augmentation",),
        "samples.patches": ("PatchDataset", "patch_augmentation", "patch_sides"),
        "samples.slices": ("SliceDataset", "resize_images", "resize_labels"),
        "samples.student_view": ("Cut", "StudentView"),
        "samples.stain_augmentation": ("TileAugmentation",),
        "scans.geometry": ("Volume", "check_same_grid", "from_ras", "to_ras"),
        "scans.monai_reader": ("VolumeReader",),
        "scans.volumes": ("read_label", "read_volume", "scan_suffix", "write_label_map"),
        "slides.monai_reader": ("PictureReader",),
        "slides.pictures": (
            "IMAGE_SUFFIXES",
            "image_size",
            "is_image",
            "read_image",
            "read_label_image",
            "read_mask_colours",
            "to_grey",
            "write_png",
        ),
    },
)
