# SPDX-License-Identifier: Apache-2.0
"""Teachers and students, what distillation needs beside them, and the files that hold trained ones."""

from pipeline.networks.adopted import adopt
from pipeline.networks.base import BatchNorm2d, SegmentationNetwork
from pipeline.networks.build import NETWORKS, build_network, network_recipe, tap_channels
from pipeline.networks.cost import multiply_adds, parameter_count
from pipeline.networks.enet import ENet
from pipeline.networks.erfnet import ERFNet
from pipeline.networks.fanet import FANet
from pipeline.networks.inference_form import for_inference
from pipeline.networks.mobile_unet import MobileUNet
from pipeline.networks.monai_networks import MONAI_NETWORKS
from pipeline.networks.padding import PaddedInferer
from pipeline.networks.paraphraser import Paraphraser
from pipeline.networks.saved_model import SavedModel, check_can_be_saved, load_model, save_model, to_device, unwrapped
from pipeline.networks.shapes import FeatureMap, distinct, feature_maps

__all__ = [
    "MONAI_NETWORKS",
    "NETWORKS",
    "BatchNorm2d",
    "ENet",
    "ERFNet",
    "FANet",
    "FeatureMap",
    "MobileUNet",
    "PaddedInferer",
    "Paraphraser",
    "SavedModel",
    "SegmentationNetwork",
    "adopt",
    "build_network",
    "check_can_be_saved",
    "distinct",
    "feature_maps",
    "for_inference",
    "load_model",
    "multiply_adds",
    "network_recipe",
    "parameter_count",
    "save_model",
    "tap_channels",
    "to_device",
    "unwrapped",
]
