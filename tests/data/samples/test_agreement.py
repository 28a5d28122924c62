# SPDX-License-Identifier: Apache-2.0
"""Training preprocessing that inference would not repeat is refused."""

from __future__ import annotations

import pytest
import torch

from pipeline.data import IntensityRule, SamePreprocessing
from pipeline.errors import InputError

SCAN = torch.tensor([[[[-125.0, 75.0, 275.0, 900.0]]]])
RULE = IntensityRule("window", -125, 275)


def check() -> SamePreprocessing:
    return SamePreprocessing([{"case": "a"}], lambda entry: {"image": SCAN}, RULE)


def test_the_rule_of_the_dataset_passes():
    check()("a", torch.tensor([[[[0.0, 0.5, 1.0, 1.0]]]]), SCAN)


def test_another_scaling_is_refused_with_the_difference():
    with pytest.raises(InputError, match=r"case a: .* differ by up to 0\.25 "):
        check()("a", torch.tensor([[[[0.0, 0.25, 1.0, 1.0]]]]), SCAN)


def test_another_shape_is_refused():
    with pytest.raises(InputError, match=r"\(1, 1, 1, 3\) voxels, not \(1, 1, 1, 4\)"):
        check()("a", torch.zeros(1, 1, 1, 3), SCAN)


def test_only_the_first_volume_is_loaded_twice():
    once = check()
    once("a", torch.tensor([[[[0.0, 0.5, 1.0, 1.0]]]]), SCAN)
    once("never loaded", torch.zeros(1), SCAN)
