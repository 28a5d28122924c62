# SPDX-License-Identifier: Apache-2.0
"""A model file's list of transforms is what inference does: other spacings, other filters, classes of one's own.

Whatever the list does to a scan, the mask lies on the scan's own grid; whatever class it names, none is built that the
user has not trusted.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import GaussianSmooth
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.data import IntensityRule, Preprocessing, preprocessing_of
from pipeline.data.scans.volumes import Volume, read_volume
from pipeline.data.slides.base import ArraySlide
from pipeline.errors import InputError
from pipeline.inference import ScanDataset, TileInferer, segment, segment_files, segment_slides, tile_inferer_of
from pipeline.networks import build_network, load_model, save_model
from tests.preprocessing import scan_preprocessing, tile_preprocessing

WINDOW = IntensityRule("window", 0.0, 200.0)
WHITE = IntensityRule("window", 0.0, 255.0)
SMOOTHING = {"_target_": "monai.transforms.intensity.dictionary.GaussianSmoothd", "keys": "image", "sigma": 1.5}
LABELS = {0: "background", 1: "block"}
STRAIGHT = np.array([[1.0, 0, 0, -12.5], [0, 1.5, 0, 30.25], [0, 0, 2, 700], [0, 0, 0, 1]])
TURN = np.array([[1.0, 0, 0, 0], [0, np.cos(0.3), -np.sin(0.3), 0], [0, np.sin(0.3), np.cos(0.3), 0], [0, 0, 0, 1]])
OBLIQUE = TURN @ STRAIGHT
OWN_MODULE = """
from monai.transforms import MapTransform


class Negatived(MapTransform):
    def __init__(self, keys, brightest, allow_missing_keys=False):
        super().__init__(keys, allow_missing_keys)
        self.brightest = brightest

    def __call__(self, data):
        return {**data, **{key: self.brightest - data[key] for key in self.key_iterator(data)}}


def negatived(keys, brightest):
    return Negatived(keys, brightest)
"""


class Threshold(nn.Module):
    """Class 1 above the middle; keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.clone())
        grey = images.mean(dim=1, keepdim=True)
        return torch.cat([0.5 - grey, grey - 0.5], dim=1)


def model_of(preprocessing: list[dict[str, Any]], size: int | tuple[int, int, int]) -> SimpleNamespace:
    return SimpleNamespace(
        network=Threshold(),
        network_arguments={"name": "fake", "in_channels": 1, "out_channels": 2},
        labels=LABELS,
        preprocessing=preprocessing,
        size=size,
        tile_px=None,
        modality="synthetic",
        sha256="0" * 64,
    )


def slides_model(preprocessing: list[dict[str, Any]]) -> SimpleNamespace:
    return SimpleNamespace(**{**vars(model_of(preprocessing, 16)), "tile_px": 16})


def with_spacing(*pixdim: float) -> list[dict[str, Any]]:
    steps = scan_preprocessing(WINDOW)
    spacing = {
        "_target_": "monai.transforms.spatial.dictionary.Spacingd",
        "keys": ["image", "label"],
        "mode": ["bilinear", "nearest"],
        "pixdim": list(pixdim),
    }
    return [*steps[:3], spacing, *steps[3:]]


