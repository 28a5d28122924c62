# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
from medpy.metric.binary import dc, hd95

from pipeline.errors import InputError
from pipeline.evaluation import score_case, score_case_transunet, summarise_organs, summarise_transunet

ORGANS = {1: "aorta", 2: "liver", 3: "spleen", 4: "stomach"}
SHAPE = (10, 10, 8)
SPACING = (2.0, 1.0, 1.0)
DIAGONAL = math.sqrt(20**2 + 10**2 + 8**2)


def draw(*boxes: tuple[int, tuple[int, int]]) -> np.ndarray:
    """A label map with one 4 x 4 plate of organ `value` over the x range, each organ at a y of its own."""
    labels = np.zeros(SHAPE, dtype=np.uint8)
    for value, span in boxes:
        labels[slice(*span), 2 * value : 2 * value + 2, 2:6] = value
    return labels


# aorta ok (one layer short), liver missed, spleen invented, stomach absent
LABEL = draw((1, (2, 6)), (2, (2, 6)))
PREDICTION = draw((1, (2, 5)), (3, (2, 4)))


def scores_of(case: str = "a", prediction: np.ndarray = PREDICTION, label: np.ndarray = LABEL, score=score_case):
    return score(case, prediction, label, ORGANS, SPACING)


def test_each_status_by_hand():
    aorta, liver, spleen, stomach = scores_of()
    assert [row.status for row in (aorta, liver, spleen, stomach)] == ["ok", "missed", "false_positive", "absent"]
    assert [row.organ for row in (aorta, liver, spleen, stomach)] == list(ORGANS.values())
    assert aorta.dice == pytest.approx(2 * 24 / (24 + 32))
    assert aorta.iou == pytest.approx(24 / 32)
    assert (aorta.volume_label_ml, aorta.volume_prediction_ml) == pytest.approx((0.064, 0.048))
    # All voxels are surface (plates of two); 8 of the label's 32 are one layer of 2 mm away: above the 5 % share.
    assert aorta.hd95_mm == aorta.hd95_penalised_mm == 2.0
    assert aorta.hd95_pooled_mm == 2.0  # 8 of 56
    assert aorta.assd_mm == pytest.approx(16 / 56)
    assert (liver.dice, liver.iou, spleen.dice, spleen.iou) == (0, 0, 0, 0)
    assert liver.hd95_mm == liver.assd_mm == spleen.hd95_mm == spleen.hd95_pooled_mm == math.inf
    assert liver.hd95_penalised_mm == spleen.hd95_penalised_mm == pytest.approx(DIAGONAL)
    assert spleen.volume_label_ml == 0
    assert spleen.volume_prediction_ml == pytest.approx(0.032)
    empty = (stomach.dice, stomach.iou, stomach.hd95_mm, stomach.assd_mm, stomach.hd95_penalised_mm)
    assert np.isnan(empty).all()
    assert stomach.volume_label_ml == 0


def test_without_a_voxel_size_nothing_is_called_mm():
    row = score_case("a", PREDICTION, LABEL, ORGANS, None)[0]
    assert row.dice == pytest.approx(48 / 56)
    assert np.isnan([row.hd95_mm, row.assd_mm, row.hd95_penalised_mm, row.volume_label_ml]).all()


def test_images_have_distances_but_no_volume():
    row = score_case("a", PREDICTION[..., 3], LABEL[..., 3], ORGANS, SPACING[:2])[0]
    assert row.hd95_mm == 2.0
    assert np.isnan(row.volume_label_ml)


@pytest.mark.parametrize("score", [score_case, score_case_transunet])
def test_unknown_values_are_refused(score):
    stray = PREDICTION.copy()
    stray[0, 0, 0] = 9
    with pytest.raises(InputError, match="prediction holds values from 0 to 9"):
        scores_of(prediction=stray, score=score)
    with pytest.raises(InputError, match=r"label holds the values \[2\], which name no organ; known are \[1, 3, 4\]"):
        score("a", LABEL * (LABEL == 1), LABEL, {1: "aorta", 3: "spleen", 4: "stomach"}, SPACING)


@pytest.mark.parametrize("organs", [{}, {0: "background", 1: "aorta"}])
def test_organs_must_not_be_empty_or_background(organs):
    with pytest.raises(InputError, match="name one label value from 1 on"):
        score_case("a", PREDICTION, LABEL, organs, SPACING)


