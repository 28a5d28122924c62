# SPDX-License-Identifier: Apache-2.0
"""Segmentations of a comparison: which cases are shown, which errors are framed, and whose masks they are."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.comparison import Comparison, arrange, read_runs
from pipeline.comparison.pictures.box_plots import box_figure, case_scores
from pipeline.comparison.pictures.paper_figure import (
    MOST_BOXES,
    chosen_cases,
    error_boxes,
    paper_figure,
    views_of,
)
from pipeline.comparison.pictures.style import picture_style
from pipeline.data import (
    write_png,
)
from pipeline.data.slides.open import open_slide
from pipeline.errors import InputError
from pipeline.inference import tile_inferer_of
from pipeline.networks import load_model
from tests.comparison.picture_runs import CASES, a_run, an_arm, slide_run


class TestCases:
    def test_worst_middle_and_best_by_mean_over_organs_and_seeds(self):
        first = {"a": 0.2, "b": 0.8, "c": 0.5, "d": 0.6, "e": 0.1}
        second = {"a": 0.2, "b": 0.8, "c": 0.5, "d": 0.6, "e": 0.5}  # e is 0.3 in the mean, so that a is worst
        arm = an_arm(
            *(
                a_run(seed, **{case: {"liver": value - 0.1, "spleen": value + 0.1} for case, value in values.items()})
                for seed, values in enumerate((first, second))
            )
        )
        assert chosen_cases(arm) == ["a", "c", "b"]

    @pytest.mark.parametrize(
        ("scores", "cases"),
        [
            ({"b": 0.5, "a": 0.5, "c": 0.5}, ["a", "b", "c"]),  # equal ones by name
            ({"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4}, ["a", "b", "d"]),
            ({"a": 0.1, "b": 0.2}, ["a", "b"]),
            ({"a": 0.1, "b": np.nan}, ["a"]),
        ],
    )
    def test_ties_even_numbers_and_few(self, scores, cases):
        assert chosen_cases(an_arm(a_run(**{case: {"liver": dice} for case, dice in scores.items()}))) == cases

    def test_points_are_means_over_seeds_of_the_cases_that_have_the_organ(self):
        arm = an_arm(
            a_run(0, b={"liver": 0.2, "spleen": 0.9}, a={"liver": np.nan, "spleen": 1.0}),
            a_run(1, b={"liver": 0.6, "spleen": 0.9}, a={"liver": np.nan, "spleen": 1.0}),
        )
        assert case_scores(arm, "liver").to_dict() == pytest.approx({"b": 0.4})
        assert list(case_scores(arm, "spleen").index) == ["a", "b"]

    @pytest.mark.parametrize(("cases", "boxes"), [(4, 0), (5, 1)])
    def test_too_few_cases_get_no_box(self, cases, boxes):
        arm = an_arm(a_run(**{f"case_{index}": {"liver": index / 10} for index in range(cases)}))
        with picture_style():
            figure = box_figure(Comparison("scans", "toy", "t", (arm,), ("liver",), ()))
        axis = figure.axes[0]
        assert len(axis.patches) == boxes
        assert axis.get_title() == "liver"
        assert [label.get_text() for label in axis.get_yticklabels()] == ["ENet alone"]
        median = f"{(cases - 1) / 20:.2f}"
        assert median in [text.get_text() for text in axis.texts]


class TestErrorBoxes:
    def boxes(self, prediction: np.ndarray) -> list[tuple[int, int, int, int]]:
        found = error_boxes(np.zeros_like(prediction), prediction)
        return [(rows.start, rows.stop, columns.start, columns.stop) for rows, columns in found]

    def test_one_error(self):
        prediction = np.zeros((100, 100), np.uint8)
        prediction[20:30, 40:55] = 1
        assert self.boxes(prediction) == [(20, 30, 40, 55)]

    def test_nothing_wrong(self):
        assert self.boxes(np.zeros((100, 100), np.uint8)) == []

    def test_rims_specks_and_unreadable_parts_get_none(self):
        prediction = np.zeros((100, 100), np.uint8)
        prediction[10:60, 10], prediction[80, 80], prediction[70:90, 20:40] = 1, 1, 255
        assert self.boxes(prediction) == []

    def test_near_errors_share_a_box_and_far_ones_do_not(self):
        prediction = np.zeros((100, 100), np.uint8)
        prediction[20:30, 20:30] = prediction[20:30, 31:41] = 1
        prediction[60:80, 60:80] = 2
        assert self.boxes(prediction) == [(60, 80, 60, 80), (20, 30, 20, 41)]

    def test_largest_first_and_not_more_than_fit(self):
        prediction = np.zeros((200, 200), np.uint8)
        for index in range(MOST_BOXES + 2):
            prediction[30 * index : 30 * index + 10 + index, 50:70] = 1
        found = self.boxes(prediction)
        assert len(found) == MOST_BOXES
        assert [bottom - top for top, bottom, *_ in found] == [15, 14, 13, 12]

    def test_a_box_within_another_is_left_out(self):
        prediction = np.zeros((100, 100), np.uint8)
        prediction[10:60, 10:60] = 1
        prediction[20:50, 20:50] = 0
        prediction[32:38, 32:38] = 1
        assert self.boxes(prediction) == [(10, 60, 10, 60)]


class TestPaperFigure:
    def test_columns_rows_and_boxes(self, scans, runs):
        arms = arrange(read_runs(runs.values())).arms
        figure = paper_figure(scans, arms, CASES)
        titles = [axis.get_title() for axis in figure.axes[:5]]
        assert titles == ["image", "label", "teacher ENet", "ERFNet alone", "ERFNet +\ngraph_flow"]
        assert [axis.get_ylabel() for axis in figure.axes[::5]] == list(CASES)
        assert [axis.get_xlabel() for axis in figure.axes[2:5]] == ["Dice 0.70"] * 3
        assert [len(axis.patches) for axis in figure.axes[:5]] == [0, 0, 1, 1, 1]

    def test_slides_are_segmented_by_the_checkpoint(self, tmp_path):
        dataset, run = slide_run(tmp_path)
        ((label, mask),) = [view.masks for view in views_of(dataset, dataset.test, [run])]
        model = load_model(run.checkpoint)
        with open_slide(dataset.test[0].image) as slide:
            expected = np.concatenate(list(tile_inferer_of(model).bands(slide, model.network)))
        assert 0 < expected.mean() < 1
        np.testing.assert_array_equal(mask, expected)
        assert label.sum() == 100

    def test_masks_of_slides_in_the_report_are_used(self, tmp_path):
        dataset, run = slide_run(tmp_path)
        (run.report / "predictions").mkdir()
        given = np.eye(40, dtype=np.uint8)
        write_png(run.report / "predictions" / "a.png", given)
        (view,) = views_of(dataset, dataset.test, [run])
        np.testing.assert_array_equal(view.masks[1], given)

    def test_bad_input(self, scans, runs, tmp_path, monkeypatch):
        arms = arrange(read_runs(runs.values())).arms
        with pytest.raises(InputError, match=r"no labelled test case case_9.*--dataset"):
            paper_figure(scans, arms, ["case_9"])
        (runs["alone"] / "report" / "predictions" / "case_1.nii.gz").unlink()
        with pytest.raises(InputError, match=r"no mask at .*case_1.nii.gz; evaluate the run .*alone anew"):
            paper_figure(scans, arms, CASES)
        dataset, run = slide_run(tmp_path / "slides")
        monkeypatch.setattr("pipeline.comparison.pictures.paper_figure.MOST_SLIDE_PX", 100)
        with pytest.raises(InputError, match="40 x 40 pixels, more than the 100 that are segmented for a picture"):
            views_of(dataset, dataset.test, [run])
