# SPDX-License-Identifier: Apache-2.0
"""The Gastric bundle: that MONAI's own checks pass, and the commands of the README run from pictures to maps."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from data_prep import phantom_ct, phantom_slides
from pipeline.data import load_dataset, read_label_image
from pipeline.networks import load_model
from tests.bundles.bundle_commands import ROOT, assert_done, error_line, rows, run, run_in_two_processes, scalars
from tests.bundles.monai_checks import WORKFLOWS, missing_properties, verify_network
from tests.bundles.untrained import untrained

pytestmark = pytest.mark.usefixtures("in_repository_root")
QUICK = ["--batch_size", "4", "--epochs", "2", "--seed", "1"]
ADVERSARIAL = ["--method", "graph_flow", "--settings", "{'adversarial': 0.1}"]
SIDE = 128


def bundle(config: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return run("gastric", config, *arguments)


@pytest.fixture(scope="module")
def dataset_dir(tmp_path_factory) -> Path:
    """Return phantoms in colour, tiles as they are."""
    folder = tmp_path_factory.mktemp("data") / "phantom"
    arguments = ["--output", str(folder), "--images", "8", "--side", str(SIDE), "--color"]
    assert phantom_slides.main(arguments) == 0
    return folder


@pytest.mark.parametrize("config", WORKFLOWS)
def test_monai_finds_all_properties_it_asks_for(config, dataset_dir, checkpoint, tmp_path):
    assert missing_properties("gastric", config, dataset_dir, checkpoint, tmp_path) == []


@pytest.mark.parametrize("network", ["fanet", "mobile_unet", "enet", "erfnet"])
def test_networks_take_and_give_what_the_metadata_says(network, tmp_path):
    colour = tmp_path / "colour"
    assert phantom_slides.main(["--output", str(colour), "--images", "6", "--side", "128", "--color"]) == 0
    verify_network("gastric", network, colour, tmp_path / "run")


def test_the_metadata_describe_the_student_that_is_shipped():
    metadata = json.loads((ROOT / "bundles/gastric/configs/metadata.json").read_text())["network_data_format"]
    model = load_model(ROOT / "bundles/gastric/models/model.pt")
    assert metadata["inputs"]["image"]["num_channels"] == model.network.in_channels
    assert metadata["outputs"]["pred"]["channel_def"] == {str(value): name for value, name in model.labels.items()}


@pytest.fixture(scope="module")
def chain(dataset_dir, tmp_path_factory) -> Path:
    """Run the whole chain with the commands of the README: teacher, paraphrasers, distilled student, reports, maps."""
    runs = tmp_path_factory.mktemp("runs")
    data = ["--dataset_dir", dataset_dir]
    assert_done(bundle("train", *data, "--size", "64", *QUICK, "--width", "0.0625", "--run_dir", runs / "teacher"))
    teacher = [*data, "--teacher", runs / "teacher/model.pt"]
    assert_done(bundle("paraphrase", *teacher, *QUICK, "--student", "enet", "--run_dir", runs / "paraphraser"))
    options = [*ADVERSARIAL, "--student", "enet", "--paraphraser", runs / "paraphraser/paraphraser.pt"]
    assert_done(bundle("distill", *teacher, *QUICK, *options, "--run_dir", runs / "student"))
    model = ["--checkpoint", runs / "student/model.pt"]
    for protocol in ("full", "paper"):
        assert_done(bundle("evaluate", *data, *model, "--protocol", protocol, "--run_dir", runs / protocol))
    assert_done(bundle("inference", *model, "--input", dataset_dir / "images", "--output_dir", runs / "maps"))
    return runs


@pytest.mark.parametrize(("protocol", "suffix"), [("full", ""), ("paper", "_paper")])
def test_chain_leaves_a_report_of_each_protocol(chain, dataset_dir, protocol, suffix):
    dataset = load_dataset(dataset_dir)
    per_image = rows(chain / protocol / f"per_image{suffix}.csv")
    assert [row["image"] for row in per_image] == sorted(case.case for case in dataset.test)
    assert [row["class"] for row in rows(chain / protocol / f"per_class{suffix}.csv")] == [
        *dataset.labels.values(),
        "mean",
    ]
    summary = json.loads((chain / protocol / f"summary{suffix}.json").read_text())
    assert summary["protocol"] == protocol
    scored = SIDE * SIDE if protocol == "full" else 64 * 64  # four by four centres of a quarter of the network's 64
    assert summary["pooled"]["pixels"] == scored * len(dataset.test)


def test_report_is_that_of_the_maps_that_inference_writes(chain, dataset_dir):
    for row in rows(chain / "full/per_image.csv"):
        labels = tifffile.imread(chain / "maps" / f"{row['image']}.tif", key=0)
        truth = read_label_image(dataset_dir / "labels" / f"{row['image']}.png")
        assert int(np.sum((labels == 1) & (truth == 1))) == int(row["true_positive"])
        assert int(np.sum((labels == 1) & (truth == 0))) == int(row["false_positive"])


def test_chain_leaves_a_map_of_each_picture_and_what_it_means(chain, dataset_dir):
    dataset = load_dataset(dataset_dir)
    pictures = sorted((dataset_dir / "images").iterdir())
    assert len(pictures) == 8
    for picture in pictures:
        with tifffile.TiffFile(chain / "maps" / f"{picture.stem}.tif") as file:
            assert file.pages[0].shape == (SIDE, SIDE)
            assert file.pages[0].is_tiled
        sidecar = json.loads((chain / "maps" / f"{picture.stem}.json").read_text())
        assert set(sidecar["classes"]) == set(dataset.organs.values())
        assert Image.open(chain / "maps" / f"{picture.stem}_overview.png").mode == "RGB"


def test_tensorboard_holds_every_loss_term_and_they_are_finite(chain):
    curves = scalars(chain / "student")
    terms = {"segmentation", "kd", "vertices", "edges", "adversarial", "discriminator", "total"}
    assert terms | {"val_miou"} <= curves.keys()
    for tag, values in curves.items():
        assert np.isfinite(values).all(), tag


def test_checkpoint_describes_itself(chain, dataset_dir):
    model = load_model(chain / "student/model.pt")
    assert (model.size, model.tile_px, model.network_arguments["in_channels"]) == (64, SIDE, 3)
    assert dict(model.labels) == load_dataset(dataset_dir).labels


def test_folder_with_one_bad_picture_is_segmented_and_exits_1(chain, dataset_dir, tmp_path):
    good, bad = sorted((dataset_dir / "images").iterdir())[:2]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / good.name).write_bytes(good.read_bytes())
    (tmp_path / "in" / bad.name).write_bytes(bad.read_bytes()[:200])
    model = ["--checkpoint", chain / "student/model.pt"]
    result = bundle("inference", *model, "--input", tmp_path / "in", "--output_dir", tmp_path / "out")
    assert result.returncode == 1
    assert [row["case"] for row in rows(tmp_path / "out/failures.csv")] == [bad.stem]
    assert (tmp_path / "out" / f"{good.stem}.tif").is_file()
    assert not (tmp_path / "out" / f"{bad.stem}.tif").exists()


@pytest.mark.slow
def test_training_by_two_processes_ends_with_one_model(dataset_dir, tmp_path):
    options = ["--dataset_dir", dataset_dir, "--network", "enet", "--size", "32", *QUICK]
    assert_done(run_in_two_processes("gastric", "train", *options, "--run_dir", tmp_path / "run"))
    assert load_model(tmp_path / "run/model.pt").size == 32
    assert json.loads((tmp_path / "run/run.json").read_text())["machine"]["processes"] == 2


def test_two_processes_without_the_overlay_are_refused(dataset_dir, tmp_path, monkeypatch):
    from pipeline.errors import InputError
    from pipeline.processes import distributed

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(InputError, match="multi_gpu"):
        distributed.check_coordinated(torch.nn.Linear(1, 1))


@pytest.mark.slow
def test_distillation_by_two_processes_ends_with_one_model(chain, dataset_dir, tmp_path):
    teacher = ["--dataset_dir", dataset_dir, "--teacher", chain / "teacher/model.pt", *QUICK, "--student", "enet"]
    assert_done(run_in_two_processes("gastric", "paraphrase", *teacher, "--run_dir", tmp_path / "paraphraser"))
    paraphraser = tmp_path / "paraphraser/paraphraser.pt"
    options = [*ADVERSARIAL, "--paraphraser", paraphraser, "--run_dir", tmp_path / "run"]
    assert_done(run_in_two_processes("gastric", "distill", *teacher, *options))
    model = ["--dataset_dir", dataset_dir, "--checkpoint", tmp_path / "run/model.pt"]
    assert_done(run_in_two_processes("gastric", "evaluate", *model, "--run_dir", tmp_path / "two"))
    assert_done(bundle("evaluate", *model, "--run_dir", tmp_path / "one"))
    assert (tmp_path / "two/per_image.csv").read_bytes() == (tmp_path / "one/per_image.csv").read_bytes()


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ("train", ["--epocs", "3"], "unknown option --epocs; did you mean --epochs?"),
        ("train", ["--dataset_dir", "DATA", "--run_dir", "RUN", "--augmentation", "affine"], "augmentation 'affine'"),
        ("train", ["--dataset_dir", "SCANS", "--run_dir", "RUN"], "holds scans, not slides"),
        ("evaluate", ["--dataset_dir", "DATA", "--run_dir", "RUN", "--checkpoint", "no.pt"], "no.pt"),
        (
            "evaluate",
            ["--dataset_dir", "DATA", "--run_dir", "RUN", "--checkpoint", "MODEL", "--protocol", "mm"],
            "full",
        ),
        ("evaluate", ["--dataset_dir", "DATA", "--run_dir", "RUN", "--checkpoint", "OTHER"], "tile_px"),
        ("inference", ["--checkpoint", "MODEL", "--input", "none.svs", "--output_dir", "RUN"], "none.svs"),
        ("inference", ["--checkpoint", "MODEL", "--input", "SMALL", "--output_dir", "RUN"], "of a tile"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(config, options, message, dataset_dir, checkpoint, tmp_path):
    small, other, scans = tmp_path / "small.png", tmp_path / "other.pt", tmp_path / "scans"
    Image.new("RGB", (40, 200), "pink").save(small)
    if "OTHER" in options:
        phantom_slides.main(["--output", str(tmp_path / "other"), "--images", "6", "--side", "160", "--color"])
        untrained(other, tmp_path / "other")
    if "SCANS" in options:
        phantom_ct.main(["--output", str(scans), "--cases", "3", "--size", "32", "--slices", "8"])
    places = {"DATA": dataset_dir, "RUN": tmp_path / "run", "MODEL": checkpoint}
    places |= {"SMALL": small, "OTHER": other, "SCANS": scans}
    result = bundle(config, *(places.get(option, option) for option in options))
    assert message in error_line(result)
    assert not list((tmp_path / "run").glob("*.csv")) + list((tmp_path / "run").glob("*.tif"))


def test_scans_bundle_refuses_slides(dataset_dir, tmp_path):
    result = run("synapse", "train", "--dataset_dir", dataset_dir, "--run_dir", tmp_path / "run")
    assert "bundles/gastric is the bundle for them" in error_line(result)
