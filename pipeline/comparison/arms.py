# SPDX-License-Identifier: Apache-2.0
"""The arms of a comparison: a teacher, students alone and students with each method."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean
from typing import Any

from pipeline.comparison.folds import pooled
from pipeline.comparison.runs import ALONE, Run, settings_label
from pipeline.data.dataset.dataset import SCANS
from pipeline.distillation import METHODS
from pipeline.errors import InputError

TEACHER = "teacher"
METHOD = "method"
FEW_SEEDS = 3
# Settings that should be equal: users get a note when arms differ in them. The other settings are what is compared.
_MUST_AGREE = (
    *("epochs", "epoch_iterations", "size", "batch_size", "learning_rate", "weight_decay", "loss", "augmentation"),
    *("precision", "labelled_patients"),
)
# Settings that a method may have in its own way; the runs of one arm must agree in them. With what runs without it had.
_OF_AN_ARM = {"unlabelled_share": 0.0, "student_view": "same"}


@dataclass(frozen=True)
class Arm:
    """Runs that differ only in their seeds; `role` is "teacher", "alone" (without a teacher) or "method"."""

    role: str
    network: str
    method: str | None
    runs: tuple[Run, ...]

    @property
    def label(self) -> str:
        """Name for tables and pictures: "teacher FANet 0.25", "ENet alone", "ENet + kd"."""
        if self.role == TEACHER:
            return f"teacher {self.network}"
        if self.role == ALONE:
            return f"{self.network} {self.method or ALONE}"
        return f"{self.network} + {self.method}"

    @property
    def parts(self) -> tuple[Run, ...]:
        """The runs that have a folder: in a cross-validation, the folds of each seed."""
        return tuple(part for run in self.runs for part in run.parts)

    @property
    def validation(self) -> float:
        """The metric by which the runs' checkpoints were chosen, the mean over seeds; NaN if any run lacks it."""
        return fmean(run.validation for run in self.runs)


@dataclass(frozen=True)
class Comparison:
    """Arms on the same cases of one dataset: first the teacher, then each student alone and with its methods.

    `organs` is empty for slides; `notes` are needed to understand the figures. `patients` are those of the cases,
    in their order; empty where they are not known.
    """

    kind: str
    dataset: str
    title: str
    arms: tuple[Arm, ...]
    organs: tuple[str, ...]
    notes: tuple[str, ...]
    patients: tuple[str, ...] = ()

    @property
    def cases(self) -> tuple[str, ...]:
        """Names of the cases, the same for all runs."""
        return self.arms[0].runs[0].cases

    @property
    def teacher(self) -> Arm | None:
        """The teacher's arm, if its run is among the runs."""
        return next((arm for arm in self.arms if arm.role == TEACHER), None)

    @property
    def unit(self) -> str:
        """The unit of bootstrap and tests: patients, if some have several cases, else cases or images."""
        if len(set(self.patients)) < len(self.patients):
            return "patient"
        return "case" if self.kind == SCANS else "image"

    def controls(self, network: str) -> list[Arm]:
        """Return the arms of a student without a teacher, of as many epochs as its methods; at least the first."""
        return controls(self.arms, network)

    def control(self, network: str) -> Arm | None:
        """Return the control that is best in validation, the first if any lacks the metric; None without any."""
        return best_in_validation(self.controls(network))


def controls(arms: Sequence[Arm], network: str) -> list[Arm]:
    """Return what `Comparison.controls` does."""
    mine = [arm for arm in arms if arm.network == network]
    epochs = {run.epochs for arm in mine if arm.role == METHOD for run in arm.parts}
    alone = [arm for arm in mine if arm.role == ALONE]
    # Of the folds: their mean may be a whole number of epochs that none of them had.
    return [arm for arm in alone if {run.epochs for run in arm.parts} <= epochs] or alone[:1]


def best_in_validation(arms: Sequence[Arm]) -> Arm | None:
    """Return the arm that is best in validation, the first if any lacks the metric; None without arms."""
    if any(math.isnan(arm.validation) for arm in arms):
        return arms[0]
    return max(arms, key=lambda arm: arm.validation, default=None)


