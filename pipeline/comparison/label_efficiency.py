# SPDX-License-Identifier: Apache-2.0
"""Students by their number of labels: one comparison for each amount, and a summary of all."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from pipeline.comparison.arms import ALONE, TEACHER, Arm, Comparison, best_in_validation
from pipeline.comparison.paired import Difference, PairedDraws, main_metric
from pipeline.comparison.tables.verdict import longer_trained
from pipeline.data import load_dataset

MEAN_TEACHER = "mean_teacher"
ENOUGH = 0.95  # of the student alone with all labels: labels that reach it suffice


@dataclass(frozen=True)
class Amount:
    """The arms that learned from one amount of labels.

    Attributes:
        name: that the grid gave it.
        patients: labelled patients, the mean over folds; None where no label was hidden.
        comparison: of the arms, on the same cases for all amounts.
    """

    name: str
    patients: float | None
    comparison: Comparison

    @property
    def label(self) -> str:
        """Name for tables and pictures."""
        return self.name.replace("_", " ")


@dataclass(frozen=True)
class EfficiencyRow:
    """One arm with one amount of labels.

    Attributes:
        amount: of labels.
        student: the network of the panel, for a teacher that of its students.
        arm: whose figures these are.
        values: the main metric (Dice or mIoU) of each seed.
        share_of_all: the mean divided by that of the better control with all labels; None if there is no such run.
        over_mean_teacher: difference to the mean teacher with the same amount; None for controls and teachers.
        over_control: difference to the control that is best in validation and no mean teacher; None likewise.
    """

    amount: Amount
    student: str
    arm: Arm
    values: tuple[float, ...]
    share_of_all: float | None
    over_mean_teacher: Difference | None
    over_control: Difference | None

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return fmean(self.values)


def labelled_count(comparison: Comparison, dataset_dir: str | os.PathLike[str] | None = None) -> float | None:
    """Return how many labelled patients the runs of a comparison learned from, the mean over folds; None for all.

    All are those whom `dataset_dir` has labels of: cases that nobody labelled are not hidden.
    """
    recipes = [part.recipe for arm in comparison.arms for part in arm.parts]
    lists = [recipe.get("labelled_patients") for recipe in recipes]
    if any(one is None for one in lists):
        return None
    if dataset_dir is not None and lists == [_labelled_in(dataset_dir, recipe.get("patients")) for recipe in recipes]:
        return None
    return fmean(map(len, lists))


def _labelled_in(dataset_dir: str | os.PathLike[str], patients: Mapping[str, Any] | None) -> list[str]:
    """Return the patients of a dataset, or of a fold of it, whose training cases have a label."""
    return load_dataset(dataset_dir, patients=patients).labelled_patients


def efficiency_rows(amounts: Sequence[Amount]) -> list[EfficiencyRow]:
    """Return the rows of all students: amounts in their order, in each the teacher, the controls and the methods."""
    students = dict.fromkeys(arm.network for amount in amounts for arm in amount.comparison.arms if arm.role != TEACHER)
    return [row for student in students for amount in amounts for row in _rows(student, amount, amounts)]


def _rows(student: str, amount: Amount, amounts: Sequence[Amount]) -> list[EfficiencyRow]:
    comparison = amount.comparison
    metric = main_metric(comparison.kind)
    draws = PairedDraws(len(comparison.cases), comparison.patients)
    all_labels = _with_all_labels(student, amounts)
    references = {
        "over_mean_teacher": _mean_teacher(comparison, student),
        "over_control": _control(comparison, student),
    }
    rows = []
    for arm in comparison.arms:
        if arm.role != TEACHER and arm.network != student:
            continue
        values = tuple(metric.values(arm))
        is_method = arm.role not in (TEACHER, ALONE)
        differences = {
            name: None if reference is None or not is_method else draws.difference(metric, arm, reference)
            for name, reference in references.items()
        }
        share = None if all_labels is None else fmean(values) / fmean(metric.values(all_labels))
        rows.append(EfficiencyRow(amount, student, arm, values, share, **differences))
    return rows


def _with_all_labels(student: str, amounts: Sequence[Amount]) -> Arm | None:
    """Return the better control of a student in the comparison where no label was hidden."""
    complete = [amount.comparison for amount in amounts if amount.patients is None]
    return _control(complete[0], student) if complete else None


def _mean_teacher(comparison: Comparison, student: str) -> Arm | None:
    return next((arm for arm in comparison.controls(student) if arm.method == MEAN_TEACHER), None)


def _control(comparison: Comparison, student: str) -> Arm | None:
    """Return the better control by validation among those that learn from labels alone."""
    return best_in_validation([arm for arm in comparison.controls(student) if arm.method != MEAN_TEACHER])


def verdict(rows: Sequence[EfficiencyRow]) -> str:
    """Return some sentences for each student: what a teacher gives with the fewest labels, and which suffice.

    Of several methods, the one that is best in validation with the fewest labels is told, and beside it a student that
    trained for longer without a teacher. Empty where no method has a student alone beside it.
    """
    told = []
    for student in dict.fromkeys(row.student for row in rows):
        compared = [row for row in rows if row.student == student and row.over_control is not None]
        fewest = [row for row in compared if row.amount is compared[0].amount]
        if fewest:
            best = best_in_validation([row.arm for row in fewest])
            first = next(row for row in fewest if row.arm is best)
            told += _told(first, rows)
    return " ".join(told)


def _told(first: EfficiencyRow, rows: Sequence[EfficiencyRow]) -> list[str]:
    """Return the sentences about the arm of `first`, its row with the fewest labels, beside the `rows` of all."""
    metric = main_metric(first.amount.comparison.kind)
    mine = [row for row in rows if row.student == first.student]
    control = _control(first.amount.comparison, first.student)
    change = f"{first.over_control.value:+.3f} over {control.label}"
    if first.over_control.includes_zero is not False:
        change += ", which is not significant"
    sentences = [f"With {first.amount.label}, {first.arm.label} has {metric.title} {first.mean:.3f} ({change})."]
    beside = [(row.arm, row.mean) for row in mine if row.amount is first.amount]
    sentences += longer_trained(metric, beside, first.arm)
    arm = [row for row in mine if row.arm.label == first.arm.label]
    enough = [row for row in arm if row.share_of_all is not None and row.share_of_all >= ENOUGH]
    if enough:
        reached = f"{100 * enough[0].share_of_all:.0f} % of the student alone with all labels"
        sentences.append(f"With {enough[0].amount.label} it reaches {reached}.")
    return sentences


def by_arm(rows: Sequence[EfficiencyRow], student: str) -> Mapping[str, list[EfficiencyRow]]:
    """Return the rows of a student by the label of their arm."""
    found: dict[str, list[EfficiencyRow]] = {}
    for row in rows:
        if row.student == student:
            found.setdefault(row.arm.label, []).append(row)
    return found
