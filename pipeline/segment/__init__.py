# SPDX-License-Identifier: Apache-2.0
"""Exported students on scans with numpy and onnxruntime or OpenVINO alone: no torch, no MONAI, little memory."""
