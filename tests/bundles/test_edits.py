# SPDX-License-Identifier: Apache-2.0
"""What a user edits in the YAML happens: in training, in evaluation and in inference alike."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml

from pipeline.networks import load_model
from tests.bundles.bundle_commands import ROOT, assert_done, error_line, run_program, scalars

QUICK = ["--epochs", "1", "--batch_size", "4", "--size", "32"]


class Editor:
    """A bundle of the user's own, copied from ours: its configs can be changed and run."""

    def __init__(self, folder: Path, dataset_dir: Path) -> None:
        self.folder, self.dataset_dir = folder, dataset_dir
        for name in ("train", "distill", "evaluate", "inference"):
            (folder / f"{name}.yaml").write_text((ROOT / f"bundles/synapse/configs/{name}.yaml").read_text())

    def edit(self, name: str, change) -> None:
        path = self.folder / f"{name}.yaml"
        config = yaml.safe_load(path.read_text())
        change(config)
        path.write_text(yaml.safe_dump(config, sort_keys=False))

    def run(self, *arguments: object, configs: tuple[str, ...] = ("train",)):
        files = str([str(self.folder / f"{name}.yaml") for name in configs])
        options = ["--dataset_dir", str(self.dataset_dir)] if "inference" not in configs else []
        program = ["python", "-m", "monai.bundle", "run", "--config_file", files, *options, *map(str, arguments)]
        return run_program(program)

    def train(self, run_dir: Path, *options: object) -> Path:
        network = [] if "--network_def" in options else ["--network", "enet"]
        assert_done(self.run("--run_dir", run_dir, *network, *QUICK, *options))
        return run_dir / "model.pt"

    def masks(self, checkpoint: Path, folder: Path) -> dict[str, np.ndarray]:
        """Return the masks of inference, whose grids are those of the scans."""
        images = self.dataset_dir / "images"
        options = ["--checkpoint", checkpoint, "--input", images, "--output_dir", folder]
        assert_done(self.run(*options, configs=("inference",)))
        for scan in images.iterdir():
            image, mask = nib.load(scan), nib.load(folder / scan.name)
            assert mask.shape == image.shape
            np.testing.assert_array_equal(mask.affine, image.affine)
        return {path.name: np.asarray(nib.load(path).dataobj) for path in sorted(folder.glob("*.nii.gz"))}

    def reported(self, checkpoint: Path, folder: Path) -> dict[str, np.ndarray]:
        """Return the masks of evaluation."""
        options = ["--checkpoint", checkpoint, "--run_dir", folder]
        assert_done(self.run(*options, configs=("train", "evaluate")))
        files = sorted((folder / "predictions").glob("*.nii.gz"))
        return {path.name: np.asarray(nib.load(path).dataobj) for path in files}


@pytest.fixture
def editor(tmp_path, dataset_dir) -> Editor:
    (tmp_path / "mine").mkdir()
    return Editor(tmp_path / "mine", dataset_dir)


def assert_same_where_both(masks: dict[str, np.ndarray], others: dict[str, np.ndarray]) -> None:
    assert others
    for name, mask in others.items():
        np.testing.assert_array_equal(mask, masks[name])


def test_a_transform_that_is_added_to_training_is_part_of_inference_and_evaluation(editor, tmp_path):
    smooth = {"_target_": "GaussianSmoothd", "keys": "image", "sigma": 2.0}
    editor.edit("train", lambda config: config["preprocessing"].append(smooth))
    checkpoint = editor.train(tmp_path / "run")
    described = load_model(checkpoint).preprocessing[-1]
    assert described == {
        "_target_": "monai.transforms.intensity.dictionary.GaussianSmoothd", "keys": "image", "sigma": 2.0
    }  # fmt: skip
    masks = editor.masks(checkpoint, tmp_path / "masks")
    assert_same_where_both(masks, editor.reported(checkpoint, tmp_path / "report"))
    # The same weights without it see sharper images.
    content = torch.load(checkpoint, weights_only=True)
    content["preprocessing"].pop()
    torch.save(content, tmp_path / "sharp.pt")
    sharp = editor.masks(tmp_path / "sharp.pt", tmp_path / "sharp")
    assert any(not np.array_equal(sharp[name], masks[name]) for name in masks)


def test_another_spacing_trains_and_segments_on_the_scans_own_grids(editor, tmp_path):
    spacing = {"_target_": "Spacingd", "keys": ["image", "label"], "pixdim": [3, 3, 6], "mode": ["bilinear", "nearest"]}
    editor.edit("train", lambda config: config["preprocessing"].insert(3, spacing))
    checkpoint = editor.train(tmp_path / "run")
    masks = editor.masks(checkpoint, tmp_path / "masks")
    assert_same_where_both(masks, editor.reported(checkpoint, tmp_path / "report"))


