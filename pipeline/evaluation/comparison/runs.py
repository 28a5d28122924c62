# SPDX-License-Identifier: Apache-2.0
"""Finished runs, and how they are set against each other: a teacher, students alone and students with each method."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.data.dataset import SCANS
from pipeline.distillation import METHODS
from pipeline.errors import InputError
from pipeline.evaluation.comparison import run_files
from pipeline.evaluation.provenance import sha256_of
from pipeline.networks import NETWORKS, load_model

TEACHER = "teacher"
ALONE = "alone"
METHOD = "method"
FEW_SEEDS = 3
_NAMES = {"mobile_unet": "Mobile U-Net"}
# Settings of which users are told when arms differ in them; the others are what is compared.
_MUST_AGREE = ("epochs", "size", "batch_size", "learning_rate", "weight_decay", "loss", "augmentation", "precision")


@dataclass(frozen=True, eq=False)
class Run:
    """One finished run with its report; a run is equal to itself alone.

    Attributes:
        path: the run's folder.
        network: as users name it, such as "ENet" or "FANet 0.25".
        method: None for training alone; else "graph_flow", "graph_flow (paper)", "kd", or a mix such as
            "graph_flow + 0.5 kd".
        seed: of the training.
        model_sha256: of `checkpoint`.
        teacher_sha256: of the teacher's model file; None for training alone.
        kind: "scans" or "slides".
        dataset: its name.
        epochs: of the training.
        scores: the report's table of cases (`per_case.csv` or `per_image.csv`) by case and label value, with a column
            `hd95_penalised_mm` or `hd95_penalised_px`.
        summary: the report's `summary.json`.
        report: the report's folder.
        checkpoint: `model.pt`.
        tensorboard: folder of the event files; it need not exist.
        recipe: all settings of the training.
    """

    path: Path
    network: str
    method: str | None
    seed: int
    model_sha256: str
    teacher_sha256: str | None
    kind: str
    dataset: str
    epochs: int
    scores: pd.DataFrame = field(repr=False)
    summary: dict[str, Any] = field(repr=False)
    report: Path
    checkpoint: Path
    tensorboard: Path
    recipe: Mapping[str, Any] = field(repr=False, default_factory=dict)

    @property
    def cases(self) -> tuple[str, ...]:
        """Names of the cases or images that were scored, in order."""
        return tuple(sorted(set(self.scores[run_files.CASE_COLUMN[self.kind]])))

    @property
    def organs(self) -> tuple[str, ...]:
        """Names of the organs or classes, by label value."""
        return tuple(dict.fromkeys(self.scores[run_files.ORGAN_COLUMN[self.kind]]))


@dataclass(frozen=True)
class Arm:
    """Runs that differ in their seeds alone; `role` is "teacher", "alone" or "method"."""

    role: str
    network: str
    method: str | None
    runs: tuple[Run, ...]

    @property
    def label(self) -> str:
        """Name for tables and pictures: "teacher FANet 0.25", "ENet alone", "ENet + kd"."""
        if self.role == TEACHER:
            return f"teacher {self.network}"
        return f"{self.network} alone" if self.method is None else f"{self.network} + {self.method}"


@dataclass(frozen=True)
class Comparison:
    """Arms on the same cases of one dataset: the teacher first, then of each student alone and its methods.

    `organs` is empty for slides; `notes` say what must be known to read the figures.
    """

    kind: str
    dataset: str
    title: str
    arms: tuple[Arm, ...]
    organs: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def cases(self) -> tuple[str, ...]:
        """Names of the cases, the same for all runs."""
        return self.arms[0].runs[0].cases

    @property
    def teacher(self) -> Arm | None:
        """The teacher's arm, if its run is among the runs."""
        return next((arm for arm in self.arms if arm.role == TEACHER), None)

    def alone(self, network: str) -> Arm | None:
        """Return the arm of a student trained alone, if there is one."""
        return next((arm for arm in self.arms if arm.role == ALONE and arm.network == network), None)


