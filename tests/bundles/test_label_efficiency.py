# SPDX-License-Identifier: Apache-2.0
"""label_efficiency.yaml of both bundles, with and without the file of the published data set: which runs it plans."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from data_prep import phantom_ct, phantom_slides
from pipeline.errors import InputError
from pipeline.grid import Grid
from pipeline.grid.labels import LABELLED
from tests.bundles.planned_grids import grid_of

PUBLISHED = {"synapse": "chaos_mr", "gastric": "ebhi_seg"}
STUDENT_STEPS, TEACHER_STEPS = {"synapse": 1600, "gastric": 400}, 600
SEEDS = {"synapse": (0, 1), "gastric": (0, 1, 2)}
AMOUNTS = {
    "synapse": {
        "1_patient": {"labelled_cases": 1},
        "2_patients": {"labelled_cases": 2},
        "4_patients": {"labelled_cases": 4},
        "all": {},
    },
    "gastric": {
        "2_percent": {"labelled_fraction": 0.02},
        "5_percent": {"labelled_fraction": 0.05},
        "10_percent": {"labelled_fraction": 0.1},
        "20_percent": {"labelled_fraction": 0.2},
        "all": {},
    },
}
# The share of each batch that has no label; arms without one train on the labelled images alone, as a share of 0 does.
ARMS = {
    "alone": None,
    "alone_balanced": None,
    "mean_teacher": 0.5,
    "kd": 0.0,
    "kd_review": 0.0,
    "kd_unlabelled": 0.5,
    "kd_review_unlabelled": 0.5,
}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory) -> dict[str, Path]:
    """Return phantoms of each kind; eight scans train."""
    folder = tmp_path_factory.mktemp("data")
    scans, slides = folder / "scans", folder / "slides"
    assert phantom_ct.main(["--output", str(scans), "--cases", "11", "--size", "40", "--slices", "8"]) == 0
    assert phantom_slides.main(["--output", str(slides), "--images", "8", "--side", "128"]) == 0
    return {"synapse": scans, "gastric": slides}


def grid(bundle: str, dataset_dir: Path, own_data: bool, **overrides: object) -> Grid:
    """Return the grid of the files that the header names, or of those for data of the user's own."""
    names = ["benchmark", *([] if own_data else [PUBLISHED[bundle]]), "label_efficiency"]
    return grid_of(bundle, names, dataset_dir=str(dataset_dir), folds=None, **overrides)


@pytest.mark.parametrize("own_data", [True, False])
@pytest.mark.parametrize("bundle", PUBLISHED)
def test_all_arms_and_amounts_take_the_same_number_of_steps(bundle, own_data, datasets):
    """For data of the user's own, the lengths once got lost: by passes, more labels meant more steps."""
    own = {"training::size": 32} if own_data else {}
    steps = {}
    for run in grid(bundle, datasets[bundle], own_data, **own).planned_runs():
        options = run.steps[0].options
        steps[run.name] = options["epochs"] * options["epoch_iterations"]
        assert options["size"] == (32 if own_data else 64)
    teachers = {name for name in steps if name.endswith("_teacher") and "mean" not in name}
    assert {steps[name] for name in teachers} == {TEACHER_STEPS}
    assert {steps[name] for name in steps.keys() - teachers} == {STUDENT_STEPS[bundle]}


@pytest.mark.parametrize("own_data", [True, False])
@pytest.mark.parametrize("bundle", PUBLISHED)
def test_every_amount_has_every_arm_of_both_students_in_all_seeds(bundle, own_data, datasets):
    """Where all labels are there, no arm that wants images without a label can be."""
    own = {"training::size": 32} if own_data else {}
    teachers, students = [], []
    for run in grid(bundle, datasets[bundle], own_data, **own).planned_runs():
        options = run.steps[0].options
        assert {name: options[name] for name in LABELLED if name in options} == AMOUNTS[bundle][run.amount]
        if "arm" not in options:
            teachers.append(run.name)
            continue
        assert options.get("unlabelled_share") == ARMS[options["arm"]]
        network = options["network" if run.steps[0].config == "train" else "student"]
        students.append((run.amount, network, options["arm"], options["seed"]))
    assert sorted(teachers) == sorted(f"{amount}_teacher" for amount in AMOUNTS[bundle])
    every = product(AMOUNTS[bundle], ("enet", "mobile_unet"), ARMS, SEEDS[bundle])
    assert sorted(students) == sorted(run for run in every if run[0] != "all" or not ARMS[run[2]])


def test_the_length_of_gastric_runs_is_one_option(datasets):
    for own_data in (True, False):
        runs = {run.name: run for run in grid("gastric", datasets["gastric"], own_data, epochs=20).planned_runs()}
        assert runs["all_teacher"].steps[0].options["epochs"] == 30
        assert runs["all_enet_alone_0"].steps[0].options["epochs"] == 20


@pytest.mark.parametrize("bundle", PUBLISHED)
def test_a_whole_training_that_takes_the_length_away_is_refused(bundle, datasets):
    with pytest.raises(InputError, match=r"training has no epoch_iterations.*--training::epoch_iterations 40"):
        grid(bundle, datasets[bundle], True, training={"size": 32, "epochs": 10}).planned_runs()