def test_monais_networks_by_their_class_train_distill_and_segment(editor, tmp_path):
    shape = "'spatial_dims': 2, 'in_channels': 1, 'out_channels': 9"
    teacher = editor.train(tmp_path / "teacher", "--network_def", f"{{'_target_': 'SegResNet', {shape}}}")
    student = f"{{'_target_': 'UNet', {shape}, 'channels': [4, 8, 8], 'strides': [2, 2]}}"
    options = ["--teacher", teacher, "--network_def", student, "--run_dir", tmp_path / "student"]
    options += ["--terms::kd::temperature", "4.0", "--epochs", "1", "--batch_size", "4"]
    assert_done(editor.run(*options, configs=("train", "distill")))
    model = load_model(tmp_path / "student/model.pt")
    assert model.network_arguments["name"] == "monai.networks.nets.UNet"
    terms = model.extra["recipe"]["distillation"]["terms"]
    assert terms.keys() == {"kd", "review"}
    assert (terms["kd"]["temperature"], terms["review"]["share"]) == (4.0, 0.3)
    assert {"kd", "review", "total"} <= scalars(tmp_path / "student").keys()
    editor.masks(tmp_path / "student/model.pt", tmp_path / "masks")


def test_a_metric_that_is_added_is_in_the_log(editor, tmp_path):
    def add(config):
        config["further_metrics"]["val_mean_iou"] = {
            "_target_": "MeanIoUHandler",
            "include_background": False,
            "output_transform": "$lambda output: tuple([monai.networks.utils.one_hot(one[key].float(), 9, dim=0)"
            " for one in output] for key in ('pred', 'label'))",
        }

    editor.edit("train", add)
    editor.train(tmp_path / "run")
    assert {"val_mean_dice", "val_mean_iou"} <= scalars(tmp_path / "run").keys()


def test_a_metric_that_is_added_to_evaluation_is_in_the_report(editor, tmp_path):
    dice = {"_target_": "pipeline.evaluation.OrganDice", "labels": "$@dataset_folder.labels", "allow_absent": True}
    editor.edit("evaluate", lambda config: config["further_metrics"].update(mine=dice))
    checkpoint = editor.train(tmp_path / "run")
    editor.reported(checkpoint, tmp_path / "report")
    metrics = json.loads((tmp_path / "report/summary.json").read_text())["metrics"]
    assert set(metrics) == {"mean_dice", "hd95_mm", "mine"}
    assert metrics["mine"] == metrics["mean_dice"]


def test_random_transforms_and_another_loss_are_used_and_told(editor, tmp_path):
    def change(config):
        flip = {"_target_": "RandFlipd", "keys": ["image", "label"], "prob": 0.5, "spatial_axis": 0}
        config["slice_augmentation"] = [flip, {"_target_": "RandGaussianNoised", "keys": "image", "prob": 0.5}]
        config["loss_function"] = {"_target_": "DiceFocalLoss", "to_onehot_y": True, "softmax": True}

    editor.edit("train", change)
    editor.train(tmp_path / "run")
    recipe = json.loads((tmp_path / "run/run.json").read_text())["settings"]
    assert recipe["loss"] == "monai.losses.dice.DiceFocalLoss"
    assert recipe["augmentation"].endswith("RandFlipd, monai.transforms.intensity.dictionary.RandGaussianNoised")


def test_a_random_transform_of_one_array_is_refused_before_anything_is_written(editor, tmp_path):
    editor.edit("train", lambda config: config.update(slice_augmentation={"_target_": "RandFlip", "prob": 0.5}))
    line = error_line(editor.run("--run_dir", tmp_path / "run", "--network", "enet", *QUICK))
    assert "RandFlipd" in line
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_another_preprocessing_is_refused(editor, tmp_path):
    teacher = editor.train(tmp_path / "teacher")
    smooth = {"_target_": "GaussianSmoothd", "keys": "image", "sigma": 2.0}
    editor.edit("train", lambda config: config["preprocessing"].append(smooth))
    options = ["--teacher", teacher, "--student", "enet", "--run_dir", tmp_path / "student"]
    line = error_line(editor.run(*options, configs=("train", "distill")))
    assert "was trained with preprocessing no such step, this run has GaussianSmoothd" in line
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        ({"_target_": "RandFlipd", "keys": "image"}, "RandFlipd, which is random; put it into the augmentation"),
        ({"_target_": "Lambdad", "keys": "image", "func": "$lambda image: image"}, "preprocessing::4::func is a"),
        ({"_target_": "GausianSmoothd", "keys": "image"}, "GausianSmoothd"),
    ],
)  # fmt: skip
def test_a_transform_that_model_pt_could_not_keep_is_refused_before_anything_is_written(
    editor, tmp_path, transform, message
):
    editor.edit("train", lambda config: config["preprocessing"].append(transform))
    result = editor.run("--run_dir", tmp_path / "run", "--network", "enet", *QUICK)
    assert message in (error_line(result) if "Gausian" not in message else result.stderr)
    assert not (tmp_path / "run").exists()
