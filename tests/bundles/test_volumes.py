# SPDX-License-Identifier: Apache-2.0
"""Networks of volumes through the bundle: a SegResNet teaches a narrow one, on phantoms and, where given, on CHAOS."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from data_prep import phantom_ct
from pipeline.data import load_dataset, read_volume
from pipeline.inference import PatchInferer, inferer_of, segment
from pipeline.networks import load_model
from tests.bundles.bundle_commands import assert_done, begin, config_files, error_line, rows, run, run_program, scalars
from tests.bundles.untrained import untrained

SEGRESNET = {"name": "monai.networks.nets.SegResNet", "blocks_down": (1, 1, 1), "blocks_up": (1, 1)}
TEACHER = {**SEGRESNET, "init_filters": 8}
STUDENT = {**SEGRESNET, "init_filters": 4, "norm": ("GROUP", {"num_groups": 4})}
PATCHES = ["--patch_size", "[16,16,8]", "--patches_per_volume", "2", "--loss", "dice_ce"]
FITNET = ["--student", STUDENT, "--method", "fitnet", "--epochs", "3", *PATCHES]


def volumes_command(config: str, *arguments: object) -> list[str]:
    """Return a command with the overlay for volumes."""
    program = [sys.executable, "-m", "monai.bundle", "run", "--config_file", config_files("synapse", config, "volumes")]
    return [*program, *map(str, arguments)]


def run_volumes(config: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return run_program(volumes_command(config, *arguments))


@pytest.fixture(scope="module")
def dataset_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "phantom"
    assert phantom_ct.main(["--output", str(folder), "--cases", "4", "--size", "32", "--slices", "8"]) == 0
    return folder


@pytest.fixture(scope="module")
def teacher(dataset_dir, tmp_path_factory) -> Path:
    """Train a teacher for one epoch."""
    run_dir = tmp_path_factory.mktemp("runs") / "teacher"
    options = ["--network", TEACHER, *PATCHES, "--epochs", "1"]
    assert_done(run_volumes("train", "--dataset_dir", dataset_dir, "--run_dir", run_dir, *options))
    return run_dir / "model.pt"


@pytest.fixture(scope="module")
def distilled(dataset_dir, teacher) -> Path:
    """Return the folder of a distilled student whose taps have other channels than the teacher's.

    `stopped` beside it is what a run that ended after an early epoch would have left.
    """
    run_dir, stopped = (teacher.parents[1] / name for name in ("fitnet", "stopped"))
    program = volumes_command("distill", *distillation(dataset_dir, teacher, run_dir))
    log = run_dir.with_name("log.txt")
    running = begin(program, log, log)
    while not (run_dir / "last.pt").exists() and running.poll() is None:
        time.sleep(0.01)
    stopped.mkdir()
    shutil.copy(run_dir / "last.pt", stopped)
    assert running.wait() == 0, log.read_text()[-3000:]
    assert "parameters train beside the student (8 to 16 channels, 8 to 16 channels)" in log.read_text()
    return run_dir


def distillation(dataset_dir: Path, teacher: Path, run_dir: Path) -> list[object]:
    return ["--dataset_dir", dataset_dir, "--teacher", teacher, "--run_dir", run_dir, *FITNET]


def test_model_of_volumes_says_so_and_finds_its_inferer(teacher, distilled):
    for path in (teacher, distilled / "model.pt"):
        model = load_model(path)
        assert model.size == (16, 16, 8)
        assert model.network.spatial_dims == 3
        assert isinstance(inferer_of(model), PatchInferer)


def test_resumed_run_goes_on_with_its_adapters_as_if_it_had_never_stopped(dataset_dir, teacher, distilled):
    stopped = distilled.parent / "stopped"
    assert torch.load(stopped / "last.pt", weights_only=True)["position"]["epoch"] < 3
    assert_done(run_volumes("distill", *distillation(dataset_dir, teacher, stopped), "--resume", "True"))
    straight, resumed = (torch.load(folder / "last.pt", weights_only=True) for folder in (distilled, stopped))
    assert resumed["position"]["epoch"] == 3
    assert straight["distiller"]["fitnet"]["adapters"]
    for one, other in (
        (straight["network"], resumed["network"]),
        (straight["distiller"]["fitnet"]["adapters"], resumed["distiller"]["fitnet"]["adapters"]),
    ):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_evaluation_takes_the_model_as_any_other(dataset_dir, distilled):
    report = distilled.parent / "report"
    model = ["--checkpoint", distilled / "model.pt", "--run_dir", report]
    assert_done(run("synapse", "evaluate", "--dataset_dir", dataset_dir, *model))
    dataset = load_dataset(dataset_dir)
    assert len(rows(report / "per_case.csv")) == len(dataset.test) * len(dataset.organs)
    (case,) = dataset.test
    written = nib.load(report / "predictions" / f"{case.case}.nii.gz").get_fdata()
    np.testing.assert_array_equal(written, segment(read_volume(case.image), load_model(distilled / "model.pt")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--student", "enet", "--teacher", "TEACHER"], "network 'enet' is for images, spatial_dims is 3"),
        (["--student", STUDENT, "--teacher", "SLICES"], "the teacher is for images, the student for volumes"),
    ],
)
def test_networks_of_images_are_refused(options, message, dataset_dir, teacher, tmp_path):
    places = {"TEACHER": teacher, "SLICES": untrained(tmp_path / "slices.pt", dataset_dir)}
    options = [places.get(option, option) if isinstance(option, str) else option for option in options]
    data = ["--dataset_dir", dataset_dir, "--run_dir", tmp_path / "run", "--method", "kd", *PATCHES]
    assert message in error_line(run_volumes("distill", *data, *options))
    assert not (tmp_path / "run").exists()


def test_teacher_of_volumes_without_their_overlay_is_refused(dataset_dir, teacher, tmp_path):
    data = ["--dataset_dir", dataset_dir, "--run_dir", tmp_path / "run"]
    result = run("synapse", "distill", *data, "--teacher", teacher, "--student", "enet", "--method", "kd")
    assert "name volumes.yaml too" in error_line(result)


@pytest.mark.slow
@pytest.mark.skipif("GRAPHFLOW_CHAOS" not in os.environ, reason="GRAPHFLOW_CHAOS names no prepared CHAOS dataset")
def test_narrow_student_learns_from_a_teacher_on_chaos(tmp_path):
    data = ["--dataset_dir", os.environ["GRAPHFLOW_CHAOS"]]
    recipe = ["--epochs", "6", "--val_interval", "6", "--learning_rate", "5e-3", "--loss", "dice_ce"]
    recipe += ["--patch_size", "[64,64,16]", "--patches_per_volume", "2", "--overlap", "0.25"]
    blocks = {"blocks_down": (1, 1, 1, 1), "blocks_up": (1, 1, 1)}
    wide, narrow = ({**SEGRESNET, **blocks, "init_filters": filters} for filters in (16, 8))
    taught = ["--teacher", tmp_path / "teacher/model.pt", "--student", narrow]
    runs = {
        "student": ("train", ["--network", narrow]),
        "teacher": ("train", ["--network", wide]),
        "distilled": ("distill", taught),
    }
    for name, (config, options) in runs.items():
        assert_done(run_volumes(config, *data, *recipe, *options, "--run_dir", tmp_path / name))
        loss = scalars(tmp_path / name)["segmentation"]
        assert len(loss) == 60
        # Sixty iterations: that the loss falls is all to expect of them.
        assert np.mean(loss[-20:]) < 0.95 * np.mean(loss[:20]), name
        assert 0 <= load_model(tmp_path / name / "model.pt").extra["selection"]["val_mean_dice"] <= 1, name
    assert all(np.isfinite(scalars(tmp_path / "distilled")[term]).all() for term in ("kd", "review"))
