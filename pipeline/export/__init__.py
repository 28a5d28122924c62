# SPDX-License-Identifier: Apache-2.0
"""Export of trained networks to the formats of other programs."""
