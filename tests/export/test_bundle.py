# SPDX-License-Identifier: Apache-2.0
"""Bundles run from another directory, while this project cannot be imported, and give this project's own masks."""

from __future__ import annotations

import errno
import json
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from data_prep.phantom_slides import draw_picture
from pipeline.data import IntensityRule, read_volume, write_png
from pipeline.errors import InputError
from pipeline.export import bundle_parity
from pipeline.export.bundle import write_bundle
from pipeline.export.bundle_configs import inference_config
from pipeline.export.parity import ParityError
from pipeline.inference import segment, tile_inferer_of
from pipeline.inference.segmentation import segment_by
from pipeline.networks import SavedModel, build_network, load_model, save_model
from tests.bundles.bundle_commands import assert_done, run_program
from tests.preprocessing import scan_preprocessing, tile_preprocessing

LABELS = {0: "background", 1: "liver", 2: "spleen"}
WINDOW, PERCENTILES = IntensityRule("window", -125, 275), IntensityRule("percentiles", 0.5, 99.5)
SEGRESNET = {
    "name": "monai.networks.nets.SegResNet",
    "spatial_dims": 3,
    "init_filters": 4,
    "blocks_down": (1, 1),
    "blocks_up": (1,),
    "norm": ("GROUP", {"num_groups": 2}),
}
CONFIGS = {"configs/metadata.json", "configs/inference.json", "configs/logging.conf"}
SCAN_FILES = {*CONFIGS, "docs/README.md", "models/model.pt", "LICENSE"}


def model(folder: Path, network: dict | str, size=20, rule: IntensityRule = WINDOW, **described) -> SavedModel:
    """Return a model of random weights, always the same, whose classes are about equally likely."""
    torch.manual_seed(0)
    channels = described.pop("in_channels", 1)
    built = build_network(network, in_channels=channels, out_channels=len(LABELS))
    _balance(built, (8, channels, *(size if isinstance(size, tuple) else (size, size))))
    steps = tile_preprocessing(rule) if "tile_px" in described else scan_preprocessing(rule)
    path = folder / "model.pt"
    save_model(path, built, labels=LABELS, preprocessing=steps, size=size, modality="CT", **described)
    return load_model(path)


def _balance(network: torch.nn.Module, shape: tuple[int, ...]) -> None:
    """Fit statistics and the last bias to noise: a mask of one class alone would prove little."""
    sides = [-(-side // network.size_divisor) * network.size_divisor for side in shape[2:]]
    images = torch.rand(*shape[:2], *sides)
    with torch.no_grad():
        for _ in range(20):
            network.train()(images)
        logits = network.eval()(images).transpose(0, 1).flatten(1).mean(dim=1)
        biases = [value for value in network.parameters() if value.shape == logits.shape]
        if biases:
            biases[-1] -= logits


def written(model: SavedModel, folder: Path, **options) -> Path:
    """Write a bundle and return its folder."""
    write_bundle(model, folder, **options)
    return folder


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    """Return a folder with scans along the patient's axes, with permuted and turned axes, and oblique."""
    folder = tmp_path_factory.mktemp("scans")
    voxels = np.random.default_rng(0).normal(75, 150, (23, 27, 9)).round().astype(np.int16)
    plain = np.diag([0.8, 0.9, 3.0, 1.0])
    turned = np.array([[0, 0, -1.5, 40], [-0.7, 0, 0, 5], [0, 0.7, 0, -60], [0, 0, 0, 1]])
    oblique = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.2, 0.1, 0.3), [1, 2, 3]) @ plain
    for name, affine in (("plain", plain), ("turned", turned), ("oblique", oblique)):
        nib.save(nib.Nifti1Image(voxels, affine), folder / f"{name}.nii.gz")
    return folder


