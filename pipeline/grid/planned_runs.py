# SPDX-License-Identifier: Apache-2.0
"""The runs of a grid: each a few commands that users could type, a folder, and a file that proves it done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.data import load_dataset
from pipeline.distillation import needs_paraphrasers, needs_teacher
from pipeline.grid.arms import Student, is_alone, same_but_for_time
from pipeline.grid.equal_time import EqualTime
from pipeline.grid.labels import LABELLED
from pipeline.networks import tap_channels

TEACHER = "teacher"
TRAIN = "train"  # all other configs of a grid are overlays on it
PARAPHRASER_FILE, REPORT_FILE = "paraphraser.pt", "summary.json"
# Each run's checkpoints and the folders of their reports; the last proves the run done.
REPORTS = {"model.pt": "report", "model_last.pt": "report_last"}
# What all trainings of a grid share and a paraphraser's has too; its learning rate is its own.
_SHARED_WITH_PARAPHRASER = (
    *("batch_size", "epoch_iterations", "augmentation", "precision", "cache_dir", "patients", "device"),
    *LABELLED,
)
_SHARED_WITH_EVALUATION = ("patients", "device")


@dataclass(frozen=True)
class Step:
    """One command of a bundle: the name of its config or of the overlay on train.yaml, and the options given to it.

    `equal_time` tells how many epochs a training has that must take as long as another; None leaves it to `options`.
    """

    config: str
    options: Mapping[str, Any]
    equal_time: EqualTime | None = None

    def config_files(self, folder: Path) -> list[str]:
        """Return the files of `--config_file`, in the folder of the bundle's configs."""
        return [str(folder / f"{name}.yaml") for name in dict.fromkeys((TRAIN, self.config))]

    def final_options(self) -> dict[str, Any]:
        """Return the options with all that is known only when the runs that this one needs are done."""
        return {**self.options, **({} if self.equal_time is None else {"epochs": self.equal_time.epochs()})}


@dataclass(frozen=True)
class PlannedRun:
    """One run of the grid.

    Attributes:
        name: also of its folder.
        folder: where it writes.
        steps: its commands, in order; each goes on where an earlier call stopped.
        proof: the file that its last step writes; a run that has it is done.
        arm: its name without that of its fold; the runs of all folds are one.
        needs: names of the runs that must be done before.
        in_comparison: whether it is a row of the comparison.
        amount: the amount of labels that it has, where the grid has several; runs of one amount are compared.
    """

    name: str
    folder: Path
    steps: tuple[Step, ...]
    proof: Path
    arm: str = ""
    needs: tuple[str, ...] = ()
    in_comparison: bool = True
    amount: str = ""

    @property
    def is_done(self) -> bool:
        """Whether the run is there whole."""
        return self.proof.is_file()


@dataclass(frozen=True)
class Recipes:
    """Options of the bundle's configs: `training` for all networks, and what single kinds of runs have beside it."""

    training: Mapping[str, Any]
    teacher: Mapping[str, Any]
    student: Mapping[str, Any]
    paraphraser: Mapping[str, Any]
    evaluation: Mapping[str, Any]


