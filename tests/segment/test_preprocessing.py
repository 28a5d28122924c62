# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.data import IntensityRule, ScaleIntensityByRuled
from pipeline.errors import InputError
from pipeline.segment.preprocessing import intensity_rule_of, scaled
from tests.preprocessing import scan_preprocessing, tile_preprocessing

RULE = IntensityRule("window", -100.0, 300.0)


def test_the_usual_list_has_a_rule():
    assert intensity_rule_of(scan_preprocessing(RULE)) == RULE


@pytest.mark.parametrize("kind", ["int16", "uint8", "float32", "int32"])
@pytest.mark.parametrize("rule", [RULE, IntensityRule("percentiles", 1.5, 97.0)])
def test_scaling_is_that_of_training_bit_by_bit(kind, rule):
    raw = (np.random.default_rng(0).random((7, 6, 5)) * 250).astype(kind)
    expected = ScaleIntensityByRuled("image", rule.kind, rule.low, rule.high)({"image": torch.from_numpy(raw)})["image"]
    np.testing.assert_array_equal(scaled(raw, *rule.window(raw)), expected.numpy())


def test_a_constant_scan_becomes_zeros():
    assert not scaled(np.full((2, 2, 2), 7, np.int16), 7.0, 7.0).any()


def with_step(position: int, **changes: object) -> list[dict]:
    steps = scan_preprocessing(RULE)
    steps[position] = {**steps[position], **changes}
    return steps


SPACING = {"_target_": "monai.transforms.spatial.dictionary.Spacingd", "keys": ["image"], "pixdim": [1, 1, 1]}


@pytest.mark.parametrize(
    ("steps", "named"),
    [
        ([*scan_preprocessing(RULE)[:3], SPACING, scan_preprocessing(RULE)[3]], "Spacingd"),
        (with_step(0, _target_="own.Loader"), "own.Loader"),
        (with_step(0, reader="ITKReader"), "reader 'ITKReader'"),
        (with_step(0, dtype="float32"), "dtype 'float32'"),
        (with_step(1, channel_dim=0), "channel_dim 0"),
        (with_step(2, axcodes="LPS"), "axcodes 'LPS'"),
        (with_step(2, keys=["label"]), "keys"),
        (with_step(3, other=1), "other 1"),
        (scan_preprocessing(RULE)[:3], "the steps"),
        (scan_preprocessing(RULE)[::-1], "the steps"),
        (tile_preprocessing(RULE), "the steps"),
        ([], "an empty list"),
        (
            [{key: value for key, value in step.items() if key != "axcodes"} for step in scan_preprocessing(RULE)],
            "axcodes",
        ),
    ],
)
def test_any_other_list_is_refused_and_the_way_out_named(steps, named):
    with pytest.raises(InputError, match=r"monai\.bundle run") as error:
        intensity_rule_of(steps)
    assert named in str(error.value)
