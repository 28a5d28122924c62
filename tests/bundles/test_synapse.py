# SPDX-License-Identifier: Apache-2.0
"""The Synapse bundle: that MONAI's own checks pass, and the commands of the README run from scans to report."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from pipeline.data import load_dataset
from pipeline.networks import build_network, load_model, save_model
from tests.bundles.bundle_commands import assert_done, error_line, rows, run, run_typed, scalars
from tests.bundles.monai_checks import WORKFLOWS, missing_properties, verify_network

pytestmark = pytest.mark.usefixtures("in_repository_root")
QUICK = ["--batch_size", "4", "--epochs", "2", "--seed", "1"]
ADVERSARIAL = ["--method", "graph_flow", "--settings", "{'adversarial': 0.1}"]


def bundle(config: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return run("synapse", config, *arguments)


@pytest.mark.parametrize("config", WORKFLOWS)
def test_monai_finds_all_properties_it_asks_for(config, dataset_dir, checkpoint, tmp_path):
    assert missing_properties("synapse", config, dataset_dir, checkpoint, tmp_path) == []


@pytest.mark.parametrize("network", ["fanet", "mobile_unet", "enet", "erfnet"])
def test_networks_take_and_give_what_the_metadata_says(network, dataset_dir, tmp_path):
    verify_network("synapse", network, dataset_dir, tmp_path / "run")


def typed(config: str, *arguments: object) -> None:
    assert_done(run_typed("synapse", config, *arguments))


@pytest.fixture(scope="module")
def chain(dataset_dir, tmp_path_factory) -> Path:
    """Run the whole chain as a user types it: teacher, paraphrasers, distilled student, report, mask."""
    runs = tmp_path_factory.mktemp("runs")
    data = ["--dataset_dir", dataset_dir]
    typed("train", *data, "--size", "64", *QUICK, "--width", "0.0625", "--run_dir", runs / "teacher")
    teacher = [*data, "--teacher", runs / "teacher/model.pt"]
    typed("paraphrase", *teacher, *QUICK, "--student", "enet", "--run_dir", runs / "paraphraser")
    student = [*QUICK, *ADVERSARIAL, "--student", "enet", "--paraphraser", runs / "paraphraser/paraphraser.pt"]
    typed("distill", *teacher, *student, "--preset", "paper", "--run_dir", runs / "paper")
    assert_done(bundle("distill", *teacher, *student, "--preset", "bounded", "--run_dir", runs / "bounded"))
    model = ["--checkpoint", runs / "paper/model.pt"]
    typed("evaluate", *data, *model, "--protocol", "transunet", "--run_dir", runs / "report")
    typed("inference", *model, "--input", dataset_dir / "images", "--output_dir", runs / "masks")
    return runs


def test_chain_leaves_a_report_with_one_row_a_case_and_organ(chain, dataset_dir):
    dataset = load_dataset(dataset_dir)
    per_case, per_organ = rows(chain / "report/per_case.csv"), rows(chain / "report/per_organ.csv")
    assert [row["organ"] for row in per_organ] == [*dataset.organs.values(), "mean"]
    assert len(per_case) == len(dataset.test) * len(dataset.organs)
    assert (chain / "report/per_case_transunet.csv").is_file()
    summary = json.loads((chain / "report/summary.json").read_text())
    assert summary["protocol"] == "mm"


def test_report_is_not_overwritten_unasked(chain, dataset_dir):
    options = ["--dataset_dir", dataset_dir, "--checkpoint", chain / "paper/model.pt", "--run_dir", chain / "report"]
    assert "holds a report already" in error_line(bundle("evaluate", *options))


def test_chain_leaves_masks_on_the_grid_of_each_scan(chain, dataset_dir):
    for scan in (dataset_dir / "images").iterdir():
        image, mask = nib.load(scan), nib.load(chain / "masks" / scan.name)
        assert mask.shape == image.shape
        np.testing.assert_array_equal(mask.affine, image.affine)
        sidecar = json.loads((chain / "masks" / scan.name.replace(".nii.gz", ".json")).read_text())
        assert set(sidecar["organs"]) == set(load_dataset(dataset_dir).organs.values())


def test_evaluation_and_inference_give_the_same_mask(chain):
    for mask in (chain / "report/predictions").glob("*.nii.gz"):
        np.testing.assert_array_equal(
            nib.load(mask).get_fdata(), nib.load(chain / "masks" / mask.name).get_fdata(), err_msg=mask.name
        )


@pytest.mark.parametrize("preset", ["paper", "bounded"])
def test_tensorboard_holds_every_loss_term_and_they_are_finite(chain, preset):
    curves = scalars(chain / preset)
    terms = {"segmentation", "kd", "vertices", "edges", "adversarial", "discriminator", "total"}
    assert terms | {"val_mean_dice"} <= curves.keys()
    for tag, values in curves.items():
        assert np.isfinite(values).all(), tag


def test_checkpoint_describes_itself(chain, dataset_dir):
    model = load_model(chain / "paper/model.pt")
    assert model.network_arguments["name"] == "enet"
    assert dict(model.labels) == load_dataset(dataset_dir).labels
    assert model.size == 64


def test_run_folder_is_not_used_twice(chain, dataset_dir):
    result = bundle("train", "--dataset_dir", dataset_dir, "--run_dir", chain / "teacher")
    assert "holds a run already" in error_line(result)


def test_resume_with_another_learning_rate_is_refused(chain, dataset_dir):
    options = ["--dataset_dir", dataset_dir, *QUICK, "--size", "64", "--width", "0.0625", "--learning_rate", "1e-2"]
    result = bundle("train", *options, "--run_dir", chain / "teacher", "--resume", "True")
    assert "learning_rate was 0.0003, is 0.01" in error_line(result)


def test_folder_with_one_bad_scan_is_segmented_and_exits_1(chain, dataset_dir, tmp_path):
    scans = sorted((dataset_dir / "images").iterdir())[:2]
    (tmp_path / "in").mkdir()
    for scan in scans:
        (tmp_path / "in" / scan.name).write_bytes(scan.read_bytes())
    (tmp_path / "in" / scans[0].name).write_bytes(scans[0].read_bytes()[:100])
    model = ["--checkpoint", chain / "paper/model.pt"]
    result = bundle("inference", *model, "--input", tmp_path / "in", "--output_dir", tmp_path / "out")
    assert result.returncode == 1
    assert [row["case"] for row in rows(tmp_path / "out/failures.csv")] == [scans[0].name.removesuffix(".nii.gz")]
    assert (tmp_path / "out" / scans[1].name).is_file()


def test_paraphraser_of_another_student_is_refused(chain, dataset_dir, tmp_path):
    options = ["--student", "mobile_unet", "--paraphraser", chain / "paraphraser/paraphraser.pt"]
    teacher = ["--dataset_dir", dataset_dir, "--teacher", chain / "teacher/model.pt"]
    result = bundle("distill", *teacher, *options, "--method", "graph_flow", "--run_dir", tmp_path / "run")
    assert "train paraphrasers for this pair" in error_line(result)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ("train", ["--epocs", "3"], "unknown option --epocs; did you mean --epochs?"),
        ("train", ["--run_dir", "RUN"], "not given on the command line: --dataset_dir"),
        ("train", ["--dataset_dir", "nowhere", "--run_dir", "RUN"], "nowhere"),
        ("train", ["--dataset_dir", "DATA", "--run_dir", "RUN", "--network", "fannet"], "fanet"),
        ("train", ["--dataset_dir", "DATA", "--run_dir", "RUN", "--loss", "dice"], "unknown loss"),
        ("train", ["--dataset_dir", "DATA", "--run_dir", "RUN", "--device", "cuda:99"], "device 'cuda:99'"),
        (
            "distill",
            [*ADVERSARIAL, "--dataset_dir", "DATA", "--run_dir", "RUN", "--teacher", "MODEL", "--student", "enet"],
            "64 pix",
        ),
        ("distill", ["--dataset_dir", "DATA", "--run_dir", "RUN", "--teacher", "no.pt"], "no.pt"),
        ("evaluate", ["--dataset_dir", "DATA", "--run_dir", "RUN", "--checkpoint", "no.pt"], "no.pt"),
        ("inference", ["--checkpoint", "MODEL", "--input", "none.nii.gz", "--output_dir", "RUN"], "none.nii.gz"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(config, options, message, dataset_dir, checkpoint, tmp_path):
    places = {"DATA": dataset_dir, "RUN": tmp_path / "run", "MODEL": checkpoint}
    result = bundle(config, *(places.get(option, option) for option in options))
    assert message in error_line(result)
    assert not (tmp_path / "run").exists()


def test_teacher_of_other_organs_is_refused(dataset_dir, checkpoint, tmp_path):
    model = torch.load(checkpoint, weights_only=True)
    other = tmp_path / "other.pt"
    labels = {**load_model(checkpoint).labels, 1: "spleen"}
    network = build_network("enet", out_channels=len(labels))
    save_model(
        other,
        network,
        network_arguments=network.arguments,
        labels=labels,
        preprocessing=model["preprocessing"],
        size=32,
        modality="CT",
    )
    options = ["--dataset_dir", dataset_dir, "--teacher", other, "--student", "enet", "--run_dir", tmp_path / "run"]
    assert "organs" in error_line(bundle("distill", *options))
