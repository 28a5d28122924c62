# SPDX-License-Identifier: Apache-2.0
"""The README's commands for several processes, on the CPU, end with what one process ends with."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data_prep import phantom_ct, phantom_slides
from tests.bundles.bundle_commands import ONE_THREAD, ROOT, assert_done, command, config_files, rows, run
from tests.bundles.untrained import untrained

pytestmark = pytest.mark.slow
# Of random draws each process has its own: augmentation is off, and the students have no dropout.
RECIPE = ["--size", "64", "--batch_size", "6", "--augmentation", "none", "--seed", "1", "--val_interval", "2"]


@pytest.fixture(autouse=True)
def in_repository_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def run_as(ranks: int, bundle: str, config: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a bundle's command by so many processes."""
    if ranks == 1:
        return run(bundle, config, *arguments)
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    program += ["-m", "monai.bundle", "run", "--config_file", config_files(bundle, config, "multi_gpu")]
    program += map(str, arguments)
    return subprocess.run(program, capture_output=True, text=True, check=False, env=ONE_THREAD, cwd=ROOT)


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    """Return five tiny phantoms: three to train on, one to select by, one to test on."""
    folder = tmp_path_factory.mktemp("scans") / "phantom"
    assert phantom_ct.main(["--output", str(folder), "--cases", "5", "--size", "40", "--slices", "8"]) == 0
    return folder


