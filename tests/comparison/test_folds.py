# SPDX-License-Identifier: Apache-2.0
"""Cross-validation and controls in a comparison: folds as one run, the better control, the last epoch, the verdict."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.comparison import Comparison, Run, arrange, read_runs
from pipeline.comparison.cost import Cost
from pipeline.comparison.tables.csv_file import comparison_csv
from pipeline.comparison.tables.rows import ComparisonRow, comparison_rows
from pipeline.comparison.tables.table import comparison_markdown, comparison_tables
from pipeline.comparison.tables.verdict import choice, verdict
from pipeline.errors import InputError
from tests.comparison.run_folders import add_last, make_scan_run, taught_by

FOLDS = {"a": ("case_1", "case_4", "case_5", "case_8"), "b": ("case_2", "case_3", "case_6", "case_7")}
# Dice of a case begins at its number / 20; arms are so much above it, and what they had in validation.
ARMS = {"alone": (0.0, 0.5), "alone_balanced": (0.05, 0.6), "kd": (0.15, 0.7), "at": (0.2, 0.65), "long": (0.1, 0.9)}
TEACHER_SHIFT = 0.35


def dice_of(fold: str, shift: float) -> dict[str, dict[str, float]]:
    return {case: {"liver": int(case[-1]) / 20 + shift} for case in FOLDS[fold]}


def fold_run(folder: Path, fold: str, name: str, teachers: dict[str, Path]) -> Path:
    """Write a student's run of one fold, with its last epoch 0.01 below the best."""
    shift, validation = ARMS[name]
    alone = name in ("alone", "alone_balanced", "long")
    run = make_scan_run(
        folder / f"{fold}_{name}",
        dice_of(fold, shift),
        distillation=None if alone else taught_by(teachers[fold], name),
        patients={"test": list(FOLDS[fold])},
        arm=name,
        epochs=3 if (name, fold) == ("long", "a") else 2,  # 2 in the mean, rounded
        validation=validation + (0.02 if fold == "a" else -0.02),
    )
    add_last(run, dice_of(fold, shift - 0.01))
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Run]:
    """Teachers and students of two folds of four cases each, the second fold first."""
    folder = tmp_path_factory.mktemp("runs")
    teachers = {
        fold: make_scan_run(
            folder / f"{fold}_teacher",
            dice_of(fold, TEACHER_SHIFT),
            network="fanet",
            width=0.0625,
            patients={"test": list(FOLDS[fold])},
            weight_decay=1e-4 if fold == "a" else 2e-4,  # or their files would be equal
        )
        for fold in ("b", "a")
    }
    students = [fold_run(folder, fold, name, teachers) for name in ARMS for fold in ("b", "a")]
    return read_runs([*teachers.values(), *students])


@pytest.fixture(scope="module")
def comparison(runs) -> Comparison:
    return arrange(runs)


@pytest.fixture
def rows(comparison, monkeypatch) -> dict[str, ComparisonRow]:
    monkeypatch.setattr(
        "pipeline.comparison.tables.rows.costs_of", lambda arms: [Cost(1_000_000, 2_000_000_000, 3.0) for _ in arms]
    )
    return {row.arm.label: row for row in comparison_rows(comparison)}


