# SPDX-License-Identifier: Apache-2.0
"""What a user sees while a network trains: what runs and for how long, a line after each epoch, and what comes next."""

from __future__ import annotations

import json
import logging
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from torch import nn

from pipeline.networks.cost import parameter_count
from pipeline.networks.saved_model import unwrapped
from pipeline.processes import distributed

logger = logging.getLogger(__name__)
_BETWEEN_LINES = 60.0  # seconds between two lines amid an epoch
_LONG_RUN = 3600.0  # seconds of a run on a CPU that smaller settings are named for
_TIMED = 3  # images that are timed; the least time counts
_PASSES = 3  # a training step costs about three forward passes: forward, and two in backward
_SMALL = {"size": 64, "batch_size": 8, "epochs": 20}  # what a CPU trains in minutes


class Progress:
    """Trainer handler that tells what runs, how long it will take and how far it is.

    At the start: network, device, precision, teacher, images, steps. On a CPU it times one image, and where the run
    would take hours it names smaller settings. After the first step, and each minute from then on: the time left. After
    each epoch: mean loss, validation metric, best so far, time. Where there is a terminal, a bar besides.

    Args:
        evaluator: the validation engine whose key metric is shown, or None.
    """

    def __init__(self, evaluator: Engine | None = None) -> None:
        self.evaluator = evaluator
        self._loss_sum, self._iterations, self._started = 0.0, 0, time.perf_counter()
        self._step_started, self._step_seconds, self._line = 0.0, [0.0, 0], 0.0

    def attach(self, engine: Engine) -> None:
        """Show the bar and log after each epoch; attach after the validation handler."""
        if sys.stderr.isatty():
            ProgressBar(persist=False).attach(engine, output_transform=lambda output: {"loss": float(output["loss"])})
        engine.add_event_handler(Events.STARTED, self._describe)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_STARTED(once=1), self._foresee)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._start_step)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._log)

    def _describe(self, trainer: Any) -> None:
        for line in description(trainer):
            logger.info(line)

    def _foresee(self, trainer: Any) -> None:
        """Tell before the first step, which may take minutes, how long a run on a CPU will take."""
        if trainer.state.device.type != "cpu":
            return
        images = trainer.prepare_batch(trainer.state.batch, trainer.state.device, False)[0]
        epoch = len(images) * seconds_of_an_image(trainer, images[:1]) * trainer.state.epoch_length
        whole = epoch * (trainer.state.max_epochs - trainer.state.epoch + 1)
        if whole > _LONG_RUN:
            smaller = smaller_settings(tuple(images.shape[2:]), len(images), trainer.state.max_epochs)
            logger.warning(
                "on this CPU an epoch takes about %s and the run about %s%s",
                duration(epoch),
                duration(whole),
                f"; to try things out: {smaller} (of a FANet also --width 0.25)" if smaller else "",
            )

    def _start(self, engine: Engine) -> None:
        self._loss_sum, self._iterations, self._started = 0.0, 0, time.perf_counter()

    def _start_step(self, engine: Engine) -> None:
        self._step_started = time.perf_counter()

    def _add(self, engine: Engine) -> None:
        self._loss_sum = self._loss_sum + engine.state.output[0]["loss"]  # stays on the device: no wait for it here
        self._iterations += 1
        now = time.perf_counter()
        self._step_seconds = [self._step_seconds[0] + now - self._step_started, self._step_seconds[1] + 1]
        if now - self._line > _BETWEEN_LINES and engine.state.iteration % engine.state.epoch_length:
            self._line = now
            logger.info(self._time_left(engine))

    def _time_left(self, engine: Engine) -> str:
        seconds, steps = self._step_seconds
        length, epochs = engine.state.epoch_length, engine.state.max_epochs
        left = seconds / steps * (epochs * length - engine.state.iteration)
        step = (engine.state.iteration - 1) % length + 1
        return (
            f"epoch {engine.state.epoch}/{epochs}  step {step}/{length}  about {duration(left)} left, validation apart"
        )

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
        self._line = time.perf_counter()
        logger.info("%s  %.1f s", "  ".join(parts), self._line - self._started)


def description(trainer: Any) -> list[str]:
    """Return lines on what a trainer is about to do: network, device and precision, teacher, images and steps."""
    precision = "float32" if trainer.dtype is None else str(trainer.dtype).removeprefix("torch.")
    lines = [f"training {_in_words(trainer.network)} on {_device_in_words(trainer.state.device)} in {precision}"]
    if trainer.distiller is not None:
        methods = ", ".join(trainer.distiller.methods)
        lines.append(f"its teacher: {_in_words(trainer.distiller.teacher)}, by {methods}")
    batches, epochs = trainer.data_loader, trainer.state.max_epochs
    lines.append(f"{len(batches.dataset)} images, {trainer.state.epoch_length} steps an epoch, {epochs} epochs")
    return lines


