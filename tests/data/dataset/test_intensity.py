# SPDX-License-Identifier: Apache-2.0
"""Intensity rules: windows by hand, their form in files, and rules that make no sense."""

import numpy as np
import pytest
import torch

from pipeline.data import CT_WINDOW, MR_PERCENTILES, IntensityRule, default_intensity
from pipeline.data.dataset.intensity import doubt_modality
from pipeline.errors import InputError


def test_ct_window_by_hand():
    hu = np.array([-1000, -125, 75, 275, 3000], dtype=np.int16)
    assert CT_WINDOW.window(hu) == (-125.0, 275.0)


def test_percentiles_by_hand():
    values = np.arange(101, dtype=np.int16).reshape(1, 101, 1)
    rule = IntensityRule("percentiles", 10, 90)
    assert rule.window(values) == (10.0, 90.0)
    assert rule.window(torch.from_numpy(values)) == (10.0, 90.0)


def test_the_window_counts_all_voxels_of_the_volume():
    volume = np.zeros((4, 4, 4))
    volume[..., 2:] = 100.0
    assert IntensityRule("percentiles", 0, 100).window(volume) == (0.0, 100.0)


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


@pytest.mark.parametrize(
    ("modality", "low", "high", "told", "doubt"),
    [
        ("CT", -1024, 3071, None, None),
        ("CT", -1024, 3071, "CT", None),
        ("CT", 0, 700, None, "unlike the CT that the model was trained on: values 0..700 do not look like Hounsfield"),
        ("CT", -1024, 3071, "MR", "the scan is MR, but the model was trained on CT"),
        ("MR", 0, 700, None, None),
        ("MR", -20, 700, "MR", None),
        ("MR", -1024, 3071, None, "values -1024..3071 look like CT, but the model was trained on MR"),
        ("MR", 0, 700, "CT", "the scan is CT, but the model was trained on MR"),
        ("PET", -1024, 3071, "CT", None),
    ],
)
def test_scans_of_another_modality_than_the_training_data(modality, low, high, told, doubt):
    found = doubt_modality(modality, low, high, told)
    assert found is None if doubt is None else found.startswith(doubt)
