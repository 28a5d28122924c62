# SPDX-License-Identifier: Apache-2.0
"""A whole run in a second: trainer, validation, state; and a signal at a chosen moment of it."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator
from monai.handlers import MeanDice
from torch import nn
from torch.utils.data import DataLoader

from pipeline.data import SliceAugmentation, StudentView
from pipeline.distillation import build_distiller
from pipeline.training import (
    DistillationTrainer,
    IntervalAndLastValidation,
    ResumableSampler,
    SharedBatchSampler,
    TrainingStateSaver,
    segmentation_loss,
)
from pipeline.unlabelled import UNLABELLED

ITERATIONS = 3  # an epoch


class TinyNetwork(nn.Module):
    """Two convolutions with taps, batch normalisation and dropout, so that buffers and random states matter."""

    taps = ("shallow", "deep")
    tap_channels = (4, 4)

    def __init__(self) -> None:
        super().__init__()
        self.shallow, self.deep, self.head = nn.Conv2d(1, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(4, 2, 1)
        self.norm, self.dropout = nn.BatchNorm2d(4), nn.Dropout2d(0.2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.dropout(torch.relu(self.norm(self.deep(torch.relu(self.shallow(images))))))
        return nn.functional.interpolate(self.head(features), size=images.shape[-2:])


def half_labelled_loader(labelled: int = ITERATIONS, others: int = ITERATIONS, batch_size: int = 2) -> DataLoader:
    """Return batches of as many labelled as unlabelled items."""
    items = loader(labelled + others).dataset
    for item in items[labelled:]:
        item["label"] = torch.full_like(item["label"], UNLABELLED)
    return DataLoader(items, batch_size=batch_size, sampler=SharedBatchSampler(items, labelled, batch_size, 0.5))


def loader(count: int = 2 * ITERATIONS, size: int = 64, shuffle: bool = True) -> DataLoader:
    images = torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(0))
    items = [{"image": image, "label": (image > 0.5).byte()} for image in images]
    sampler = ResumableSampler(items, num_replicas=1, rank=0, seed=0, shuffle=shuffle)
    return DataLoader(items, batch_size=2, sampler=sampler)


def make_run(
    state_file: Path,
    epochs: int = 3,
    resume: bool | str = False,
    distilled: bool = False,
    half_labelled: DataLoader | None = None,
    **options: Any,
) -> tuple[DistillationTrainer, SupervisedEvaluator]:
    """Return trainer and evaluator of a run as a bundle's config builds them."""
    torch.manual_seed(0)
    network, teacher = TinyNetwork(), TinyNetwork()
    batches = loader() if half_labelled is None else half_labelled
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=epochs * ITERATIONS, power=0.9)
    settings = {"adversarial": 0.1, "adversarial_kind": "hinge"}
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=loader(4, shuffle=False),
        network=network,
        key_val_metric={"dice": MeanDice(output_transform=_one_hot)},
        decollate=False,
    )
    handlers = [
        TrainingStateSaver(state_file, schedule, evaluator, resume=resume),
        IntervalAndLastValidation(interval=1, validator=evaluator),
    ]
    trainer = DistillationTrainer(
        device=torch.device("cpu"),
        train_handlers=handlers,
        max_epochs=epochs,
        train_data_loader=batches,
        network=network,
        optimizer=optimizer,
        loss_function=segmentation_loss("ce"),
        distiller=build_distiller("graph_flow", teacher, network, 2, 9, settings=settings) if distilled else None,
        augmentation=SliceAugmentation("affine", seed=0),
        student_view=None if half_labelled is None else StudentView("strong"),
        **options,
    )
    trainer.add_event_handler(Events.ITERATION_COMPLETED, _step_once_the_optimizer_did, schedule)
    return trainer, evaluator


def _step_once_the_optimizer_did(trainer: DistillationTrainer, schedule: Any) -> None:
    if trainer.state.iteration >= trainer.accumulation_steps:  # torch warns of a schedule that comes first
        schedule.step()


def _one_hot(output: dict) -> tuple[torch.Tensor, torch.Tensor]:
    prediction = output["pred"].argmax(1, keepdim=True)
    return tuple(torch.cat([part == 0, part == 1], 1).float() for part in (prediction, output["label"]))


def signal_at(engine, iteration: int, number: int = signal.SIGTERM, event: Events = Events.ITERATION_STARTED) -> None:
    """Send this process a signal when `engine` comes to an iteration, once."""

    def send(_) -> None:
        if engine.state.iteration == iteration:
            signal.raise_signal(number)

    engine.add_event_handler(event, send)


def whole_state(file: Path) -> dict:
    return torch.load(file, weights_only=True)


def differences(one, other, where: str = "") -> list[str]:
    """Return where two nests of tensors and primitives differ by a single bit."""
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [where]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [where]
        return [place for key in one for place in differences(one[key], other[key], f"{where}/{key}")]
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return [where]
        pairs = enumerate(zip(one, other, strict=True))
        return [place for index, pair in pairs for place in differences(*pair, f"{where}/{index}")]
    return [] if one == other else [where]
