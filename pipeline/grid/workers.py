# SPDX-License-Identifier: Apache-2.0
"""Runs of a grid in worker processes: several at once, each worker one after another, until all are done or time is up.

A worker imports everything once and then runs configs as `python -m monai.bundle run` does: for short runs on a GPU,
starting a process for each would take longer than the training.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from typing import Any, NoReturn

import torch

from pipeline.errors import InputError, find_input_error
from pipeline.grid.planned_runs import PlannedRun

logger = logging.getLogger(__name__)
LOG_FILE = "log.txt"
_GRACE_SECONDS = 60.0  # for a worker to write its state before it is killed


@dataclass
class Outcome:
    """What became of the runs: names of those that are done, reasons of those that failed, and those left for later."""

    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)


class _Worker:
    """A process that executes runs one after another, and the end of a pipe to it."""

    def __init__(self, configs: Path, threads: int | None) -> None:
        context = multiprocessing.get_context("spawn")  # CUDA cannot be used in a forked process
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, configs, threads), daemon=True)
        self.process.start()
        theirs.close()
        self.run: PlannedRun | None = None
        self.started = 0.0

    def take(self, run: PlannedRun) -> None:
        """Start a run."""
        self.run, self.started = run, time.monotonic()
        self.pipe.send(run)

    def result(self) -> str | None:
        """Return None for a run that is done, else why it is not."""
        try:
            return self.pipe.recv()
        except EOFError:
            self.process.join()
            return f"its process ended with code {self.process.exitcode}; see {LOG_FILE} in its folder"

    def stop(self) -> None:
        """Let the process save its state and end."""
        self.process.terminate()
        self.process.join(_GRACE_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def execute_runs(
    runs: Sequence[PlannedRun], configs: Path, jobs: int = 1, seconds: float | None = None, threads: int | None = None
) -> Outcome:
    """Execute what is not done yet, each run after those that it needs.

    Args:
        runs: all of the grid.
        configs: folder of the bundle's configs.
        jobs: processes at once.
        seconds: after so long, those that have begun are told to save and end (SIGTERM); None waits for all.
        threads: of torch in each process; by default those of this process divided by the jobs.
    """
    outcome = Outcome(done=[run.name for run in runs if run.is_done])
    waiting = [run for run in runs if not run.is_done]
    deadline = None if seconds is None else time.monotonic() + seconds
    threads = threads or max(1, torch.get_num_threads() // jobs)
    workers: list[_Worker] = []
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        while True:
            _give_work(waiting, outcome, workers, lambda: _Worker(configs, threads), jobs)
            busy = [worker for worker in workers if worker.run is not None]
            if not busy or not _collect(busy, workers, outcome, len(runs), deadline):
                break
    finally:
        outcome.left = [*(worker.run.name for worker in workers if worker.run), *(run.name for run in waiting)]
        for worker in workers:
            worker.process.terminate()  # all at once: each takes a while to write its state
        for worker in workers:
            worker.stop()
        signal.signal(signal.SIGTERM, before)
    return outcome


def _leave(signal_number: int, frame: object) -> NoReturn:
    """End this process by way of its `finally` clauses."""
    raise SystemExit(128 + signal_number)


def _give_work(
    waiting: list[PlannedRun], outcome: Outcome, workers: list[_Worker], start: Callable[[], _Worker], jobs: int
) -> None:
    """Give runs that can begin to idle workers; what needs a failed run fails with it."""
    for run in list(waiting):
        broken = [name for name in run.needs if name in outcome.failed]
        if broken:
            outcome.failed[run.name] = f"{broken[0]}, which it needs, failed"
            waiting.remove(run)
            continue
        if not set(run.needs) <= set(outcome.done):
            continue
        idle = next((worker for worker in workers if worker.run is None), None)
        if idle is None and len(workers) < jobs:
            workers.append(idle := start())
        if idle is None:
            continue
        waiting.remove(run)
        logger.info("%s begins", run.name)
        idle.take(run)


def _collect(
    busy: Sequence[_Worker], workers: list[_Worker], outcome: Outcome, total: int, deadline: float | None
) -> bool:
    """Wait for a run to end and note what became of it; False when time is up."""
    timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
    ready = connection.wait([worker.pipe for worker in busy], timeout)
    for worker in busy:
        if worker.pipe not in ready:
            continue
        run, reason = worker.run, worker.result()
        worker.run = None
        if not worker.process.is_alive():
            workers.remove(worker)
        if reason is None:
            outcome.done.append(run.name)
            took = time.monotonic() - worker.started
            logger.info("%s is done after %.0f s (%d of %d)", run.name, took, len(outcome.done), total)
        else:
            outcome.failed[run.name] = reason
            logger.error("%s failed: %s", run.name, reason)
    return bool(ready)


def _work(pipe: connection.Connection, configs: Path, threads: int) -> None:
    """Execute the runs that come through the pipe; the main function of a worker process."""
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            run = pipe.recv()
        except EOFError:
            return
        pipe.send(_execute(run, configs))


def _end_with_parent() -> None:
    """Let this process save its state and end when the process that gives it work has died."""
    connection.wait([multiprocessing.parent_process().sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def _execute(run: PlannedRun, configs: Path) -> str | None:
    """Execute the steps of a run, with all that they print in its log; return why it failed, or None."""
    run.folder.mkdir(parents=True, exist_ok=True)
    with open(run.folder / LOG_FILE, "a", encoding="utf-8", buffering=1) as log:
        _send_output_to(log)
        try:
            for step in run.steps:
                run_config(step.config_files(configs), step.final_options())
            if not run.is_done:
                raise InputError(f"{run.proof} was not written")
        except Exception as error:  # one run that fails must not end the others
            traceback.print_exc(file=log)
            return str(find_input_error(error) or f"{type(error).__name__}: {error}")
        finally:
            gc.collect()  # engines and networks refer to one another: without it the next run starts beside the last
    return None


def run_config(configs: Sequence[str], options: dict[str, Any]) -> None:
    """Run a bundle's config files in this process, as `python -m monai.bundle run` does."""
    from monai.bundle import ConfigWorkflow

    # The bundle's logging.conf would send the lines to this process's console.
    workflow = ConfigWorkflow(list(configs), workflow_type=None, logging_file=False, **options)
    workflow.initialize()
    workflow.run()
    workflow.finalize()


def _send_output_to(log: Any) -> None:
    """Let everything that this process prints or logs go to an open file, native libraries excepted."""
    sys.stdout = sys.stderr = log
    root = logging.getLogger()
    root.handlers = [logging.StreamHandler(log)]
    root.handlers[0].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    root.setLevel(logging.INFO)
    for talker, level in (("ignite", logging.WARNING), ("monai.bundle.workflows", logging.ERROR)):
        logging.getLogger(talker).setLevel(level)
