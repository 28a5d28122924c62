# SPDX-License-Identifier: Apache-2.0
"""Masked generation, class prototypes and knowledge review: values by hand, equality, dimensions, then bad input."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.distillation.method import DistillationMethod, NetworkPair, Tapped
from pipeline.distillation.methods.mgd import Generator, MaskedGeneration, random_mask
from pipeline.distillation.methods.prototypes import ClassPrototypes, prototype_loss
from pipeline.distillation.methods.review import AttentionFusion, KnowledgeReview, hierarchical_context_loss
from pipeline.errors import InputError

METHODS = {"mgd": MaskedGeneration, "prototypes": ClassPrototypes, "review": KnowledgeReview}
CLASSES = 3
every_method = pytest.mark.parametrize("name", METHODS)


def pair(student: int = 4, teacher: int = 4, dims: int = 2) -> NetworkPair:
    return NetworkPair(nn.Identity(), nn.Identity(), (teacher, teacher), (student, student), CLASSES, spatial_dims=dims)


def view(seed: int, channels: int = 4, side: int = 8, batch: int = 2, dims: int = 2) -> Tapped:
    generator = torch.Generator().manual_seed(seed)
    taps = (torch.randn(batch, channels, *[side] * dims, generator=generator).relu() for _ in range(2))
    return Tapped(tuple(taps), torch.randn(batch, CLASSES, *[16] * dims, generator=generator))


def leaves(view: Tapped) -> Tapped:
    taps = tuple(tap.clone().requires_grad_() for tap in view.features)
    return Tapped(taps, view.logits.clone().requires_grad_())


def bands(batch: int = 2, dims: int = 2) -> torch.Tensor:
    """Return labels (B, 1, 16, ...) with three classes in bands."""
    return (torch.arange(16) // 6).reshape(16, *[1] * (dims - 1)).expand(batch, 1, *[16] * dims)


def row(*vectors: tuple[float, ...]) -> torch.Tensor:
    """Return a map (1, C, 1, N) with these vectors at its places."""
    return torch.tensor(vectors).T[None, :, None]


def built(name: str, *args: int, **settings: object) -> DistillationMethod:
    torch.manual_seed(0)
    return METHODS[name](pair(*args), **settings)


def hand_through(convolution: nn.Module) -> None:
    """Let a convolution hand on its channels: 1 from each to itself at the middle of the kernel, 0 elsewhere."""
    nn.init.dirac_(convolution.weight)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)


def unchanging(method: MaskedGeneration) -> MaskedGeneration:
    """Let the generators hand on what they get, where it is not negative."""
    for generator in method.generators:
        hand_through(generator[0])
        hand_through(generator[2])
    return method


def test_generation_by_hand():
    """A generator that hands on: visible places give (2 - 3)^2 = 1, hidden ones 3^2 = 9, on the drawn mask."""
    method = unchanging(built("mgd", hidden=0.5))
    student, teacher = (Tapped((torch.full((2, 4, 8, 8), value),) * 2, torch.zeros(1)) for value in (2.0, 3.0))
    torch.manual_seed(5)
    term = method(student, teacher, torch.zeros(1))["mgd"]
    torch.manual_seed(5)
    shares = [random_mask(tap, 0.5).mean() for tap in student.features]
    torch.testing.assert_close(term, sum(share * 1 + (1 - share) * 9 for share in shares) / 2)


def test_nothing_hidden_and_nothing_changed_is_zero():
    method = unchanging(built("mgd", hidden=0))
    assert float(method(view(0), view(0), bands())["mgd"].detach()) == 0


def test_generator_is_the_formula_written_plainly():
    torch.manual_seed(0)
    generator, features = Generator(4), torch.randn(2, 4, 5, 5)
    first, last = generator[0], generator[2]
    between = F.conv2d(features, first.weight, first.bias, padding=1).clamp(min=0)
    torch.testing.assert_close(generator(features), F.conv2d(between, last.weight, last.bias, padding=1))


def test_mask_is_one_for_all_channels_new_each_time_and_of_the_right_share():
    torch.manual_seed(0)
    mask, other = (random_mask(torch.zeros(4, 7, 50, 50), 0.75) for _ in range(2))
    assert mask.shape == (4, 1, 50, 50)
    assert set(mask.unique().tolist()) == {0, 1}
    assert float(mask.mean()) == pytest.approx(0.25, abs=0.02)
    assert not torch.equal(mask, other)


def test_prototypes_by_hand():
    """Class 0 at three places, class 1 at one, two channels.

    Means of class 0: student (2, 0), teacher (1, 1), mean square difference 1; of class 1: (0, 5) and (0, 1), 8.
    Each class the same: 4.5. By area: (3 * 1 + 1 * 8) / 4 = 2.75.
    """
    student = row((1.0, 0.0), (2.0, 0.0), (3.0, 0.0), (0.0, 5.0))
    teacher = row((1.0, 3.0), (1.0, 0.0), (1.0, 0.0), (0.0, 1.0))
    masks = torch.tensor([[[1.0, 1, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]]])
    for balance, expected in ((1.0, 4.5), (0.0, 2.75)):
        assert float(prototype_loss(student, teacher, masks, balance)) == pytest.approx(expected)


def test_prototypes_equal_a_loop_over_images_and_classes():
    torch.manual_seed(0)
    student, teacher, labels = torch.randn(2, 4, 5, 5), torch.randn(2, 4, 5, 5), torch.randint(0, 3, (2, 5, 5))
    labels[1][labels[1] == 2] = 0  # a class that an image lacks
    masks = torch.stack([(labels == k).flatten(1) for k in range(3)], dim=1).float()
    terms, weights = [], []
    for image in range(2):
        for k in labels[image].unique():
            there = labels[image] == k
            means = [of[image][:, there].mean(dim=1) for of in (student, teacher)]
            terms.append(F.mse_loss(*means))
            weights.append(there.sum() ** 0.3)
    expected = (torch.stack(terms) * torch.stack(weights)).sum() / torch.stack(weights).sum()
    torch.testing.assert_close(prototype_loss(student, teacher, masks, 0.7), expected)


def test_where_nobody_has_labelled_the_teachers_class_stands_in():
    method, student, teacher = built("prototypes"), view(0), view(1)
    predicted = teacher.logits.argmax(dim=1, keepdim=True)
    unknown = method(student, teacher, torch.full_like(predicted, -1))
    known = method(student, teacher, predicted)
    assert {name: float(value) for name, value in unknown.items()} == {
        name: float(value) for name, value in known.items()
    }


def test_prototypes_are_zero_at_equality():
    terms = built("prototypes")(view(0), view(0), bands())
    assert all(float(term.detach()) == 0 for term in terms.values())


def test_weight_is_a_factor_on_both_terms_of_prototypes():
    settings = {"weight": 2.0, "logits": 1.0, "features": 0.1}
    assert built("prototypes", **settings).weights == {"prototypes_logits": 2.0, "prototypes_features": 0.2}


def test_context_loss_by_hand():
    """3 x 3 places: 9 in the middle, else 0, against 0: 81 / 9 = 9 as it is; levels of 2 x 2 and 1 x 1 regions count.

    Each 2 x 2 region covers 2 x 2 places with the middle among them: 9 / 4, squared 81 / 16. The whole: 1, squared 1.
    (9 + 81 / 16 / 2 + 1 / 4) / (1 + 1 / 2 + 1 / 4); 4 x 4 regions are more than there are places, and are left out.
    """
    student = torch.zeros(1, 1, 3, 3)
    student[..., 1, 1] = 9
    loss = hierarchical_context_loss(student, torch.zeros(1, 1, 3, 3))
    assert float(loss) == pytest.approx((9 + 81 / 32 + 1 / 4) / 1.75)


@pytest.mark.parametrize("side", [1, 2, 4, 5, 8])
@pytest.mark.parametrize("dims", [2, 3])
def test_context_loss_of_maps_that_differ_by_a_constant_is_its_square(side, dims):
    teacher = torch.randn(2, 3, *[side] * dims)
    assert float(hierarchical_context_loss(teacher + 2, teacher)) == pytest.approx(4, rel=1e-5)
    assert float(hierarchical_context_loss(teacher, teacher)) == 0


def test_fusion_by_hand():
    """Attention of weights 0 and biases ln 3 and -ln 3: 3/4 of the own map and 1/4 of the deeper one.

    In evaluation fresh normalisations divide by sqrt(1 + 1e-5) alone.
    """
    fusion = AttentionFusion(1, 1, 1, deepest=False).eval()
    hand_through(fusion.entry[0])
    hand_through(fusion.exit[0])
    nn.init.zeros_(fusion.attention.weight)
    fusion.attention.bias.data = torch.tensor([3.0, 1 / 3]).log()
    reviewed, fused = fusion(torch.full((1, 1, 4, 4), 8.0), torch.full((1, 1, 2, 2), 4.0), torch.zeros(1, 1, 2, 2))
    torch.testing.assert_close(fused, torch.full((1, 1, 4, 4), 7.0), rtol=1e-4, atol=0)
    torch.testing.assert_close(reviewed, torch.full((1, 1, 2, 2), 7.0), rtol=1e-4, atol=0)


def test_each_tap_is_reviewed_with_all_deeper_ones_and_with_no_shallower_one():
    """The teacher's tap i is compared with the student's taps i, i + 1, ...: so far do its gradients reach."""
    torch.manual_seed(0)
    fusions = KnowledgeReview(NetworkPair(nn.Identity(), nn.Identity(), (3, 4, 5), (2, 4, 6), CLASSES)).fusions
    assert [fusion.attention is None for fusion in fusions] == [False, False, True]
    taps = [torch.randn(2, c, side, side, requires_grad=True) for c, side in ((2, 8), (4, 4), (6, 2))]
    sizes, deeper = [torch.zeros(2, c, side, side) for c, side in ((3, 8), (4, 8), (5, 4))], None
    for number in (2, 1, 0):
        reviewed, deeper = fusions[number](taps[number], deeper, sizes[number])
        assert reviewed.shape == sizes[number].shape
        reached = torch.autograd.grad(reviewed.square().sum(), taps, retain_graph=True, allow_unused=True)
        assert [gradient is not None for gradient in reached] == [tap >= number for tap in range(3)]


@every_method
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("mine", "theirs", "sides"), [(4, 4, (8, 8)), (4, 6, (8, 4)), (6, 4, (4, 8))])
def test_finite_gradients_for_the_student_alone(name, dims, mine, theirs, sides):
    student = leaves(view(0, mine, sides[0], dims=dims))
    teacher = leaves(view(1, theirs, sides[1], dims=dims))
    method = built(name, mine, theirs, dims)
    terms = method(student, teacher, bands(dims=dims))
    assert list(terms) == list(method.weights)
    assert all(term.shape == () and float(term.detach()) > 0 for term in terms.values())
    sum(terms.values()).backward()
    for of_student, of_teacher in zip(student.features, teacher.features, strict=True):
        assert bool(of_student.grad.isfinite().all())
        assert float(of_student.grad.abs().sum()) > 0
        assert of_teacher.grad is None
    assert teacher.logits.grad is None
    assert all(bool(parameter.grad.isfinite().all()) for parameter in method.adapter_parameters())


@every_method
def test_one_image_of_dead_features_has_finite_terms_and_bounded_gradients(name):
    dead = leaves(Tapped(tuple(torch.zeros(1, 4, 8, 8) for _ in range(2)), torch.zeros(1, CLASSES, 16, 16)))
    terms = built(name)(dead, view(1, batch=1), bands(1))
    sum(terms.values()).backward()
    assert all(bool(term.isfinite()) for term in terms.values())
    assert all(float(tap.grad.abs().max()) < 1e3 for tap in dead.features)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("mgd", {"hidden": 1}, "mgd: hidden is 1; it must be a finite number from 0 to 0.95"),
        ("mgd", {"weight": -1.0}, "weight of the loss term 'mgd' is -1"),
        ("prototypes", {"balance": 2}, "prototypes: balance is 2"),
        ("prototypes", {"logits": float("nan")}, "weight of the loss term 'prototypes_logits' is nan"),
        ("review", {"weight": float("inf")}, "weight of the loss term 'review' is inf"),
    ],
)
def test_bad_settings_end_in_one_clear_line(name, settings, message):
    with pytest.raises(InputError, match=message):
        built(name, **settings)