@pytest.fixture(scope="module")
def slides(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("slides") / "tissue"
    assert phantom_slides.main(["--output", str(folder), "--images", "8", "--side", "160"]) == 0
    return folder


def assert_same_state(one: Path, other: Path) -> None:
    """Compare the networks of two runs' states."""
    first, second = (torch.load(folder / "last.pt", weights_only=True)["network"] for folder in (one, other))
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(second[name], first[name], rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("ranks", [2, 3])
def test_training_ends_with_the_weights_and_metric_of_one_process(scans, tmp_path, ranks):
    # Ten steps and more. With batch normalisation one process gives other weights already when a batch changes order.
    network = "{'name': 'monai.networks.nets.UNet', 'channels': [8, 16], 'strides': [2], 'norm': None}"
    options = ["--dataset_dir", scans, "--network", network, *RECIPE, "--epochs", "3"]
    for count in (1, ranks):
        assert_done(run_as(count, "synapse", "train", *options, "--run_dir", tmp_path / str(count)))
    assert_same_state(tmp_path / "1", tmp_path / str(ranks))
    first, second = (torch.load(tmp_path / str(count) / "last.pt", weights_only=True)["best"] for count in (1, ranks))
    assert first == pytest.approx(second, abs=1e-5)


def test_few_labels_end_with_the_weights_of_one_process(scans, tmp_path):
    """One of three patients has a label; each process has as many labelled and unlabelled slices."""
    student = "{'name': 'monai.networks.nets.UNet', 'channels': [8, 16], 'strides': [2], 'norm': None}"
    options = ["--dataset_dir", scans, "--teacher", untrained(tmp_path / "teacher.pt", scans, size=64)]
    options += ["--student", student, "--method", "kd", "--labelled_cases", "1", "--loss", "dice_ce"]
    options += ["--batch_size", "4", "--augmentation", "none", "--epochs", "1", "--epoch_iterations", "6"]
    for count in (1, 2):
        assert_done(run_as(count, "synapse", "distill", *options, "--run_dir", tmp_path / str(count)))
    assert_same_state(tmp_path / "1", tmp_path / "2")
    lists = [json.loads((tmp_path / str(count) / "labelled_patients.json").read_text()) for count in (1, 2)]
    assert lists[0] == lists[1]
    assert len(lists[0]) == 1


@pytest.mark.parametrize("bundle", ["synapse", "gastric"])
def test_paraphrase_and_distill_do_what_one_process_does(bundle, scans, slides, tmp_path):
    data = scans if bundle == "synapse" else slides
    teacher = ["--teacher", untrained(tmp_path / "teacher.pt", data, size=64), "--student", "mobile_unet"]
    common = ["--dataset_dir", data, *teacher, "--batch_size", "4", "--augmentation", "none", "--epochs", "2"]
    for count in (1, 2):
        assert_done(run_as(count, bundle, "paraphrase", *common, "--run_dir", tmp_path / f"paraphraser{count}"))
    assert_same_state(tmp_path / "paraphraser1", tmp_path / "paraphraser2")
    method = ["--method", "graph_flow", "--settings", "{'adversarial': 0.1, 'adversarial_kind': 'hinge'}"]
    for count in (1, 2):
        run_dir = ["--paraphraser", tmp_path / "paraphraser1/paraphraser.pt", "--run_dir", tmp_path / f"run{count}"]
        assert_done(run_as(count, bundle, "distill", *common, *method, "--accumulation_steps", "2", *run_dir))
    first, second = (first_terms(tmp_path / f"run{count}") for count in (1, 2))
    assert first.keys() >= {"segmentation", "kd", "vertices", "edges", "adversarial", "total"}
    assert second == pytest.approx(first, rel=1e-3)


def first_terms(run_dir: Path) -> dict[str, float]:
    """Return the loss terms of the first iteration: later ones follow the networks' rounding errors."""
    accumulator = EventAccumulator(str(run_dir / "tensorboard"))
    accumulator.Reload()
    scalars = {tag: accumulator.Scalars(tag) for tag in accumulator.Tags()["scalars"]}
    return {tag: events[0].value for tag, events in scalars.items() if events[0].step == 1 and "val" not in tag}


@pytest.mark.parametrize(
    ("bundle", "split", "ranks"), [("synapse", "training", 2), ("synapse", "test", 2), ("gastric", "test", 3)]
)
def test_reports_are_those_of_one_process(bundle, split, ranks, scans, slides, tmp_path):
    data = scans if bundle == "synapse" else slides
    model = ["--dataset_dir", data, "--checkpoint", untrained(tmp_path / "model.pt", data, size=64), "--split", split]
    for count in (1, ranks):
        assert_done(run_as(count, bundle, "evaluate", *model, "--run_dir", tmp_path / str(count)))
    tables = sorted(path.name for path in (tmp_path / "1").glob("*.csv"))
    assert len(tables) == 2
    for name in tables:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / str(ranks) / name).read_bytes()


def test_inference_shares_a_folder_of_scans_and_goes_on(scans, tmp_path):
    shutil.copytree(scans / "images", tmp_path / "in")
    first, *others = sorted((tmp_path / "in").iterdir())
    options = ["--checkpoint", untrained(tmp_path / "model.pt", scans, size=64), "--input", tmp_path / "in"]
    options += ["--output_dir", tmp_path / "out"]
    others[0].write_bytes(b"")
    assert run_as(2, "synapse", "inference", *options).returncode == 1
    assert [row["case"] for row in rows(tmp_path / "out/failures.csv")] == [others[0].name.removesuffix(".nii.gz")]
    status = {row["case"]: row["status"] for row in rows(tmp_path / "out/manifest.csv")}
    assert list(status.values()) == ["done", "failed", "done", "done", "done"]
    shutil.copy(scans / "images" / others[0].name, others[0])
    assert_done(run_as(2, "synapse", "inference", *options))
    status = [row["status"] for row in rows(tmp_path / "out/manifest.csv")]
    assert status == ["kept", "done", "kept", "kept", "kept"]
    assert (tmp_path / "out" / first.name).is_file()


def test_inference_shares_a_folder_of_slides(slides, tmp_path):
    pictures = sorted((slides / "images").iterdir())[:3]
    (tmp_path / "in").mkdir()
    for picture in pictures:
        shutil.copy(picture, tmp_path / "in")
    options = ["--checkpoint", untrained(tmp_path / "model.pt", slides, size=64), "--input", tmp_path / "in"]
    assert_done(run_as(2, "gastric", "inference", *options, "--output_dir", tmp_path / "out"))
    assert [row["case"] for row in rows(tmp_path / "out/manifest.csv")] == [picture.stem for picture in pictures]
    for picture in pictures:
        assert Image.open(tmp_path / "out" / f"{picture.stem}.tif").size == Image.open(picture).size
        assert json.loads((tmp_path / "out" / f"{picture.stem}.json").read_text())["status"] == "done"


def test_interrupted_inference_by_one_process_is_finished_by_two(scans, tmp_path):
    options = ["--checkpoint", untrained(tmp_path / "model.pt", scans, size=64), "--input", scans / "images"]
    options += ["--output_dir", tmp_path / "out"]
    stopped = subprocess.Popen(command("synapse", "inference", *options), env=ONE_THREAD, cwd=ROOT)
    while not list((tmp_path / "out").glob("[!.]*.json")) and stopped.poll() is None:  # hidden ones are being written
        time.sleep(0.01)
    stopped.kill()
    stopped.wait()
    assert_done(run_as(2, "synapse", "inference", *options))
    status = [row["status"] for row in rows(tmp_path / "out/manifest.csv")]
    assert status[0] == "kept"
    assert set(status) <= {"kept", "done"}
    assert len(status) == 5