class TestSummary:
    def test_by_hand(self):
        perfect = scores_of("b", LABEL, LABEL)
        aorta, liver, spleen, stomach, mean = summarise_organs(scores_of() + perfect)
        dice = 48 / 56
        assert (aorta.n_cases, aorta.n_ok, aorta.n_missed, aorta.n_false_positive, aorta.n_absent) == (2, 2, 0, 0, 0)
        assert aorta.dice_mean == pytest.approx((dice + 1) / 2)
        assert aorta.dice_std == pytest.approx((1 - dice) / math.sqrt(2))
        assert (aorta.dice_ci95_low, aorta.dice_ci95_high) == pytest.approx((dice, 1))
        assert aorta.hd95_mm_mean == aorta.hd95_mm_median == aorta.hd95_penalised_mm_mean == 1.0
        assert aorta.volume_error_ml_mean == pytest.approx(-0.008)
        assert (liver.n_ok, liver.n_missed, liver.dice_mean) == (1, 1, 0.5)
        assert liver.hd95_mm_mean == math.inf
        assert liver.hd95_penalised_mm_mean == pytest.approx(DIAGONAL / 2)
        assert (spleen.n_false_positive, spleen.n_absent, spleen.dice_mean) == (1, 1, 0.0)
        assert (stomach.n_absent, stomach.n_cases) == (2, 2)
        assert np.isnan([stomach.dice_mean, stomach.hd95_mm_mean, stomach.volume_error_ml_mean]).all()
        assert (mean.organ, mean.label, mean.n_cases) == ("mean", None, 2)
        assert (mean.n_ok, mean.n_missed, mean.n_false_positive, mean.n_absent) == (3, 1, 1, 3)
        assert mean.dice_mean == pytest.approx(((dice + 1) / 2 + 0.5 + 0) / 3)
        assert mean.hd95_mm_mean == math.inf
        assert mean.hd95_penalised_mm_mean == pytest.approx((1 + DIAGONAL / 2 + DIAGONAL) / 3)
        # The cases' own means: (dice + 0 + 0) / 3 and (1 + 1) / 2.
        assert mean.dice_std == pytest.approx(abs(1 - dice / 3) / math.sqrt(2))

    def test_missing_an_organ_never_improves_any_figure(self):
        """Five cases 4 mm off and five misses must not look like ten cases 4 mm off, as they do in MONAI 1.6.1."""
        near, nothing = draw((1, (4, 8))), draw()
        off = [row for k in range(10) for row in scores_of(f"case{k}", near, draw((1, (2, 6))))]
        half = [row for k in range(10) for row in scores_of(f"case{k}", near if k < 5 else nothing, draw((1, (2, 6))))]
        all_off, half_missed = summarise_organs(off)[0], summarise_organs(half)[0]
        assert all_off.hd95_mm_mean == all_off.hd95_mm_median == 4.0
        assert half_missed.hd95_mm_mean == half_missed.hd95_mm_median == math.inf
        assert half_missed.hd95_penalised_mm_mean > all_off.hd95_penalised_mm_mean
        assert half_missed.dice_mean < all_off.dice_mean
        assert half_missed.n_missed == 5

    def test_order_of_the_rows_does_not_matter(self):
        rows = scores_of() + scores_of("b", LABEL, LABEL)
        assert str(summarise_organs(rows)) == str(summarise_organs(rows[::-1]))


class TestTransUNet:
    def test_published_rules_by_hand(self):
        aorta, liver, spleen, stomach = scores_of(score=score_case_transunet)
        assert (aorta.dice, aorta.hd95_voxels) == (pytest.approx(48 / 56), 1.0)  # one voxel, not 2 mm
        assert (liver.status, liver.dice, liver.hd95_voxels) == ("missed", 0, 0)
        assert (spleen.status, spleen.dice, spleen.hd95_voxels) == ("false_positive", 1, 0)
        assert (stomach.status, stomach.dice, stomach.hd95_voxels) == ("absent", 0, 0)

    def test_mean_over_all_cases_then_organs(self):
        rows = scores_of(score=score_case_transunet) + scores_of("b", LABEL, LABEL, score_case_transunet)
        *organs, mean = summarise_transunet(rows)
        assert [row.dice_mean for row in organs] == pytest.approx([(48 / 56 + 1) / 2, 0.5, 0.5, 0.0])
        assert [row.hd95_voxels_mean for row in organs] == pytest.approx([0.5, 0, 0, 0])
        assert (mean.dice_mean, mean.hd95_voxels_mean) == pytest.approx((((48 / 56 + 1) / 2 + 1) / 4, 0.125))
        assert (mean.n_cases, mean.n_ok, mean.n_missed, mean.n_false_positive, mean.n_absent) == (2, 3, 1, 1, 3)

    @pytest.mark.parametrize("seed", range(3))
    def test_parity_with_medpy_as_published(self, seed):
        generator = np.random.default_rng(seed)
        label = np.kron(generator.integers(0, 5, (4, 4, 3)), np.ones((4, 4, 4), int)).astype(np.uint8)
        prediction = np.roll(label, generator.integers(1, 3), axis=int(generator.integers(3)))
        for row in score_case_transunet("a", prediction, label, ORGANS):
            ours, theirs = prediction == row.label, label == row.label
            assert row.status == "ok"
            assert row.dice == pytest.approx(dc(ours, theirs))
            assert row.hd95_voxels == pytest.approx(hd95(ours, theirs))
