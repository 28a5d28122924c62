# SPDX-License-Identifier: Apache-2.0
"""Metrics and handlers for MONAI evaluators: key metrics, further metrics and the report."""
