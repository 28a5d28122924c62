# SPDX-License-Identifier: Apache-2.0
"""The whole comparison as one command: networks, methods and seeds as a grid of runs that goes on where it stopped."""

from pipeline.grid.cells import Cell, Step, build_cells
from pipeline.grid.grid import Grid, run_grid
from pipeline.grid.workers import Outcome, run_cells

__all__ = ["Cell", "Grid", "Outcome", "Step", "build_cells", "run_cells", "run_grid"]
