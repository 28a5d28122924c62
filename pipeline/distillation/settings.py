# SPDX-License-Identifier: Apache-2.0
"""Checks of the settings that users give to a method of distillation."""

from __future__ import annotations

import math
from typing import Any

from pipeline.errors import InputError


def check_number(
    method: str, setting: str, value: Any, *, above: float = 0.0, least: float | None = None, most: float = math.inf
) -> float:
    """Return `value` if it is a finite number above `above`, or from `least` where that is given, and at most `most`.

    Raises:
        InputError: it is not; the message names method, setting, value and what is allowed.
    """
    lower = f"above {above:g}" if least is None else f"from {least:g}"
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not good or value > most or not (value > above if least is None else value >= least):
        upper = "" if math.isinf(most) else f" to {most:g}"
        raise InputError(f"{method}: {setting} is {value!r}; it must be a finite number {lower}{upper}")
    return value


def check_whole(method: str, setting: str, value: Any, least: int, most: int | None = None) -> int:
    """Return `value` if it is a whole number from `least` to `most`.

    Raises:
        InputError: it is not; the message names method, setting, value and what is allowed.
    """
    good = isinstance(value, int) and not isinstance(value, bool)
    if not good or value < least or (most is not None and value > most):
        upper = "" if most is None else f" to {most}"
        raise InputError(f"{method}: {setting} is {value!r}; it must be a whole number from {least}{upper}")
    return value
