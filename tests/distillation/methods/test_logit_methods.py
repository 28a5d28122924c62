# SPDX-License-Identifier: Apache-2.0
"""Methods that compare logits (cwd, dist, dkd, logit_std, bpkd): by hand, parity, what all must do, bad input."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from torch.nn import functional as F

from pipeline.distillation import METHODS, Tapped
from pipeline.distillation.methods.bpkd import BoundaryPrivileged, edge_band, edge_divergence
from pipeline.distillation.methods.cwd import ChannelWise, channel_divergence
from pipeline.distillation.methods.dist import StrongerTeacher, correlation_distance
from pipeline.distillation.methods.dkd import DecoupledLoss
from pipeline.distillation.methods.kd import KnowledgeDistillationLoss
from pipeline.distillation.methods.logit_std import StandardisedLogits, standardised_logits
from pipeline.errors import InputError
from pipeline.unlabelled import UNLABELLED
from tests.distillation.tiny_pair import equal_pair, tiny_batch, tiny_pair, views

TERMS = {
    "cwd": ("cwd_logits",),
    "dist": ("dist_inter", "dist_intra"),
    "dkd": ("dkd_target", "dkd_others"),
    "logit_std": ("logit_std",),
    "bpkd": ("bpkd_edge", "bpkd_body"),
}
named = pytest.mark.parametrize("name", TERMS)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pixels(*probabilities: tuple[float, ...]) -> torch.Tensor:
    """Return logits (1, K, 1, N) of pixels with these probabilities."""
    return torch.tensor(probabilities, dtype=torch.float64).log().T[None, :, None]


def row(*values: int) -> torch.Tensor:
    """Return a label (1, 1, 1, N)."""
    return torch.tensor(values)[None, None, None]


# --- kd ---------------------------------------------------------------------------------------------------------------


def test_kd_with_a_confidence_by_hand():
    """Teacher (.9, .1) and (.6, .4), student (.5, .5): unsure of the second pixel, which counts with a label."""
    teacher, student = pixels((0.9, 0.1), (0.6, 0.4)), pixels((0.5, 0.5), (0.5, 0.5))
    first, second = 0.9 * log(1.8) + 0.1 * log(0.2), 0.6 * log(1.2) + 0.4 * log(0.8)
    loss = KnowledgeDistillationLoss(temperature=1, balance=0, confidence=0.8)
    assert float(loss(student, teacher, row(UNLABELLED, UNLABELLED))) == pytest.approx(first / 2)  # the mean of both
    assert float(loss(student, teacher, row(UNLABELLED, 1))) == pytest.approx((first + second) / 2)
    assert float(loss(student, teacher)) == pytest.approx((first + second) / 2)  # no labels, no unlabelled pixels
    all_count = KnowledgeDistillationLoss(temperature=1, balance=0)
    assert float(all_count(student, teacher, row(UNLABELLED, UNLABELLED))) == pytest.approx((first + second) / 2)


# --- cwd --------------------------------------------------------------------------------------------------------------


def test_cwd_by_hand():
    """Channel 0: places (.8, .2) against (.5, .5); channel 1 is equal but for a constant. The mean halves the KL."""
    teacher = torch.tensor([[0.8, 0.2], [0.3, 0.7]]).log()[None, :, None]
    student = torch.tensor([[0.5, 0.5], [3.0, 7.0]]).log()[None, :, None]
    expected = (0.8 * log(1.6) + 0.2 * log(0.4)) / 2
    assert float(channel_divergence(student, teacher, 1.0)) == pytest.approx(expected)
    assert float(channel_divergence(4 * student, 4 * teacher, 4.0)) == pytest.approx(16 * expected)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 4, 5, 2)])
def test_cwd_parity_with_scipy(shape):
    student, teacher = normal(*shape), normal(*shape, seed=1)
    places = [np.exp(maps.flatten(2).numpy() / 4) for maps in (student, teacher)]
    expected = 16 * entropy(places[1], places[0], axis=2).mean()
    assert float(channel_divergence(student, teacher, 4.0)) == pytest.approx(expected)


def test_cwd_of_some_places_is_that_of_a_map_with_these_alone():
    student, teacher = normal(1, 3, 1, 6), normal(1, 3, 1, 6, seed=1)
    there = row(1, 1, 0, 1, 0, 1).bool()
    of_these = channel_divergence(student[..., there[0, 0, 0]], teacher[..., there[0, 0, 0]], 2.0)
    torch.testing.assert_close(channel_divergence(student, teacher, 2.0, there), of_these)


def test_cwd_has_an_adapter_only_where_features_count():
    pair, (images, labels) = tiny_pair(), tiny_batch()
    assert not ChannelWise(pair).adapter_parameters()
    method = ChannelWise(pair, weight=0.5, logits=3.0, features=50.0).double()
    assert method.weights == {"cwd_logits": 1.5, "cwd_features": 25.0}
    student, teacher = views(pair, images)
    found = method(student, teacher, labels)["cwd_features"]
    adapted = method.adapter.convolution(student.features[-1])
    torch.testing.assert_close(found, channel_divergence(adapted, teacher.features[-1], 4.0))
    found.backward()
    assert float(method.adapter.convolution.weight.grad.abs().max()) > 0


# --- dist -------------------------------------------------------------------------------------------------------------


def test_dist_by_hand():
    """(.7, .2, .1) and (.2, .7, .1) less 1/3 are (11, -4, -7) and (-4, 11, -7) thirtieths: r = -39 / 186."""
    student, teacher = torch.tensor([[0.7, 0.2, 0.1]]), torch.tensor([[0.2, 0.7, 0.1]])
    assert float(correlation_distance(student, teacher, 1)) == pytest.approx(1 + 39 / 186, rel=2e-3)
    assert float(correlation_distance(student / 10, student, 1)) == pytest.approx(0, abs=0.02)  # the scale is free


def test_dist_parity_with_numpy():
    student, teacher = normal(2, 3, 4, 5), normal(2, 3, 4, 5, seed=1)
    terms = StrongerTeacher(None)(Tapped((), student), Tapped((), teacher), torch.zeros(1))
    mine, hint = (logits.softmax(dim=1).movedim(1, -1).reshape(-1, 3).numpy() for logits in (student, teacher))
    inter = np.mean([1 - np.corrcoef(*both)[0, 1] for both in zip(mine, hint, strict=True)])
    intra = np.mean([1 - np.corrcoef(*both)[0, 1] for both in zip(mine.T, hint.T, strict=True)])
    assert float(terms["dist_inter"]) == pytest.approx(inter, rel=0.01)
    assert float(terms["dist_intra"]) == pytest.approx(intra, rel=0.01)


def test_dist_of_alike_probabilities_has_a_bounded_gradient():
    """The gradient is at most 1 / 0.01 of the mean, where Pearson's correlation has an infinite one."""
    teacher = torch.eye(4)
    for spread in (0.0, 1e-12, 1e-6, 1e-3):
        student = (0.25 + spread * torch.arange(4.0) * torch.ones(4, 1)).requires_grad_()
        correlation_distance(student, teacher, 1).backward()
        assert float(student.grad.norm(dim=1).max()) <= 100 / 4
    assert StrongerTeacher.needs_global_batch


