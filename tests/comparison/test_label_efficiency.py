# SPDX-License-Identifier: Apache-2.0
"""The comparison by amounts of labels: figures by hand, and what is written."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.comparison import Comparison, arrange, read_runs
from pipeline.comparison.label_efficiency import Amount, efficiency_rows, labelled_count, verdict
from pipeline.comparison.pictures import label_curves
from pipeline.comparison.pictures.label_curves import draw_label_curves
from pipeline.comparison.write_label_efficiency import write_label_efficiency
from tests.comparison.picture_runs import a_run, an_arm
from tests.comparison.run_folders import make_scan_run, make_slide_run, taught_by
from tests.grid.test_labels import dataset


def dice(value: float) -> dict[str, dict[str, float]]:
    return {f"case{number}": {"liver": value + 0.01 * number} for number in range(6)}


def with_labels(comparison: Comparison, patients: list[str] | None, fold: dict | None = None) -> Comparison:
    """Return a comparison whose runs had the labels of some patients of a fold."""
    told = {"labelled_patients": patients, "patients": fold}
    arms = [
        replace(arm, runs=tuple(replace(run, recipe={**run.recipe, **told}) for run in arm.runs))
        for arm in comparison.arms
    ]
    return replace(comparison, arms=tuple(arms))


def amount(
    folder: Path, name: str, few: bool, values: dict[str, float], validation: dict[str, float] | None = None
) -> Amount:
    """Return an amount of labels with a teacher and arms of two seeds, each 0.02 apart; one patient, or all."""
    labelled = {"labelled_patients": ["p1"] if few else None}
    teacher = make_scan_run(folder / name / "teacher", dice(values["teacher"]), network="mobile_unet", **labelled)
    runs = [teacher]
    for arm, taught in (
        ("alone", None),
        ("alone_balanced", None),
        ("mean_teacher", {**taught_by("none"), "teacher_sha256": None, "method": "mean_teacher"}),
        ("kd", taught_by(teacher)),
    ):
        for seed in (0, 1) if arm in values else ():
            run = folder / name / f"{arm}{seed}"
            scores = dice(values[arm] + 0.02 * seed)
            score = (validation or values).get(arm, values[arm])
            make_scan_run(run, scores, seed=seed, arm=arm, distillation=taught, validation=score, **labelled)
            runs.append(run)
    comparison = arrange(read_runs(runs))
    return Amount(name, labelled_count(comparison), comparison)


@pytest.fixture(scope="module")
def amounts(tmp_path_factory) -> list[Amount]:
    tmp_path = tmp_path_factory.mktemp("amounts")
    few = {"teacher": 0.5, "alone": 0.3, "mean_teacher": 0.4, "kd": 0.45}
    return [
        amount(tmp_path, "1_patient", True, few),
        amount(tmp_path, "all", False, {"teacher": 0.8, "alone": 0.6, "kd": 0.7}),
    ]


def test_rows_by_hand(amounts):
    rows = efficiency_rows(amounts)
    assert [(row.amount.name, row.arm.label) for row in rows] == [
        ("1_patient", "teacher Mobile U-Net"),
        ("1_patient", "ENet alone"),
        ("1_patient", "ENet mean_teacher"),
        ("1_patient", "ENet + kd"),
        ("all", "teacher Mobile U-Net"),
        ("all", "ENet alone"),
        ("all", "ENet + kd"),
    ]
    # Six cases 0.01 apart add 0.025, two seeds 0.02 apart 0.01.
    assert [row.mean for row in rows] == pytest.approx([0.525, 0.335, 0.435, 0.485, 0.825, 0.635, 0.735])
    kd = rows[3]
    assert kd.values == pytest.approx((0.475, 0.495))
    assert kd.over_mean_teacher.value == pytest.approx(0.05)
    assert kd.over_control.value == pytest.approx(0.15)
    assert kd.share_of_all == pytest.approx(0.485 / 0.635)
    assert [row.over_mean_teacher for row in rows[:3]] == [None, None, None]
    assert rows[-1].over_mean_teacher is None  # there is none with all labels
    assert rows[-1].over_control.value == pytest.approx(0.1)


def test_verdict_by_hand(amounts):
    """With one patient 0.485 of 0.635 is 76 %: not enough; with all labels 0.735 of it."""
    assert verdict(efficiency_rows(amounts)) == (
        "With 1 patient, ENet + kd has Dice 0.485 (+0.150 over ENet alone). "
        "With all it reaches 116 % of the student alone with all labels."
    )
    assert verdict(efficiency_rows(amounts[:1])).endswith("over ENet alone).")
    assert verdict([row for row in efficiency_rows(amounts) if row.over_control is None]) == ""


def test_the_verdict_tells_of_a_student_that_trained_longer_alone(tmp_path):
    """The balanced student trained for twice as many epochs, so it is no control: 0.535, kd 0.485."""
    values = {"teacher": 0.5, "alone": 0.3, "alone_balanced": 0.5, "kd": 0.45}
    one = amount(tmp_path, "1_patient", True, values)
    arms = [
        replace(arm, runs=tuple(replace(run, epochs=2 * run.epochs) for run in arm.runs))
        if arm.label == "ENet alone_balanced"
        else arm
        for arm in one.comparison.arms
    ]
    longer = replace(one, comparison=replace(one.comparison, arms=tuple(arms)))
    epochs = one.comparison.arms[0].runs[0].epochs
    assert verdict(efficiency_rows([longer])) == (
        "With 1 patient, ENet + kd has Dice 0.485 (+0.150 over ENet alone). ENet alone_balanced, "
        f"trained for {2 * epochs} epochs in place of {epochs}, has Dice 0.535, ENet + kd 0.485."
    )


def test_labels_of_amounts(amounts):
    assert [one.label for one in amounts] == ["1 patient", "all"]
    assert [one.patients for one in amounts] == [1, None]


def test_nothing_is_a_share_of_all_where_nobody_had_all(amounts):
    assert all(row.share_of_all is None for row in efficiency_rows(amounts[:1]))


def test_cases_that_nobody_labelled_are_not_hidden(amounts, tmp_path):
    """By hand: patients 1, 2 and 3 train, 2 has no label; all labels are those of 1 and 3."""
    folder = dataset(tmp_path / "data", unlabelled="2")
    for patients, count in ((["1", "3"], None), (["1"], 1), (None, None)):
        assert labelled_count(with_labels(amounts[0].comparison, patients), folder) == count
    assert labelled_count(with_labels(amounts[0].comparison, ["1", "3"])) == 2  # where no dataset tells


def test_all_labels_of_a_fold_are_those_of_its_training(amounts, tmp_path):
    folder = dataset(tmp_path / "data", unlabelled="2")
    fold = {"validation": ["v"], "test": ["3"]}
    assert labelled_count(with_labels(amounts[0].comparison, ["1", "t"], fold), folder) is None
    assert labelled_count(with_labels(amounts[0].comparison, ["1"], fold), folder) == 1


def test_the_control_is_the_one_that_is_better_in_validation(tmp_path):
    """The balanced student is worse in the test by 0.05, but better in validation."""
    values = {"teacher": 0.5, "alone": 0.3, "alone_balanced": 0.25, "mean_teacher": 0.4, "kd": 0.45}
    one = amount(tmp_path, "1_patient", True, values, validation={"alone": 0.3, "alone_balanced": 0.35})
    rows = {row.arm.label: row for row in efficiency_rows([one])}
    assert list(rows) == [
        *("teacher Mobile U-Net", "ENet alone", "ENet mean_teacher", "ENet alone_balanced", "ENet + kd"),
    ]
    assert rows["ENet + kd"].over_control.value == pytest.approx(0.2)
    assert rows["ENet + kd"].over_mean_teacher.value == pytest.approx(0.05)
    assert "(+0.200 over ENet alone_balanced)" in verdict(list(rows.values()))


def test_the_caption_has_the_figures_of_the_paper(amounts, tmp_path):
    """FANet, and Mobile U-Net alone and taught on all cases, with 2 and with 18 labelled cases."""
    caption = draw_label_curves(efficiency_rows(amounts), tmp_path).caption
    assert "with 2, 6, 10, 14, 18 labelled cases: teacher .383, .628, .723, .760, .795;" in caption
    assert "Mobile U-Net .262, .515, .613, .678, .733;" in caption
    assert "on labelled cases .328, .606, .687, .699, .787;" in caption
    assert "on all cases .441, .627, .724, .743, .787" in caption
    assert "longer trainings" in caption
    assert "gastric" not in caption


def test_the_caption_of_slides_has_the_gastric_figures_of_the_paper(tmp_path):
    """The accuracy of the same networks, with 20 to 100 % of the labels; the paper's plot has a digit more."""
    label = np.zeros((8, 8), np.uint8)
    label[:4] = 1
    kd = {"distillation": taught_by("ab")}
    runs = [
        make_slide_run(tmp_path / name, {"a": (label, label)}, {1: "cancer"}, **more)
        for name, more in (("alone", {}), ("kd", kd))
    ]
    rows = efficiency_rows([Amount("all", None, arrange(read_runs(runs)))])
    caption = draw_label_curves(rows, tmp_path).caption
    assert "of the test mIoU;" in caption
    assert "accuracy with 20, 40, 60, 80, 100 % of the labels: teacher .853, .881, .894, .894, .901;" in caption
    assert "Mobile U-Net .770, .803, .825, .835, .854;" in caption
    assert "on labelled tiles .780, .831, .837, .842, .886;" in caption
    assert "on all tiles .812, .840, .854, .858, .886" in caption
    assert "Synapse" not in caption


