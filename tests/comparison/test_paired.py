# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from pipeline.comparison import Arm, Run
from pipeline.comparison.gap import Gap, gap_closed
from pipeline.comparison.paired import METRICS, Metric, PairedDraws, image_counts
from pipeline.errors import InputError
from pipeline.evaluation import bootstrap_ci, mean_iou, overall_accuracy, score_image, summarise_classes
from pipeline.evaluation.slides.pixel_scores import bootstrap_matrices, interval
from pipeline.evaluation.statistics import holm, wilcoxon_p

DICE, HD95 = METRICS["scans"]
ACC, MIOU, DICE_PER_IMAGE, HD95_PX = METRICS["slides"]


def run(scores: pd.DataFrame, kind: str = "scans", seed: int = 0) -> Run:
    here = Path()
    return Run(here, "ENet", None, seed, "", None, kind, "toy", 1, scores, {}, here, here, here)


def arm(*tables: list[list[float]], name: str = "ENet") -> Arm:
    """Return an arm with a run for each table of Dice (cases, organs); HD95 is ten times what is lacking to 1."""
    runs = []
    for seed, table in enumerate(tables):
        rows = [
            {"case": f"case_{case}", "organ": f"organ_{organ}", "dice": dice, "hd95_penalised_mm": 10 * (1 - dice)}
            for case, dice_of_organs in enumerate(table)
            for organ, dice in enumerate(dice_of_organs)
        ]
        runs.append(run(pd.DataFrame(rows), seed=seed))
    return Arm("method", name, "kd", tuple(runs))


def slide_arm(*runs: list[tuple[np.ndarray, np.ndarray]], classes: tuple[str, ...] = ("tumour",)) -> Arm:
    """Return an arm of runs, each a list of (prediction, label)."""
    names = dict(enumerate(classes, start=1))
    tables = []
    for images in runs:
        scores = [row for index, pair in enumerate(images) for row in score_image(f"{index:03d}", *pair, names)]
        tables.append(pd.DataFrame([{**vars(score), "class": score.class_} for score in scores]))
    return Arm("method", "ENet", "kd", tuple(run(table, "slides", seed) for seed, table in enumerate(tables)))


def line(text: str) -> np.ndarray:
    return np.array([[int(digit) for digit in text]], dtype=np.uint8)


# Image 1: TP 2, FP 1, FN 1, TN 6. Image 2: TP 0, FP 0, FN 0, TN 10.
PAIRS = [(line("1110000000"), line("1101000000")), (line("0000000000"), line("0000000000"))]
BETTER = [(line("1101000000"), line("1101000000")), (line("0000000000"), line("0000000000"))]


class TestByHand:
    def test_a_constant_difference_has_an_interval_of_no_width(self):
        alone, method = arm([[0.2], [0.5], [0.6]]), arm([[0.3], [0.6], [0.7]])
        change = PairedDraws(3).difference(DICE, method, alone)
        assert (change.value, change.low, change.high) == pytest.approx((0.1, 0.1, 0.1))
        assert change.includes_zero is False

    def test_equal_arms_differ_by_nothing(self):
        alone, method = arm([[0.1, 0.7], [0.2, 0.3]]), arm([[0.1, 0.7], [0.2, 0.3]], name="other")
        change = PairedDraws(2).difference(DICE, method, alone)
        assert (change.value, change.low, change.high, change.includes_zero) == (0, 0, 0, True)
        assert (change.pairs, change.nonzero_pairs) == (2, 0)
        assert math.isnan(change.p)

    def test_one_case_has_no_interval(self):
        change = PairedDraws(1).difference(DICE, arm([[0.6]]), arm([[0.5]]))
        assert change.value == pytest.approx(0.1)
        assert math.isnan(change.low)
        assert change.includes_zero is None

    def test_seeds_are_averaged(self):
        # Alone 0.5 and 0.6; method 0.4 and 0.8 in the mean of two seeds.
        alone, method = arm([[0.5], [0.6]]), arm([[0.3], [0.7]], [[0.5], [0.9]])
        assert DICE.values(method) == pytest.approx([0.5, 0.7])
        change = PairedDraws(2).difference(DICE, method, alone)
        assert change.value == pytest.approx(0.05)
        # Two cases: the draws are (-0.1, -0.1), (-0.1, 0.2), (0.2, 0.2).
        assert (change.low, change.high) == pytest.approx((-0.1, 0.2))
        assert change.includes_zero is True

    def test_pooled_accuracy_and_miou(self):
        counts = image_counts(slide_arm(PAIRS).runs[0])
        assert counts[:, :, 1].tolist() == [[2, 1, 1, 6], [0, 0, 0, 10]]
        assert counts[:, :, 0].tolist() == [[6, 1, 1, 2], [10, 0, 0, 0]]
        (only,) = slide_arm(PAIRS).runs
        assert ACC.value(only) == pytest.approx(18 / 20)
        # Together: tumour 2 / (2 + 1 + 1), background 16 / (16 + 1 + 1).
        assert MIOU.value(only) == pytest.approx((2 / 4 + 16 / 18) / 2)
        # Each by itself: no tumour in the second, whose background is all right.
        assert MIOU.by_case(only) == pytest.approx([(2 / 4 + 6 / 8) / 2, 1.0])
        assert ACC.by_case(only) == pytest.approx([8 / 10, 1.0])

    def test_pooled_draws_sum_the_counts_of_whole_images(self):
        (only,) = slide_arm(PAIRS).runs
        drawn = MIOU.drawn(only, np.array([[2.0, 0.0], [1.0, 1.0], [0.0, 2.0]]))
        assert drawn == pytest.approx([(4 / 8 + 12 / 16) / 2, (2 / 4 + 16 / 18) / 2, 1.0])
        change = PairedDraws(2).difference(ACC, slide_arm(BETTER), slide_arm(PAIRS))
        assert (change.value, change.low, change.high) == pytest.approx((0.1, 0.0, 0.2))
        assert change.includes_zero is True

    def test_holm(self):
        assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
        assert holm([0.5, 0.9]) == [1.0, 1.0]
        corrected = holm([0.02, math.nan, 0.03])
        assert corrected[::2] == pytest.approx([0.04, 0.04])
        assert math.isnan(corrected[1])
        assert holm([]) == []

    def test_too_few_differences_have_no_p(self):
        assert math.isnan(wilcoxon_p([0.1, 0.2, 0.3, 0.4, 0.5]))
        # All of six on one side: 2 / 2**6.
        assert wilcoxon_p([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]) == pytest.approx(2 / 64)
        assert math.isnan(wilcoxon_p([0.1, 0.2, 0.3, 0.4, 0.5, 0.0, math.nan]))


