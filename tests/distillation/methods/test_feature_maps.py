# SPDX-License-Identifier: Apache-2.0
"""Methods that compare feature maps (at, fitnet, fsp, ft, vid, nst): values by hand, invariances, parity, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.distillation.method import NetworkPair, Tapped
from pipeline.distillation.methods.at import AttentionTransfer, attention_loss, attention_map
from pipeline.distillation.methods.fitnet import FitNet
from pipeline.distillation.methods.fsp import FlowOfSolution, flow_loss, flow_matrix
from pipeline.distillation.methods.ft import FactorTransfer, Translator, factor_loss
from pipeline.distillation.methods.nst import selectivity_loss
from pipeline.distillation.methods.vid import VariationalInformation, VariationalLoss
from pipeline.errors import InputError
from pipeline.networks import Paraphraser

LABELS = torch.zeros(1)


def pair(student: tuple[int, ...], teacher: tuple[int, ...], **known: object) -> NetworkPair:
    return NetworkPair(nn.Identity(), nn.Identity(), teacher, student, out_channels=2, **known)


def view(*features: torch.Tensor) -> Tapped:
    return Tapped(features, torch.zeros(1, 2, 2, 2))


def row(*channels: list[float]) -> torch.Tensor:
    """One image of one line, a list of values per channel."""
    return torch.tensor(channels).reshape(1, len(channels), 1, -1)


def maps(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TestAttention:
    def test_map_by_hand(self):
        """Channels 3 and -4 at one place: 3^2 + 4^2 = 25 with p = 2, 3 + 4 = 7 with p = 1."""
        assert attention_map(row([3.0, 0.0], [-4.0, 1.0])).flatten().tolist() == [25, 1]
        assert attention_map(row([3.0, 0.0], [-4.0, 1.0]), 1.0).flatten().tolist() == [7, 1]

    def test_loss_by_hand(self):
        """Maps (25, 0) and (9, 9) have directions (1, 0) and (1, 1) / sqrt 2: 2 - 2 / sqrt 2. (0, 1) is 2 away."""
        student = row([3.0, 0.0], [4.0, 0.0])
        assert float(attention_loss(student, row([3.0, -3.0]))) == pytest.approx(2 - 2**0.5)
        assert float(attention_loss(student, row([0.0, 1.0]))) == pytest.approx(2)

    def test_student_of_another_size_by_hand(self):
        """Attention 1, 9, 0, 6 becomes means 5 and 3 at two positions, the direction of the teacher's 10 and 6."""
        student = torch.tensor([1.0, 3.0, 0.0, 6.0**0.5]).reshape(1, 1, 1, 4)
        assert float(attention_loss(student, row([10.0**0.5, 6.0**0.5]))) == pytest.approx(0, abs=1e-6)

    def test_free_of_scale_sign_and_order_of_channels(self):
        student, teacher = maps(0, 2, 5, 4, 4), maps(1, 2, 3, 4, 4)
        expected = attention_loss(student, teacher)
        torch.testing.assert_close(attention_loss(-7 * student.flip(1), 0.1 * teacher), expected)

    @pytest.mark.parametrize("power", [1.0, 2.0, 4.0])
    def test_parity_with_a_loop_over_images_and_positions(self, power):
        student, teacher = maps(0, 3, 5, 4, 2), maps(1, 3, 2, 4, 2)
        losses = []
        for mine, hint in zip(student.numpy(), teacher.numpy(), strict=True):
            directions = []
            for one in (mine, hint):
                values = np.array([sum(abs(v) ** power for v in one[:, y, x]) for y in range(4) for x in range(2)])
                directions.append(values / math.sqrt(sum(values**2)))
            losses.append(sum((directions[0] - directions[1]) ** 2))
        assert float(attention_loss(student, teacher, power)) == pytest.approx(np.mean(losses))

    def test_term_is_the_mean_over_taps(self):
        """Distances 2 and 0."""
        student, teacher = view(row([1.0, 0.0]), row([5.0, 0.0])), view(row([0.0, 1.0]), row([1.0, 0.0]))
        method = AttentionTransfer(pair((1, 1), (1, 1)))
        assert float(method(student, teacher, LABELS)["at"]) == pytest.approx(1)

    @pytest.mark.parametrize("p", [0.5, 0, -2, float("nan"), float("inf"), "2"])
    def test_power_below_one_is_refused(self, p):
        with pytest.raises(InputError, match=r"at: p is .*; it must be a finite number from 1"):
            AttentionTransfer(pair((1,), (1,)), p=p)


