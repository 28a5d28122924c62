# SPDX-License-Identifier: Apache-2.0
"""Counting and scheduling by steps of the optimizer; one step may take several iterations."""

from __future__ import annotations

from ignite.engine import Engine
from monai.handlers import LrScheduleHandler

from pipeline.errors import InputError


def optimizer_steps(iterations: int, accumulation_steps: int = 1) -> int:
    """Return how many steps the optimizer takes in so many iterations of a whole run.

    Raises:
        InputError: it takes none.
    """
    steps = iterations // accumulation_steps
    if steps < 1:
        raise InputError(
            f"the run has {iterations} iterations and --accumulation_steps is {accumulation_steps}, so the optimizer "
            "would never step: lower it, or raise --epochs"
        )
    return steps


class OptimizerStepSchedule(LrScheduleHandler):
    """MONAI's schedule handler, which steps when the optimizer has, and not after iterations that only accumulate."""

    def __call__(self, engine: Engine) -> None:
        """Step if the optimizer has."""
        if engine.state.iteration % engine.accumulation_steps == 0:
            super().__call__(engine)