class TestFolds:
    def test_folds_are_one_run_on_all_cases(self, comparison):
        names = ["alone", "alone_balanced", "long", "+ kd", "+ at"]
        assert [arm.label for arm in comparison.arms] == ["teacher FANet 0.0625", *(f"ENet {name}" for name in names)]
        assert all(len(arm.runs) == 1 for arm in comparison.arms)
        assert comparison.cases == tuple(f"case_{number}" for number in range(1, 9))
        assert comparison.title == "Does a teacher help? toy: 8 cases, 1 seed"
        assert any("2 folds" in note for note in comparison.notes)

    def test_each_case_is_of_the_fold_that_was_tested_on_it(self, comparison):
        run = comparison.arms[1].runs[0]
        assert run.of_case("case_4").path.name == "a_alone"
        assert run.of_case("case_6").path.name == "b_alone"
        assert [part.path.name for part in comparison.arms[1].parts] == ["a_alone", "b_alone"]
        assert comparison.arms[1].validation == pytest.approx(0.5)

    def test_students_know_their_teachers(self, comparison):
        assert comparison.arms[-2].runs[0].teacher_sha256 == comparison.teacher.runs[0].model_sha256
        assert not any("not among the runs" in note for note in comparison.notes)

    def test_mean_over_all_cases_by_hand(self, rows):
        """Cases 1 to 8 have number / 20: the mean is 4.5 / 20."""
        assert rows["ENet alone"].metrics["dice"].mean == pytest.approx(4.5 / 20)
        assert rows["ENet alone"].metrics["dice"].last == pytest.approx(4.5 / 20 - 0.01)
        assert rows["teacher FANet 0.0625"].cases == 8

    def test_order_of_the_folders_changes_nothing(self, runs, comparison):
        again = arrange(runs[::-1])
        assert {arm.label: arm.runs[0].model_sha256 for arm in again.arms} == {
            arm.label: arm.runs[0].model_sha256 for arm in comparison.arms
        }

    def test_a_run_that_lacks_a_fold_is_refused(self, runs):
        with pytest.raises(InputError, match="8 and 4 cases"):
            arrange([run for run in runs if run.path.name != "a_kd"])

    def test_folds_with_a_case_in_common_are_no_folds(self, runs):
        one = next(run for run in runs if run.path.name == "a_kd")
        with pytest.raises(InputError, match="8 and 4 cases"):
            arrange([*runs, replace(one, path=Path("again"))])


class TestControls:
    def test_the_better_control_is_the_one_of_validation_and_of_equal_epochs(self, comparison):
        assert [arm.label for arm in comparison.controls("ENet")] == ["ENet alone", "ENet alone_balanced"]
        assert comparison.control("ENet").label == "ENet alone_balanced"
        told = "The better control of ENet by validation is ENet alone_balanced (ENet alone 0.5000, ENet"
        assert any(told in note for note in comparison.notes)

    def test_changes_by_hand(self, rows):
        """kd is 0.15 above alone, which is 0.05 below the better control, which is 0.3 below the teacher."""
        kd = rows["ENet + kd"].metrics["dice"]
        assert kd.difference.value == pytest.approx(0.1)
        assert {name: change.value for name, change in kd.others.items()} == {
            "alone": pytest.approx(0.15),
            "alone_balanced": pytest.approx(0.1),
        }
        assert (kd.gap.share, kd.gap.low, kd.gap.high) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
        assert rows["ENet alone_balanced"].metrics["dice"].difference is None
        assert rows["ENet alone"].metrics["dice"].difference.value == pytest.approx(-0.05)

    def test_holm_counts_methods_alone(self, rows):
        """Eight differences on one side: 2 / 2^8, of two methods; alone and the longer training are not tested."""
        assert rows["ENet + kd"].metrics["dice"].p_holm == pytest.approx(4 / 256)
        assert math.isnan(rows["ENet long"].metrics["dice"].p_holm)

    def test_without_validation_scores_the_first_is_taken_and_that_is_said(self, runs):
        blind = arrange([replace(run, validation=math.nan) for run in runs])
        assert blind.control("ENet").label == "ENet alone"
        assert "The runs do not tell which control of ENet is better; ENet alone is taken." in blind.notes

    def test_one_control_is_compared_as_ever(self, runs, monkeypatch):
        monkeypatch.setattr("pipeline.comparison.tables.rows.costs_of", lambda arms: [Cost(1, 1, 1.0) for _ in arms])
        plain = arrange([run for run in runs if "balanced" not in run.path.name and "long" not in run.path.name])
        tables = comparison_tables(plain, comparison_rows(plain))
        assert tables[1].caption == "Each method against the same student alone"
        assert not any("against the same student, " in table.caption for table in tables)