def run_bundle(bundle: Path, given: Path, masks: Path):
    """Run a bundle as `python -m monai.bundle run` does, in a process that cannot import this project."""
    arguments = ["run", "--config_file", bundle / "configs/inference.json"]
    arguments += ["--dataset_dir", given, "--output_dir", masks]
    code = f"""import runpy, sys
sys.modules["pipeline"] = None
sys.argv[1:] = {list(map(str, arguments))}
runpy.run_module("monai.bundle", run_name="__main__")"""
    return run_program([sys.executable, "-c", code])


@pytest.mark.parametrize(
    ("network", "size", "rule"),
    [
        ("enet", 20, WINDOW),
        pytest.param("mobile_unet", 36, PERCENTILES, marks=pytest.mark.slow),
        pytest.param({"name": "fanet", "width": 0.25}, 24, WINDOW, marks=pytest.mark.slow),
        pytest.param("erfnet", 24, WINDOW, marks=pytest.mark.slow),
        (SEGRESNET, (16, 16, 6), WINDOW),
    ],
)
def test_masks_are_the_projects_own_to_the_voxel(network, size, rule, scans, tmp_path):
    student = model(tmp_path, network, size, rule)
    bundle = written(student, tmp_path / "bundle")
    assert_done(run_bundle(bundle, scans, tmp_path / "masks"))
    for scan in scans.iterdir():
        mask = nib.load(tmp_path / "masks" / scan.name.replace(".nii.gz", "_seg.nii.gz"))
        labels = np.asarray(mask.dataobj)
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, segment(read_volume(scan), student))
        np.testing.assert_allclose(mask.affine, read_volume(scan).affine, atol=1e-5)
        assert len(np.unique(labels)) > 1


@pytest.mark.parametrize("channels", [1, 3])
def test_masks_of_pictures_are_the_tile_inferers_own(channels, tmp_path):
    student = model(tmp_path, "enet", 24, IntensityRule("window", 0, 255), in_channels=channels, tile_px=30)
    (tmp_path / "given").mkdir()
    picture = draw_picture(0, 0, 128)[0][:100]
    write_png(tmp_path / "given/tissue.png", picture)
    bundle = written(student, tmp_path / "bundle")
    assert_done(run_bundle(bundle, tmp_path / "given", tmp_path / "masks"))
    shown = np.asarray(Image.fromarray(picture).convert("L" if channels == 1 else "RGB")).reshape(100, 128, channels)
    expected = tile_inferer_of(student)(torch.from_numpy(shown.copy()).permute(2, 0, 1)[None], student.network)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "masks/tissue_seg.png")), expected[0, 0].numpy())
    assert len(expected.unique()) > 1


def test_folder_holds_plain_weights_and_what_monai_reads(tmp_path):
    student = model(tmp_path, SEGRESNET, (16, 16, 6), recipe={"epochs": 3}, selection={"epoch": 2, "val_dice": 0.5})
    bundle = written(student, tmp_path / "new" / "liver")
    assert [path.name for path in bundle.parent.iterdir()] == ["liver"]
    files = {str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file()}
    assert {name for name in files if not name.startswith("scripts/")} == SCAN_FILES
    weights = torch.load(bundle / "models/model.pt", weights_only=True)
    for name, value in student.network.state_dict().items():
        assert torch.equal(weights[name], value)
    formats = json.loads((bundle / "configs/metadata.json").read_text())["network_data_format"]
    assert formats["inputs"]["image"]["spatial_shape"] == [16, 16, 6]
    assert formats["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "liver", "2": "spleen"}
    card = (bundle / "docs/README.md").read_text()
    assert "# liver\n" in card
    assert "| epochs | 3 |" in card
    assert "val_dice 0.5" in card


def write_report(folder: Path, sha256: str) -> Path:
    folder.mkdir()
    summary = {"dataset": "phantoms", "checkpoint": {"sha256": sha256}}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "per_organ.csv").write_text("organ,label,n_cases,dice_mean,hd95_mm_mean\nliver,1,3,0.912000,inf\n")
    return folder


