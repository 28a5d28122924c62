# SPDX-License-Identifier: Apache-2.0
"""Plots of a comparison: what their points and lines mean, how arms look, and equal files for equal figures."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from pipeline.comparison import Comparison, arrange, read_runs
from pipeline.comparison.cost import Cost
from pipeline.comparison.pictures.all import draw_all
from pipeline.comparison.pictures.box_plots import box_figure
from pipeline.comparison.pictures.cost_plot import apart, cost_figure
from pipeline.comparison.pictures.curves import Curve, arm_bands, averaged, curve_figure, over_seeds, read_curves
from pipeline.comparison.pictures.style import arm_styles, families, picture_style, save_picture
from pipeline.comparison.tables.rows import ComparisonRow, MetricScore, comparison_rows
from tests.comparison.picture_runs import a_run, an_arm


class TestCurves:
    def test_average_of_parts(self):
        curve = averaged(Curve(np.arange(1.0, 7), np.array([1.0, 3, 5, 7, 9, 11])), points=2)
        assert [column.tolist() for column in curve] == [[2, 5], [3, 9]]

    def test_short_curves_stay(self):
        curve = Curve(np.array([1.0, 2]), np.array([3.0, 4]))
        assert averaged(curve, points=2) is curve

    def test_mean_and_range_over_seeds_as_far_as_all_reach(self):
        band = over_seeds(
            [Curve(np.array([1.0, 2, 3, 4]), np.array([0.0, 1, 2, 3])), Curve(np.array([1.0, 3]), np.array([2.0, 6]))]
        )
        assert [column.tolist() for column in band] == [[1, 2, 3], [1, 2.5, 4], [0, 1, 2], [2, 4, 6]]

    def test_runs_without_a_common_step_have_no_band(self, tmp_path):
        """One run is validated after epoch 4, the other after epochs 5 and 9; both have a loss at steps 1 to 3."""
        for name, epochs in (("short", (4,)), ("long", (5, 9))):
            with SummaryWriter(str(tmp_path / name)) as writer:
                for epoch in epochs:
                    writer.add_scalar("val_mean_dice", 0.5, epoch)
                for step in (1, 2, 3):
                    writer.add_scalar("segmentation", 1.0 / step, step)
        parts = [SimpleNamespace(tensorboard=tmp_path / name) for name in ("short", "long")]
        assert list(arm_bands(SimpleNamespace(parts=parts))) == ["segmentation"]

    def test_what_tensorboard_wrote_is_read_and_values_that_are_not_finite_left_out(self, tmp_path):
        with SummaryWriter(str(tmp_path)) as writer:
            for step, value in enumerate((0.5, float("nan"), 0.25), start=1):
                writer.add_scalar("edges", value, step)
                writer.add_scalar("diverged", float("inf"), step)
        curves = read_curves(tmp_path)
        assert list(curves) == ["edges"]
        assert [column.tolist() for column in curves["edges"]] == [[1, 3], [0.5, 0.25]]

    @pytest.mark.parametrize("content", [None, b"", b"no events"])
    def test_no_events_no_curves(self, tmp_path, content):
        if content is not None:
            (tmp_path / "events.out.tfevents.1.x").write_bytes(content)
        assert read_curves(tmp_path) == {}

    def test_validation_comes_first_and_each_term_has_its_axis(self, runs):
        comparison = arrange(read_runs(runs.values()))
        figure = curve_figure(comparison.arms, arm_styles(comparison))
        titles = [axis.get_title() for axis in figure.axes if axis.axison]
        assert titles == ["validation: mean_dice", "loss term: total"]
        assert figure.axes[0].get_lines()[0].get_ydata().tolist() == [0.25, 0.5]
        assert [text.get_text() for text in figure.legends[0].get_texts()] == [arm.label for arm in comparison.arms]

    def test_only_terms_of_the_loss_have_logarithmic_axes(self, tmp_path):
        """Of a score, the differences near 1 matter, which a logarithmic axis hides."""
        with SummaryWriter(str(tmp_path)) as writer:
            for step, value in enumerate((0.01, 0.5, 0.9), start=1):
                writer.add_scalar("val_mean_dice", value, step)
                writer.add_scalar("edges", value, step)
        arm = an_arm(replace(a_run(a={"liver": 1.0}), tensorboard=tmp_path))
        comparison = Comparison("scans", "toy", "t", (arm,), ("liver",), ())
        figure = curve_figure(comparison.arms, arm_styles(comparison))
        assert [axis.get_yscale() for axis in figure.axes if axis.axison] == ["linear", "log"]

    def test_runs_without_events_are_told_of(self, caplog):
        comparison = Comparison("scans", "toy", "t", (an_arm(a_run(a={"liver": 1.0})),), ("liver",), ())
        assert curve_figure(comparison.arms, arm_styles(comparison)) is None
        assert "has no event files" in caplog.text


class TestStyle:
    def test_every_method_differs_in_more_than_colour(self):
        arms = [an_arm(a_run(method=f"method {index}", a={}), role="method") for index in range(12)]
        arms = (an_arm(a_run(a={}), role="teacher"), an_arm(a_run(a={})), *arms)
        styles = arm_styles(Comparison("scans", "toy", "t", arms, (), ()))
        assert len({(style.colour, style.marker) for style in styles.values()}) == 14
        by_colour: dict[str, set[str]] = {}
        for style in styles.values():
            by_colour.setdefault(style.colour, set()).add(style.marker)
        assert sum(map(len, by_colour.values())) == 14

    def test_a_method_looks_alike_on_every_student(self):
        arms = tuple(an_arm(a_run(method="kd", network=network, a={}), role="method") for network in ("ENet", "ERFNet"))
        comparison = Comparison("scans", "toy", "t", arms, (), ())
        styles = arm_styles(comparison)
        assert styles["ENet + kd"] == styles["ERFNet + kd"]
        assert [name for name, _ in families(comparison)] == ["ENet", "ERFNet"]

    def test_equal_figures_are_equal_files(self, tmp_path):
        comparison = Comparison("scans", "toy", "t", (an_arm(a_run(a={"liver": 0.5})),), ("liver",), ())
        files = []
        for name in ("first", "second"):
            with picture_style():
                files.append([path.read_bytes() for path in save_picture(box_figure(comparison), tmp_path / name)])
        assert files[0] == files[1]


class TestCostPlot:
    def figure(self, **scores: tuple[float, float, float]):
        """Draw rows of (mean, deviation, multiply-adds) by method."""
        rows = []
        for method, (mean, deviation, macs) in scores.items():
            arm = an_arm(a_run(method=method, a={}), role="method")
            metrics = {"dice": MetricScore(mean, deviation)}
            rows.append(ComparisonRow(arm, 1, metrics, {}, np.nan, 0, Cost(1, int(macs), 1.0)))
        comparison = Comparison("scans", "toy", "t", tuple(row.arm for row in rows), (), ())
        with picture_style():
            return cost_figure(comparison, rows)

    def test_points_bars_and_labels_lie_inside(self):
        figure = self.figure(a=(0.5, 0.2, 1e9), b=(0.9, np.nan, 1e11), c=(0.9, 0.01, 1e9))
        (axis,) = figure.axes
        (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
        assert left < 1
        assert right > 100
        assert low < 0.3
        assert high > 0.91
        assert [text.get_text() for text in axis.texts] == [
            "ENet + a  0.500",
            "ENet + b  0.900",
            "ENet + c  0.900",
        ]  # by score
        assert [len(container) for container in axis.containers] == [3, 3, 3]
        assert [container.has_yerr for container in axis.containers] == [True, False, True]
        figure.canvas.draw()
        frame = figure.bbox
        for text in axis.texts:
            box = text.get_window_extent()
            assert frame.x0 <= box.x0 < box.x1 <= frame.x1
            assert frame.y0 <= box.y0 < box.y1 <= frame.y1

    def test_arms_of_equal_cost_stand_side_by_side_about_it(self):
        figure = self.figure(a=(0.5, np.nan, 1e9), b=(0.5, np.nan, 1e9), c=(0.5, np.nan, 1e10))
        figure.canvas.draw()
        (axis,) = figure.axes
        drawn = [container[0] for container in axis.containers]
        a, b, c = (line.get_transform().transform(line.get_xydata())[0, 0] for line in drawn)
        one, ten = axis.transData.transform([(1, 0.5), (10, 0.5)])[:, 0]
        assert (a + b) / 2 == pytest.approx(one)
        assert b - a > 5
        assert c == pytest.approx(ten)

    def test_many_arms_of_equal_cost_all_lie_inside(self):
        figure = self.figure(**{f"m{index}": (index / 20, np.nan, 1e9) for index in range(14)}, t=(0.9, np.nan, 2e9))
        figure.canvas.draw()
        (axis,) = figure.axes
        for line in (container[0] for container in axis.containers):
            assert axis.bbox.contains(*line.get_transform().transform(line.get_xydata())[0])

    def test_without_figures_there_is_none(self):
        assert self.figure(a=(np.nan, np.nan, 1e9)) is None

    @pytest.mark.parametrize(
        ("values", "places"),
        [
            ([0.0, 1.0], [0.0, 1.0]),
            ([0.5, 0.5], [0.4, 0.6]),
            ([1.0, 0.5, 0.6], [1.0, 0.45, 0.65]),
            ([0.0, 0.1, 0.25], [-0.0833333, 0.1166667, 0.3166667]),  # two make way, then all three
        ],
    )
    def test_labels_make_way(self, values, places):
        assert apart(values, 0.2) == pytest.approx(places)

    def test_labels_stay_inside(self):
        assert apart([0.9, 1.0, 0.1], 0.2, low=0.0, high=1.0) == pytest.approx([0.8, 1.0, 0.1])
        assert apart([0.0, 0.0, 0.05], 0.2, low=0.1, high=1.0) == pytest.approx([0.1, 0.3, 0.5])

    def test_no_two_are_too_near_and_none_overtakes(self):
        values = np.random.default_rng(0).random(30).tolist()
        places = np.array(apart(values, 0.05))[np.argsort(values)]
        assert np.diff(places).min() >= 0.05 - 1e-9


def test_all_pictures_and_those_that_need_no_images(scans, runs, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.comparison.pictures.style.PNG_DPI", 40)  # soon drawn
    comparison = arrange(read_runs(runs.values()))
    rows = comparison_rows(comparison)
    pictures = draw_all(comparison, rows, scans, tmp_path / "figures")
    assert [picture.title for picture in pictures] == [
        "What does ERFNet see in toy? Worst, middle and best case",
        "How good is each model, case by case? Dice in toy",
        "What does accuracy cost? Dice in toy against multiply-adds",
        "How did ERFNet learn? Validation and losses",
        "What did the teacher show ERFNet + graph_flow? Graphs of its features",
    ]
    assert "case_1, case_2" in pictures[0].alt
    assert "spleen: teacher ENet 0.50" in pictures[1].alt
    written = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert written == sorted(path.name for picture in pictures for path in (picture.png, picture.svg))
    assert all(picture.png.read_bytes().startswith(b"\x89PNG") for picture in pictures)
    monkeypatch.setattr("pipeline.comparison.pictures.all.save_picture", lambda figure, path: (path, path))
    bare = draw_all(comparison, rows, None, tmp_path / "bare")
    assert [picture.title for picture in bare] == [picture.title for picture in pictures[1:4]]