def read_runs(paths: Iterable[str | os.PathLike[str]]) -> list[Run]:
    """Return the runs in some folders, in the order given.

    Raises `InputError` for a folder without `run.json`, `model.pt` or `report`, and for files that are damaged or
    belong to another run.
    """
    return [_read_run(Path(path)) for path in paths]


def arrange(runs: Sequence[Run], title: str | None = None) -> Comparison:
    """Return the arms of some runs, and what must be said about them.

    A run whose model is another run's teacher is the teacher. Further runs of its network that taught nobody are left
    out, and a note says so, unless that network is a student too.

    Raises:
        InputError: nothing to compare, runs on other data or cases, several teachers' networks, or two runs of equal
            network, method and seed.
    """
    _check_comparable(runs)
    runs = _told_apart(runs)
    taught = {run.teacher_sha256 for run in runs} - {None}
    teachers = [run for run in runs if run.model_sha256 in taught]
    if len({run.network for run in teachers}) > 1:
        names = ", ".join(f"{run.network} ({run.path})" for run in teachers)
        raise InputError(f"the runs have several teachers: {names}; compare the students of one teacher at a time")
    students = {run.network for run in runs if run.method is not None}
    others = {run.network for run in teachers} - students
    left_out = [run for run in runs if run not in teachers and run.method is None and run.network in others]
    arms = _arms(teachers, [run for run in runs if run not in teachers and run not in left_out])
    notes = (*_notes(arms, taught), *(f"{run.path.name} taught nobody and is left out." for run in left_out))
    first = runs[0]
    return Comparison(
        kind=first.kind,
        dataset=first.dataset,
        title=title or _title(arms),
        arms=arms,
        organs=first.organs if first.kind == SCANS else (),
        notes=notes,
    )


def method_label(distillation: Mapping[str, Any] | None) -> str | None:
    """Return the name of a recipe's method or mix of methods, weights of one left out; None for training alone."""
    if not distillation:
        return None
    preset = distillation.get("preset")
    parts = []
    for name, content in (distillation.get("methods") or {distillation["method"]: 1}).items():
        weight = content.get("weight", 1) if isinstance(content, Mapping) else content
        full = f"{name} ({preset})" if name == "graph_flow" and preset == "paper" else name
        parts.append(full if float(weight) == 1 else f"{float(weight):g} {full}")
    return " + ".join(parts)


def network_label(arguments: Mapping[str, Any]) -> str:
    """Return a network's name as users write it, with the options that it was built with: "FANet 0.25"."""
    name = arguments["name"]
    network_class = NETWORKS.get(name)
    label = _NAMES.get(name) or (network_class.__name__ if network_class else name.rpartition(".")[2])
    options = {
        option: value
        for option, value in arguments.items()
        if option not in ("name", "in_channels", "out_channels", "taps", "spatial_dims") and value is not None
    }
    width = options.pop("width", 1)
    return " ".join([label, *([] if width == 1 else [f"{width:g}"]), *(f"{key}={options[key]}" for key in options)])


