# SPDX-License-Identifier: Apache-2.0
"""The same battery for every method: it trains a student on phantoms, logs its terms by name, and can be resumed."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch

from pipeline.data import StudentView
from pipeline.distillation import METHODS, build_distiller
from pipeline.errors import InputError
from pipeline.networks import Paraphraser, build_network
from pipeline.training import trained_parameters
from pipeline.unlabelled import UNLABELLED

CLASSES, SIZE = 3, 64
LINEAGE = (
    "graph_flow coco kd at fitnet fsp ft vid skd ifvd emkd nst pkt sp rkd ab ofd afd cc irg dml logits_mse sobolev bss "
    "lwm crd cwd dist dkd logit_std bpkd mgd prototypes review mean_teacher"
)


def phantoms(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images (B, 1, 64, 64) of a bright and a dark disc in noise, and their labels (B, 1, 64, 64)."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    labels = np.zeros((count, 1, SIZE, SIZE), np.int64)
    for label in labels:
        for value, radius in ((1, 12), (2, 8)):
            row, column = random.uniform(14, SIZE - 14, 2)
            label[0][(rows - row) ** 2 + (columns - column) ** 2 < radius**2] = value
    images = np.array([0.4, 0.8, 0.1])[labels] + random.normal(0, 0.05, labels.shape)
    return torch.from_numpy(images.clip(0, 1)).float(), torch.from_numpy(labels)


@functools.cache
def built(kind: str, **options):
    """Return an untrained network of MONAI; what each test trains is a copy."""
    torch.manual_seed(0)
    return build_network(f"monai.networks.nets.{kind}", 1, CLASSES, **options)


def unet(*channels: int):
    return copy.deepcopy(built("UNet", channels=channels, strides=(2,) * (len(channels) - 1)))


def pair_for(name: str, **options):
    """Return a student of 6 channels, a teacher of 12, and the distiller of one method between them."""
    teacher, student = unet(12, 16, 24), unet(6, 8, 12)
    torch.manual_seed(0)
    paraphrasers = tuple(Paraphraser(12, 6).eval() for _ in range(2))
    distiller = build_distiller(name, teacher, student, CLASSES, 10, paraphrasers, size=SIZE, **options)
    return student, distiller.train()


def step(student, distiller, optimizer, images, labels) -> dict[str, torch.Tensor]:
    """Take one step on a method's own loss; return its terms."""
    student.train()
    terms = distiller(images, labels, student(images))
    optimizer.zero_grad()
    total = distiller.total(terms)
    total.backward()
    optimizer.step()
    return {**terms, **distiller.after_step(), "total": total}


# The mean teacher begins at its own goal: the average of the student is the student.
@pytest.mark.parametrize("name", [name for name in METHODS if name != "mean_teacher"])
def test_a_few_steps_lower_the_methods_own_loss(name):
    images, labels = phantoms(2)
    student, distiller = pair_for(name)
    optimizer = torch.optim.Adam(trained_parameters(student, distiller), lr=2e-3)
    totals = []
    for _ in range(4):
        terms = step(student, distiller, optimizer, images, labels)
        assert all(torch.isfinite(term) for term in terms.values())
        assert set(distiller.weights) <= set(terms)
        totals.append(float(terms["total"].detach()))
    assert min(totals[-2:]) < totals[0], totals
    assert all(parameter.grad is None for parameter in distiller.teacher.parameters())


