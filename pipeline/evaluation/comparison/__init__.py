# SPDX-License-Identifier: Apache-2.0
"""Runs set against each other: students alone and with each method, beside their teacher."""

from pipeline.evaluation.comparison.runs import Arm, Comparison, Run, arrange, read_runs

__all__ = ["Arm", "Comparison", "Run", "arrange", "read_runs"]