# --- dkd --------------------------------------------------------------------------------------------------------------


def test_dkd_by_hand():
    """Class 0 of teacher (.6, .3, .1) and student (.5, .25, .25): target .6 of .5, the others (3/4, 1/4) of halves."""
    loss = DecoupledLoss(1.0, balance=0)
    of_target, of_others = loss(pixels((0.5, 0.25, 0.25)), pixels((0.6, 0.3, 0.1)), row(0))
    assert float(of_target) == pytest.approx(0.6 * log(1.2) + 0.4 * log(0.8))
    assert float(of_others) == pytest.approx(0.75 * log(1.5) + 0.25 * log(0.5))


@pytest.mark.parametrize("shape", [(1, 4, 1, 1), (1, 4, 1, 1, 1), (1, 2, 1, 1)])
def test_dkd_is_kd_taken_apart(shape):
    """KL = target + (1 - p_y) others, of two classes the others' term is zero."""
    student, teacher, labels = normal(*shape), normal(*shape, seed=1), torch.ones((1, 1, *shape[2:]))
    of_target, of_others = DecoupledLoss(3.0)(student, teacher, labels)
    unsure = 1 - (teacher / 3).softmax(dim=1)[0, 1].squeeze()
    kd = KnowledgeDistillationLoss(3.0)(student, teacher, labels)
    torch.testing.assert_close((of_target + unsure * of_others).float(), kd)
    assert shape[1] > 2 or float(of_others) == 0


def test_dkd_takes_the_teachers_class_where_there_is_no_label_and_balances_classes():
    student, teacher = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1)
    loss, likeliest = DecoupledLoss(balance=1), teacher.argmax(dim=1, keepdim=True)
    for unlabelled in (-1, 255):
        found = loss(student, teacher, torch.full_like(likeliest, unlabelled))
        torch.testing.assert_close(found, loss(student, teacher, likeliest))
    student, teacher = pixels(*[(0.5, 0.5)] * 4), pixels(*[(0.5, 0.5)] * 3, (0.1, 0.9))
    balanced, plain = (DecoupledLoss(balance=share)(student, teacher, row(0, 0, 0, 1))[0] for share in (1, 0))
    assert float(balanced / plain) == pytest.approx(2)  # class 1 has a quarter of the pixels, then half of the weight