@pytest.mark.parametrize("view", ["same", "strong"])
@pytest.mark.parametrize("name", METHODS)
def test_a_step_on_a_half_labelled_batch(name, view):
    images, labels = phantoms(4)
    labels[2:] = UNLABELLED
    student, distiller = pair_for(name)
    seen, labels, cut = StudentView(view, seed=1)(images, labels)
    terms = distiller(images, labels, student.train()(seen), seen, cut)
    distiller.total(terms).backward()
    terms.update(distiller.after_step())
    assert all(torch.isfinite(term) for term in terms.values())
    gradients = [parameter.grad for parameter in student.parameters() if parameter.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    if name != "mean_teacher" or view == "strong":  # its average is the student still
        assert any(gradient.abs().sum() > 0 for gradient in gradients)


@pytest.mark.parametrize("name", METHODS)
def test_half_precision_networks_give_finite_float32_terms(name):
    images, labels = phantoms(2)
    student, distiller = pair_for(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = distiller(images, labels, student(images))
    for term in terms.values():
        assert term.dtype == torch.float32
        assert torch.isfinite(term)


@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_method_goes_on_as_if_it_had_never_stopped(name):
    images, labels = phantoms(2)
    student, distiller = pair_for(name)
    optimizer = torch.optim.Adam(trained_parameters(student, distiller), lr=1e-3)
    step(student, distiller, optimizer, images, labels)
    saved = copy.deepcopy([student.state_dict(), distiller.training_state(), optimizer.state_dict()])
    after = []
    for resumed in (False, True):
        if resumed:
            student, distiller = pair_for(name)
            optimizer = torch.optim.Adam(trained_parameters(student, distiller), lr=1e-3)
            for part, state in zip((student, optimizer), (saved[0], saved[2]), strict=True):
                part.load_state_dict(state)
            distiller.load_training_state(saved[1])
        torch.manual_seed(1)
        after.append(step(student, distiller, optimizer, images, labels))
        after[-1] |= {key: value.clone() for key, value in student.state_dict().items()}
    assert all(torch.equal(after[0][key], after[1][key]) for key in after[0])


@pytest.mark.parametrize("name", METHODS)
def test_a_setting_that_no_method_has_is_refused(name):
    with pytest.raises(InputError, match="no setting 'warmth'"):
        pair_for(name, settings={"warmth": 1})


def volumes_for(name: str, teacher_filters: int = 8, **options):
    """Return a narrow SegResNet for volumes and the distiller of one method between it and a wider one."""
    shape = {"spatial_dims": 3, "blocks_down": (1, 1, 1), "blocks_up": (1, 1), "norm": "INSTANCE"}
    teacher, student = (
        copy.deepcopy(built("SegResNet", init_filters=filters, **shape)) for filters in (teacher_filters, 4)
    )
    torch.manual_seed(0)
    paraphrasers = tuple(
        Paraphraser(*channels, spatial_dims=3).eval()
        for channels in zip(teacher.tap_channels, student.tap_channels, strict=True)
    )
    options = {"size": (16, 16, 8), **options}
    return student, build_distiller(name, teacher, student, CLASSES, 10, paraphrasers, **options).train()


# Features of cwd are left out by default. With its logits at weight 0 the student learns from them alone.
FEATURES_ALONE = pytest.param("cwd", {"logits": 0.0, "features": 1.0}, id="cwd_features")


@pytest.mark.parametrize(
    ("name", "settings"), [*(pytest.param(name, None, id=name) for name in METHODS), FEATURES_ALONE]
)
def test_every_method_teaches_networks_of_volumes(name, settings):
    images = torch.rand(2, 1, 16, 16, 8, generator=torch.Generator().manual_seed(0))
    student, distiller = volumes_for(name, settings=settings)
    optimizer = torch.optim.SGD(trained_parameters(student, distiller), lr=1e-3)
    terms = step(student, distiller, optimizer, images, (3 * images).long().clamp(max=2))
    assert all(torch.isfinite(term) for term in terms.values())
    assert set(distiller.weights) <= set(terms)
    gradients = [parameter.grad for parameter in student.parameters() if parameter.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    at_its_goal = name == "mean_teacher"  # its average is the student still
    assert at_its_goal or sum(float(gradient.abs().sum()) for gradient in gradients) > 0
    trained = [parameter for parameter in distiller.adapter_parameters() if parameter.grad is not None]
    assert bool(trained) == bool(distiller.adapter_parameters())


@pytest.mark.parametrize(
    ("name", "settings"),
    [("graph_flow", {"adversarial": 0.1}), ("coco", {"adversarial": 0.1}), ("skd", {"holistic": 0.01})],
)
def test_adversary_judges_no_volumes(name, settings):
    with pytest.raises(InputError, match="judges slices, not volumes: pass --settings"):
        volumes_for(name, settings=settings)


def test_taps_by_name_replace_those_of_the_networks():
    taps = {"teacher_taps": ["down_layers.1", "up_layers.1"], "student_taps": ["down_layers.1", "up_layers.1"]}
    student, distiller = volumes_for("fitnet", **taps)
    images = torch.rand(1, 1, 16, 16, 8)
    distiller(images, images.long(), student(images))
    student_view, teacher_view = distiller._views
    assert [tuple(tap.shape[1:]) for tap in student_view.features] == [(8, 8, 8, 4), (4, 16, 16, 8)]
    assert [tap.shape[1] for tap in teacher_view.features] == [16, 8]


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        ({"teacher_taps": ["down_layers.1", "up_layer"]}, r"no module 'up_layer'; the nearest maps are up_.*channels"),
        ({"student_taps": ["down_layers.1", "down_layers.2", "up_layers.0"]}, "teacher has 2 taps, the student 3"),
    ],
)
def test_taps_that_cannot_be_compared_are_refused(taps, message):
    with pytest.raises(InputError, match=message):
        volumes_for("kd", **taps)


def test_images_and_volumes_are_not_compared():
    with pytest.raises(InputError, match="the teacher is for volumes, the student for images"):
        build_distiller("kd", volumes_for("kd")[0], build_network("enet", 1, CLASSES), CLASSES, 10)
