# SPDX-License-Identifier: Apache-2.0
"""Pages of results: how they look, and how a template becomes one HTML file that needs nothing else."""
