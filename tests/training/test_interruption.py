# SPDX-License-Identifier: Apache-2.0
"""Signals that end a run: what is saved, what is told, how it exits, and disks that fail at that moment."""

from __future__ import annotations

import errno
import logging
import os
import signal
import threading

import pytest
from ignite.engine import Events

from pipeline.errors import InputError
from pipeline.training import Stopped
from pipeline.training.interruption import StopSignals
from tests.training.tiny_run import make_run, signal_at, whole_state


@pytest.fixture(autouse=True)
def listening_to_ctrl_c():
    """Tests that were started in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def handlers() -> list:
    return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_saves_and_tells_how_to_go_on(tmp_path, caplog, number, code):
    trainer, _ = make_run(tmp_path / "last.pt")
    signal_at(trainer, 5, number)
    before = handlers()
    with caplog.at_level(logging.INFO), pytest.raises(Stopped) as stopped:
        trainer.run()
    assert stopped.value.code == code
    assert whole_state(tmp_path / "last.pt")["position"] == {"epoch": 1, "iteration": 5, "epoch_length": 3}
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert lines == [
        f"stopped by {number.name} in epoch 2, after iteration 5: go on with the same command and --resume True"
    ]
    assert handlers() == before
    assert not trainer.logger.disabled


def test_ctrl_c_is_answered_at_once_and_says_that_another_stops_now(capfd):
    signals = StopSignals()
    signals.catch()
    try:
        signal.raise_signal(signal.SIGINT)
        assert capfd.readouterr().err == "stopping after this step; again to stop now\n"
    finally:
        signals.release()


def test_repeated_sigterm_is_answered_once(capfd):
    signals = StopSignals()
    signals.catch()
    try:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert capfd.readouterr().err == "stopping after this step\n"
    finally:
        signals.release()


def test_signal_waits_for_the_end_of_the_iteration(tmp_path):
    trainer, _ = make_run(tmp_path / "last.pt")
    done = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: done.append(engine.state.iteration))
    signal_at(trainer, 2)
    with pytest.raises(Stopped):
        trainer.run()
    assert done == [1, 2]


def test_signal_between_validation_and_next_epoch(tmp_path):
    """It comes while the state of the epoch is written: that is the state."""
    trainer, _ = make_run(tmp_path / "last.pt")
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda _: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Stopped):
        trainer.run()
    assert whole_state(tmp_path / "last.pt")["position"] == {"epoch": 1, "iteration": 3, "epoch_length": 3}


def test_repeated_sigterm_changes_nothing(tmp_path):
    trainer, _ = make_run(tmp_path / "last.pt")
    for event in (Events.ITERATION_STARTED, Events.ITERATION_COMPLETED):
        signal_at(trainer, 2, event=event)
    with pytest.raises(Stopped) as stopped:
        trainer.run()
    assert stopped.value.code == 143


def test_second_ctrl_c_no_longer_waits(monkeypatch):
    raised = []
    signals = StopSignals()
    signals.catch()
    try:
        signal.raise_signal(signal.SIGINT)
        assert signals.received() == signal.SIGINT
        monkeypatch.setattr(signal, "raise_signal", raised.append)
        os.kill(os.getpid(), signal.SIGINT)
        assert raised == [signal.SIGINT]
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    finally:
        signals.release()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signals = StopSignals()
    try:
        signals.catch()
        signal.raise_signal(signal.SIGTERM)
        assert signals.received() == 0
    finally:
        signals.release()
        assert signal.signal(signal.SIGTERM, before) is signal.SIG_IGN


def test_run_outside_the_main_thread_leaves_signals_alone(tmp_path):
    trainer, _ = make_run(tmp_path / "last.pt", epochs=1)
    before = handlers()
    seen = []
    trainer.add_event_handler(Events.ITERATION_STARTED, lambda _: seen.append(handlers() == before))
    thread = threading.Thread(target=trainer.run)
    thread.start()
    thread.join()
    assert seen == [True] * 3
    assert whole_state(tmp_path / "last.pt")["position"]["epoch"] == 1


def test_signals_act_as_before_once_a_run_ended_or_failed(tmp_path):
    before = handlers()
    make_run(tmp_path / "last.pt", epochs=1)[0].run()
    assert handlers() == before
    (tmp_path / "bad.pt").touch()
    with pytest.raises(InputError):
        make_run(tmp_path / "bad.pt", resume=True)[0].run()
    assert handlers() == before


@pytest.mark.parametrize("by_signal", [False, True], ids=["after an epoch", "by a signal"])
def test_disk_that_fills_up_keeps_the_last_good_state(tmp_path, monkeypatch, by_signal):
    trainer, _ = make_run(tmp_path / "last.pt")

    def fill(_) -> None:
        def fail(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", fail)

    trainer.add_event_handler(Events.ITERATION_STARTED(once=5), fill)
    if by_signal:
        signal_at(trainer, 5)
    with pytest.raises(InputError, match="No space left on device; the one there before is intact"):
        trainer.run()
    assert whole_state(tmp_path / "last.pt")["position"] == {"epoch": 1, "iteration": 3, "epoch_length": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]
    monkeypatch.undo()
    make_run(tmp_path / "last.pt", resume=True)[0].run()
    assert whole_state(tmp_path / "last.pt")["position"]["epoch"] == 3


def test_folder_that_vanishes_is_told_in_one_line(tmp_path):
    """Its place is taken by a file: not even an administrator can write below one."""
    (tmp_path / "run").mkdir()
    trainer, _ = make_run(tmp_path / "run" / "last.pt")

    def replace(_) -> None:
        (tmp_path / "run").rmdir()
        (tmp_path / "run").touch()

    trainer.add_event_handler(Events.ITERATION_STARTED(once=2), replace)
    with pytest.raises(InputError, match=r"cannot write .*last.pt: .*; choose another output folder"):
        trainer.run()
