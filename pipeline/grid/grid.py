# SPDX-License-Identifier: Apache-2.0
"""The grid of a benchmark config: checked, run as far as time allows, compared."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from pipeline.configuration import check_overrides
from pipeline.data import load_dataset
from pipeline.errors import InputError
from pipeline.files.atomic import replace_when_complete, write_json
from pipeline.files.spreadsheets import with_apostrophe
from pipeline.grid.arms import check_names, read_students
from pipeline.grid.labels import LABELLED, check_labels
from pipeline.grid.planned_runs import PlannedRun, Recipes, Step, plan_runs
from pipeline.grid.workers import Outcome, execute_runs

logger = logging.getLogger(__name__)
GRID_FILE, FAILURES_FILE = "benchmark.json", "failures.csv"
SOME_FAILED, NOT_FINISHED = 1, 3


@dataclass(frozen=True)
class Grid:
    """Networks, methods, seeds and folds to compare, and the options of their runs.

    Attributes:
        dataset_dir: folder of the dataset.
        run_dir: folder of the grid; each run has a folder in it.
        configs: folder of the bundle's configs.
        students: names of networks, or name to its own `methods` (names), `seeds` and `options`.
        methods: name to options of distill.yaml; None, or options with `method: None`, is training alone (train.yaml).
            `time_of` there names a method: the run then has as many epochs as fit in the time of that one's.
        seeds: seeds of the students; the teacher and the paraphrasers have the first.
        folds: name to the option `patients` of its runs, each fold with a teacher of its own; None is the dataset's
            own splits.
        labels: name of an amount of labels to the options of train.yaml that hide the others, {} for all labels. Each
            amount has teachers and students of its own, and is compared by itself.
        training: options of every training, of train.yaml and distill.yaml alike.
        teacher: more options of the teacher.
        student: more options of the students.
        paraphraser: options of paraphrase.yaml.
        evaluation: options of evaluate.yaml.
    """

    dataset_dir: str
    run_dir: str
    configs: str
    students: Sequence[str] | Mapping[str, Mapping[str, Any] | None]
    methods: Mapping[str, Mapping[str, Any] | None]
    seeds: Sequence[int] = (0, 1, 2)
    folds: Mapping[str, Mapping[str, Any]] | None = None
    labels: Mapping[str, Mapping[str, Any]] | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    teacher: Mapping[str, Any] = field(default_factory=dict)
    student: Mapping[str, Any] = field(default_factory=dict)
    paraphraser: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)

    def planned_runs(self) -> list[PlannedRun]:
        """Return all runs; `InputError` for lists that are empty or name a thing twice, and names unfit for folders."""
        students = read_students(self.students, self.methods, self.seeds)
        if self.folds:
            check_names("folds", list(self.folds))
        if self.labels:
            check_labels(self.labels, self.training)
        recipes = Recipes(self.training, self.teacher, self.student, self.paraphraser, self.evaluation)
        return plan_runs(
            self.run_dir, self.dataset_dir, students, self.methods, self.seeds[0], self.folds, recipes, self.labels
        )


def run_grid(
    grid: Grid,
    compare: Callable[[Any], None],
    jobs: int = 1,
    minutes: float | None = None,
    threads: int | None = None,
) -> None:
    """Run what is not done of a grid, then compare what is.

    Ends the process with code 1 if runs failed (`failures.csv` says why) and 3 if time was up before all were done: the
    same command then goes on.

    Args:
        grid: what to run.
        compare: writes the comparison of some run folders; of a grid with several amounts of labels, it is given the
            folders by the name of the amount.
        jobs: runs at once.
        minutes: time to stop after.
        threads: of torch in each run; by default the cores divided by the jobs.

    Raises:
        InputError: an option that no config has, a fold of patients who are not there, or a folder with a grid of other
            settings.
    """
    runs = grid.planned_runs()
    _check_options(Path(grid.configs), runs)
    if grid.folds or grid.labels:
        for patients, labels in product((grid.folds or {"": None}).values(), (grid.labels or {"": {}}).values()):
            load_dataset(grid.dataset_dir, patients=patients, **labels)  # or a patient misspelt would show hours later
    _check_same_grid(grid)
    outcome = execute_runs(runs, Path(grid.configs), jobs, None if minutes is None else 60 * minutes, threads)
    _write_failures(Path(grid.run_dir), outcome)
    amounts = {name: [run for run in runs if run.amount == name] for name in grid.labels or ("",)}
    comparable = {name: done for name, members in amounts.items() if (done := _comparable(members, outcome))}
    if comparable:
        compare(comparable if grid.labels else comparable[""])
    logger.info("%d of %d runs are done, %d failed", len(outcome.done), len(runs), len(outcome.failed))
    if outcome.failed:
        raise SystemExit(SOME_FAILED)
    if outcome.left:
        logger.info("time is up: the same command goes on with %s", ", ".join(outcome.left))
        raise SystemExit(NOT_FINISHED)


def _comparable(runs: Sequence[PlannedRun], outcome: Outcome) -> list[Path]:
    """Return the folders of the arms that are done in all folds; none if that is one arm, with nothing beside it.

    An arm that lacks a fold was tested on fewer cases.
    """
    compared = [run for run in runs if run.in_comparison]
    unfinished = {run.arm for run in compared if run.name not in outcome.done}
    done = [run for run in compared if run.arm not in unfinished]
    return [run.folder for run in done] if len({run.arm for run in done}) > 1 else []


def _check_options(configs: Path, runs: Sequence[PlannedRun]) -> None:
    """Check the options of all runs before the first begins, as each run's command would; runs that are alike, once."""
    differing = {"run_dir", "checkpoint", "teacher", "paraphraser", "patients", "arm", "seed", "student", "network"}
    differing.update(LABELLED)
    kinds: dict[tuple[str, str], Step] = {}
    for step in (step for run in runs for step in run.steps):
        alike = {name: value for name, value in step.options.items() if name not in differing}
        kinds.setdefault((step.config, repr(alike)), step)
    for step in kinds.values():
        check_overrides(_arguments(configs, step))


