# SPDX-License-Identifier: Apache-2.0
"""Scans segmented slice by slice or patch by patch, labels first."""
