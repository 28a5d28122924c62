# SPDX-License-Identifier: Apache-2.0
"""Whole slides segmented tile by tile."""