def arrange(runs: Sequence[Run], title: str | None = None) -> Comparison:
    """Return the arms of some runs, and what must be said about them. Folds of a cross-validation count as one run.

    A run whose model is another run's teacher is the teacher. Other runs of the teacher's network that taught no
    student are left out, with a note, unless that network is a student too.

    Raises:
        InputError: nothing to compare, runs on other data or cases, several teachers' networks, or two runs of equal
            network, method and seed.
    """
    runs = pooled(runs)
    _check_comparable(runs)
    runs = _with_distinct_methods(runs)
    teacher_hashes = {run.teacher_sha256 for run in runs} - {None}
    teachers = [run for run in runs if run.model_sha256 in teacher_hashes]
    if len({run.network for run in teachers}) > 1:
        names = ", ".join(f"{run.network} ({run.path})" for run in teachers)
        raise InputError(f"the runs have several teachers: {names}; compare the students of one teacher at a time")
    students = {run.network for run in runs if not run.is_alone}
    others = {run.network for run in teachers} - students
    left_out = [run for run in runs if run not in teachers and run.is_alone and run.network in others]
    arms = _arms(teachers, [run for run in runs if run not in teachers and run not in left_out])
    notes = (*_notes(arms, teacher_hashes), *(f"{run.path.name} taught nobody and is left out." for run in left_out))
    first = runs[0]
    return Comparison(
        kind=first.kind,
        dataset=first.dataset,
        title=title or _title(arms),
        arms=arms,
        organs=first.organs if first.kind == SCANS else (),
        notes=notes,
    )


def _check_comparable(runs: Sequence[Run]) -> None:
    """Refuse runs that were not scored on the same truth."""
    if len(runs) < 2:
        raise InputError(f"{len(runs)} run given; a comparison needs two or more run folders")
    first = runs[0]
    for run in runs[1:]:
        for what in ("kind", "dataset", "organs", "cases"):
            mine, others = getattr(first, what), getattr(run, what)
            if mine != others:
                raise InputError(
                    f"{first.path} and {run.path} cannot be compared: {_difference(what, mine, others)}; evaluate both "
                    "on the same split of the same dataset"
                )
        size = "pixels_label" if "pixels_label" in first.scores else "volume_label_ml"
        if not first.scores[size].equals(run.scores[size]):
            raise InputError(
                f"{first.path} and {run.path} cannot be compared: their labels differ in size ({size}); evaluate both "
                "on the same copy of the dataset"
            )


def _difference(what: str, mine: Any, others: Any) -> str:
    if isinstance(mine, str):
        return f"the {what} is {mine} and {others}"
    apart = sorted(set(mine) ^ set(others))
    if not apart:
        return f"their {what} have another order"
    return f"{len(mine)} and {len(others)} {what}, {apart[0]} is in one of them alone"


def _with_distinct_methods(runs: Sequence[Run]) -> list[Run]:
    """Return the runs, with the settings in the method's name where two of one name differ in them."""
    named: dict[tuple[str, str | None], set[str]] = {}
    for run in runs:
        named.setdefault((run.network, run.method), set()).add(settings_label(run))
    return [
        run if len(named[run.network, run.method]) == 1 else replace(run, method=f"{run.method} {settings_label(run)}")
        for run in runs
    ]


def _arms(teachers: Sequence[Run], others: Sequence[Run]) -> tuple[Arm, ...]:
    """Return the teacher's arm, then of each network in order of appearance alone and its methods."""
    groups: dict[tuple[str, str, str | None], list[Run]] = {}
    for run in teachers:
        groups.setdefault((TEACHER, run.network, run.method), []).append(run)
    for network in dict.fromkeys(run.network for run in others):
        mine = [run for run in others if run.network == network]
        for run in sorted(mine, key=_method_order):
            groups.setdefault((ALONE if run.is_alone else METHOD, network, run.method), []).append(run)
    arms = [Arm(*key, tuple(sorted(group, key=lambda run: run.seed))) for key, group in groups.items()]
    for arm in arms:
        for run, following in pairwise(arm.runs):
            if run.seed == following.seed:
                raise InputError(
                    f"{run.path} and {following.path} are both {arm.label} of seed {run.seed}; give one of them"
                )
    return tuple(arms)


def _method_order(run: Run) -> tuple[bool, bool, int, str]:
    """Return the sorting key of an arm: alone, other controls, single methods in the order of the catalogue, mixes.

    A name given by a user is sorted like the method whose name it begins with, if any.
    """
    label = run.method or ""
    places = [place for place, name in enumerate(METHODS) if re.match(rf"{name}([ _-]|$)", label)]
    place = max(places, default=len(METHODS)) if label else -1
    return not run.is_alone, " + " in label, place, label


def _title(arms: Sequence[Arm]) -> str:
    run = arms[0].runs[0]
    seeds = sorted({len(arm.runs) for arm in arms if arm.role != TEACHER} or {1})
    count = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    return f"Does a teacher help? {run.dataset}: {_cases(run)}, {count} {'seed' if count == '1' else 'seeds'}"


