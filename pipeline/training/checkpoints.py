# SPDX-License-Identifier: Apache-2.0
"""What a run leaves: the best model by validation (`model.pt`), the last, and the state to go on from (`last.pt`)."""

from __future__ import annotations

import logging
import os
import random
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch import nn

from pipeline.data import BatchAugmentation, Dataset
from pipeline.errors import InputError
from pipeline.files.atomic import write_tensors
from pipeline.networks import save_model, unwrapped
from pipeline.processes import distributed
from pipeline.training.interruption import Stopped, StopSignals
from pipeline.training.sampler import ResumableSampler

logger = logging.getLogger(__name__)
STATE_FILE, MODEL_FILE = "last.pt", "model.pt"
_AUGMENTATIONS = ("augmentation", "student_view")  # attributes of a trainer that draw random numbers and have a state


class BestModelSaver:
    """Evaluator handler that writes `model.pt` whenever the key metric of the validation split is the best so far.

    MONAI's saver forgets the best metric when a run is resumed, and then overwrites a good model with a worse one. Here
    the evaluator's best metric is part of the training state.

    Args:
        path: the file to write.
        network: the network in training, from `build_network`.
        dataset: the training data; the checkpoint keeps its organs and modality.
        preprocessing: the transforms of its images, as plain data.
        size: side in pixels of the slices that the network is trained on.
        recipe: how it is trained, as primitives, kept in the checkpoint.
        last_path: the file for the network as it is after the last epoch, whatever its metric; None for none.
        epochs: the last epoch.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        network: nn.Module,
        dataset: Dataset,
        preprocessing: Sequence[Mapping[str, Any]],
        size: int,
        recipe: Mapping[str, Any] | None = None,
        last_path: str | os.PathLike[str] | None = None,
        epochs: int | None = None,
    ) -> None:
        self.path, self.network, self.dataset, self.size = Path(path), network, dataset, size
        self.preprocessing, self.recipe = list(preprocessing), dict(recipe or {})
        self.last_path, self.epochs = last_path, epochs

    def attach(self, engine: Engine) -> None:
        """Save at the end of each validation that set a new best, and of the last."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save if the validation that has just ended set the best metric, or is the last."""
        if not distributed.is_main():
            return
        if engine.state.best_metric_epoch == engine.state.epoch:
            self._save(self.path, engine, engine.state.best_metric)
        if self.last_path is not None and engine.state.epoch == self.epochs:
            self._save(self.last_path, engine, engine.state.metrics[engine.state.key_metric_name])

    def _save(self, path: str | os.PathLike[str], engine: Engine, metric: float) -> None:
        save_model(
            path,
            self.network,
            network_arguments=self.network.arguments,
            labels=self.dataset.labels,
            preprocessing=self.preprocessing,
            size=self.size,
            modality=self.dataset.modality,
            tile_px=self.dataset.tile_px,
            recipe=self.recipe,
            selection={"epoch": engine.state.epoch, engine.state.key_metric_name: float(metric)},
        )


