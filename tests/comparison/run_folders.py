# SPDX-License-Identifier: Apache-2.0
"""Folders of finished runs as training and evaluation leave them, tiny, for the tests of the comparison."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data import MR_PERCENTILES, SLIDE_INTENSITY
from pipeline.evaluation import FULL, MM, OrganScore, score_image, write_report
from pipeline.evaluation.provenance import describe_case, describe_run, sha256_of
from pipeline.networks import build_network, save_model
from tests.preprocessing import scan_preprocessing, tile_preprocessing

RECIPE = {
    "width": None,
    "size": 32,
    "epochs": 2,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "weight_decay": 2e-4,
    "loss": "ce",
    "augmentation": "none",
    "precision": "float32",
}


def make_scan_run(
    folder: Path,
    dice: Mapping[str, Mapping[str, float]],
    hd95_mm: float = 3.0,
    dataset: str = "toy",
    **recipe: Any,
) -> Path:
    """Write a run whose report has the Dice of each case and organ: NaN is absent, 0 missed (an infinite HD95)."""
    organs = list(next(iter(dice.values())))
    model = make_run(folder, organs, **recipe)
    scores = [
        organ_score(case, organ, label, value, hd95_mm)
        for case, row in dice.items()
        for label, (organ, value) in enumerate(row.items(), start=1)
    ]
    cases = [describe_case(case, (6, 8, 0), (1.0, 1.0, 1.0)) for case in dice]
    write_report(folder / "report", MM, scores, {"dataset": dataset, **describe_run(model), "cases": cases})
    return folder


def add_last(run: Path, dice: Mapping[str, Mapping[str, float]], dataset: str = "toy") -> None:
    """Add the network and report of the last epoch to a run of `make_scan_run`."""
    shutil.copy(run / "model.pt", run / "model_last.pt")
    organs = enumerate(next(iter(dice.values())), start=1)
    scores = [organ_score(case, organ, label, dice[case][organ], 3.0) for label, organ in organs for case in dice]
    cases = [describe_case(case, (6, 8, 0), (1.0, 1.0, 1.0)) for case in dice]
    made = {"dataset": dataset, **describe_run(run / "model_last.pt"), "cases": cases}
    write_report(run / "report_last", MM, scores, made)


def organ_score(case: str, organ: str, label: int, dice: float, hd95_mm: float) -> OrganScore:
    status = "absent" if np.isnan(dice) else "missed" if dice == 0 else "ok"
    distance = {"absent": np.nan, "missed": np.inf, "ok": hd95_mm}[status]
    return OrganScore(
        case=case,
        organ=organ,
        label=label,
        status=status,
        dice=dice,
        iou=dice / (2 - dice),
        hd95_mm=distance,
        hd95_pooled_mm=distance,
        assd_mm=distance,
        volume_label_ml=0.0 if status == "absent" else 5.0,
        volume_prediction_ml=5.0 if status == "ok" else 0.0,
        hd95_penalised_mm=10.0 if status == "missed" else distance,
    )


def make_slide_run(
    folder: Path,
    maps: Mapping[str, tuple[np.ndarray, np.ndarray]],
    classes: Mapping[int, str],
    dataset: str = "tissue",
    **recipe: Any,
) -> Path:
    """Write a run of slides whose report is of (prediction, label) of each image."""
    model = make_run(folder, list(classes.values()), tile_px=32, **recipe)
    scores = [row for image, pair in maps.items() for row in score_image(image, *pair, classes)]
    cases = [describe_case(image, label.shape, None) for image, (_, label) in maps.items()]
    write_report(folder / "report", FULL, scores, {"dataset": dataset, **describe_run(model), "cases": cases})
    return folder


def make_run(
    folder: Path,
    organs: list[str],
    network: str = "enet",
    seed: int = 0,
    distillation: Mapping[str, Any] | None = None,
    tile_px: int | None = None,
    validation: float | None = None,
    **recipe: Any,
) -> Path:
    """Write `run.json` and `model.pt` of a freshly initialised network; returns the model file.

    `validation` is the metric by which the model was chosen, if it is to tell one.
    """
    folder.mkdir(parents=True)
    settings = {**RECIPE, "network": network, "seed": seed, "distillation": distillation, **recipe}
    (folder / "run.json").write_text(json.dumps({"settings": settings}))
    save_model(
        folder / "model.pt",
        build_network(network, out_channels=len(organs) + 1, width=settings["width"]),
        labels=dict(enumerate(["background", *organs])),
        preprocessing=tile_preprocessing(SLIDE_INTENSITY) if tile_px else scan_preprocessing(MR_PERCENTILES),
        size=settings["size"],
        modality="MR",
        tile_px=tile_px,
        recipe=settings,
        **({} if validation is None else {"selection": {"epoch": 1, "val_metric": validation}}),
    )
    return folder / "model.pt"


def taught_by(teacher: Path | str, method: str = "kd", **more: Any) -> dict[str, Any]:
    """Return the recipe's entry of a distillation by the teacher in a run folder, or of a given hash."""
    sha256 = sha256_of(teacher / "model.pt") if isinstance(teacher, Path) else teacher
    return {"method": method, "methods": None, "preset": "bounded", "settings": {}, "teacher_sha256": sha256, **more}