def test_card_has_the_figures_of_the_models_own_report(tmp_path):
    student = model(tmp_path, "enet", recipe={"patients": {"test": ["anna"]}})
    bundle = written(student, tmp_path / "bundle", report=write_report(tmp_path / "report", student.sha256))
    card = (bundle / "docs/README.md").read_text()
    assert "On the test cases of phantoms" in card
    assert "| liver | 3 | 0.912000 | inf |" in card
    assert "anna" not in card
    with pytest.raises(InputError, match="other is of another model than"):
        write_bundle(student, tmp_path / "new", report=write_report(tmp_path / "other", "0" * 64))
    with pytest.raises(InputError, match="scans is no report on scans"):
        write_bundle(student, tmp_path / "new", report=tmp_path / "scans")


def test_card_of_a_slide_student_has_the_figures_of_its_report(tmp_path):
    student = model(tmp_path, "enet", 24, IntensityRule("window", 0, 255), in_channels=3, tile_px=30)
    report = write_report(tmp_path / "report", student.sha256)
    with pytest.raises(InputError, match="report is no report on slides"):
        write_bundle(student, tmp_path / "bundle", report=report)
    (report / "per_class.csv").write_text(
        "class,n_images,iou,dice_mean,hd95_px_mean\nbackground,9,0.73,,\nliver,9,0.84,0.91,23.4\n"
    )
    card = (written(student, tmp_path / "bundle", report=report) / "docs/README.md").read_text()
    assert "| class | images | IoU | Dice | HD95, pixels |\n|---|---|---|---|---|\n| background | 9 | 0.73 |" in card
    assert "| liver | 9 | 0.84 | 0.91 | 23.4 |" in card


def test_folder_without_images_ends_in_an_error(tmp_path):
    (tmp_path / "given").mkdir()
    result = run_bundle(written(model(tmp_path, "enet"), tmp_path / "bundle"), tmp_path / "given", tmp_path / "out")
    assert result.returncode == 2
    assert f"error: no image in {tmp_path / 'given'}; give --dataset_dir" in result.stderr