class TestGap:
    CASES = ((0.2,), (0.4,), (0.6,), (0.8,))

    def shifted(self, shift: float, name: str = "ENet") -> Arm:
        return arm([[dice + shift for dice in case] for case in self.CASES], name=name)

    def closed(self, method: float, teacher: float, metric: Metric = DICE) -> Gap:
        arms = (self.shifted(method), self.shifted(0.0, "alone"), self.shifted(teacher, "teacher"))
        return gap_closed(metric, *arms, PairedDraws(4))

    @pytest.mark.parametrize("metric", [DICE, HD95])
    @pytest.mark.parametrize(("method", "share"), [(0.05, 0.5), (-0.1, -1.0), (0.2, 2.0)])
    def test_share(self, metric, method, share):
        """Shifts that all cases share: every draw has the same share."""
        gap = self.closed(method, 0.1, metric)
        assert (gap.share, gap.low, gap.high) == pytest.approx((share, share, share))
        assert (gap.note, gap.is_none) == ("", False)

    def test_interval_of_a_share(self):
        """Two cases, control 0.2 and 0.4, teacher 0.1 above; the method 0.1 above in the second alone: 0, 1/2 or 1."""
        control, method, teacher = arm([[0.2], [0.4]], name="alone"), arm([[0.2], [0.5]]), arm([[0.3], [0.5]])
        gap = gap_closed(DICE, method, control, teacher, PairedDraws(2))
        assert (gap.share, gap.low, gap.high) == pytest.approx((0.5, 0.0, 1.0))

    @pytest.mark.parametrize(("metric", "teacher"), [(DICE, 0.0), (DICE, -0.1), (HD95, -0.1)])
    def test_no_gap(self, metric, teacher):
        gap = self.closed(0.05, teacher, metric)
        assert math.isnan(gap.share)
        assert gap.is_none
        assert "the teacher is not better" in gap.note

    def test_a_gap_that_may_be_chance(self):
        teacher = arm([[0.1], [0.4], [0.6], [1.0]])
        gap = gap_closed(DICE, self.shifted(0.1), self.shifted(0.0, "alone"), teacher, PairedDraws(4))
        assert math.isnan(gap.share)
        assert gap.is_none
        # Of the 256 draws of -0.1, 0, 0, 0.2 one has the mean -0.1 and 8 have -0.075: 2.5 % lie in the latter.
        assert gap.note == "the interval of teacher minus alone + kd includes zero (-0.075 to 0.150)"

    def test_one_case(self):
        gap = gap_closed(DICE, arm([[0.6]]), arm([[0.5]]), arm([[0.7]]), PairedDraws(1))
        assert math.isnan(gap.share)
        assert not gap.is_none
        assert "too few cases" in gap.note


