# SPDX-License-Identifier: Apache-2.0
"""What networks are trained on: slices and patches of volumes, cached and augmented."""
