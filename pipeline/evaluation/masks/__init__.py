# SPDX-License-Identifier: Apache-2.0
"""Finished masks of any tool, from two folders: their files, which belong together, and the names of their labels."""