class TestFitNet:
    def test_equal_channels_by_hand(self):
        """Differences 1 and 3 in the first tap, 0 in the second: ((1 + 9) / 2 + 0) / 2."""
        student, teacher = view(row([1.0, 2.0]), row([4.0])), view(row([2.0, 5.0]), row([4.0]))
        method = FitNet(pair((1, 1), (1, 1)))
        assert float(method(student, teacher, LABELS)["fitnet"]) == 2.5
        assert method.adapter_parameters() == []

    def test_regressor_by_hand(self):
        """x = 3 becomes (2 x, 1 - x) = (6, -2); the teacher has (5, 0): (1 + 4) / 2."""
        method = FitNet(pair((1,), (2,)))
        convolution = method.adapters[0].convolution
        with torch.no_grad():
            convolution.weight.copy_(torch.tensor([2.0, -1.0]).reshape(2, 1, 1, 1))
            convolution.bias.copy_(torch.tensor([0.0, 1.0]))
        term = method(view(row([3.0])), view(row([5.0], [0.0])), LABELS)["fitnet"]
        assert float(term.detach()) == 2.5
        assert len(method.adapter_parameters()) == 2

    def test_larger_student_is_averaged(self):
        """Values 1, 3, 5, 7 have the mean 4."""
        student, teacher = torch.tensor([1.0, 3, 5, 7]).reshape(1, 1, 2, 2), row([6.0])
        assert float(FitNet(pair((1,), (1,)))(view(student), view(teacher), LABELS)["fitnet"]) == 4


class TestFlow:
    def test_matrix_by_hand(self):
        """Channels (1, 2) and (0, 1) with (3, 4): (3 + 8) / 2 and (0 + 4) / 2; a deep tap of one 2 is (2, 2) there."""
        shallow = row([1.0, 2.0], [0.0, 1.0])
        assert flow_matrix(shallow, row([3.0, 4.0])).tolist() == [[[5.5], [2]]]
        assert flow_matrix(shallow, row([2.0])).tolist() == [[[3], [1]]]

    def test_loss_by_hand(self):
        """The matrix above against zero: (5.5^2 + 2^2) / 2; a third tap equal in both adds a zero to the mean."""
        student = (row([1.0, 2.0], [0.0, 1.0]), row([3.0, 4.0]))
        teacher = (torch.zeros(1, 2, 1, 2), row([3.0, 4.0]))
        assert float(flow_loss(student, teacher)) == (5.5**2 + 2**2) / 2
        third = row([9.0, 1.0])
        assert float(flow_loss((*student, third), (*teacher, third))) == (5.5**2 + 2**2) / 4

    def test_unchanged_by_one_order_of_all_positions(self):
        student, teacher = (maps(0, 2, 3, 4, 4), maps(1, 2, 5, 4, 4)), (maps(2, 2, 3, 4, 4), maps(3, 2, 5, 4, 4))
        turned = tuple(tap.flip(2, 3) for tap in student)
        torch.testing.assert_close(flow_loss(turned, teacher), flow_loss(student, teacher))

    def test_parity_with_a_loop(self):
        shallow, deep = maps(0, 2, 3, 4, 2), maps(1, 2, 5, 4, 2)
        expected = np.zeros((2, 3, 5))
        for image, i, j in np.ndindex(2, 3, 5):
            products = [float(shallow[image, i, y, x] * deep[image, j, y, x]) for y in range(4) for x in range(2)]
            expected[image, i, j] = sum(products) / 8
        np.testing.assert_allclose(flow_matrix(shallow, deep).numpy(), expected)

    def test_paraphrased_teacher_is_compared_with_the_student_as_it_is(self):
        paraphrasers = Paraphraser(5, 3), Paraphraser(4, 3)
        method = FlowOfSolution(pair((3, 3), (5, 4), paraphrasers=paraphrasers))
        teacher = torch.randn(2, 5, 6, 6), torch.randn(2, 4, 6, 6)
        factors = tuple(one.encode(tap).detach() for one, tap in zip(paraphrasers, teacher, strict=True))
        assert float(method(view(*factors), view(*teacher), LABELS)["fsp"]) == pytest.approx(0, abs=1e-12)
        assert method.adapter_parameters() == []

    def test_a_single_tap_is_refused(self):
        with pytest.raises(InputError, match=r"fsp: .*between two layers"):
            FlowOfSolution(pair((3,), (3,)))

    def test_paraphrasers_of_other_networks_are_refused(self):
        with pytest.raises(InputError, match="for this pair"):
            FlowOfSolution(pair((3, 3), (5, 5), paraphrasers=(Paraphraser(5, 4), Paraphraser(5, 4))))


