# SPDX-License-Identifier: Apache-2.0
"""A dataset folder: its dataset.json with cases, labels, splits by patient and the intensity rule."""