def _in_words(network: nn.Module) -> str:
    bare = unwrapped(network)
    name = str(getattr(bare, "arguments", {}).get("name", type(bare).__name__)).rpartition(".")[2]
    return f"{name} ({parameter_count(bare) / 1e6:.2f} M parameters)"


def _device_in_words(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)"


def seconds_of_an_image(trainer: Any, image: torch.Tensor) -> float:
    """Return about how long one image (1, C, H, W) takes in training, from a forward pass of each network, timed.

    Nothing of the run changes: no gradients, evaluation mode, no random numbers.
    """
    network = unwrapped(trainer.network)
    seconds = _PASSES * _forward_seconds(trainer, network, image)
    if trainer.distiller is not None:
        seconds += _forward_seconds(trainer, trainer.distiller.teacher, image)
    return seconds


def _forward_seconds(trainer: Any, network: nn.Module, image: torch.Tensor) -> float:
    training = network.training
    network.eval()
    seconds = []
    with torch.no_grad(), torch.autocast(image.device.type, dtype=trainer.dtype, enabled=trainer.dtype is not None):
        for _ in range(_TIMED):
            started = time.perf_counter()
            trainer.inferer(image, network)
            seconds.append(time.perf_counter() - started)
    network.train(training)
    return min(seconds)  # the first also takes up memory, and other programs may have disturbed one


def smaller_settings(sides: Sequence[int], batch_size: int, epochs: int) -> str:
    """Return the options that make a run of 2D images small enough for a CPU, "" where it is that small already."""
    given = {"size": max(sides) if len(sides) == 2 else 0, "batch_size": batch_size, "epochs": epochs}
    return " ".join(f"--{name} {value}" for name, value in _SMALL.items() if given[name] > value)


def duration(seconds: float) -> str:
    """Return a time in words, with two digits or so: 40 s, 12 min, 5.3 h, 2.4 days."""
    for unit, length, below in (("s", 1, 90), ("min", 60, 5400), ("h", 3600, 172800)):
        if seconds < below:
            value = seconds / length
            return f"{value:.1f} {unit}" if unit == "h" and value < 10 else f"{value:.0f} {unit}"
    return f"{seconds / 86400:.1f} days"


def say_what_is_next(
    run_dir: str,
    dataset_dir: str,
    bundle_root: str,
    evaluator: Engine | None = None,
    patients: Mapping[str, Any] | None = None,
) -> None:
    """Log where the model of a finished run is, its score in validation, and the command that scores it on the test.

    `patients` is the option that the run was given: the test split of dataset.json may be another.
    """
    if not distributed.is_main():
        return
    model = Path(run_dir) / "model.pt"
    state = evaluator.state if evaluator is not None else None
    score = ""
    if state is not None and state.key_metric_name is not None and state.best_metric_epoch > 0:
        score = f", {state.key_metric_name} {state.best_metric:.4f} in epoch {state.best_metric_epoch}"
    logger.info("model: %s%s", model, score)
    options = {"dataset_dir": dataset_dir, "checkpoint": str(model), "run_dir": str(Path(run_dir) / "report")}
    logger.info(
        "next, its report on the test split: %s", _command(bundle_root, "evaluate", {**options, "patients": patients})
    )


def say_distillation_is_next(
    paraphraser: str,
    teacher: str,
    student: str,
    dataset_dir: str,
    bundle_root: str,
    patients: Mapping[str, Any] | None = None,
) -> None:
    """Log the command that distils with the paraphrasers of a finished run, on the same data.

    `patients` are the options that chose patients and labels, by name.
    """
    if not distributed.is_main():
        return
    options = {"dataset_dir": dataset_dir, "teacher": teacher, "paraphraser": paraphraser, "student": student}
    command = _command(bundle_root, "distill", {**options, **(patients or {}), "run_dir": "NEW_FOLDER"})
    logger.info("next, the distillation: %s", command)


def _command(bundle_root: str, overlay: str, options: Mapping[str, Any]) -> str:
    """Return the command that runs an overlay on train.yaml; options that are None or 0 are left out."""
    configs = Path(bundle_root) / "configs"
    typed = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in options.items()
        if value
    }
    given = " ".join(f"--{name} {shlex.quote(value)}" for name, value in typed.items())
    files = f"\"['{configs / 'train.yaml'}','{configs / f'{overlay}.yaml'}']\""
    return f"python -m monai.bundle run --config_file {files} {given}"
