# SPDX-License-Identifier: Apache-2.0
"""Intensity rules: values by hand, parity with MONAI's transforms, and rules that make no sense."""

import numpy as np
import pytest
import torch
from monai.transforms import ScaleIntensityRange, ScaleIntensityRangePercentiles

from pipeline.data import CT_WINDOW, MR_PERCENTILES, IntensityRule, default_intensity
from pipeline.errors import InputError


def test_ct_window_by_hand():
    hu = np.array([-1000, -125, 75, 275, 3000], dtype=np.int16)
    window = CT_WINDOW.window(hu)
    assert window == (-125.0, 275.0)
    np.testing.assert_array_equal(CT_WINDOW.scale(hu, window), np.array([0, 0, 0.5, 1, 1], dtype=np.float32))


def test_percentiles_by_hand():
    values = np.arange(101, dtype=np.int16).reshape(1, 101, 1)
    rule = IntensityRule("percentiles", 10, 90)
    assert rule.window(values) == (10.0, 90.0)
    assert rule.window(torch.from_numpy(values)) == (10.0, 90.0)
    scaled = rule.scale(values, rule.window(values)).ravel()
    assert (scaled[0], scaled[10], scaled[50], scaled[90], scaled[100]) == (0, 0, 0.5, 1, 1)


def test_the_window_counts_all_voxels_of_the_volume():
    volume = np.zeros((4, 4, 4))
    volume[..., 2:] = 100.0
    assert IntensityRule("percentiles", 0, 100).window(volume) == (0.0, 100.0)


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy])
def test_scale_keeps_kind_and_leaves_the_input(make):
    raw = make(np.array([[0.0, 5.0, 20.0]], dtype=np.float32))
    before = raw.clone() if isinstance(raw, torch.Tensor) else raw.copy()
    scaled = CT_WINDOW.scale(raw, (0.0, 10.0))
    assert type(scaled) is type(raw)
    assert scaled.dtype in (np.float32, torch.float32)
    assert scaled.tolist() == [[0.0, 0.5, 1.0]]
    assert (raw == before).all()


def test_a_constant_volume_becomes_zeros():
    volume = np.full((3, 3, 3), 7, dtype=np.int16)
    assert not MR_PERCENTILES.scale(volume, MR_PERCENTILES.window(volume)).any()


def test_window_equals_monai():
    hu = np.random.default_rng(0).integers(-1024, 1500, (1, 16, 17, 5)).astype(np.int16)
    expected = ScaleIntensityRange(-125, 275, 0.0, 1.0, clip=True)(hu)
    np.testing.assert_allclose(CT_WINDOW.scale(hu, CT_WINDOW.window(hu)), np.asarray(expected), atol=1e-6)


def test_percentiles_equal_monai():
    values = np.random.default_rng(1).gamma(2.0, 200.0, (1, 16, 17, 5)).astype(np.float32)
    expected = ScaleIntensityRangePercentiles(0.5, 99.5, 0.0, 1.0, clip=True)(values)
    scaled = MR_PERCENTILES.scale(values, MR_PERCENTILES.window(values))
    np.testing.assert_allclose(scaled, np.asarray(expected), atol=1e-5)


def test_tensors_and_arrays_agree():
    values = np.random.default_rng(2).normal(0, 300, (8, 9, 4)).astype(np.float32)
    window = MR_PERCENTILES.window(values)
    tensor = MR_PERCENTILES.scale(torch.from_numpy(values), window)
    np.testing.assert_allclose(tensor.numpy(), MR_PERCENTILES.scale(values, window), atol=1e-6)


def test_dictionary_round_trip():
    assert CT_WINDOW.to_dict() == {"rule": "window", "low": -125.0, "high": 275.0}
    assert IntensityRule.from_dict(MR_PERCENTILES.to_dict()) == MR_PERCENTILES


def test_defaults_by_modality():
    assert default_intensity("CT") == default_intensity("ct") == CT_WINDOW
    assert default_intensity("MR") == MR_PERCENTILES


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"rule": "zscore", "low": 0, "high": 1}, "'zscore' is unknown"),
        ({"rule": "window", "low": 5, "high": 5}, "low 5 is not below high 5"),
        ({"rule": "percentiles", "low": -1, "high": 99}, "must lie in 0..100"),
        ({"rule": "window", "low": "a", "high": 1}, "low is 'a'"),
        ({"rule": "window", "low": True, "high": 3}, "low is True"),
        ({"rule": "window", "low": float("nan"), "high": 3}, "low is nan"),
        ({"rule": "window", "low": 1}, "lacks high"),
        ([-125, 275], "must be an object"),
    ],
)
def test_bad_rules(content, message):
    with pytest.raises(InputError, match=message):
        IntensityRule.from_dict(content)


def test_percentiles_of_nan_are_refused():
    with pytest.raises(InputError, match="no percentiles"):
        MR_PERCENTILES.window(np.array([1.0, np.nan]))
