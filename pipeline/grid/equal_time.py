# SPDX-License-Identifier: Apache-2.0
"""Equal time: as many epochs as fit in the time that another training took."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InputError
from pipeline.training.clock import TIME_FILE


@dataclass(frozen=True)
class EqualTime:
    """A training that takes as long as another.

    Attributes:
        as_long_as: folder of the run whose time it has.
        alike: folder of the run that it is like but for its length; this one tells how long an epoch takes.
    """

    as_long_as: Path
    alike: Path

    def epochs(self) -> int:
        """Return epochs of `alike` x seconds of `as_long_as` / seconds of `alike`, rounded, and one at least.

        The seconds are those that the cores worked where both runs tell them, which is on a CPU: programs beside a run
        do not lengthen it so. Otherwise they are those of the wall-clock. Both runs are done, so that it is the same
        number whenever it is asked for.
        """
        given, mine = _time(self.as_long_as), _time(self.alike)
        seconds = "cpu_seconds" if "cpu_seconds" in given.keys() & mine.keys() else "seconds"
        return max(1, round(mine["epochs"] * given[seconds] / mine[seconds]))


def _time(folder: Path) -> dict[str, float]:
    """Return what a run's clock wrote; `InputError` for a run without it."""
    file = folder / TIME_FILE
    if not file.is_file():
        raise InputError(f"{folder} does not tell how long it took ({TIME_FILE} is missing); train it again")
    return json.loads(file.read_text(encoding="utf-8"))