class TestFactors:
    def test_loss_by_hand(self):
        """(3, 4) and (8, 6) have directions (.6, .8) and (.8, .6): (.2 + .2) / sqrt 2."""
        assert float(factor_loss(row([3.0, 4.0]), row([8.0, 6.0]))) == pytest.approx(0.4 / 2**0.5)

    def test_free_of_scale_size_and_batch(self):
        student, teacher = maps(0, 2, 3, 4, 4), maps(1, 2, 3, 4, 4)
        expected = factor_loss(student, teacher)
        torch.testing.assert_close(factor_loss(5 * student, teacher), expected)
        larger = (tap.repeat_interleave(2, 2).repeat(2, 1, 1, 1) for tap in (student, teacher))
        torch.testing.assert_close(factor_loss(*larger), expected)

    def test_never_above_two(self):
        teacher = maps(0, 2, 3, 4, 4)
        assert float(factor_loss(-teacher.sign(), teacher.sign())) == pytest.approx(2)

    def test_parity_with_numpy(self):
        student, teacher = maps(0, 2, 3, 4, 4), maps(1, 2, 3, 4, 4)
        distances = [
            np.abs(mine / np.linalg.norm(mine) - hint / np.linalg.norm(hint)).mean() * math.sqrt(mine.size)
            for mine, hint in zip(student.numpy(), teacher.numpy(), strict=True)
        ]
        assert float(factor_loss(student, teacher)) == pytest.approx(np.mean(distances))

    def test_zero_where_the_translated_student_is_the_factor(self):
        paraphrasers = Paraphraser(5, 3), Paraphraser(5, 3)
        method = FactorTransfer(pair((3, 3), (5, 5), paraphrasers=paraphrasers))
        method.translators = nn.ModuleList((nn.Identity(), nn.Identity()))
        teacher = torch.randn(2, 5, 6, 6), torch.randn(2, 5, 6, 6)
        factors = tuple(one.encode(tap).detach() for one, tap in zip(paraphrasers, teacher, strict=True))
        assert float(method(view(*factors), view(*teacher), LABELS)["ft"]) == pytest.approx(0, abs=1e-7)

    def test_translators_train_and_paraphrasers_do_not(self):
        method = FactorTransfer(pair((3, 3), (5, 5), paraphrasers=(Paraphraser(5, 3), Paraphraser(5, 3)))).train()
        assert {id(one) for one in method.adapter_parameters()} == {id(one) for one in method.translators.parameters()}
        assert not any(part.training for part in method.paraphrasers.modules())

    def test_translator_keeps_size_and_changes_channels(self):
        assert Translator(3, 4, spatial_dims=3)(torch.randn(1, 3, 2, 5, 4)).shape == (1, 4, 2, 5, 4)

    def test_missing_paraphrasers_are_refused_where_channels_differ(self):
        with pytest.raises(InputError, match=r"ft compares taps .* train paraphrasers"):
            FactorTransfer(pair((3, 3), (5, 5)))


