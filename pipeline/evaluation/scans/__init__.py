# SPDX-License-Identifier: Apache-2.0
"""Protocols of scans: millimetres, and the published Synapse convention."""