# --- logit_std --------------------------------------------------------------------------------------------------------


def test_standardised_logits_by_hand():
    """3, 0, -3 have a mean of 0 and a variance of 6, to which 0.01 is added."""
    found = standardised_logits(torch.tensor([13.0, 10.0, 7.0]).reshape(1, 3, 1, 1)).flatten()
    torch.testing.assert_close(found, torch.tensor([3.0, 0.0, -3.0]) / 6.01**0.5)


def test_logit_std_is_kd_of_standardised_logits_free_of_scale_and_shift():
    pair, labels = tiny_pair(), torch.zeros(1, 1, 4, 4)
    student, teacher = normal(1, 3, 4, 4), normal(1, 3, 4, 4, seed=1)
    method = StandardisedLogits(pair, temperature=2.0, balance=0)
    found = method(Tapped((), student), Tapped((), teacher), labels)["logit_std"]
    z = [(logits - logits.mean(1, True)) / logits.std(1, correction=0, keepdim=True) for logits in (student, teacher)]
    expected = 4 * F.kl_div((z[0] / 2).log_softmax(1), (z[1] / 2).softmax(1), reduction="sum") / 16
    assert float(found) == pytest.approx(float(expected), rel=0.02)
    changed = method(Tapped((), 5 * student + 7), Tapped((), teacher), labels)["logit_std"]
    assert float(changed) == pytest.approx(float(found), rel=0.02)


def test_logit_std_of_two_classes_is_refused():
    with pytest.raises(InputError, match=r"two classes .* take --method kd"):
        StandardisedLogits(type("Two", (), {"out_channels": 2}))


# --- bpkd -------------------------------------------------------------------------------------------------------------


def test_edge_band_by_hand():
    assert edge_band(row(0, 0, 0, 0, 2, 2, 1), 1).flatten().tolist() == [False, False, False, True, True, True, True]
    assert edge_band(row(0, 0, 0, 0, 2, 2, 2), 2).flatten().tolist() == [False, False, True, True, True, True, False]
    cube = torch.zeros(1, 1, 5, 5, 5)
    cube[..., 2, 2, 2] = 1
    assert int(edge_band(cube, 1).sum()) == 27


def test_edge_band_is_dilation_less_erosion_of_every_class():
    classes = torch.randint(0, 4, (2, 1, 3, 3), generator=torch.Generator().manual_seed(0)).repeat_interleave(5, 2)
    classes = classes.repeat_interleave(5, 3)
    masks = F.one_hot(classes.squeeze(1), 4).movedim(-1, 1).float()
    dilated, eroded = F.max_pool2d(masks, 5, 1, 2), 1 - F.max_pool2d(1 - masks, 5, 1, 2)
    assert torch.equal(edge_band(classes, 2), (dilated - eroded).amax(dim=1, keepdim=True).bool())


def test_bpkd_by_hand():
    """Pixels 2 and 3 of (0, 0, 0, 1, 1, 1) are edge: kd there, cwd of the four others."""
    student, teacher, labels = normal(1, 3, 1, 6), normal(1, 3, 1, 6, seed=1), row(0, 0, 0, 1, 1, 1)
    terms = BoundaryPrivileged(None)(Tapped((), student), Tapped((), teacher), labels)
    edge = KnowledgeDistillationLoss(2.0, balance=0)(student[..., 2:4], teacher[..., 2:4])
    body = channel_divergence(student[..., [0, 1, 4, 5]], teacher[..., [0, 1, 4, 5]], 4.0)
    torch.testing.assert_close(terms["bpkd_edge"].float(), edge)
    torch.testing.assert_close(terms["bpkd_body"], body)


def test_bpkd_of_images_without_edge_or_without_body_is_zero_there():
    student, teacher = normal(2, 3, 4, 4).requires_grad_(), normal(2, 3, 4, 4, seed=1)
    nowhere, everywhere = torch.zeros(2, 1, 4, 4).bool(), torch.ones(2, 1, 4, 4).bool()
    terms = edge_divergence(student, teacher, nowhere, 2.0), channel_divergence(student, teacher, 4.0, nowhere)
    assert [float(term.detach()) for term in terms] == [0, 0]
    sum(terms).backward()
    assert float(student.grad.abs().max()) == 0
    half = torch.stack([nowhere[0], everywhere[0]])
    both = edge_divergence(student, teacher, everywhere, 2.0), edge_divergence(student, teacher, half, 2.0)
    torch.testing.assert_close(both[1], edge_divergence(student[1:], teacher[1:], everywhere[1:], 2.0) / 2)
    assert float(both[0].detach()) > float(both[1].detach())


