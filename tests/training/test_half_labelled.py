# SPDX-License-Identifier: Apache-2.0
"""Every method trains on batches of which half has no label: two steps of the optimizer, by the trainer itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ignite.engine import Events
from torch.utils.data import DataLoader

from pipeline.data import StudentView
from pipeline.distillation import METHODS, Distiller
from pipeline.training import DistillationTrainer, SharedBatchSampler, segmentation_loss, trained_parameters
from pipeline.unlabelled import UNLABELLED
from tests.distillation.test_battery import pair_for, phantoms

LABELLED, OTHERS, BATCH, STEPS = 2, 3, 4, 2  # a batch needs two of each: both sets are passed again
MIX = {"kd": 1.0, "emkd": 0.1, "cwd": {"share": 0.3}}
SCHEDULED = {"kd": 1.0, "ifvd": {"weight": 0.1, "start": 0.1}}  # of ten steps: from the second on


def trained(name: str | None, accumulation_steps: int = 1, spoilt: bool = False, **options: Any):
    """Return the distiller, the student, the terms of each iteration, and how far the weights went.

    `spoilt` puts noise into the images without a label, which teach too.
    """
    images, labels = phantoms(LABELLED + OTHERS)
    labels[LABELLED:] = UNLABELLED
    if spoilt:
        images[LABELLED:] = torch.rand(images[LABELLED:].shape, generator=torch.Generator().manual_seed(1))
    items = [{"image": image, "label": label} for image, label in zip(images, labels, strict=True)]
    sampler = SharedBatchSampler(items, LABELLED, BATCH, 0.5, iterations=STEPS * accumulation_steps)
    student, distiller = pair_for(name, **options)
    before = torch.cat([parameter.detach().flatten() for parameter in student.parameters()])
    terms: list[dict[str, torch.Tensor]] = []
    trainer = DistillationTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=DataLoader(items, BATCH, sampler=sampler),
        network=student,
        optimizer=torch.optim.SGD(trained_parameters(student, distiller), lr=1e-3),
        loss_function=segmentation_loss("dice_ce"),
        distiller=distiller,
        student_view=StudentView("strong", seed=1),
        accumulation_steps=accumulation_steps,
    )
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: terms.append(engine.state.output[0]["terms"]))
    trainer.run()
    after = torch.cat([parameter.detach().flatten() for parameter in student.parameters()])
    return distiller, after, terms, float((after - before).abs().max())


def assert_sound(distiller: Distiller, terms: list[dict[str, torch.Tensor]], iterations: int, moved: float) -> None:
    assert len(terms) == iterations
    assert set(distiller.weights) <= set(terms[-1])
    assert all(torch.isfinite(value).all() for told in terms for value in told.values())
    assert moved > 0


@pytest.mark.parametrize("name", METHODS)
def test_two_steps_of_every_method(name):
    distiller, _, terms, moved = trained(name)
    assert_sound(distiller, terms, STEPS, moved)


@pytest.mark.parametrize("options", [{}, {"methods": MIX}, {"methods": SCHEDULED}])
def test_accumulated_steps_alone_in_a_mix_and_by_a_schedule(options):
    distiller, _, terms, moved = trained(None if options else "kd", accumulation_steps=2, **options)
    assert_sound(distiller, terms, 2 * STEPS, moved)
    assert ("ifvd" in terms[0], "ifvd" in terms[2]) == (False, options.get("methods") is SCHEDULED)


def test_the_images_without_a_label_teach():
    assert not torch.equal(trained("kd")[1], trained("kd", spoilt=True)[1])
    assert torch.equal(trained("kd")[1], trained("kd")[1])
