# SPDX-License-Identifier: Apache-2.0
"""What MONAI evaluators plug in: key metrics, further metrics and the report."""
