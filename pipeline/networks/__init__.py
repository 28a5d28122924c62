# SPDX-License-Identifier: Apache-2.0
"""Networks of teachers and students, paraphrasers, and model files."""

from pipeline.lazy_names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "adopted": ("adopt",),
        "base": ("BatchNorm2d", "SegmentationNetwork"),
        "build": ("NETWORKS", "build_network", "network_recipe", "tap_channels"),
        "cost": ("multiply_adds", "parameter_count"),
        "architectures.enet": ("ENet",),
        "architectures.erfnet": ("ERFNet",),
        "architectures.fanet": ("FANet",),
        "inference_form": ("for_inference",),
        "architectures.mobile_unet": ("MobileUNet",),
        "monai_networks": ("MONAI_NETWORKS",),
        "padding": ("PaddedInferer",),
        "architectures.paraphraser": ("Paraphraser",),
        "saved_model": ("SavedModel", "check_can_be_saved", "load_model", "save_model", "to_device", "unwrapped"),
        "shapes": ("FeatureMap", "distinct", "feature_maps"),
        "training_form": ("for_training",),
    },
)
