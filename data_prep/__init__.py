# SPDX-License-Identifier: Apache-2.0
"""Converters from what users have to dataset folders (images, labels, `dataset.json`): see `python -m data_prep`."""
