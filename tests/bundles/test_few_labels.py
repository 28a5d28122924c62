# SPDX-License-Identifier: Apache-2.0
"""Training with few labels by the bundles' commands: hidden labels stay hidden, and what learns from the rest."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from data_prep import phantom_ct, phantom_slides
from data_prep.folder import main as make_dataset
from pipeline.data import load_dataset
from tests.bundles.bundle_commands import ROOT, assert_done, config_files, error_line, run, run_program

QUICK = ["--epochs", "1", "--batch_size", "4", "--size", "32", "--augmentation", "none"]
FEW = ["--labelled_cases", "1"]


@pytest.fixture(scope="module")
def dataset_dir(tmp_path_factory) -> Path:
    """Return six phantoms, of which three train."""
    folder = tmp_path_factory.mktemp("data") / "phantom"
    assert phantom_ct.main(["--output", str(folder), "--cases", "6", "--size", "40", "--slices", "8"]) == 0
    return folder


@pytest.fixture(scope="module")
def teacher(dataset_dir, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("teacher") / "run"
    width = ["--width", "0.0625"]
    assert_done(run("synapse", "train", "--dataset_dir", dataset_dir, *QUICK, *FEW, *width, "--run_dir", run_dir))
    return run_dir


@pytest.fixture(scope="module")
def paraphrasing(teacher, dataset_dir, tmp_path_factory):
    """Return the folder of a run of paraphrase.yaml, its options, and what it printed."""
    run_dir = tmp_path_factory.mktemp("paraphrasers") / "run"
    options = ["--dataset_dir", dataset_dir, *QUICK, "--student", "enet", "--teacher", teacher / "model.pt"]
    options += ["--run_dir", run_dir]
    result = run("synapse", "paraphrase", *options, *FEW)
    assert_done(result)
    return run_dir, options, result.stdout


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return torch.load(run_dir / "last.pt", weights_only=True)["network"]


def volumes_run(config: str, *arguments: object):
    program = [sys.executable, "-m", "monai.bundle", "run", "--config_file", config_files("synapse", config, "volumes")]
    return run_program([*program, *map(str, arguments)])


def without_hidden_labels(dataset_dir: Path, copy: Path, break_files: bool) -> Path:
    """Return a copy of the dataset whose hidden labels are noise, or no volumes at all."""
    shutil.copytree(dataset_dir, copy)
    hidden = load_dataset(copy, labelled_cases=1).unlabelled_cases
    assert len(hidden) == len(load_dataset(copy).training) - 1
    for case in load_dataset(copy).training:
        if case.case in hidden:
            noise = np.random.default_rng(0).bytes(1000 if break_files else case.label.stat().st_size)
            case.label.write_bytes(noise)
    return copy


def test_the_chosen_patients_are_written_down_as_a_list_that_can_be_given_again(teacher, dataset_dir, tmp_path):
    patients = json.loads((teacher / "labelled_patients.json").read_text())
    assert patients == load_dataset(dataset_dir, labelled_cases=1).labelled_patients
    assert json.loads((teacher / "run.json").read_text())["settings"]["labelled_patients"] == patients
    given = ["--labelled_patients", teacher / "labelled_patients.json", "--width", "0.0625"]
    assert_done(run("synapse", "train", "--dataset_dir", dataset_dir, *QUICK, *given, "--run_dir", tmp_path / "again"))
    first, again = weights(teacher), weights(tmp_path / "again")
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("cached", [False, True])
def test_hidden_label_changes_nothing_whatever_its_file_holds(cached, teacher, dataset_dir, tmp_path):
    found = []
    copies = [dataset_dir, without_hidden_labels(dataset_dir, tmp_path / "noise", break_files=cached)]
    for number, folder in enumerate(copies):
        options = ["--dataset_dir", folder, "--teacher", teacher / "model.pt", "--student", "enet", *QUICK, *FEW]
        options += ["--cache_dir", tmp_path / "cache"] if cached else []
        assert_done(run("synapse", "distill", *options, "--run_dir", tmp_path / f"run{number}"))
        found.append(weights(tmp_path / f"run{number}"))
        recipe = torch.load(tmp_path / f"run{number}/model.pt", weights_only=True)["extra"]["recipe"]
        assert recipe["unlabelled_share"] == 0.5  # by itself, where cases lack a label
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_unlabelled_images_do_teach(teacher, dataset_dir, tmp_path):
    options = ["--dataset_dir", dataset_dir, "--teacher", teacher / "model.pt", "--student", "enet", *QUICK, *FEW]
    for name, more in (("with", []), ("without", ["--unlabelled_share", "0.0", "--epoch_iterations", "12"])):
        assert_done(run("synapse", "distill", *options, *more, "--run_dir", tmp_path / name))
    one, other = weights(tmp_path / "with"), weights(tmp_path / "without")
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_paraphrasers_tell_whose_labels_were_hidden_and_do_not_go_on_with_others(paraphrasing, dataset_dir):
    """The order of the images depends on that choice: labelled ones come first."""
    run_dir, options, _ = paraphrasing
    patients = load_dataset(dataset_dir, labelled_cases=1).labelled_patients
    assert json.loads((run_dir / "labelled_patients.json").read_text()) == patients
    assert json.loads((run_dir / "run.json").read_text())["settings"]["labelled_patients"] == patients
    result = run("synapse", "paraphrase", *options, "--labelled_cases", "2", "--resume", "True")
    assert f"is of a run with another recipe: labelled_patients was {patients!r}, is [" in error_line(result)


@pytest.mark.parametrize("bundle", ["synapse", "gastric"])
def test_paraphrase_records_the_labels_as_train_does(bundle):
    configs = ROOT / "bundles" / bundle / "configs"
    train, paraphrase = (ConfigParser.load_config_file(configs / f"{name}.yaml") for name in ("train", "paraphrase"))
    assert paraphrase["recipe"]["labelled_patients"] == train["recipe"]["labelled_patients"]
    assert [step for step in paraphrase["run"] if "record_run" in step] == [
        step for step in train["run"] if "record_run" in step
    ]


def test_strong_view_paraphrasers_and_mean_teacher(teacher, paraphrasing, dataset_dir, tmp_path):
    data = ["--dataset_dir", dataset_dir, *QUICK, *FEW, "--student", "enet"]
    taught = [*data, "--teacher", teacher / "model.pt"]
    factors, _, said = paraphrasing
    assert "--student enet --labelled_cases 1 --run_dir NEW_FOLDER" in said
    flow = ["--method", "graph_flow", "--paraphraser", factors / "paraphraser.pt", "--student_view", "strong"]
    assert_done(run("synapse", "distill", *taught, *flow, "--run_dir", tmp_path / "flow"))
    average = ["--method", "mean_teacher", "--student_view", "strong"]
    assert_done(run("synapse", "distill", *data, *average, "--run_dir", tmp_path / "average"))
    recipe = torch.load(tmp_path / "average/model.pt", weights_only=True)["extra"]["recipe"]
    assert recipe["distillation"]["teacher_sha256"] is None
    assert (recipe["distillation"]["method"], recipe["distillation"]["terms"]) == ("mean_teacher", None)


def test_a_teacher_with_fewer_labels_is_told_of(teacher, dataset_dir, tmp_path):
    options = ["--dataset_dir", dataset_dir, "--teacher", teacher / "model.pt", "--student", "enet", *QUICK]
    result = run("synapse", "distill", *options, "--labelled_cases", "2", "--run_dir", tmp_path / "run")
    assert_done(result)
    assert "the teacher learned from the labels of 1 patient, this run has those of 2 patients" in result.stdout


def test_scans_that_nobody_labelled_teach(dataset_dir, tmp_path):
    """From two folders to a distilled student; there are two scans with labels and one without that train."""
    shutil.copytree(dataset_dir, source := tmp_path / "mine")
    declared = load_dataset(source)
    declared.training[0].label.unlink()
    folders = ["--images", source / "images", "--labels", source / "labels", "--output", tmp_path / "data"]
    options = ["--modality", "CT", "--organs", ",".join(declared.organs.values()), "--train-unlabelled"]
    for split in ("validation", "test"):
        options += [f"--{split}", ",".join(case.case for case in declared.split(split))]
    assert make_dataset(list(map(str, [*folders, *options]))) == 0
    made = load_dataset(tmp_path / "data")
    assert made.unlabelled_cases == [declared.training[0].case]
    taught = ["--dataset_dir", tmp_path / "data", *QUICK, "--student", "enet", "--method", "mean_teacher"]
    assert_done(run("synapse", "distill", *taught, "--run_dir", tmp_path / "run"))
    recipe = torch.load(tmp_path / "run/model.pt", weights_only=True)["extra"]["recipe"]
    assert (recipe["labelled_patients"], recipe["unlabelled_share"]) == (made.labelled_patients, 0.5)


def test_gastric_student_learns_from_few_labels_and_the_rest(tmp_path):
    data = tmp_path / "tissue"
    assert phantom_slides.main(["--output", str(data), "--images", "8", "--side", "160"]) == 0
    few = ["--dataset_dir", data, *QUICK, "--batch_size", "2", "--labelled_fraction", "0.4"]
    assert_done(run("gastric", "train", *few, "--width", "0.0625", "--run_dir", tmp_path / "teacher"))
    taught = ["--teacher", tmp_path / "teacher/model.pt", "--student", "enet", "--method", "kd"]
    result = run("gastric", "distill", *few, *taught, "--student_view", "strong", "--run_dir", tmp_path / "student")
    assert_done(result)
    assert "the teacher learned from" not in result.stdout  # the same labels
    recipe = torch.load(tmp_path / "student/model.pt", weights_only=True)["extra"]["recipe"]
    patients = json.loads((tmp_path / "teacher/labelled_patients.json").read_text())
    assert (recipe["labelled_patients"], recipe["unlabelled_share"]) == (patients, 0.5)
    assert len(patients) < len({case.patient for case in load_dataset(data).training})


def test_3d_networks_learn_from_volumes_without_a_label(dataset_dir, tmp_path):
    """Half of each batch of two volumes has no label; so has half of the patches."""
    options = ["--dataset_dir", dataset_dir, "--epochs", "1", "--labelled_cases", "1", "--loss", "dice_ce"]
    options += ["--patch_size", "[16,16,8]", "--patches_per_volume", "2"]
    unet = "{'name': 'monai.networks.nets.UNet', 'channels': [4, 8], 'strides': [2]}"
    assert_done(volumes_run("train", *options, "--network", unet, "--run_dir", tmp_path / "teacher"))
    taught = ["--teacher", tmp_path / "teacher/model.pt", "--student", unet, "--batch_size", "2"]
    assert_done(volumes_run("distill", *options, *taught, "--run_dir", tmp_path / "student"))
    recipe = torch.load(tmp_path / "student/model.pt", weights_only=True)["extra"]["recipe"]
    assert recipe["unlabelled_share"] == 0.5


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ("train", ["--labelled_fraction", "0"], "--labelled_fraction is 0; give a share of the patients"),
        ("train", ["--labelled_fraction", "1.5"], "--labelled_fraction is 1.5"),
        ("train", ["--labelled_cases", "7"], "--labelled_cases is 7, but 3 training cases have a label"),
        ("train", ["--labelled_cases", "1", "--unlabelled_share", "0.5"], "learns nothing from cases without a label"),
        ("train", ["--student_view", "strong"], "--student_view strong: only a distillation gives the student another"),
        ("paraphrase", ["--student_view", "strong"], "--student_view strong: only a distillation"),
        ("distill", ["--unlabelled_share", "0.5"], "every training case of"),
        ("distill", [*FEW, "--unlabelled_share", "1.5"], "--unlabelled_share is 1.5; give a number from 0 to below 1"),
        ("distill", [*FEW, "--unlabelled_share", "half"], "--unlabelled_share is 'half'; give a number"),
        ("train", ["--epoch_iterations", "2.5"], "--epoch_iterations is 2.5; give a whole number from 1"),
        ("distill", [*FEW, "--batch_size", "20"], "a batch has 10 labelled items, but training has 8"),
        (
            "train",
            [*FEW, "--batch_size", "20"],
            "a batch has 20 labelled items, but training has 8, since not all cases of",
        ),
        ("distill", [*FEW, "--unlabelled_share", "0.0", "--batch_size", "9"], "give all runs that are compared --b"),
        ("distill", [*FEW, "--student_view", "weak"], "--student_view 'weak' is unknown; choose one of same, strong"),
        ("distill", ["--method", "kd", "--teacher", "None"], "--teacher"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(config, options, message, teacher, dataset_dir, tmp_path):
    own = ["--network", "enet"] if config == "train" else ["--student", "enet"]
    own += [] if config == "train" or "--teacher" in options else ["--teacher", teacher / "model.pt"]
    given = [*QUICK, *own, *[option for option in options if option not in ("--teacher", "None")]]
    result = run("synapse", config, "--dataset_dir", dataset_dir, *given, "--run_dir", tmp_path / "run")
    assert message in error_line(result)
    assert not (tmp_path / "run").exists()


def test_validation_case_without_a_label_is_one_line(dataset_dir, tmp_path):
    shutil.copytree(dataset_dir, tmp_path / "data")
    file = tmp_path / "data/dataset.json"
    declared = json.loads(file.read_text())
    del declared["training"][0]["label"]  # this may be
    file.write_text(json.dumps(declared))
    options = ["--dataset_dir", tmp_path / "data", *QUICK, "--network", "enet"]
    assert_done(run("synapse", "train", *options, "--run_dir", tmp_path / "run"))
    del declared["validation"][0]["label"]
    file.write_text(json.dumps(declared))
    result = run("synapse", "train", *options, "--run_dir", tmp_path / "other")
    assert "validation[0] lacks label" in error_line(result)