def test_archive_holds_the_folder(tmp_path):
    student = model(tmp_path, "enet")
    write_bundle(student, tmp_path / "liver.zip")
    names = zipfile.ZipFile(tmp_path / "liver.zip").namelist()
    assert "liver/configs/inference.json" in names
    assert {name.partition("/")[0] for name in names} == {"liver"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["liver.zip", "model.pt"]


def test_what_is_there_is_refused(tmp_path):
    student = model(tmp_path, "enet")
    (tmp_path / "taken").mkdir()
    with pytest.raises(InputError, match=r"taken exists; choose a new name"):
        write_bundle(student, tmp_path / "taken")
    (tmp_path / "taken.zip").touch()
    with pytest.raises(InputError, match=r"taken.zip exists; choose a new name"):
        write_bundle(student, tmp_path / "taken.zip")


@pytest.mark.parametrize("what", ["network", "preprocessing"])
def test_class_of_the_users_own_is_refused_and_nothing_written(what, tmp_path):
    student = model(tmp_path, "enet")
    own = {
        "network": {"network_arguments": {"name": "mine.Net", "in_channels": 1, "options": {}}},
        "preprocessing": {"preprocessing": [student.preprocessing[0], {"_target_": "mine.Blurd", "keys": "image"}]},
    }[what]
    with pytest.raises(InputError, match=f"mine.* of its {what} is in a package of your own, which a bundle does not"):
        write_bundle(replace(student, **own), tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_scans_of_another_format_cannot_be_compared(tmp_path):
    with pytest.raises(InputError, match=r"scan.mha: a bundle reads NIfTI alone"):
        write_bundle(model(tmp_path, "enet"), tmp_path / "bundle", [tmp_path / "scan.mha"])


@pytest.mark.parametrize("name", ["bundle", "bundle.zip"])
def test_bundle_of_another_mask_does_not_appear(name, scans, tmp_path, monkeypatch):
    student = model(tmp_path, "enet")
    monkeypatch.setattr(bundle_parity, "_mask_by_bundle", lambda folder, image: np.zeros((23, 27, 9), np.uint8))
    with pytest.raises(ParityError, match=r"differ from torch's: Dice liver 0.00000, spleen 0.00000, less than 0.999"):
        write_bundle(student, tmp_path / name, [scans / "plain.nii.gz"])
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_bundle_whose_mask_has_another_shape_does_not_appear(scans, tmp_path, monkeypatch):
    student = model(tmp_path, "enet")
    monkeypatch.setattr(bundle_parity, "_mask_by_bundle", lambda folder, image: np.zeros((27, 23, 9), np.uint8))
    with pytest.raises(ParityError, match=r"plain.nii.gz has the shape \(27, 23, 9\), not \(23, 27, 9\)"):
        write_bundle(student, tmp_path / "bundle", [scans / "plain.nii.gz"])
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_agreement_counts_the_pixels_of_all_scans(scans, tmp_path, monkeypatch):
    student = model(tmp_path, "enet")
    monkeypatch.setattr(
        bundle_parity, "_mask_by_bundle", lambda folder, image: segment_by(student.network, read_volume(image), student)
    )
    found = write_bundle(student, tmp_path / "bundle", sorted(scans.iterdir()))
    assert (found.pixels, found.differing) == (3 * 23 * 27 * 9, 0)
    assert found.dice == {"liver": 1.0, "spleen": 1.0}


def test_made_up_images_are_larger_than_those_of_training(tmp_path):
    volume = read_volume(bundle_parity.made_up_image(model(tmp_path, "enet", 20), tmp_path))
    assert volume.array.shape == (25, 20, 6)
    assert -125 <= volume.array.min() < volume.array.max() <= 275
    volume = read_volume(bundle_parity.made_up_image(model(tmp_path, SEGRESNET, (16, 8, 6), PERCENTILES), tmp_path))
    assert volume.array.shape == (20, 8, 6)
    assert volume.array.std() > 100
    slides = model(tmp_path, "enet", 24, IntensityRule("window", 0, 255), in_channels=3, tile_px=32)
    assert np.asarray(Image.open(bundle_parity.made_up_image(slides, tmp_path))).shape == (40, 40, 3)


def test_number_of_slices_at_once_is_left_to_the_device(tmp_path):
    assert inference_config(model(tmp_path, "enet"))["inferer"]["inferer"]["slices_per_chunk"] is None


def test_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def refuse(content, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    student = model(tmp_path, "enet")
    monkeypatch.setattr(torch, "save", refuse)
    with pytest.raises(InputError, match=r"cannot write .*bundle: No space left on device; free space"):
        write_bundle(student, tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_bundle_that_does_not_run_does_not_appear(tmp_path, monkeypatch):
    student = model(tmp_path, "enet")
    monkeypatch.setattr(bundle_parity.sys, "executable", "false")
    image = bundle_parity.made_up_image(student, tmp_path)
    with pytest.raises(ParityError, match=r"gives no mask of .*made_up.nii.gz \(no message\)"):
        write_bundle(student, tmp_path / "bundle", [image])
    assert not (tmp_path / "bundle").exists()


@pytest.mark.slow
@pytest.mark.parametrize("described", [{}, {"in_channels": 1, "tile_px": 30}, {"in_channels": 3, "tile_px": 30}])
def test_bundle_is_compared_by_the_command_that_users_type(described, tmp_path):
    student = model(tmp_path, "enet", 24, **described)
    found = write_bundle(student, tmp_path / "bundle", [bundle_parity.made_up_image(student, tmp_path)])
    assert (found.differing, len(found.dice)) == (0, 2)
    assert not list((tmp_path / "bundle").rglob("__pycache__"))
