# SPDX-License-Identifier: Apache-2.0
"""How long a run takes: the iterations alone, whatever was stopped and resumed."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from ignite.engine import Engine, Events

from pipeline.training import TrainingClock, clock


@pytest.fixture
def now(monkeypatch) -> SimpleNamespace:
    """The time, which stands still but where a test moves it."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: now.seconds))
    return now


def _trained(path, now, epochs: int, seconds: float, resume: bool = False) -> dict[str, float]:
    """Return what the file says after `epochs` of 4 iterations of so many seconds, each followed by a validation."""

    def iterate(*_):
        """Take the time of an iteration."""
        now.seconds += seconds

    def validate(_):
        """Take a hundred seconds."""
        now.seconds += 100

    engine = Engine(iterate)
    TrainingClock(path, resume).attach(engine)
    engine.add_event_handler(Events.EPOCH_COMPLETED, validate)
    engine.run(range(4), max_epochs=epochs)
    return json.loads(path.read_text())


def test_time_of_a_run_is_that_of_its_iterations(tmp_path, now):
    """3 epochs of 4 iterations of 2 s: 24 s."""
    told = _trained(tmp_path / "time.json", now, epochs=3, seconds=2.0)
    assert told == {"epochs": 3, "seconds": 24.0, "timed_iterations": 12, "timed_seconds": 24.0}


def test_resumed_run_has_the_time_of_all_its_epochs_at_the_mean_of_those_timed(tmp_path, now):
    """4 iterations of 2 s, then, on a busier machine, 4 of 4 s: 3 s each, and a run of 1 epoch takes 12 s."""
    _trained(tmp_path / "time.json", now, epochs=1, seconds=2.0)
    told = _trained(tmp_path / "time.json", now, epochs=1, seconds=4.0, resume=True)
    assert told == {"epochs": 1, "seconds": 12.0, "timed_iterations": 8, "timed_seconds": 24.0}
    assert _trained(tmp_path / "time.json", now, epochs=1, seconds=1.0)["seconds"] == 4.0  # a new run starts anew