def _arguments(configs: Path, step: Step) -> list[str]:
    """Return a step as the command line that a user would type."""
    options = {"config_file": step.config_files(configs), **step.options}
    return [f"--{name}={value if isinstance(value, str) else repr(value)}" for name, value in options.items()]


def _check_same_grid(grid: Grid) -> None:
    """Refuse to go on with a grid of other settings, since its finished runs would not be comparable with the rest.

    Students, methods, seeds and folds may be added; a method or fold that was there must be the same.
    """
    file = Path(grid.run_dir) / GRID_FILE
    settings, before = _settings(grid), _read_settings(file)
    for name, value in settings.items():
        if before.get(name, value) != value:
            raise InputError(
                f"{grid.run_dir} holds a grid with other settings: {name} was {before[name]}, is {value}; "
                "choose another --run_dir"
            )
    write_json(file, {**before, **settings})


def _settings(grid: Grid) -> dict[str, Any]:
    """Return what must not change between the calls of one grid, as JSON primitives with flat names."""
    kinds = ("training", "teacher", "student", "paraphraser", "evaluation")
    students = read_students(grid.students, grid.methods, grid.seeds)
    settings = {
        "dataset_dir": str(Path(grid.dataset_dir).resolve()),
        "first seed": grid.seeds[0],
        **{kind: dict(getattr(grid, kind)) for kind in kinds},
        **{f"method {name}": options and dict(options) for name, options in grid.methods.items()},
        **{f"fold {name}": patients for name, patients in (grid.folds or {}).items()},
        **{f"labels {name}": options for name, options in (grid.labels or {}).items()},
        **{f"options of {name}": student.options for name, student in students.items()},
    }
    settings["training"].pop("cache_dir", None)  # where it lies changes nothing: a grid's folder may be moved
    return json.loads(json.dumps(settings))


def _read_settings(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        settings = dict(json.loads(file.read_text(encoding="utf-8")))
        settings.get("training", {}).pop("cache_dir", None)  # older files have it
        return settings
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is damaged; choose another --run_dir") from error


def _write_failures(run_dir: Path, outcome: Outcome) -> None:
    file = run_dir / FAILURES_FILE
    file.unlink(missing_ok=True)
    if outcome.failed:
        with replace_when_complete(file) as temporary, open(temporary, "w", newline="", encoding="utf-8") as lines:
            rows = [("run", "error"), *sorted(outcome.failed.items())]
            csv.writer(lines).writerows(map(with_apostrophe, row) for row in rows)
