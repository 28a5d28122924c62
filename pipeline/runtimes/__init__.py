# SPDX-License-Identifier: Apache-2.0
"""Exported networks run by onnxruntime or OpenVINO: their files, their runners, and what numpy does around them."""