def of_two_students(name: str, teacher: float, **dice: float) -> Amount:
    """Return an amount of a teacher, and of both students alone with these Dice and 0.1 higher with kd.

    The teacher has one seed, the students have two, the second 0.02 higher.
    """

    def runs(value: float, seeds: int, **more: str) -> list:
        scores = [{"liver": value + 0.02 * seed} for seed in range(seeds)]
        return [a_run(seed, **more, case_1=score, case_2=score) for seed, score in enumerate(scores)]

    arms = [an_arm(*runs(teacher, 1, network="FANet"), role="teacher")]
    for network, value in dice.items():
        arms.append(an_arm(*runs(value, 2, network=network)))
        arms.append(an_arm(*runs(value + 0.1, 2, network=network, method="kd"), role="method"))
    return Amount(name, None, Comparison("scans", "toy", "", tuple(arms), ("liver",), ()))


def test_each_student_has_a_panel_and_several_seeds_have_a_band(tmp_path, monkeypatch):
    """By hand: the line is in the middle of the two seeds, 0.01 above the lower; one seed has a band without height."""
    drawn = []
    monkeypatch.setattr(label_curves, "save_picture", lambda figure, path: (drawn.append(figure) or path, path))
    amounts = [
        of_two_students("few", teacher=0.6, ENet=0.3, ERFNet=0.2),
        of_two_students("all", teacher=0.8, ENet=0.5, ERFNet=0.6),
    ]
    draw_label_curves(efficiency_rows(amounts), tmp_path)
    (figure,) = drawn
    for panel, student, alone in zip(figure.axes, ("ENet", "ERFNet"), ((0.3, 0.5), (0.2, 0.6)), strict=True):
        kd = [value + 0.1 for value in alone]
        assert panel.get_title() == student
        assert [text.get_text() for text in panel.get_xticklabels()] == ["few", "all"]
        lowest = {"teacher FANet": (0.6, 0.8), "alone": alone, "+ kd": kd}
        assert [line.get_label() for line in panel.lines] == list(lowest)
        for line, band, low in zip(panel.lines, panel.collections, lowest.values(), strict=True):
            height = 0.0 if line.get_label() == "teacher FANet" else 0.02
            np.testing.assert_allclose(line.get_xydata(), [(0, low[0] + height / 2), (1, low[1] + height / 2)])
            (path,) = band.get_paths()
            for place in (0, 1):
                edge = [y for x, y in path.vertices if x == place]
                assert (min(edge), max(edge)) == pytest.approx((low[place], low[place] + height))


def test_figure_is_drawn_alike_twice(amounts, tmp_path):
    rows = efficiency_rows(amounts)
    first, second = (draw_label_curves(rows, tmp_path / name) for name in ("one", "two"))
    assert first.png.read_bytes() == second.png.read_bytes()
    assert "Synapse" in first.caption


def test_files_of_all_amounts_and_of_each(runs, finished, tmp_path, capsys):
    folders = list(runs.values())
    write_label_efficiency({"2_patients": folders, "all": folders}, tmp_path / "out", finished / "data")
    out = tmp_path / "out"
    for name in ("2_patients", "all"):
        assert (out / name / "comparison.html").is_file()
    lines = list(csv.DictReader((out / "label_efficiency.csv").open(encoding="utf-8")))
    assert {line["amount"] for line in lines} == {"2_patients", "all"}
    page = (out / "label_efficiency.html").read_text(encoding="utf-8")
    assert "data:image" in page
    assert "over mean teacher" in page
    assert (out / "label_efficiency.md").read_text(encoding="utf-8").count("| 2 patients |") > 1
    assert "labels compared in" in capsys.readouterr().out
