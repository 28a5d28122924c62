# SPDX-License-Identifier: Apache-2.0
"""Runs set against each other: students alone and with each method, beside their teacher."""

from pipeline.comparison.arms import Arm, Comparison, arrange
from pipeline.comparison.runs import Run, read_runs

__all__ = ["Arm", "Comparison", "Run", "arrange", "read_runs"]
