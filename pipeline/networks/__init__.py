# SPDX-License-Identifier: Apache-2.0
"""The teacher, the students, what distillation needs beside them, and the files that hold trained ones."""

from pipeline.networks.base import BatchNorm2d, SegmentationNetwork
from pipeline.networks.build import NETWORKS, build_network, tap_channels
from pipeline.networks.discriminator import Discriminator
from pipeline.networks.enet import ENet
from pipeline.networks.erfnet import ERFNet
from pipeline.networks.fanet import FANet
from pipeline.networks.mobile_unet import MobileUNet
from pipeline.networks.padding import PaddedInferer
from pipeline.networks.paraphraser import Paraphraser
from pipeline.networks.saved_model import SavedModel, load_model, save_model, to_device, unwrapped

__all__ = [
    "NETWORKS",
    "BatchNorm2d",
    "Discriminator",
    "ENet",
    "ERFNet",
    "FANet",
    "MobileUNet",
    "PaddedInferer",
    "Paraphraser",
    "SavedModel",
    "SegmentationNetwork",
    "build_network",
    "load_model",
    "save_model",
    "tap_channels",
    "to_device",
    "unwrapped",
]
