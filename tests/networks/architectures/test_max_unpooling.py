# SPDX-License-Identifier: Apache-2.0
"""Un-pooling by the places of the maxima: torch's values and gradients, also in the form that does not scatter."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor
from torch.nn import functional as F

from pipeline.networks import ENet
from pipeline.networks.architectures.max_unpooling import max_pool, max_unpool


@pytest.fixture(params=["scattered", "by corners"])
def either_form(request: pytest.FixtureRequest) -> Iterator[None]:
    torch.use_deterministic_algorithms(request.param == "by corners")
    yield
    torch.use_deterministic_algorithms(False)


def pooled_and_back(features: Tensor, factor: Tensor) -> Tensor:
    pooled, places = max_pool(features)
    return max_unpool(factor * pooled, places)


@pytest.mark.usefixtures("either_form")
def test_by_hand() -> None:
    image = torch.tensor([[1.0, 5.0, 0.0, 2.0], [3.0, 4.0, 9.0, 8.0]])[None, None]
    expected = [[0.0, 50.0, 0.0, 0.0], [0.0, 0.0, 90.0, 0.0]]
    assert pooled_and_back(image, torch.tensor(10.0))[0, 0].tolist() == expected


@pytest.mark.usefixtures("either_form")
def test_of_equal_values_the_first_is_the_maximum() -> None:
    image = torch.tensor([[2.0, 2.0, 1.0, 2.0], [2.0, 2.0, 2.0, 2.0]])[None, None]
    assert pooled_and_back(image, torch.tensor(1.0))[0, 0].tolist() == [[2.0, 0.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0]]


@pytest.mark.usefixtures("either_form")
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=arrays("float32", (2, 3, 4, 6), elements=st.integers(-3, 3).map(float)), last=st.booleans())
def test_equals_torch_to_the_bit_in_values_and_gradients(values, last: bool) -> None:
    layout = torch.channels_last if last else torch.contiguous_format
    weights = torch.arange(values.size, dtype=torch.float32).view(values.shape).cos()

    def outcome(by_torch: bool) -> list[Tensor]:
        features = torch.from_numpy(values.copy()).contiguous(memory_format=layout).requires_grad_()
        factor = torch.linspace(-1, 2, 36).view(2, 3, 2, 3).requires_grad_()
        if by_torch:
            with_indices = F.max_pool2d(features, 2, return_indices=True)
            back = _torchs_unpooling(factor * with_indices[0], with_indices[1])
        else:
            back = pooled_and_back(features, factor)
        return [back.detach(), *torch.autograd.grad((back * weights).sum(), (features, factor))]

    assert all(torch.equal(ours, theirs) for ours, theirs in zip(outcome(False), outcome(True), strict=True))


def _torchs_unpooling(features: Tensor, indices: Tensor) -> Tensor:
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    back = F.max_unpool2d(features, indices, 2)
    torch.use_deterministic_algorithms(deterministic)
    return back


def test_exported_enet_neither_scatters_nor_differs() -> None:
    torch.manual_seed(0)
    network, images = ENet(1, 3).eval(), torch.rand(2, 1, 32, 48)
    images[:, :, :16] = 0.5  # equal values
    program = torch.export.export(network, (images,), strict=False)
    assert not [node for node in program.graph.nodes if "unpool" in str(node.target) or "indices" in str(node.target)]
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images), network(images))
        torch.testing.assert_close(torch.jit.script(network)(images), network(images))
