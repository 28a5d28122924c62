# SPDX-License-Identifier: Apache-2.0
"""Gradients as shares of the segmentation loss's: measured by hand, held, and forgotten slowly."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pipeline.distillation import build_distiller
from pipeline.distillation.gradient_shares import FIRST, INTERVAL, RATE, GradientShares, gradient_shares
from pipeline.networks import Paraphraser, build_network
from pipeline.training import segmentation_loss


class Line:
    """Losses of two parameters whose gradients are their coefficients; the segmentation loss's has length 5."""

    def __init__(self) -> None:
        self.parameters = [nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(2.0))]
        self.segmentation = self.loss(4.0, 3.0)

    def loss(self, first: float, second: float = 0.0) -> torch.Tensor:
        return first * self.parameters[0] + second * self.parameters[1]

    def follow(self, shares: GradientShares, share: float) -> None:
        """One step of the method `kd` whose loss has a share of the gradient."""
        shares.follow({"kd": self.loss(5 * share)}, self.segmentation, self.parameters)


def test_shares_by_hand():
    line = Line()
    losses = {"along": line.loss(1.0), "across": line.loss(-6.0, 8.0), "nowhere": torch.tensor(7.0)}
    shares = gradient_shares(losses, line.segmentation, line.parameters)
    assert {name: float(share) for name, share in shares.items()} == pytest.approx(
        {"along": 0.2, "across": 2.0, "nowhere": 0.0}
    )
    assert all(parameter.grad is None for parameter in line.parameters)
    line.segmentation.backward()  # the graph is still there


def test_shares_do_not_depend_on_a_common_scale():
    line = Line()
    shares = gradient_shares({"kd": 1024 * line.loss(1.0)}, 1024 * line.segmentation, line.parameters)
    assert float(shares["kd"]) == pytest.approx(0.2)


def test_factor_by_hand():
    line, shares = Line(), GradientShares({"kd": 0.3})
    assert shares.factor("kd") == 0.0
    assert shares.factor("at") == 1.0
    line.follow(shares, 0.5)
    assert shares.factor("kd") == pytest.approx(0.6)
    line.follow(shares, 8.0)  # the geometric mean of 0.5 and 8 is 2
    assert shares.factor("kd") == pytest.approx(0.15)


def test_estimate_follows_slowly_and_in_few_steps_only():
    line, shares = Line(), GradientShares({"kd": 1.0})
    for _ in range(FIRST):
        line.follow(shares, 1.0)
    factors = []
    for _ in range(2 * INTERVAL):
        line.follow(shares, 2.0)
        factors.append(shares.factor("kd"))
    expected = [math.exp(-math.log(2) * (1 - (1 - RATE) ** times)) for times in (1, 2)]
    assert factors == pytest.approx([expected[0]] * INTERVAL + [expected[1]] * INTERVAL)


@pytest.mark.parametrize("nothing", [0.0, float("inf"), float("nan")])
def test_step_without_a_finite_gradient_does_not_count(nothing):
    line, shares = Line(), GradientShares({"kd": 0.3})
    line.follow(shares, nothing)
    assert shares.factor("kd") == 0.0
    line.follow(shares, 0.5)
    assert shares.factor("kd") == pytest.approx(0.6)


def test_state_goes_on_where_it_was():
    line, first, second = Line(), GradientShares({"kd": 0.3}), GradientShares({"kd": 0.3})
    for share in (0.5, 0.7, 0.2):
        line.follow(first, share)
    second.load_state_dict(first.state_dict())
    for _ in range(FIRST):
        for shares in (first, second):
            line.follow(shares, 0.4)
        assert first.factor("kd") == second.factor("kd")


def test_terms_of_a_method_hold_their_share_together():
    """At the first step the estimate is the measurement itself."""
    torch.manual_seed(0)
    teacher, student = build_network("erfnet", 1, 3), build_network("mobile_unet", 1, 3)
    paraphrasers = tuple(Paraphraser(64, 24) for _ in range(2))
    methods = {"graph_flow": {"share": 0.25, "adversarial": 0}, "at": {"share": 0.1, "end": 0.5}, "fitnet": 0.01}
    distiller = build_distiller("", teacher, student, 3, 2, paraphrasers, methods=methods)
    parameters = list(student.parameters())

    def shares() -> tuple[float, float, set[str]]:
        images, labels = torch.rand(2, 1, 32, 32), torch.randint(3, (2, 1, 32, 32))
        logits = student(images)
        segmentation = segmentation_loss("ce")(logits, labels)
        terms = distiller(images, labels, logits)
        distiller.follow_shares(terms, segmentation, parameters)
        weighted = distiller.weighted(terms)
        whole = {"graph_flow": sum(weighted[term] for term in ("kd", "vertices", "edges")), "at": weighted.get("at", 0)}
        found = gradient_shares(whole, segmentation, parameters)
        torch.testing.assert_close(weighted["fitnet"], 0.01 * distiller.weights["fitnet"] * terms["fitnet"])
        return float(found["graph_flow"]), float(found["at"]), set(terms)

    assert shares() == (
        pytest.approx(0.25, rel=1e-3),
        pytest.approx(0.1, rel=1e-3),
        {"kd", "vertices", "edges", "at", "fitnet"},
    )
    distiller.after_step()
    assert "at" not in shares()[2]  # its schedule has ended
    assert distiller.training_state()["shares"]["steps"] == {"graph_flow": 2, "at": 1}
