# SPDX-License-Identifier: Apache-2.0
"""What a user sees while a network trains: a bar for the epoch where there is a terminal, one line after each epoch."""

from __future__ import annotations

import logging
import sys
import time

from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar

logger = logging.getLogger(__name__)


class Progress:
    """Trainer handler: progress bar, and a log line an epoch with mean loss, validation metric, best so far and time.

    Args:
        evaluator: the validation engine whose key metric is shown, or None.
    """

    def __init__(self, evaluator: Engine | None = None) -> None:
        self.evaluator = evaluator
        self._loss_sum, self._iterations, self._started = 0.0, 0, time.perf_counter()

    def attach(self, engine: Engine) -> None:
        """Show the bar and log after each epoch; attach after the validation handler."""
        if sys.stderr.isatty():
            ProgressBar(persist=False).attach(engine, output_transform=lambda output: {"loss": float(output["loss"])})
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._log)

    def _start(self, engine: Engine) -> None:
        self._loss_sum, self._iterations, self._started = 0.0, 0, time.perf_counter()

    def _add(self, engine: Engine) -> None:
        self._loss_sum = self._loss_sum + engine.state.output[0]["loss"]  # stays on the device: no wait for it here
        self._iterations += 1

    def _log(self, engine: Engine) -> None:
        parts = [f"epoch {engine.state.epoch}/{engine.state.max_epochs}"]
        if self._iterations:  # none where a resumed run had only this epoch's validation left
            parts.append(f"loss {float(self._loss_sum) / self._iterations:.4f}")
        state = self.evaluator.state if self.evaluator is not None else None
        if state is not None and state.epoch == engine.state.epoch and state.key_metric_name in state.metrics:
            name = state.key_metric_name
            parts.append(
                f"{name} {state.metrics[name]:.4f} (best {state.best_metric:.4f} in {state.best_metric_epoch})"
            )
        logger.info("%s  %.1f s", "  ".join(parts), time.perf_counter() - self._started)
