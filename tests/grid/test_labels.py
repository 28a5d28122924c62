# SPDX-License-Identifier: Apache-2.0
"""A grid with several amounts of labels: which runs each has, and what cannot be an amount."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.grid import Grid, Outcome
from pipeline.grid.grid import run_grid

LABELS = {"few": {"labelled_cases": 1}, "all": {}}
METHODS = {
    "alone": None,
    "mean_teacher": {"method": "mean_teacher", "unlabelled_share": 0.5},
    "kd_unlabelled": {"method": "kd", "unlabelled_share": 0.5},
}
FOLD = {"a": {"validation": ["v"], "test": ["t"]}}


def dataset(folder: Path, unlabelled: str = "") -> Path:
    """Write a dataset of three patients to train on, one to select by and one to test on."""
    splits: dict[str, list] = {"training": [], "validation": [], "test": []}
    for patient, split in zip("123vt", ["training"] * 3 + ["validation", "test"], strict=True):
        case = {"case": patient, "patient": patient}
        for kind in ("image", "label")[: 1 if patient in unlabelled else 2]:
            file = folder / f"{kind}s" / f"{patient}.nii.gz"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(f"{kind} of {patient}".encode())
            case[kind] = f"{kind}s/{patient}.nii.gz"
        splits[split].append(case)
    declared = {
        "name": "tiny",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "liver"},
        "intensity": {"rule": "window", "low": -125, "high": 275},
        "spacing_known": True,
        "numTraining": 3,
        "numTest": 1,
    }
    (folder / "dataset.json").write_text(json.dumps(declared | splits), encoding="utf-8")
    return folder


def grid(folder: Path, unlabelled: str = "", **changes) -> Grid:
    given = {
        "dataset_dir": str(dataset(folder / "data", unlabelled)),
        "run_dir": str(folder / "grid"),
        "configs": "bundles/synapse/configs",
        "students": ["enet"],
        "methods": METHODS,
        "seeds": [3],
        "labels": LABELS,
        "training": {"epochs": 2, "epoch_iterations": 40},
    }
    return Grid(**{**given, **changes})


def names(planned: Grid) -> list[str]:
    return [run.name for run in planned.planned_runs()]


def test_amounts_have_teachers_of_their_own_and_no_arm_without_unlabelled_images(tmp_path):
    runs = {run.name: run for run in grid(tmp_path, folds=FOLD).planned_runs()}
    assert {name: run.amount for name, run in runs.items()} == {
        "few_a_teacher": "few",
        "few_a_enet_alone_3": "few",
        "few_a_enet_mean_teacher_3": "few",
        "few_a_enet_kd_unlabelled_3": "few",
        "all_a_teacher": "all",
        "all_a_enet_alone_3": "all",
    }
    assert runs["few_a_teacher"].steps[0].options["labelled_cases"] == 1
    assert "labelled_cases" not in runs["all_a_teacher"].steps[0].options
    assert runs["few_a_enet_kd_unlabelled_3"].steps[0].options["teacher"].endswith("few_a_teacher/model.pt")
    average = runs["few_a_enet_mean_teacher_3"]
    assert average.needs == ()
    assert average.steps[0].config == "distill"
    assert "teacher" not in average.steps[0].options
    arms = {"teacher", "enet_alone_3", "enet_mean_teacher_3", "enet_kd_unlabelled_3"}
    assert {run.arm for run in runs.values()} == arms


def test_a_seed_of_the_choice_hides_no_label(tmp_path):
    """It once made the arms with unlabelled images part of the amount that has all labels."""
    training = {"epochs": 2, "epoch_iterations": 40, "labelled_seed": 1}
    assert names(grid(tmp_path, training=training))[-2:] == ["all_teacher", "all_enet_alone_3"]


def test_images_that_nobody_labelled_teach_with_all_labels_too(tmp_path):
    """Cases without a label by nature: these arms were once dropped."""
    planned = names(grid(tmp_path, unlabelled="2"))
    assert planned[4:] == [name.replace("few", "all") for name in planned[:4]]


def test_a_fold_without_the_unlabelled_case_has_no_such_arm(tmp_path):
    folds = {"with": {"validation": ["v"], "test": ["t"]}, "without": {"validation": ["v"], "test": ["t", "2"]}}
    planned = names(grid(tmp_path, unlabelled="2", folds=folds, labels={"all": {}}))
    assert "all_with_enet_kd_unlabelled_3" in planned
    assert "all_without_enet_kd_unlabelled_3" not in planned


def test_each_amount_is_compared_by_itself(tmp_path, monkeypatch):
    planned = grid(tmp_path)
    monkeypatch.setattr("pipeline.grid.grid.execute_runs", lambda *_: Outcome(done=names(planned), left=[]))
    monkeypatch.setattr("pipeline.grid.grid._check_options", lambda *_: None)
    compared = []
    run_grid(planned, compare=compared.append)
    (amounts,) = compared
    assert {name: len(folders) for name, folders in amounts.items()} == {"few": 4, "all": 2}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": {"few": {"labelled_fraction": 0.1, "loss": "dice_ce"}}}, "few, of the labels .* 'loss': 'dice_ce'"),
        ({"labels": {"all": None}}, "all, of the labels of the benchmark, is None; give some of labelled_fraction"),
        ({"labels": {"../x": {}}}, "names folders"),
        ({"training": {"epochs": 2}}, r"no epoch_iterations.*give --training::epoch_iterations 40"),
    ],
)
def test_what_is_no_amount_is_refused(changes, words, tmp_path):
    with pytest.raises(InputError, match=words):
        run_grid(grid(tmp_path, **changes), compare=print)
    assert not (tmp_path / "grid").exists()
