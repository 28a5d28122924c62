# SPDX-License-Identifier: Apache-2.0
"""The whole comparison as one command: networks, methods and seeds as a grid of runs that goes on where it stopped."""

from pipeline.grid.grid import Grid, run_grid
from pipeline.grid.part import part_of
from pipeline.grid.planned_runs import PlannedRun, Step, plan_runs
from pipeline.grid.workers import Outcome, execute_runs

__all__ = ["Grid", "Outcome", "PlannedRun", "Step", "execute_runs", "part_of", "plan_runs", "run_grid"]