class TestVariational:
    def loss(self, variance: float = 5.0, channels: int = 1) -> VariationalLoss:
        loss = VariationalLoss(channels, channels, variance=variance).double()
        loss.mean = nn.Identity()
        return loss

    def test_by_hand(self):
        """A variance of 5: log 5 / 2 without error, 2^2 / 10 more with an error of 2."""
        loss = self.loss()
        assert float(loss(row([1.0]), row([1.0])).detach()) == pytest.approx(math.log(5) / 2, rel=1e-6)
        assert float(loss(row([1.0]), row([3.0])).detach()) == pytest.approx(math.log(5) / 2 + 0.4, rel=1e-6)

    @pytest.mark.parametrize("variance", [1e-3, 0.5, 5.0, 100.0])
    def test_parity_with_the_density_of_a_normal_distribution(self, variance):
        student, teacher = maps(0, 2, 3, 4, 4), maps(1, 2, 3, 4, 4)
        density = torch.distributions.Normal(student, math.sqrt(variance)).log_prob(teacher)
        expected = -density.mean() - math.log(2 * math.pi) / 2
        torch.testing.assert_close(self.loss(variance, 3)(student, teacher).detach(), expected, rtol=2e-3, atol=0)

    def test_each_channel_learns_its_own_error(self):
        """The loss is least where v is the mean squared error: .01 and 4."""
        loss = self.loss(1.0, 2)
        student, teacher = torch.zeros(1, 2, 1, 2), row([0.1, -0.1], [2.0, -2.0])
        optimizer = torch.optim.Adam([loss.spread], lr=0.2)
        for _ in range(100):
            optimizer.zero_grad()
            loss(student, teacher).backward()
            optimizer.step()
        variances = nn.functional.softplus(loss.spread.detach())
        torch.testing.assert_close(variances, torch.tensor([0.01, 4.0]).double(), rtol=0.05, atol=0)

    def test_regressor_has_three_layers_and_trains(self):
        method = VariationalInformation(pair((3,), (5,)))
        widths = [(layer.in_channels, layer.out_channels) for layer in method.losses[0].mean[::2]]
        assert widths == [(3, 5), (5, 5), (5, 5)]
        assert len(method.adapter_parameters()) == 2 * 3 + 1

    @pytest.mark.parametrize("variance", [0, -1.0, float("nan"), float("inf"), "5"])
    def test_variance_must_be_positive(self, variance):
        with pytest.raises(InputError, match="vid: variance is"):
            VariationalInformation(pair((1,), (1,)), variance=variance)


class TestSelectivity:
    @pytest.mark.parametrize(
        ("student", "expected"),
        [
            ([[0.0, 3.0]], 1 + 1 - 2 * 0),  # orthogonal to the teacher's (1, 0)
            ([[2.0, 2.0]], 1 + 1 - 2 * 0.5),  # (1, 1) / sqrt 2: the squared product is 1 / 2
            ([[5.0, 0.0], [0.0, 1.0]], 1 + (1 + 0 + 0 + 1) / 4 - 2 * (1 + 0) / 2),  # two channels, one as the teacher's
            ([[-4.0, 0.0]], 0),  # the kernel does not see signs
        ],
    )
    def test_by_hand(self, student, expected):
        assert float(selectivity_loss(row(*student), row([1.0, 0.0]))) == pytest.approx(expected, abs=1e-6)

    def test_free_of_order_and_scale_of_channels(self):
        student, teacher = maps(0, 2, 5, 4, 4), maps(1, 2, 3, 4, 4)
        scales = torch.linspace(0.5, 3, 5).reshape(1, 5, 1, 1)
        torch.testing.assert_close(
            selectivity_loss((student * scales).flip(1), teacher), selectivity_loss(student, teacher)
        )

    def test_parity_with_the_distance_of_mean_outer_products(self):
        """(x . y)^2 is the product of x x^T and y y^T, so that the discrepancy is the distance of their means."""
        student, teacher = maps(0, 2, 5, 2, 3), maps(1, 2, 3, 2, 3)
        distances = []
        for mine, hint in zip(student.numpy(), teacher.numpy(), strict=True):
            means = []
            for one in (mine, hint):
                units = [channel.ravel() / np.linalg.norm(channel) for channel in one]
                means.append(np.mean([np.outer(unit, unit) for unit in units], axis=0))
            distances.append(((means[0] - means[1]) ** 2).sum())
        assert float(selectivity_loss(student, teacher)) == pytest.approx(np.mean(distances))
