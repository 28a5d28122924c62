# SPDX-License-Identifier: Apache-2.0
"""The colours of classes, the same in every picture."""

from __future__ import annotations

# Okabe and Ito's palette, which colour-blind people can tell apart, and a violet; tab20 beyond eight classes.
PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#7F5FC7")


def colour_of(value: int) -> str:
    """Return the colour of a label value from 1, as `#RRGGBB`."""
    if value <= len(PALETTE):
        return PALETTE[value - 1]
    import matplotlib  # here, because pictures of eight classes need none of it

    return matplotlib.colors.to_hex(matplotlib.colormaps["tab20"]((value - 1) % 20))
