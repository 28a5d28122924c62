# SPDX-License-Identifier: Apache-2.0
"""Comparison of runs: students alone and with each method, and their teacher."""

from pipeline.lazy_names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "arms": ("Arm", "Comparison", "arrange"),
        "runs": ("Run", "read_runs"),
    },
)