def plan_runs(
    run_dir: str | Path,
    dataset_dir: str,
    students: Mapping[str, Student],
    methods: Mapping[str, Mapping[str, Any] | None],
    first_seed: int,
    folds: Mapping[str, Mapping[str, Any]] | None,
    recipes: Recipes,
    labels: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[PlannedRun]:
    """Return the runs of a grid: of each amount of labels and fold the teacher, students, methods and paraphrasers.

    Students whose taps have the same channels share their paraphrasers, as the seeds do.

    Args:
        run_dir: folder of the grid.
        dataset_dir: folder of the dataset.
        students: name of the network to its methods, seeds and options.
        methods: name to options of distill.yaml, or of train.yaml where they name no method.
        first_seed: of the teachers and the paraphrasers.
        folds: name to the option `patients` of its runs; None or {} is one grid with the dataset's own splits.
        recipes: all other options.
        labels: name of an amount of labels to the options that hide the others; None or {} hides none.

    Raises:
        InputError: a dataset that cannot be read, where it must tell which amounts leave cases without a label.
    """
    root = Path(run_dir)
    grids = [_Fold(root, dataset_dir, "", methods, first_seed, recipes)]
    if labels:
        grids = [grids[0].with_options(name, options, amount=name) for name, options in labels.items()]
    if folds:
        grids = [one.with_options(name, {"patients": patients}) for one in grids for name, patients in folds.items()]
    runs: dict[str, PlannedRun] = {}
    # Seeds outermost: a grid that is stopped early has all methods with fewer seeds, not some methods with all.
    for seed in dict.fromkeys(seed for student in students.values() for seed in student.seeds):
        for fold in grids:
            for name, student in students.items():
                for method in student.methods if seed in student.seeds else ():
                    if fold.lacks_unlabelled(method):
                        continue
                    for run in fold.run_and_what_it_needs(name, student, method, seed):
                        runs.setdefault(run.name, replace(run, amount=fold.amount))
    return list(runs.values())


@dataclass(frozen=True)
class _Fold:
    """The runs on one choice of patients and labels; `prefix` begins their names."""

    root: Path
    dataset_dir: str
    prefix: str
    methods: Mapping[str, Mapping[str, Any] | None]
    first_seed: int
    recipes: Recipes
    amount: str = ""

    def with_options(self, name: str, options: Mapping[str, Any], amount: str | None = None) -> _Fold:
        """Return the same with more options of every training, and a name that begins those of its runs."""
        recipes = replace(self.recipes, training={**self.recipes.training, **options})
        return replace(self, prefix=f"{self.prefix}{name}_", recipes=recipes, amount=amount or self.amount)

    def lacks_unlabelled(self, method: str) -> bool:
        """Return whether a method is to learn from images without a label where this amount leaves none."""
        wanted = (self.methods[method] or {}).get("unlabelled_share", 0)
        return bool(self.amount and wanted) and not self._has_unlabelled

    @cached_property
    def _has_unlabelled(self) -> bool:
        """Whether training cases lack a label, by nature or because this amount hides it."""
        chosen = {key: value for key, value in self.recipes.training.items() if key in ("patients", *LABELLED)}
        return bool(load_dataset(self.dataset_dir, **chosen).unlabelled_cases)

    def run_and_what_it_needs(self, name: str, student: Student, method: str, seed: int) -> list[PlannedRun]:
        """Return the teacher, where the method needs them the paraphrasers, and the student's run, in this order."""
        arm = {key: value for key, value in (self.methods[method] or {}).items() if key != "time_of"}
        shared = {**self.recipes.training, **self.recipes.student, **student.options}
        options = {**shared, **arm, "arm": method, "seed": seed}
        folder, teacher = self._folder(name, method, seed), self._teacher()
        if is_alone(self.methods[method]):
            options.pop("method", None)
            equal_time = self._equal_time(name, student, method, seed)
            return [teacher, self._trained(folder, TRAIN, {**options, "network": name}, equal_time=equal_time)]
        options["student"] = name
        if not needs_teacher(arm):
            return [teacher, self._trained(folder, "distill", options)]
        options["teacher"] = str(teacher.folder / "model.pt")
        if not needs_paraphrasers(arm):
            return [teacher, self._trained(folder, "distill", options, (teacher.name,))]
        paraphraser = self._paraphraser(name, teacher)
        options["paraphraser"] = str(paraphraser.proof)
        return [teacher, paraphraser, self._trained(folder, "distill", options, (teacher.name, paraphraser.name))]

    def _folder(self, student: str, method: str, seed: int) -> Path:
        return self.root / f"{self.prefix}{student}_{method}_{seed}"

    def _equal_time(self, name: str, student: Student, method: str, seed: int) -> EqualTime | None:
        """Return whose time a run has: None where its arm names no other."""
        other = (self.methods[method] or {}).get("time_of")
        if other is None:
            return None
        alike = same_but_for_time(method, self.methods, student.methods)
        return EqualTime(self._folder(name, other, seed), self._folder(name, alike, seed))

    def _teacher(self) -> PlannedRun:
        options = {**self.recipes.training, **self.recipes.teacher, "seed": self.first_seed}
        return self._trained(self.root / f"{self.prefix}{TEACHER}", TRAIN, options)

    def _paraphraser(self, student: str, teacher: PlannedRun) -> PlannedRun:
        """Return the run that trains the paraphrasers for all students with the taps of this one."""
        folder = self.root / f"{self.prefix}paraphraser_{'x'.join(map(str, tap_channels(student)))}"
        options = {key: value for key, value in self.recipes.training.items() if key in _SHARED_WITH_PARAPHRASER}
        options |= {
            **self.recipes.paraphraser,
            "dataset_dir": self.dataset_dir,
            "run_dir": str(folder),
            "resume": "auto",
            "seed": self.first_seed,
            "student": student,
            "teacher": str(teacher.folder / "model.pt"),
        }
        steps, proof = (Step("paraphrase", options),), folder / PARAPHRASER_FILE
        return PlannedRun(folder.name, folder, steps, proof, folder.name, (teacher.name,), in_comparison=False)

    def _trained(
        self,
        folder: Path,
        config: str,
        options: Mapping[str, Any],
        needs: Sequence[str] = (),
        equal_time: EqualTime | None = None,
    ) -> PlannedRun:
        """Return a run that trains a network, and evaluates it at its best and at its last epoch."""
        training = {"dataset_dir": self.dataset_dir, "run_dir": str(folder), "resume": "auto", **options}
        steps = [Step(config, training, equal_time)]
        for checkpoint, report in REPORTS.items():
            evaluation = {
                **{key: options[key] for key in _SHARED_WITH_EVALUATION if key in options},
                **self.recipes.evaluation,
                "dataset_dir": self.dataset_dir,
                "checkpoint": str(folder / checkpoint),
                "run_dir": str(folder / report),
                "overwrite": True,  # what a run that was stopped left of its report
            }
            steps.append(Step("evaluate", evaluation))
        if equal_time is not None:
            needs = tuple(dict.fromkeys((*needs, equal_time.as_long_as.name, equal_time.alike.name)))
        arm = folder.name.removeprefix(self.prefix)
        return PlannedRun(folder.name, folder, tuple(steps), folder / report / REPORT_FILE, arm, tuple(needs))
