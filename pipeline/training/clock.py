# SPDX-License-Identifier: Apache-2.0
"""How long a training takes, so that another may be given the same time."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import torch
from ignite.engine import Engine, Events

from pipeline.files.atomic import write_json
from pipeline.processes import distributed

TIME_FILE = "time.json"


class TrainingClock:
    """Trainer handler that writes after each epoch how long the iterations of a run take, without its validations.

    The file holds the number of `epochs` of the run and the `seconds` that all of them take. On a CPU it also holds the
    `cpu_seconds` that all cores together worked for this process, which programs beside it hardly change. Both are
    computed from the mean of the iterations timed so far (`timed_iterations` in `timed_seconds`). So a run that was
    stopped and repeated some iterations has the same time as one without interruption.

    Args:
        path: the file to write.
        resume: whether to add to the iterations that an earlier call timed; False starts anew.
        device: on which the run trains.
    """

    def __init__(
        self, path: str | os.PathLike[str], resume: bool | str = False, device: str | torch.device = "cpu"
    ) -> None:
        self.path = Path(path)
        clocks = {"seconds": time.perf_counter}
        if torch.device(device).type == "cpu":
            clocks["cpu_seconds"] = time.process_time
        timed = json.loads(self.path.read_text(encoding="utf-8")) if resume and self.path.is_file() else {}
        self.iterations = timed.get("timed_iterations", 0)
        self._clocks = {name: clock for name, clock in clocks.items() if not timed or f"timed_{name}" in timed}
        self._timed = {name: timed.get(f"timed_{name}", 0.0) for name in self._clocks}
        self._started: dict[str, float] = {}

    def attach(self, engine: Engine) -> None:
        """Time each iteration, its batch included; attach before the validation handler."""
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)

    def _start(self, engine: Engine) -> None:
        self._started = {name: clock() for name, clock in self._clocks.items()}

    def _add(self, engine: Engine) -> None:
        self.iterations += 1
        for name, clock in self._clocks.items():
            self._timed[name] += clock() - self._started[name]

    def _write(self, engine: Engine) -> None:
        if not self.iterations or not distributed.is_main():  # none where a resumed run had only a validation left
            return
        epochs = engine.state.max_epochs
        share = epochs * engine.state.epoch_length / self.iterations
        told = {"epochs": epochs, **{name: share * seconds for name, seconds in self._timed.items()}}
        timed = {f"timed_{name}": seconds for name, seconds in self._timed.items()}
        write_json(self.path, {**told, "timed_iterations": self.iterations, **timed})