def smoothed(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the steps with a smoothing before the scaling, which is the last."""
    return [*steps[:-1], SMOOTHING, steps[-1]]


def blocks() -> np.ndarray:
    """Return a scan (13, 13, 7) in RAS with two blocks of 200.

    In x and y their borders lie half-way between the voxels 0, 3, 6, 9 and 12, so that these alone show them exactly.
    """
    values = np.zeros((13, 13, 7), np.int16)
    values[2:8, 5:11, 1:4] = 200
    values[8:13, 0:2, 5:7] = 200
    return values


def stored(values: np.ndarray, axcodes: str, affine: np.ndarray) -> nib.Nifti1Image:
    """Return an image in RAS as one that stores its axes otherwise."""
    ras, other = (nib.orientations.axcodes2ornt(codes) for codes in ("RAS", axcodes))
    return nib.Nifti1Image(values, affine).as_reoriented(nib.orientations.ornt_transform(ras, other))


def assert_within_a_voxel(labels: np.ndarray, truth: np.ndarray) -> None:
    """Check that the mask holds all inner voxels of the true one, and none that does not touch it."""
    mask, true = (torch.from_numpy(array.astype(np.float32))[None, None] for array in (labels, truth))
    grown, inner = F.max_pool3d(true, 3, 1, 1), 1 - F.max_pool3d(1 - true, 3, 1, 1)
    assert inner.any()
    assert (inner <= mask).all()
    assert (mask <= grown).all()


# --- other spacings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("affine", [STRAIGHT, OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "SLA", "PIR"])
@pytest.mark.parametrize(
    ("spacing", "seen"),
    [
        ((1.0, 1.5, 2.0), (13, 13, 7)),
        ((0.5, 0.75, 1.0), (25, 25, 13)),
        ((3.0, 4.5, 2.0), (5, 5, 7)),
        ((3.0, 4.5, 1.0), (5, 5, 13)),
    ],
    ids=["same", "finer", "coarser", "both"],
)
def test_scans_at_another_spacing_get_masks_on_their_own_grid(
    tmp_path: Path,
    spacing: tuple[float, float, float],
    seen: tuple[int, int, int],
    axcodes: str,
    affine: np.ndarray,
) -> None:
    image = stored(blocks(), axcodes, affine)
    expected = np.asanyarray(stored((blocks() > 0).astype(np.uint8), axcodes, affine).dataobj)
    nib.save(image, tmp_path / "scan.nii")

    model = model_of(with_spacing(*spacing), seen[0])
    labels = segment(read_volume(tmp_path / "scan.nii"), model)
    assert labels.shape == image.shape
    assert (*model.network.seen[0].shape[-2:], sum(map(len, model.network.seen))) == seen
    assert labels.dtype == np.uint8
    if affine is STRAIGHT:
        np.testing.assert_array_equal(labels, expected)
    else:  # what a file rounds of an oblique affine makes MONAI centre the new grid, half a voxel off
        assert_within_a_voxel(labels, expected)

    assert segment_files(tmp_path / "scan.nii", tmp_path / "out", model) == 0
    written = nib.load(tmp_path / "out" / "scan.nii.gz")
    assert written.shape == image.shape
    np.testing.assert_array_equal(written.affine, nib.load(tmp_path / "scan.nii").affine)
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), labels)


def test_spacings_that_divide_nothing_move_borders_by_less_than_a_voxel() -> None:
    values = np.zeros((31, 27, 18), np.int16)
    values[6:21, 9:22, 4:13] = 200
    affine = np.diag([0.7, 0.7, 2.5, 1.0])
    labels = segment(Volume(values, affine, Path("scan.nii")), model_of(with_spacing(1.1, 0.9, 1.7), 24))
    assert labels.shape == values.shape
    assert_within_a_voxel(labels, (values > 0).astype(np.uint8))


def test_networks_of_volumes_see_other_spacings_too() -> None:
    model = model_of(with_spacing(3.0, 3.0, 1.0), (4, 4, 4))
    labels = segment(Volume(blocks(), np.eye(4), Path("scan.nii")), model)
    np.testing.assert_array_equal(labels, blocks() > 0)
    assert model.network.seen[0].shape[-3:] == (4, 4, 4)


# --- other filters ----------------------------------------------------------------------------------------------------


def test_smoothing_in_the_list_is_what_the_network_sees_of_a_scan() -> None:
    values = np.random.default_rng(0).integers(0, 200, (12, 12, 6)).astype(np.int16)
    scan = Volume(values, np.eye(4), Path("scan.nii"))
    plain, smooth = (
        model_of(steps, 12) for steps in (scan_preprocessing(WINDOW), smoothed(scan_preprocessing(WINDOW)))
    )
    segment(scan, plain)
    labels = segment(scan, smooth)
    images = [torch.cat(model.network.seen)[:, 0].permute(1, 2, 0) for model in (plain, smooth)]
    torch.testing.assert_close(images[0], torch.from_numpy(values / 200).float())
    expected = GaussianSmooth(sigma=1.5)(torch.from_numpy(values).float()[None])[0] / 200
    torch.testing.assert_close(images[1], torch.as_tensor(expected), atol=1e-5, rtol=0)
    assert float((images[1] - images[0]).abs().max()) > 0.2
    np.testing.assert_array_equal(labels, images[1] > 0.5)


@pytest.mark.parametrize("source", ["image", "slide"])
def test_smoothing_in_the_list_is_what_the_network_sees_of_a_tile(source: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 200, (16, 16, 1), dtype=np.uint8)
    raw = torch.from_numpy(pixels).permute(2, 0, 1)
    inferer = TileInferer(16, 16, preprocessing_of(smoothed(tile_preprocessing(WHITE))))
    network = Threshold()
    network.in_channels = 1
    if source == "slide":
        labels = np.concatenate(list(inferer.bands(ArraySlide(pixels), network)))
    else:
        labels = inferer(raw[None], network)[0, 0].numpy()
    expected = GaussianSmooth(sigma=1.5)(raw.float())[None] / 255
    (seen,) = network.seen
    torch.testing.assert_close(torch.as_tensor(seen), torch.as_tensor(expected), atol=1e-5, rtol=0)
    np.testing.assert_array_equal(labels, expected[0, 0] > 0.5)


# --- classes that are not trusted -------------------------------------------------------------------------------------


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of an importable module with a transform `Negatived` and a function `negatived`."""
    (tmp_path / "own_steps.py").write_text(OWN_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return "own_steps"


def save_with(step: dict[str, Any], folder: Path, tile_px: int | None = None) -> Path:
    """Write a real model file whose preprocessing has one more step."""
    steps = scan_preprocessing(WINDOW) if tile_px is None else tile_preprocessing(WHITE)
    path = folder / "model.pt"
    network = build_network("enet", 1 if tile_px is None else 3, 2)
    save_model(path, network, labels=LABELS, preprocessing=[*steps, step], size=16, modality="CT", tile_px=tile_px)
    return path


@pytest.mark.parametrize(
    "step",
    [
        {"_target_": "os.system", "command": "touch {folder}/harm"},
        {"_target_": "builtins.exec", "source": "open('{folder}/harm', 'w')"},
        {"_target_": "monai.transforms.io.dictionary.SaveImaged", "keys": "image", "output_dir": "{folder}/harm"},
        {"_target_": "monai.transforms.SaveImaged", "keys": "image", "output_dir": "{folder}/harm"},
        {"_target_": "monai.transforms.utility", "keys": "image"},
        {"_target_": "monai.transforms.utility_of_others.Stepd", "keys": "image"},
        {"_target_": "pipeline.files.atomic.write_json", "path": "{folder}/harm", "content": {}},
        {"_target_": ["os.system"], "command": "touch {folder}/harm"},
        {"keys": "image"},
    ],
)
def test_classes_outside_the_trusted_modules_are_refused_in_one_line_that_names_them(
    tmp_path: Path, step: dict[str, Any]
) -> None:
    step = {key: value.format(folder=tmp_path) if isinstance(value, str) else value for key, value in step.items()}
    scan = Volume(np.zeros((4, 4, 2), np.int16), np.eye(4), Path("scan.nii"))
    nib.save(nib.Nifti1Image(scan.array, scan.affine), tmp_path / "scan.nii")
    scans = load_model(save_with(step, tmp_path))
    slides = load_model(save_with(step, tmp_path, tile_px=16))
    for use in (
        lambda: segment(scan, scans),
        lambda: segment_files(tmp_path / "scan.nii", tmp_path / "out", scans),
        lambda: segment_slides(tmp_path / "scan.nii", tmp_path / "out", slides),
        lambda: tile_inferer_of(slides),
    ):
        with pytest.raises(InputError) as refused:
            use()
        assert repr(step.get("_target_")) in str(refused.value)
        assert "export GRAPHFLOW_TRUSTED_MODULES=" in str(refused.value)
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("monai.transforms.utility.dictionary.Nothing", {}, r"Nothing is not installed, or no Transform"),
        ("monai.transforms.spatial.dictionary.np.load", {"file": "x.npy"}, r"is not installed, or no Transform"),
        ("pipeline.data.read_volume", {"path": "scan.nii"}, "read_volume is not installed, or no Transform"),
        ("monai.transforms.intensity.dictionary.GaussianSmoothd", {"radius": 3}, "cannot be built .*'radius'"),
        ("monai.transforms.intensity.dictionary.RandGaussianNoised", {"keys": "image"}, "which is random; put it into"),
    ],
)
def test_what_is_no_deterministic_transform_of_a_trusted_module_is_refused(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as refused:
        preprocessing_of([{"_target_": name, **options}])
    assert "\n" not in str(refused.value)


def test_a_trusted_module_admits_its_classes(own_module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = {"_target_": f"{own_module}.Negatived", "keys": ["image", "label"], "brightest": 1.0}
    model = load_model(save_with(step, tmp_path))
    with pytest.raises(InputError, match=f"Negatived' is none of .*export GRAPHFLOW_TRUSTED_MODULES={own_module}"):
        preprocessing_of(model.preprocessing)
    monkeypatch.setenv("GRAPHFLOW_TRUSTED_MODULES", "own")  # the beginning of a name is no module
    with pytest.raises(InputError, match="is none of"):
        preprocessing_of(model.preprocessing)
    monkeypatch.setenv("GRAPHFLOW_TRUSTED_MODULES", own_module)
    image = preprocessing_of(model.preprocessing).of_image(torch.full((2, 3, 4), 50))
    assert torch.equal(torch.as_tensor(image), torch.full((1, 2, 3, 4), 0.75))

    slides = load_model(save_with(step, tmp_path, tile_px=16))
    inferer = tile_inferer_of(slides, background=None)
    network = Threshold()
    assert (inferer(torch.zeros(1, 3, 16, 16), network) == 1).all()
    assert (network.seen[0] == 1).all()


def test_a_trusted_module_admits_no_functions(own_module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHFLOW_TRUSTED_MODULES", own_module)
    step = {"_target_": f"{own_module}.negatived", "keys": "image", "brightest": 1.0}
    with pytest.raises(InputError, match="negatived is not installed, or no Transform"):
        preprocessing_of([step])


def test_a_trusted_module_that_is_missing_or_broken_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_steps.py").write_text("import a_module_that_is_not_there")
    for module, message in (("broken_steps", "cannot be imported"), ("absent_steps", "put its module on PYTHONPATH")):
        monkeypatch.setenv("GRAPHFLOW_TRUSTED_MODULES", module)
        with pytest.raises(InputError, match=f"{module}.Stepd .*{message}"):
            preprocessing_of([{"_target_": f"{module}.Stepd"}])


@pytest.mark.parametrize(
    "name",
    [
        "monai.transforms.spatial.functional.monai.transforms.SaveImaged",
        "pipeline.data.preprocessing.LoadImaged",
    ],
)
def test_what_a_trusted_module_imports_is_not_trusted_by_that(tmp_path: Path, name: str) -> None:
    step = {"_target_": name, "keys": "image", "output_dir": str(tmp_path / "harm")}
    with pytest.raises(InputError, match=r"'monai\.transforms\.io\.dictionary\.\w+' is none of"):
        preprocessing_of([*scan_preprocessing(WINDOW), step])


def test_a_transform_that_loses_the_metadata_gives_no_mask(tmp_path: Path) -> None:
    step = {"_target_": "monai.transforms.utility.dictionary.ToTensord", "keys": "image", "track_meta": False}
    model = model_of([*scan_preprocessing(WINDOW), step], 16)
    scan = Volume(np.zeros((6, 5, 4), np.int16), np.diag([-1.0, -1, 1, 1]), Path("scan.nii"))
    with pytest.raises(InputError, match="the labels don't return to the scan's grid"):
        segment(scan, model)


def test_a_scan_on_which_a_transform_fails_is_skipped_like_one_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    for name in "ab":
        nib.save(nib.Nifti1Image(np.zeros((6, 6, 3), np.int16), np.eye(4)), tmp_path / "scans" / f"{name}.nii.gz")
    scans = ScanDataset(tmp_path / "scans", Preprocessing([lambda data: 1 / 0], []))
    assert list(scans) == []
    assert [failure.error for failure in scans.failures] == [
        "preprocessing: division by zero; correct the transforms, or leave the image out"
    ] * 2