# --- all --------------------------------------------------------------------------------------------------------------


def blocks(spatial_dims: int, side: int = 8) -> torch.Tensor:
    """Return labels (2, 1, ...): half of each image is class 1, but for a corner that nobody has labelled."""
    labels = torch.zeros(2, 1, *[side] * spatial_dims, dtype=torch.long)
    labels[..., side // 2 :] = 1
    labels[..., :2, :2] = -1
    return labels


@named
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_equal_networks_have_a_loss_of_zero(name, spatial_dims):
    pair, (images, _) = equal_pair(spatial_dims), tiny_batch(spatial_dims)
    terms = METHODS[name](pair)(*views(pair, images), blocks(spatial_dims))
    assert tuple(terms) == TERMS[name]
    assert all(float(term.detach()) == pytest.approx(0, abs=1e-7) for term in terms.values())
    sum(terms.values()).backward()
    assert all(float(parameter.grad.abs().max()) < 1e-5 for parameter in pair.student.parameters())


@named
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_student_alone_gets_a_gradient_and_learning_lowers_the_terms(name, spatial_dims):
    pair, labels = tiny_pair(spatial_dims), blocks(spatial_dims, 6)
    teacher = normal(2, 3, *[6] * spatial_dims).requires_grad_()
    student = normal(2, 3, *[6] * spatial_dims, seed=1).requires_grad_()
    method, optimizer, totals = METHODS[name](pair), torch.optim.Adam([student], lr=0.1), []
    for _ in range(20):
        optimizer.zero_grad()
        terms = method(Tapped((), student), Tapped((), teacher), labels)
        assert tuple(terms) == tuple(method.weights) == TERMS[name]
        sum(terms.values()).backward()
        optimizer.step()
        totals.append({term: float(value.detach()) for term, value in terms.items()})
    assert all(totals[-1][term] < 0.7 * totals[0][term] for term in TERMS[name])
    assert teacher.grad is None


@named
@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize(("of_student", "of_teacher"), [(0, 0), (0, 1), (1e4, 1), (1, 1e4), (1e4, -1e4), (1e4, 0)])
def test_constant_and_huge_logits_give_finite_gradients(name, spatial_dims, of_student, of_teacher):
    teacher = (of_teacher * normal(2, 3, *[8] * spatial_dims)).float()
    student = (of_student * normal(2, 3, *[8] * spatial_dims)).float().requires_grad_()
    method = METHODS[name](tiny_pair(spatial_dims))
    terms = method(Tapped((), student), Tapped((), teacher), blocks(spatial_dims))
    sum(terms.values()).backward()
    assert all(bool(torch.isfinite(term)) for term in terms.values())
    assert bool(torch.isfinite(student.grad).all())
    assert float(student.grad.norm()) < 20


@named
def test_processes_that_share_a_batch_make_the_terms_of_one(name):
    """Each sees some images and their terms are averaged; balance has its own sum over processes."""
    student, teacher, labels = normal(4, 3, 8, 8), normal(4, 3, 8, 8, seed=1), blocks(2).repeat(2, 1, 1, 1)
    labels[0, :, :, 2:] = 2
    method = METHODS[name](tiny_pair(), **({"balance": 0} if name in ("dkd", "logit_std") else {}))
    whole = method(Tapped((), student), Tapped((), teacher), labels)
    shares = [method(Tapped((), student[i::2]), Tapped((), teacher[i::2]), labels[i::2]) for i in (0, 1)]
    means = {term: float(sum(share[term] for share in shares)) / 2 for term in TERMS[name]}
    equal = all(means[term] == pytest.approx(float(whole[term]), rel=1e-5) for term in TERMS[name])
    assert equal != method.needs_global_batch


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("cwd", {"temperature": 0}, "cwd: temperature is 0"),
        ("cwd", {"logits": -1}, "weight of the loss term 'cwd_logits' is -1"),
        ("cwd", {"features": float("nan")}, "weight of the loss term 'cwd_features' is nan"),
        ("dist", {"intra": -1}, "weight of the loss term 'dist_intra' is -1"),
        ("dkd", {"temperature": -1}, "dkd: temperature is -1"),
        ("dkd", {"balance": 2}, "dkd: balance is 2"),
        ("logit_std", {"temperature": 0}, "logit_std: temperature is 0"),
        ("logit_std", {"balance": -1}, "logit_std: balance is -1"),
        ("bpkd", {"radius": 0}, "bpkd: radius is 0"),
        ("bpkd", {"edge_temperature": 0}, "bpkd: edge_temperature is 0"),
    ],
)
def test_bad_settings_end_in_one_clear_line(name, settings, message):
    with pytest.raises(InputError, match=message):
        METHODS[name](tiny_pair(), **settings)