def _cases(run: Run) -> str:
    """Return how many cases a run has, "1 image" or "12 cases"."""
    unit = "case" if run.kind == SCANS else "image"
    return f"{len(run.cases)} {unit}{'' if len(run.cases) == 1 else 's'}"


def _notes(arms: Sequence[Arm], teacher_hashes: set[str | None]) -> list[str]:
    run = arms[0].runs[0]
    notes = [f"All figures are over the same {_cases(run)} of {run.dataset}."]
    few = [f"{arm.label} {len(arm.runs)}" for arm in arms if arm.role != TEACHER and len(arm.runs) < FEW_SEEDS]
    if few:
        notes.append(
            f"Fewer than {FEW_SEEDS} seeds ({', '.join(few)}): another seed may turn a small difference round."
        )
    notes += [*_fold_notes(run), *_seed_notes(arms), *_control_notes(arms)]
    notes += [note for setting in _MUST_AGREE if (note := _setting_note(arms, setting))]
    notes += [note for setting in _OF_AN_ARM for arm in arms if (note := _arm_note(arm, setting))]
    known = {run.model_sha256 for arm in arms for run in arm.runs}
    if teacher_hashes - known:
        missing = ", ".join(sorted(str(sha256)[:12] for sha256 in teacher_hashes - known))
        notes.append(f"A teacher (model {missing}) is not among the runs; its students have no share of a gap.")
    return notes


def _fold_notes(run: Run) -> list[str]:
    if not run.folds:
        return []
    return [
        f"Each case was tested by the one of {len(run.folds)} folds that had not learned from it; a fold has networks "
        "and a teacher of its own."
    ]


def _control_notes(arms: Sequence[Arm]) -> list[str]:
    """Return which of several controls each student is compared with, and why."""
    told = []
    for network in dict.fromkeys(arm.network for arm in arms if arm.role == METHOD):
        choice = controls(arms, network)
        scores = ", ".join(f"{arm.label} {arm.validation:.4f}" for arm in choice)
        if len(choice) > 1 and "nan" not in scores:
            told.append(
                f"The better control of {network} by validation is {best_in_validation(choice).label} ({scores})."
            )
        elif len(choice) > 1:
            told.append(f"The runs do not tell which control of {network} is better; {choice[0].label} is taken.")
    return told


def _seed_notes(arms: Sequence[Arm]) -> list[str]:
    """Return a note for each method that has other seeds than the same network alone."""
    seeds = {(arm.network, arm.method): [run.seed for run in arm.runs] for arm in arms if arm.role != TEACHER}
    return [
        f"{arm.label} has the seeds {_listed(seeds[arm.network, arm.method])}, {arm.network} alone "
        f"{_listed(seeds[arm.network, None])}."
        for arm in arms
        if arm.role == METHOD and seeds.get((arm.network, None)) not in (None, seeds[arm.network, arm.method])
    ]


def _setting_note(arms: Sequence[Arm], setting: str) -> str | None:
    """Return a note where arms, or runs of one arm, differ in a setting that should be the same for all."""
    values = {arm.label: _values(arm, setting) for arm in arms}
    if len(Counter(map(str, values.values()))) == 1 and all(len(value) == 1 for value in values.values()):
        return None
    told = "; ".join(f"{label}: {_listed(value)}" for label, value in values.items())
    return f"The arms differ in {setting.replace('_', ' ')}: {told}."


def _arm_note(arm: Arm, setting: str) -> str | None:
    """Return a note where the runs of one arm differ in a setting."""
    values = _values(arm, setting)
    return f"The runs of {arm.label} differ in {setting.replace('_', ' ')}: {_listed(values)}." if values[1:] else None


def _values(arm: Arm, setting: str) -> list[Any]:
    """Return the different values of a setting in the runs of an arm, as they are told."""
    if setting == "labelled_patients":
        values = [" / ".join(_labelled(part.recipe.get(setting)) for part in run.parts) for run in arm.runs]
    else:
        values = [run.recipe.get(setting, _OF_AN_ARM.get(setting)) for run in arm.runs]
    return list(dict.fromkeys(values))


def _labelled(patients: Sequence[str] | None) -> str:
    """Return labelled patients as a note tells them, "2 (p1, p7)"; None stands for all that there are."""
    return "all" if patients is None else f"{len(patients)} ({_listed(patients)})"


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))
