# SPDX-License-Identifier: Apache-2.0
"""Finished runs, read from their folders."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.comparison import run_files
from pipeline.errors import InputError
from pipeline.networks import NETWORKS, load_model

BALANCED = "alone_balanced"  # the name of a run with --balance and without a given name
ALONE = "alone"
_NAMES = {"mobile_unet": "Mobile U-Net"}


@dataclass(frozen=True, eq=False)
class Run:
    """One finished run with its report; a run is only equal to itself.

    Attributes:
        path: the run's folder.
        network: as users name it, such as "ENet" or "FANet 0.25".
        method: the name that the run was given (option `arm`), else by its distillation "graph_flow",
            "graph_flow (paper)", "kd", or a mix such as "graph_flow + 0.5 kd"; None for training alone without a name.
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
        validation: the metric by which `checkpoint` was chosen; NaN if it is not stored.
        last: the run as it was after its last epoch, with the report in `report_last`; None without one.
        folds: the runs that were joined into this one; empty for a single run.
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
    validation: float = math.nan
    last: Run | None = field(repr=False, default=None)
    folds: tuple[Run, ...] = field(repr=False, default=())

    @property
    def is_alone(self) -> bool:
        """Whether it was trained without a teacher."""
        return self.teacher_sha256 is None

    @property
    def parts(self) -> tuple[Run, ...]:
        """The runs that have a folder: its folds, or itself."""
        return self.folds or (self,)

    def of_case(self, case: str) -> Run:
        """Return the run that was tested on a case: its fold, or itself."""
        return next((run for run in self.folds if case in run.cases), self)

    @property
    def cases(self) -> tuple[str, ...]:
        """Names of the cases or images that were scored, in order."""
        return tuple(sorted(set(self.scores[run_files.CASE_COLUMN[self.kind]])))

    @property
    def organs(self) -> tuple[str, ...]:
        """Names of the organs or classes, by label value."""
        return tuple(dict.fromkeys(self.scores[run_files.ORGAN_COLUMN[self.kind]]))


def read_runs(paths: Iterable[str | os.PathLike[str]]) -> list[Run]:
    """Return the runs in some folders, in the order given.

    Raises `InputError` for a folder without `run.json`, `model.pt` or `report`, and for files that are damaged or
    belong to another run.
    """
    read = [_read_run(Path(path)) for path in paths]
    labels = network_labels([arguments for _, arguments in read])
    return [replace(run, network=label) for (run, _), label in zip(read, labels, strict=True)]


def method_label(distillation: Mapping[str, Any] | None) -> str | None:
    """Return the name of a recipe's method or mix of methods, weights of one left out; None for training alone."""
    if not distillation:
        return None
    preset = distillation.get("preset")
    parts = []
    for name, content in _methods(distillation).items():
        weight = content.get("weight", 1) if isinstance(content, Mapping) else content
        full = f"{name} ({preset})" if name == "graph_flow" and preset == "paper" else name
        parts.append(full if float(weight) == 1 else f"{float(weight):g} {full}")
    return " + ".join(parts)


def _methods(distillation: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the methods of a recipe by name, each with its weight or its settings."""
    if distillation.get("methods"):
        return distillation["methods"]
    if distillation.get("method") is not None:
        return {distillation["method"]: 1}
    return distillation.get("terms") or {}


def network_label(arguments: Mapping[str, Any]) -> str:
    """Return a network's name as users write it, with the options that it was built with: "FANet 0.25"."""
    name = arguments["name"]
    arguments = {key: value for key, value in {**arguments, **arguments.get("options", {})}.items() if key != "options"}
    network_class = NETWORKS.get(name)
    label = _NAMES.get(name) or (network_class.__name__ if network_class else name.rpartition(".")[2])
    options = {
        option: value
        for option, value in arguments.items()
        if option not in ("name", "in_channels", "out_channels", "taps", "spatial_dims") and value is not None
    }
    width = options.pop("width", 1)
    return " ".join([label, *([] if width == 1 else [f"{width:g}"]), *(f"{key}={options[key]}" for key in options)])


def network_labels(networks: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the labels of some networks; of MONAI's, options that all of one class have alike are left out."""
    alike: dict[str, set[str]] = {}
    for arguments in networks:
        same = {option for option, value in arguments.items() if "." in arguments["name"] and option != "name"}
        for other in networks:
            if other["name"] == arguments["name"]:
                same = {option for option in same if option in other and other[option] == arguments[option]}
        alike[arguments["name"]] = same
    return [
        network_label({option: value for option, value in arguments.items() if option not in alike[arguments["name"]]})
        for arguments in networks
    ]


def settings_label(run: Run) -> str:
    """Return the settings of a run's methods beside their weights, as "(adversarial=0)"."""
    distillation = run.recipe.get("distillation") or {}
    settings = dict(distillation.get("settings") or {})
    for name, content in _methods(distillation).items():
        if isinstance(content, Mapping):
            settings.update({f"{name} {key}": content[key] for key in content if key not in ("weight", "class")})
    return f"({', '.join(f'{key}={value}' for key, value in sorted(settings.items())) or 'defaults'})"


def _read_run(path: Path) -> tuple[Run, Mapping[str, Any]]:
    """Return a run, and the arguments of its network."""
    run_files.read_record(path)
    report, checkpoint = path / "report", path / "model.pt"
    kind, summary, scores = _read_report(report, checkpoint)
    model = load_model(checkpoint)
    recipe = model.extra.get("recipe")
    if not isinstance(recipe, Mapping) or not {"seed", "epochs"} <= set(recipe):
        raise InputError(f"{checkpoint} does not say how it was trained; give runs of train.yaml and distill.yaml")
    distillation = recipe.get("distillation") or {}
    arm = recipe.get("arm") or (BALANCED if recipe.get("balance") and not distillation else None)
    run = Run(
        path=path,
        network=network_label(model.network_arguments),
        method=(arm or method_label(distillation)) if distillation or arm != ALONE else None,
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
        validation=_validation(model.extra.get("selection")),
    )
    report, checkpoint = path / "report_last", path / "model_last.pt"
    if not (report.is_dir() and checkpoint.is_file()):
        return run, model.network_arguments
    _, summary, scores = _read_report(report, checkpoint)
    last = replace(run, summary=summary, scores=scores, report=report, checkpoint=checkpoint)
    return replace(run, last=last), model.network_arguments


def _read_report(report: Path, checkpoint: Path) -> tuple[str, dict[str, Any], pd.DataFrame]:
    """Return kind, summary and table of cases of a report of a checkpoint."""
    kind = run_files.report_kind(report)
    summary = run_files.read_summary(report, checkpoint)
    return kind, summary, run_files.read_scores(report, kind, summary)


def _validation(selection: Any) -> float:
    """Return the metric in a checkpoint's `selection`, which holds it beside the epoch."""
    found = [value for name, value in selection.items() if name != "epoch"] if isinstance(selection, Mapping) else []
    return float(found[0]) if found else math.nan
