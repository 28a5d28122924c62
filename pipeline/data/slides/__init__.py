# SPDX-License-Identifier: Apache-2.0
"""Readers of pictures and of whole slides, tile by tile."""