class TrainingStateSaver:
    """Trainer handler that writes the whole state of a run after every epoch and takes it up again on resume.

    The file holds the network, optimizer, schedule, gradient scaler, the distiller's own parts, the position of the
    run and the best validation metric. For each process it holds the states of augmentation and random generators. All
    are tensors and primitives, loadable with `weights_only=True`. A resumed run goes on as if it had never stopped. In
    the first epoch, the state is also written before validation, so that `model.pt` never exists without a state.

    SIGTERM and SIGINT are obeyed at the end of the iteration, in training or in validation: the state is saved there
    and the run ends with `Stopped` (exit code 143 or 130). All processes of a run stop at the same iteration. To go on
    in the middle of an epoch, the loader needs a `ResumableSampler`. With any other sampler, the state after the last
    complete epoch is kept, and the interrupted epoch is repeated on resume.

    Args:
        path: the file to write and to resume from.
        lr_scheduler: the schedule of the trainer's optimizer.
        evaluator: the validation engine whose best metric is kept, or None.
        resume: True loads the state of `path` when the trainer's `run` begins; "auto" does so if there is one.
        interval: epochs between two writes; the last epoch is always written.
        recipe: settings, as primitives, that a resumed run must share with the one that wrote the state.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        lr_scheduler: torch.optim.lr_scheduler.LRScheduler,
        evaluator: Engine | None = None,
        resume: bool | str = False,
        interval: int = 1,
        recipe: Mapping[str, Any] | None = None,
    ) -> None:
        self.path, self.lr_scheduler, self.evaluator = Path(path), lr_scheduler, evaluator
        self.resume, self.interval, self.recipe = resume, interval, dict(recipe or {})
        self._signals, self._before_validation, self._is_written = StopSignals(), None, False

    def attach(self, engine: Engine) -> None:
        """Begin when the trainer's `run` does.

        MONAI attaches handlers while the trainer is still being built: it has no network yet to take up a state.
        """
        engine.before_run.append(self._begin)

    def _begin(self, trainer: Any) -> None:
        # Attached only now, these come after all other handlers: the schedule has stepped, the epoch is validated.
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._after_iteration)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._after_epoch)
        # Several processes may validate unequal numbers of cases.
        if self.evaluator is not None and distributed.world_size() == 1:
            self.evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._during_validation, trainer)
        self._signals.catch()
        trainer.after_run.append(self._end)
        if resumes(self.resume, self.path):
            self.load(trainer)

    def _end(self, trainer: Any) -> None:
        self._signals.release()
        self._silence(trainer, False)

    def _after_iteration(self, trainer: Any) -> None:
        if trainer.state.iteration == trainer.state.epoch * trainer.state.epoch_length:
            self._before_validation = _own_state(trainer)
            if not self._is_written:  # a model without a state could not be told from one whose state was deleted
                self._save(trainer, trainer.state.epoch - 1, self._before_validation)
        if number := self._signals.received():
            self._stop(trainer, number, _own_state(trainer))

    def _during_validation(self, _: Engine, trainer: Any) -> None:
        if number := self._signals.received():
            self._stop(trainer, number, self._before_validation)

    def _after_epoch(self, trainer: Any) -> None:
        number, last = self._signals.received(), trainer.state.epoch == trainer.state.max_epochs
        if number or last or trainer.state.epoch % self.interval == 0:
            self._save(trainer, trainer.state.epoch, _own_state(trainer))
        if number:
            self._leave(trainer, number, f"after epoch {trainer.state.epoch}")

    def _stop(self, trainer: Any, number: int, own: Mapping[str, Any]) -> None:
        """Save amid an epoch, or at its end but before it is validated, and leave."""
        whole = trainer.state.iteration == trainer.state.epoch * trainer.state.epoch_length
        if whole or isinstance(trainer.data_loader.sampler, ResumableSampler):
            self._save(trainer, trainer.state.epoch - 1, own)
        self._leave(trainer, number, f"in epoch {trainer.state.epoch}, after iteration {trainer.state.iteration}")

    def _leave(self, trainer: Any, number: int, where: str) -> None:
        distributed.largest(0)  # nobody leaves before the state is written: torchrun would end the writer
        if distributed.is_main():
            logger.warning(
                "stopped by %s %s: go on with the same command and --resume True", signal.Signals(number).name, where
            )
        self._silence(trainer, True)
        raise Stopped(number)

    def _silence(self, trainer: Any, silent: bool) -> None:
        """Keep the engines from logging a stop as an error."""
        for engine in filter(None, (trainer, self.evaluator)):
            engine.logger.disabled = silent

    def _save(self, trainer: Any, epochs: int, own: Mapping[str, Any]) -> None:
        """Write the state of a run that has done and validated `epochs` epochs; collective."""
        states, self._is_written = distributed.gathered(own), True
        if distributed.is_main():
            write_tensors(self.path, {**self._collect(trainer, epochs), "processes": states})

    def _collect(self, trainer: Any, epochs: int) -> dict[str, Any]:
        state: dict[str, Any] = {
            "position": {
                "epoch": epochs,
                "iteration": trainer.state.iteration,
                "epoch_length": trainer.state.epoch_length,
            },
            "recipe": self.recipe,
            "gradients": [parameter.grad for parameter in _accumulating(trainer)],
        }
        state.update({name: part.state_dict() for name, part in self._parts(trainer).items()})
        if trainer.distiller is not None:
            state["distiller"] = trainer.distiller.training_state()
        if self.evaluator is not None:
            best = self.evaluator.state
            state["best"] = {"metric": float(best.best_metric), "epoch": best.best_metric_epoch}
        return state

    def _parts(self, trainer: Any) -> dict[str, Any]:
        return {
            "network": unwrapped(trainer.network),
            "optimizer": trainer.optimizer,
            "lr_scheduler": self.lr_scheduler,
            "grad_scaler": trainer.grad_scaler,
        }

    def load(self, trainer: Any) -> None:
        """Take up the state in `path`; validate first, if the run was stopped between an epoch and its validation.

        Raises:
            InputError: the file is missing, unreadable, or the state of a run with other networks or settings.
        """
        state = self._read(trainer)
        try:
            for name, part in self._parts(trainer).items():
                part.load_state_dict(state[name])
            if trainer.distiller is not None:
                trainer.distiller.load_training_state(state["distiller"])
            own = state["processes"][distributed.rank()]
            for name in _AUGMENTATIONS:
                if _has_state(getattr(trainer, name)):
                    getattr(trainer, name).load_state_dict(own[name])
        except InputError:
            raise
        except (KeyError, RuntimeError, ValueError) as error:
            raise InputError(
                f"{self.path} belongs to a run with another network or method; resume with the same"
            ) from error
        if self.evaluator is not None and "best" in state:
            self.evaluator.state.best_metric = state["best"]["metric"]
            self.evaluator.state.best_metric_epoch = state["best"]["epoch"]
        self._take_position(trainer, state, own)

    def _read(self, trainer: Any) -> dict[str, Any]:
        if not self.path.is_file():
            raise InputError(f"nothing to resume: {self.path} does not exist; start without --resume")
        try:
            state = torch.load(self.path, map_location=trainer.state.device, weights_only=True)
        except Exception as error:  # torch raises many kinds for a file that is not its own
            raise InputError(f"{self.path} cannot be read as a training state; start the run anew") from error
        self._check_recipe(state)
        then, now = state["position"]["epoch_length"], trainer.state.epoch_length
        if then != now:
            raise InputError(
                f"{self.path} is of a run of {then} iterations an epoch, this one has {now}: resume with the same "
                "dataset and batch size"
            )
        if len(state["processes"]) != distributed.world_size():
            raise InputError(
                f"{self.path} is of a run of {len(state['processes'])} processes, "
                f"this one has {distributed.world_size()}: resume with as many"
            )
        return state

    def _take_position(self, trainer: Any, state: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        epochs, iteration, length = (state["position"][name] for name in ("epoch", "iteration", "epoch_length"))
        seen, self._is_written = iteration - epochs * length, True
        trainer.state.epoch, trainer.state.iteration = epochs, iteration
        restore_random_state(own["random"])
        for parameter, gradient in zip(_accumulating(trainer), state["gradients"], strict=True):
            parameter.grad = gradient
        logger.info("resumed from %s after epoch %d, iteration %d", self.path, epochs, iteration)
        if seen == length:
            trainer.state.epoch = epochs + 1
            self._before_validation = own
            trainer.fire_event(Events.EPOCH_COMPLETED)
        elif seen:
            self._resume_within_epoch(trainer, seen, own)

    def _resume_within_epoch(self, trainer: Any, seen: int, own: Mapping[str, Any]) -> None:
        loader = trainer.data_loader
        if not isinstance(loader.sampler, ResumableSampler):
            raise InputError(f"{self.path} was saved amid an epoch: resume with a ResumableSampler in the loader")
        loader.sampler.leave_out(seen * loader.batch_size)

        def restore(_: Engine) -> None:
            """Restore the random state: a loader draws when it is opened, and the stopped run had done so before."""
            restore_random_state(own["random"])
            opened.remove()

        opened = trainer.add_event_handler(Events.GET_BATCH_STARTED, restore)

    def _check_recipe(self, state: Any) -> None:
        if not isinstance(state, dict) or not {"position", "recipe", "processes"} <= state.keys():
            raise InputError(f"{self.path} is not a training state; start the run anew")
        changed = dict(_differences(state["recipe"], self.recipe))
        if changed:
            told = "; ".join(f"{name} was {then!r}, is {now!r}" for name, (then, now) in changed.items())
            last = self.path.with_name("model_last.pt")
            alone = list(changed) == ["epochs"]
            longer = f", or train on in a new --run_dir with --initial_weights {last}" if alone else ""
            raise InputError(f"{self.path} is of a run with another recipe: {told}; resume with the same{longer}")


def _differences(then: Any, now: Any, name: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Yield the innermost settings that differ, as "network.width"; a missing setting equals null."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        for key in sorted({*then, *now}):
            yield from _differences(then.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif then != now:
        yield name, (then, now)


def resumes(resume: bool | str, path: str | os.PathLike[str]) -> bool:
    """Return whether a run goes on with the state in `path`: True, False, or "auto" (if there is one).

    Raises:
        InputError: another value.
    """
    if not (isinstance(resume, bool) or resume == "auto"):
        raise InputError(f"--resume is {resume!r}; give True, False or auto")
    return Path(path).exists() if resume == "auto" else resume


def _own_state(trainer: Any) -> dict[str, Any]:
    """Return what each process of a run has for itself."""
    state = {"random": random_state()}
    states = {name: getattr(trainer, name) for name in _AUGMENTATIONS}
    return state | {name: one.state_dict() for name, one in states.items() if _has_state(one)}


def _has_state(augmentation: Any) -> bool:
    return isinstance(augmentation, BatchAugmentation)


def _accumulating(trainer: Any) -> list[nn.Parameter]:
    """Return the parameters whose gradients wait for further iterations: none where the optimizer has just stepped."""
    if trainer.state.iteration % trainer.accumulation_steps == 0:
        return []
    return [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]


def random_state() -> dict[str, Any]:
    """Return the states of Python's, numpy's and torch's random generators as tensors and primitives."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Set the generators to what `random_state` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.cpu().numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state_all([part.cpu() for part in state["cuda"]])