def _read_run(path: Path) -> Run:
    run_files.read_record(path)
    report, checkpoint = path / "report", path / "model.pt"
    kind = run_files.report_kind(report)
    summary = run_files.read_summary(report, sha256_of(checkpoint))
    scores = run_files.read_scores(report, kind, summary)
    model = load_model(checkpoint)
    recipe = model.extra.get("recipe")
    if not isinstance(recipe, Mapping) or not {"seed", "epochs"} <= set(recipe):
        raise InputError(f"{checkpoint} does not say how it was trained; give runs of train.yaml and distill.yaml")
    distillation = recipe.get("distillation") or {}
    return Run(
        path=path,
        network=network_label(model.network_arguments),
        method=method_label(distillation),
        seed=recipe["seed"],
        model_sha256=model.sha256,
        teacher_sha256=distillation.get("teacher_sha256"),
        kind=kind,
        dataset=str(summary.get("dataset")),
        epochs=recipe["epochs"],
        scores=scores,
        summary=summary,
        report=report,
        checkpoint=checkpoint,
        tensorboard=path / "tensorboard",
        recipe=recipe,
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


def _told_apart(runs: Sequence[Run]) -> list[Run]:
    """Return the runs, with the settings in the method's name where two of one name differ in them."""
    named: dict[tuple[str, str | None], set[str]] = {}
    for run in runs:
        named.setdefault((run.network, run.method), set()).add(_settings_label(run))
    return [
        run if len(named[run.network, run.method]) == 1 else replace(run, method=f"{run.method} {_settings_label(run)}")
        for run in runs
    ]


def _settings_label(run: Run) -> str:
    """Return the settings of a run's methods beside their weights, as "(adversarial=0)"."""
    distillation = run.recipe.get("distillation") or {}
    settings = dict(distillation.get("settings") or {})
    for name, content in (distillation.get("methods") or {}).items():
        if isinstance(content, Mapping):
            settings.update({f"{name} {key}": value for key, value in content.items() if key != "weight"})
    return f"({', '.join(f'{key}={value}' for key, value in sorted(settings.items())) or 'defaults'})"


def _arms(teachers: Sequence[Run], others: Sequence[Run]) -> tuple[Arm, ...]:
    """Return the teacher's arm, then of each network in order of appearance alone and its methods."""
    groups: dict[tuple[str, str, str | None], list[Run]] = {}
    for run in teachers:
        groups.setdefault((TEACHER, run.network, run.method), []).append(run)
    for network in dict.fromkeys(run.network for run in others):
        mine = [run for run in others if run.network == network]
        for run in sorted(mine, key=_method_order):
            groups.setdefault((ALONE if run.method is None else METHOD, network, run.method), []).append(run)
    arms = [Arm(*key, tuple(sorted(group, key=lambda run: run.seed))) for key, group in groups.items()]
    for arm in arms:
        for run, following in pairwise(arm.runs):
            if run.seed == following.seed:
                raise InputError(
                    f"{run.path} and {following.path} are both {arm.label} of seed {run.seed}; give one of them"
                )
    return tuple(arms)


def _method_order(run: Run) -> tuple[bool, int, str]:
    """Return where a method comes: none, single ones in the order of the catalogue, mixes."""
    label = run.method or ""
    names = list(METHODS)
    first = label.split(" ")[0]
    return " + " in label, -1 if not label else names.index(first) if first in names else len(names), label


def _title(arms: Sequence[Arm]) -> str:
    run = arms[0].runs[0]
    seeds = sorted({len(arm.runs) for arm in arms if arm.role != TEACHER} or {1})
    count = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    return f"{run.dataset}: {_cases(run)}, {count} {'seed' if count == '1' else 'seeds'}"


def _cases(run: Run) -> str:
    """Return how many cases a run has, "1 image" or "12 cases"."""
    unit = "case" if run.kind == SCANS else "image"
    return f"{len(run.cases)} {unit}{'' if len(run.cases) == 1 else 's'}"


def _notes(arms: Sequence[Arm], taught: set[str | None]) -> list[str]:
    run = arms[0].runs[0]
    notes = [f"All figures are over the same {_cases(run)} of {run.dataset}."]
    few = [f"{arm.label} {len(arm.runs)}" for arm in arms if arm.role != TEACHER and len(arm.runs) < FEW_SEEDS]
    if few:
        notes.append(
            f"Fewer than {FEW_SEEDS} seeds ({', '.join(few)}): another seed may turn a small difference round."
        )
    notes += _seed_notes(arms)
    notes += [note for setting in _MUST_AGREE if (note := _setting_note(arms, setting))]
    known = {run.model_sha256 for arm in arms for run in arm.runs}
    if taught - known:
        missing = ", ".join(sorted(str(sha256)[:12] for sha256 in taught - known))
        notes.append(f"A teacher (model {missing}) is not among the runs; its students have no share of a gap.")
    return notes


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
    values = {arm.label: list(dict.fromkeys(run.recipe.get(setting) for run in arm.runs)) for arm in arms}
    if len(Counter(str(value) for value in values.values())) == 1 and all(len(value) == 1 for value in values.values()):
        return None
    told = "; ".join(f"{label}: {_listed(value)}" for label, value in values.items())
    return f"The arms differ in {setting.replace('_', ' ')}: {told}."


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))