class TestTables:
    def test_a_table_for_each_control(self, comparison, rows):
        tables = {table.caption: table for table in comparison_tables(comparison, list(rows.values()))}
        against = tables["Each arm against the better control of the same student"]
        assert [row[0] for row in against.rows] == ["ENet alone", "ENet long", "ENet + kd", "ENet + at"]
        assert against.rows[2][1:4] == ("+0.100 (0.100 to 0.100)", "0.016", "33 % (33 to 33)")
        alone = tables["Each arm against the same student, alone"]
        assert [row[0] for row in alone.rows] == ["ENet alone_balanced", "ENet long", "ENet + kd", "ENet + at"]
        assert "Each arm against the same student, alone_balanced" not in tables  # the first table has it
        assert alone.rows[2][1] == "+0.150 (0.150 to 0.150)"

    def test_the_last_epoch_beside_the_best(self, comparison, rows):
        scores = comparison_tables(comparison, list(rows.values()))[0]
        column = scores.header.index("Dice, last epoch")
        assert scores.rows[1][column] == "0.215"
        assert scores.rows[0][column] == "-"  # the teacher has no report of it

    def test_csv_has_all_of_it(self, comparison, rows):
        read = {row["label"]: row for row in csv.DictReader(io.StringIO(comparison_csv(comparison, [*rows.values()])))}
        kd = read["ENet + kd"]
        assert (kd["n_folds"], kd["control"], kd["validation"]) == ("2", "ENet alone_balanced", "0.7")
        assert float(kd["dice_difference_to_alone"]) == pytest.approx(0.15)
        assert float(kd["dice_gap_closed_ci95_high"]) == pytest.approx(1 / 3)
        assert float(kd["dice_last_epoch_mean"]) == pytest.approx(4.5 / 20 + 0.14)
        assert read["teacher FANet 0.0625"]["dice_difference_to_alone"] == ""

    def test_no_gap_is_said(self, runs, monkeypatch):
        """The teacher's scores are those of the better control."""
        monkeypatch.setattr("pipeline.comparison.tables.rows.costs_of", lambda arms: [Cost(1, 1, 1.0) for _ in arms])
        scores = {run.path.name[0]: run.scores for run in runs if "balanced" in run.path.name}
        level = [replace(run, scores=scores[run.path.name[0]]) if "teacher" in run.path.name else run for run in runs]
        comparison = arrange(level)
        against = comparison_tables(comparison, comparison_rows(comparison))[1]
        assert against.rows[-1][3] == "no gap"


class TestVerdict:
    def test_the_best_in_validation_not_the_best_in_the_table(self, comparison, rows):
        told = verdict(comparison, list(rows.values()))
        assert told == (
            "ENet + kd is better than ENet alone_balanced: Dice +0.100 (95 % interval 0.100 to 0.100). "
            "ENet long, trained for 2 to 3 epochs in place of 2, has Dice 0.325, ENet + kd 0.375."
        )
        (note,) = choice(comparison, list(rows.values()))
        assert note.endswith("best in validation.")
        assert told in comparison_markdown(comparison, list(rows.values())).split("\n\n")

    @pytest.mark.parametrize(
        ("low", "high", "standing"),
        [(0.01, 0.2, "is better than"), (-0.2, -0.01, "is worse than"), (-0.1, 0.1, "not clearly better")],
    )
    def test_standing_by_the_interval(self, comparison, rows, low, high, standing):
        kd = rows["ENet + kd"]
        dice = kd.metrics["dice"]
        metrics = {**kd.metrics, "dice": replace(dice, difference=replace(dice.difference, low=low, high=high))}
        assert standing in verdict(comparison, [*({**rows, "ENet + kd": replace(kd, metrics=metrics)}).values()])

    def test_a_teacher_that_has_little_to_teach(self, comparison, rows):
        """The teacher's Dice is set to the control's, 0.275."""
        assert rows["ENet alone_balanced"].metrics["dice"].mean == pytest.approx(0.275)
        (name,) = (name for name in rows if name.startswith("teacher"))
        teacher = rows[name]
        metrics = {**teacher.metrics, "dice": replace(teacher.metrics["dice"], mean=0.25)}
        told = verdict(comparison, [*({**rows, name: replace(teacher, metrics=metrics)}).values()])
        assert told.endswith(
            "The teacher is no better than ENet alone_balanced, with Dice 0.250 and 0.275: it has little to teach."
        )

    def test_nothing_without_a_control(self, runs, monkeypatch):
        monkeypatch.setattr("pipeline.comparison.tables.rows.costs_of", lambda arms: [Cost(1, 1, 1.0) for _ in arms])
        comparison = arrange([run for run in runs if run.path.name.endswith(("teacher", "kd"))])
        assert verdict(comparison, comparison_rows(comparison)) == ""