class TestPatients:
    def test_cases_of_a_patient_are_drawn_and_tested_together(self):
        """Changes 0.1 and 0.3 of one patient and 0.6 of another: 0.2 and 0.6, never a draw of the 0.1 alone."""
        alone, method = arm([[0.1], [0.1], [0.1]]), arm([[0.2], [0.4], [0.7]], name="other")
        change = PairedDraws(3, ["a", "a", "b"]).difference(DICE, method, alone)
        assert (change.pairs, change.nonzero_pairs) == (2, 2)
        # Draws of patients: a twice (0.2), both (1.0 / 3), b twice (0.6).
        assert (change.value, change.low, change.high) == pytest.approx((1 / 3, 0.2, 0.6))

    def test_patients_of_one_case_each_are_as_none_given(self):
        alone, method = arm([[0.1], [0.5], [0.1]]), arm([[0.2], [0.4], [0.7]], name="other")
        assert PairedDraws(3, ["a", "b", "c"]).difference(DICE, method, alone) == PairedDraws(3).difference(
            DICE, method, alone
        )


class TestProperties:
    def test_pairing_removes_what_makes_a_case_hard(self):
        random = np.random.default_rng(0)
        hard = random.uniform(0.1, 0.8, size=(30, 1))
        method = hard + random.normal(0.05, 0.01, size=(30, 1))
        change = PairedDraws(30).difference(DICE, arm(method.tolist()), arm(hard.tolist()))
        assert 0 < change.low < change.high
        low, high = bootstrap_ci(hard[:, 0])
        assert change.high - change.low < (high - low) / 10

    def test_exchanged_arms_have_the_mirrored_interval(self):
        random = np.random.default_rng(1)
        one, other = (arm(random.uniform(size=(9, 2)).tolist()) for _ in range(2))
        draws = PairedDraws(9)
        there, back = draws.difference(DICE, one, other), draws.difference(DICE, other, one)
        assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low))
        assert there.p == back.p

    def test_an_organ_that_a_case_lacks_is_left_out_as_in_the_report(self):
        method = arm([[0.8, math.nan], [0.6, 0.4]])
        assert DICE.value(method.runs[0]) == pytest.approx((0.7 + 0.4) / 2)
        assert DICE.by_case(method.runs[0]) == pytest.approx([0.8, 0.5])

    def test_a_case_without_any_organ_pairs_with_nothing(self):
        change = PairedDraws(2).difference(DICE, arm([[math.nan], [0.6]]), arm([[math.nan], [0.5]]))
        assert (change.pairs, change.value) == (1, pytest.approx(0.1))


def random_maps(classes: int, images: int = 12) -> list[tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng(classes)
    labels = random.integers(0, classes, size=(images, 6, 6), dtype=np.uint8)
    wrong = random.random(labels.shape) < random.uniform(0, 0.6, size=(images, 1, 1))
    noise = random.integers(0, classes, size=labels.shape, dtype=np.uint8)
    return list(zip(np.where(wrong, noise, labels), labels, strict=True))


class TestParity:
    @pytest.mark.parametrize("seed", range(3))
    def test_wilcoxon_is_that_of_scipy_on_paired_samples(self, seed):
        one, other = np.random.default_rng(seed).uniform(size=(2, 20))
        assert wilcoxon_p(one - other) == pytest.approx(stats.wilcoxon(one, other).pvalue, rel=1e-12)

    @pytest.mark.parametrize("classes", [2, 4])
    def test_pooled_figures_and_intervals_are_those_of_the_report(self, classes):
        """The report has the whole confusion matrices, the comparison the counts of the table of images alone."""
        names = tuple(f"class_{value}" for value in range(1, classes))
        pairs = random_maps(classes)
        (only,) = slide_arm(pairs, classes=names).runs
        values = dict(enumerate(names, start=1))
        rows = [row for index, pair in enumerate(pairs) for row in score_image(f"{index:03d}", *pair, values)]
        mean = summarise_classes(rows)[-1]
        assert (ACC.value(only), MIOU.value(only)) == pytest.approx((mean.accuracy, mean.iou), abs=1e-12)
        assert DICE_PER_IMAGE.value(only) == pytest.approx(mean.dice_mean)
        assert HD95_PX.value(only) == pytest.approx(mean.hd95_penalised_px_mean)
        draws = bootstrap_matrices(np.stack([row.matrix for row in rows[:: classes - 1]]))
        for metric, figure in ((ACC, overall_accuracy), (MIOU, mean_iou)):
            drawn = PairedDraws(len(pairs))._drawn(metric, Arm("alone", "ENet", None, (only,)))
            assert np.percentile(drawn, [2.5, 97.5]) == pytest.approx(interval(draws, figure))


def test_several_classes_need_the_pixels_that_are_right():
    (only,) = slide_arm(random_maps(3), classes=("a", "b")).runs
    older = run(only.scores.drop(columns="pixels_right"), "slides")
    with pytest.raises(InputError, match="pixels_right"):
        ACC.value(older)
