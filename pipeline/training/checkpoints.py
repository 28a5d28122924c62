# SPDX-License-Identifier: Apache-2.0
"""What a run leaves behind: the best model by validation (`model.pt`) and the whole state to go on from (`last.pt`)."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch import nn

from pipeline import distributed
from pipeline.atomic import replace_when_complete
from pipeline.data import BatchAugmentation, Dataset
from pipeline.errors import InputError
from pipeline.networks import save_model, unwrapped

logger = logging.getLogger(__name__)
STATE_FILE, MODEL_FILE = "last.pt", "model.pt"


class BestModelSaver:
    """Evaluator handler that writes `model.pt` whenever the key metric of the validation split is the best so far.

    MONAI's saver starts from nothing after a resume and overwrites a good model with a worse one; here the evaluator's
    best metric is part of the training state.

    Args:
        path: the file to write.
        network: the network in training, from `build_network`.
        dataset: whose organs, modality and intensity rule the checkpoint tells.
        size: side of the slices that the network is trained on.
        recipe: how it is trained, as primitives, kept in the checkpoint.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        network: nn.Module,
        dataset: Dataset,
        size: int,
        recipe: Mapping[str, Any] | None = None,
    ) -> None:
        self.path, self.network, self.dataset, self.size = Path(path), network, dataset, size
        self.recipe = dict(recipe or {})

    def attach(self, engine: Engine) -> None:
        """Save at the end of each validation that set a new best."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save if the validation that has just ended set the best metric."""
        if engine.state.best_metric_epoch != engine.state.epoch or not distributed.is_main():
            return
        save_model(
            self.path,
            self.network,
            network_arguments=self.network.arguments,
            labels=self.dataset.labels,
            intensity=self.dataset.intensity.to_dict(),
            size=self.size,
            modality=self.dataset.modality,
            tile_px=self.dataset.tile_px,
            recipe=self.recipe,
            selection={"epoch": engine.state.epoch, engine.state.key_metric_name: float(engine.state.best_metric)},
        )


class TrainingStateSaver:
    """Trainer handler that writes the whole state of a run after every epoch and takes it up again on resume.

    The file holds the network, optimizer, schedule, gradient scaler, the distiller's own parts, augmentation, random
    states, the position of the run and the best validation metric: as tensors and primitives, loadable with
    `weights_only=True`. A resumed run goes on as if it had never stopped.

    Args:
        path: the file to write and to resume from.
        lr_scheduler: the schedule of the trainer's optimizer.
        evaluator: the validation engine whose best metric is kept, or None.
        resume: take up the state of `path` when the trainer's `run` begins.
        interval: epochs between two writes; the last epoch is always written.
        recipe: settings, as primitives, that a resumed run must share with the one that wrote the state.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        lr_scheduler: torch.optim.lr_scheduler.LRScheduler,
        evaluator: Engine | None = None,
        resume: bool = False,
        interval: int = 1,
        recipe: Mapping[str, Any] | None = None,
    ) -> None:
        self.path, self.lr_scheduler, self.evaluator = Path(path), lr_scheduler, evaluator
        self.resume, self.interval, self.recipe = resume, interval, dict(recipe or {})

    def attach(self, engine: Engine) -> None:
        """Save after epochs; resume when the trainer's `run` begins.

        MONAI attaches handlers while the trainer is still being built: it has no network yet to take up a state.
        """
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)
        if self.resume:
            engine.before_run.append(self.load)

    def _save(self, engine: Engine) -> None:
        last = engine.state.epoch == engine.state.max_epochs
        if (engine.state.epoch % self.interval and not last) or not distributed.is_main():
            return
        with replace_when_complete(self.path) as temporary:
            torch.save(self._collect(engine), temporary)

    def _collect(self, trainer: Any) -> dict[str, Any]:
        state: dict[str, Any] = {
            "position": {
                "epoch": trainer.state.epoch,
                "iteration": trainer.state.iteration,
                "epoch_length": trainer.state.epoch_length,
            },
            "random": random_state(),
            "recipe": self.recipe,
        }
        state.update({name: part.state_dict() for name, part in self._parts(trainer).items()})
        if trainer.distiller is not None:
            state["distiller"] = trainer.distiller.training_state()
        if self.evaluator is not None:
            best = self.evaluator.state
            state["best"] = {"metric": float(best.best_metric), "epoch": best.best_metric_epoch}
        return state

    def _parts(self, trainer: Any) -> dict[str, Any]:
        parts = {
            "network": unwrapped(trainer.network),
            "optimizer": trainer.optimizer,
            "lr_scheduler": self.lr_scheduler,
            "grad_scaler": trainer.grad_scaler,
        }
        if isinstance(trainer.augmentation, BatchAugmentation):
            parts["augmentation"] = trainer.augmentation
        return parts

    def load(self, trainer: Any) -> None:
        """Take up the state in `path`.

        Raises:
            InputError: the file is missing, unreadable, or the state of a run with other networks or settings.
        """
        if not self.path.is_file():
            raise InputError(f"nothing to resume: {self.path} does not exist; start without --resume")
        try:
            state = torch.load(self.path, map_location=trainer.state.device, weights_only=True)
        except Exception as error:  # torch raises many kinds for a file that is not its own
            raise InputError(f"{self.path} cannot be read as a training state; start the run anew") from error
        self._check_recipe(state)
        if state["position"]["epoch_length"] != trainer.state.epoch_length:
            raise InputError(
                f"{self.path} is of a run of {state['position']['epoch_length']} iterations an epoch, this one has "
                f"{trainer.state.epoch_length}: resume with the same dataset and batch size"
            )
        try:
            for name, part in self._parts(trainer).items():
                part.load_state_dict(state[name])
            if trainer.distiller is not None:
                trainer.distiller.load_training_state(state["distiller"])
        except InputError:
            raise
        except (KeyError, RuntimeError, ValueError) as error:
            raise InputError(
                f"{self.path} belongs to a run with another network or method; resume with the same"
            ) from error
        trainer.state.epoch, trainer.state.iteration = state["position"]["epoch"], state["position"]["iteration"]
        if self.evaluator is not None and "best" in state:
            self.evaluator.state.best_metric = state["best"]["metric"]
            self.evaluator.state.best_metric_epoch = state["best"]["epoch"]
        restore_random_state(state["random"])
        logger.info("resumed from %s after epoch %d", self.path, trainer.state.epoch)

    def _check_recipe(self, state: Any) -> None:
        if not isinstance(state, dict) or not {"position", "recipe", "random"} <= state.keys():
            raise InputError(f"{self.path} is not a training state; start the run anew")
        if state["recipe"] == self.recipe:
            return
        names = sorted({*state["recipe"], *self.recipe})
        changed = [
            f"{name} was {state['recipe'].get(name)!r}, is {self.recipe.get(name)!r}"
            for name in names
            if state["recipe"].get(name) != self.recipe.get(name)
        ]
        raise InputError(f"{self.path} is of a run with another recipe: {'; '.join(changed)}; resume with the same")


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
