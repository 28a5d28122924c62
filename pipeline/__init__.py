# SPDX-License-Identifier: Apache-2.0
"""Graph Flow knowledge distillation for medical image segmentation, on MONAI."""

__version__ = "0.1.0"
