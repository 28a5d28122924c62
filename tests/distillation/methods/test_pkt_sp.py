# SPDX-License-Identifier: Apache-2.0
"""Methods that relate regions of a batch (pkt, sp): values by hand, invariances, parity, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.stats import entropy
from torch import nn

from pipeline.distillation.method import NetworkPair, Tapped
from pipeline.distillation.methods.pkt import ProbabilisticTransfer, conditional_probabilities, probabilistic_loss
from pipeline.distillation.methods.sp import SimilarityPreserving, similarity_loss, similarity_matrix
from pipeline.errors import InputError

PAIR = NetworkPair(nn.Identity(), nn.Identity(), teacher_channels=(2,), student_channels=(2,), out_channels=2)
BOTH = pytest.mark.parametrize("method", [ProbabilisticTransfer, SimilarityPreserving])


def vectors(seed: int, count: int = 6, channels: int = 4) -> torch.Tensor:
    return torch.randn(count, channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(channels: int) -> torch.Tensor:
    return torch.linalg.qr(vectors(9, channels, channels)).Q


class TestProbabilistic:
    def test_by_hand(self):
        """Orthogonal vectors: kernel 1 and 1/2, so p = (2/3, 1/3); equal vectors: p = (1/2, 1/2)."""
        teacher, student = torch.eye(2), torch.ones(2, 2)
        torch.testing.assert_close(conditional_probabilities(teacher)[0], torch.tensor([2 / 3, 1 / 3]))
        expected = 2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3)
        assert float(probabilistic_loss(student, teacher)) == pytest.approx(expected)

    def test_opposite_vectors_are_finite_either_way(self):
        opposite, equal = torch.tensor([[1.0, 0], [-1.0, 0]]), torch.ones(2, 2)
        for student, teacher in ((opposite, equal), (equal, opposite)):
            student = student.clone().requires_grad_()
            loss = probabilistic_loss(student, teacher)
            loss.backward()
            assert loss.isfinite()
            assert student.grad.isfinite().all()

    def test_free_of_lengths_and_rotations(self):
        student, teacher = vectors(0), vectors(1, channels=3)
        changed = student * torch.linspace(0.5, 4, 6)[:, None] @ rotation(4)
        torch.testing.assert_close(probabilistic_loss(changed, teacher), probabilistic_loss(student, teacher))

    def test_parity_with_scipy(self):
        student, teacher = vectors(0), vectors(1, channels=3)
        kernels = [1 - cdist(one, one, "cosine") / 2 for one in (student.numpy(), teacher.numpy())]
        expected = np.mean([entropy(hint, mine) for mine, hint in zip(*kernels, strict=True)])
        assert float(probabilistic_loss(student, teacher)) == pytest.approx(expected)


class TestSimilarity:
    def test_by_hand(self):
        """(1, 0), (1, 1): products 1 1 and 1 2, rows (1, 1) / sqrt 2, (1, 2) / sqrt 5; the teacher's rows are e1, e2.

        Their squared distances are 2 - 2 / sqrt 2 and 2 - 4 / sqrt 5.
        """
        student, teacher = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.eye(2)
        torch.testing.assert_close(
            similarity_matrix(student), torch.tensor([[2**-0.5, 2**-0.5], [5**-0.5, 2 * 5**-0.5]])
        )
        expected = ((2 - 2**0.5) + (2 - 4 * 5**-0.5)) / 2
        assert float(similarity_loss(student, teacher)) == pytest.approx(expected)

    def test_free_of_scale_and_rotations(self):
        student, teacher = vectors(0), vectors(1, channels=3)
        torch.testing.assert_close(
            similarity_loss(3 * student @ rotation(4), teacher), similarity_loss(student, teacher)
        )

    def test_parity_with_a_loop(self):
        student, teacher = vectors(0), vectors(1, channels=3)
        distances = []
        for i in range(6):
            mine, hint = (np.array([float(one[i] @ other) for other in one]) for one in (student, teacher))
            distances.append(((mine / np.linalg.norm(mine) - hint / np.linalg.norm(hint)) ** 2).sum())
        assert float(similarity_loss(student, teacher)) == pytest.approx(np.mean(distances))


@BOTH
def test_regions_are_the_squares_of_the_grid(method):
    """A 4 x 4 map of four constant quarters is, with two regions per axis, the four vectors of the quarters."""
    quarters = {name: vectors(seed, 4, 2).float() for seed, name in enumerate(("student", "teacher"))}
    student, teacher = (
        Tapped((one.T.reshape(1, 2, 2, 2).repeat_interleave(2, 2).repeat_interleave(2, 3),), torch.zeros(1))
        for one in quarters.values()
    )
    loss = {ProbabilisticTransfer: probabilistic_loss, SimilarityPreserving: similarity_loss}[method]
    (term,) = method(PAIR, grid=2)(student, teacher, torch.zeros(1)).values()
    torch.testing.assert_close(term, loss(quarters["student"], quarters["teacher"]))


@BOTH
def test_regions_of_different_images_are_related(method):
    """With one region per image, swapping two student images changes the term."""
    student, teacher = (torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    terms = [
        method(PAIR, grid=1)(Tapped((one,), torch.zeros(1)), Tapped((teacher,), torch.zeros(1)), torch.zeros(1))
        for one in (student, student[[1, 0, 2]])
    ]
    (first,), (second,) = (term.values() for term in terms)
    assert float(first) != pytest.approx(float(second))


@BOTH
def test_large_batches_are_bounded(method):
    """2000 images of one region each would need 4 million pairs; 1024 of them are taken."""
    views = [Tapped((vectors(seed, 2000, 2).float().reshape(2000, 2, 1, 1),), torch.zeros(1)) for seed in (0, 1)]
    (term,) = method(PAIR)(*views, torch.zeros(1)).values()
    assert 0 < float(term) < 4


@BOTH
@pytest.mark.parametrize("grid", [0, -1, 2.5, True, "4"])
def test_grid_must_be_a_whole_number_from_one(method, grid):
    with pytest.raises(InputError, match="grid is"):
        method(PAIR, grid=grid)
