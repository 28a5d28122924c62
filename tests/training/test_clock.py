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
    clocks = SimpleNamespace(perf_counter=lambda: now.seconds, process_time=lambda: now.seconds / 4)
    monkeypatch.setattr(clock, "time", clocks)
    return now


def _trained(path, now, epochs: int, seconds: float, **options) -> dict[str, float]:
    """Return what the file says after `epochs` of 4 iterations of so many seconds, each followed by a validation."""

    def iterate(*_):
        """Take the time of an iteration."""
        now.seconds += seconds

    def validate(_):
        """Take a hundred seconds."""
        now.seconds += 100

    engine = Engine(iterate)
    TrainingClock(path, **options).attach(engine)
    engine.add_event_handler(Events.EPOCH_COMPLETED, validate)
    engine.run(range(4), max_epochs=epochs)
    return json.loads(path.read_text())


def test_time_of_a_run_is_that_of_its_iterations(tmp_path, now):
    """3 epochs of 4 iterations of 2 s: 24 s. The cores worked a fourth of it."""
    told = _trained(tmp_path / "time.json", now, epochs=3, seconds=2.0)
    cores = {"cpu_seconds": 6.0, "timed_cpu_seconds": 6.0}
    assert told == {"epochs": 3, "seconds": 24.0, "timed_iterations": 12, "timed_seconds": 24.0, **cores}


def test_on_a_gpu_the_wall_clock_alone_counts(tmp_path, now):
    told = _trained(tmp_path / "time.json", now, epochs=3, seconds=2.0, device="cuda:0")
    assert told == {"epochs": 3, "seconds": 24.0, "timed_iterations": 12, "timed_seconds": 24.0}


def test_resumed_run_has_the_time_of_all_its_epochs_at_the_mean_of_those_timed(tmp_path, now):
    """4 iterations of 2 s, then, on a busier machine, 4 of 4 s: 3 s each, and a run of 1 epoch takes 12 s."""
    _trained(tmp_path / "time.json", now, epochs=1, seconds=2.0)
    told = _trained(tmp_path / "time.json", now, epochs=1, seconds=4.0, resume=True)
    cores = {"cpu_seconds": 3.0, "timed_cpu_seconds": 6.0}
    assert told == {"epochs": 1, "seconds": 12.0, "timed_iterations": 8, "timed_seconds": 24.0, **cores}
    assert _trained(tmp_path / "time.json", now, epochs=1, seconds=1.0)["seconds"] == 4.0  # a new run starts anew


def test_resumed_run_of_a_release_without_cpu_seconds_goes_on_without_them(tmp_path, now):
    path = tmp_path / "time.json"
    path.write_text('{"epochs": 2, "seconds": 16.0, "timed_iterations": 4, "timed_seconds": 8.0}')
    told = _trained(path, now, epochs=1, seconds=2.0, resume=True)
    assert told == {"epochs": 1, "seconds": 8.0, "timed_iterations": 8, "timed_seconds": 16.0}
