# SPDX-License-Identifier: Apache-2.0
"""When a network in training is validated."""

from __future__ import annotations

from ignite.engine import Engine, Events
from monai.handlers import ValidationHandler


class IntervalAndLastValidation(ValidationHandler):
    """MONAI's validation handler, which also validates after the last epoch.

    A best model is chosen among validated epochs: with an interval that does not divide the epochs, MONAI leaves the
    last one out, and a run shorter than the interval would end without any model.
    """

    def attach(self, engine: Engine) -> None:
        """Validate every `interval` epochs and after the last."""

        def is_due(trainer: Engine, epoch: int) -> bool:
            """Return whether this epoch ends with a validation."""
            return epoch % self.interval == 0 or epoch == trainer.state.max_epochs

        engine.add_event_handler(Events.EPOCH_COMPLETED(event_filter=is_due), self)
