# SPDX-License-Identifier: Apache-2.0
"""How long a training takes, so that another may be given the same time."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from ignite.engine import Engine, Events

from pipeline.files.atomic import write_json
from pipeline.processes import distributed

TIME_FILE = "time.json"


class TrainingClock:
    """Trainer handler that writes after each epoch how long the iterations of a run take, without its validations.

    The file holds the number of `epochs` of the run and the `seconds` that all of them take. The seconds are computed
    from the mean time of the iterations timed so far (`timed_iterations` in `timed_seconds`). So a run that was stopped
    and repeated some iterations has the same time as one without interruption.

    Args:
        path: the file to write.
        resume: whether to add to the iterations that an earlier call timed; False starts anew.
    """

    def __init__(self, path: str | os.PathLike[str], resume: bool | str = False) -> None:
        self.path, self._started = Path(path), 0.0
        timed = json.loads(self.path.read_text(encoding="utf-8")) if resume and self.path.is_file() else {}
        self.iterations, self.seconds = timed.get("timed_iterations", 0), timed.get("timed_seconds", 0.0)

    def attach(self, engine: Engine) -> None:
        """Time each iteration, its batch included; attach before the validation handler."""
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)

    def _start(self, engine: Engine) -> None:
        self._started = time.perf_counter()

    def _add(self, engine: Engine) -> None:
        self.iterations += 1
        self.seconds += time.perf_counter() - self._started

    def _write(self, engine: Engine) -> None:
        if not self.iterations or not distributed.is_main():  # none where a resumed run had only a validation left
            return
        epochs = engine.state.max_epochs
        whole = self.seconds / self.iterations * epochs * engine.state.epoch_length
        timed = {"timed_iterations": self.iterations, "timed_seconds": self.seconds}
        write_json(self.path, {"epochs": epochs, "seconds": whole, **timed})
