# SPDX-License-Identifier: Apache-2.0
"""When a method of distillation counts during a run, and how much."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from pipeline.errors import InputError

# What a schedule says beside a weight.
TIMES = ("start", "end", "ramp", "share")


@dataclass(frozen=True)
class Schedule:
    """A factor on all terms of a method: `weight` between two shares of the run, 0 outside.

    `start` and `end` are shares of all training steps. Within `ramp` of the run after `start` the factor rises linearly
    from 0. `share` takes the place of a weight: the length of the gradient of all terms together, as a share of the
    segmentation loss's (see `gradient_shares`); the ramp multiplies it like a weight. Raises `InputError` for a
    negative number and for shares of the run that are not in order within [0, 1].
    """

    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0
    ramp: float = 0.0
    share: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.default is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise InputError(f"{field.name} of a method is {value!r}; it must be a finite number from 0")
        if not self.start < self.end <= 1 or self.start + self.ramp > self.end:
            raise InputError(
                f"a method cannot run from {self.start} to {self.end} with a ramp of {self.ramp}: give shares of the "
                "run in [0, 1], the start before the end and the ramp between them"
            )

    def factor(self, progress: float) -> float:
        """Return the factor at `progress`, the share of all steps that are done, in [0, 1)."""
        if not self.start <= progress < self.end:
            return 0.0
        risen = min(1.0, (progress - self.start) / self.ramp) if self.ramp else 1.0
        return self.weight * risen


def parse_schedule(content: Any) -> tuple[Schedule, dict[str, Any]]:
    """Return the schedule in an entry of `--methods`, and the settings of the method that stand beside it.

    `content` is a weight, or a mapping such as `{"weight": 0.5, "start": 0.2, "temperature": 2}`.

    Raises:
        InputError: a number that cannot be, or both a weight and a share.
    """
    if not isinstance(content, Mapping):
        return Schedule(content), {}
    if {"weight", "share"} <= content.keys():
        raise InputError("a method has a weight or a share, not both: a share sets the weight by the gradients")
    own = {field.name for field in fields(Schedule)}
    schedule = Schedule(**{key: value for key, value in content.items() if key in own})
    return schedule, {str(key): value for key, value in content.items() if key not in own}
