# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
import itertools
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SliceInferer
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd, ScaleIntensityRanged
from torch import Tensor, nn

from pipeline.data import IntensityRule, preprocessing_of
from pipeline.data.samples.slices import resize_images
from pipeline.data.scans.monai_reader import VolumeReader
from pipeline.data.scans.volumes import Volume, read_label, read_volume, write_label_map
from pipeline.errors import InputError
from pipeline.inference import SliceWiseInferer, as_loaded, segment
from tests.preprocessing import scan_preprocessing

WINDOW = IntensityRule("window", -100.0, 300.0)
ORDERS = itertools.permutations(("RL", "AP", "SI"))
ORIENTATIONS = ["".join(axes) for order in ORDERS for axes in itertools.product(*order)]


class Quadrants(nn.Module):
    """Marks bright pixels (above 0.5) with 1 + their quadrant, so that a wrong axis or direction shows."""

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        rows = torch.arange(height).view(-1, 1).expand(height, width) >= height / 2
        columns = torch.arange(width).view(1, -1).expand(height, width) >= width / 2
        quadrant = 1 + rows.long() + 2 * columns.long()
        place = nn.functional.one_hot(quadrant, 5).permute(2, 0, 1).float()
        bright = (images > 0.5).float()
        background = nn.functional.one_hot(torch.zeros_like(quadrant), 5).permute(2, 0, 1).float()
        return place * bright + background * (1 - bright)


class Recorder(nn.Module):
    """Keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.clone())
        return torch.cat([0.4 - images, images - 0.4], dim=1)


def convolution(classes: int = 4) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.Conv2d(6, classes, 3, padding=1)).eval()


def model_of(network: nn.Module, size: int | tuple[int, int, int], rule: IntensityRule = WINDOW) -> SimpleNamespace:
    labels = {0: "background", 1: "a", 2: "b", 3: "c", 4: "d"}
    arguments = {"name": "fake", "in_channels": 1, "out_channels": 5}
    return SimpleNamespace(
        network=network,
        network_arguments=arguments,
        labels=labels,
        preprocessing=scan_preprocessing(rule),
        size=size,
        tile_px=None,
        modality="synthetic",
        sha256="0" * 64,
    )


def in_ras(values: np.ndarray) -> Volume:
    return Volume(values, np.eye(4), Path("scan.nii"))


def noise(*sides: int) -> Tensor:
    """Return a preprocessed volume (1, 1, X, Y, Z)."""
    return torch.rand(1, 1, *sides, generator=torch.Generator().manual_seed(0))


def scan_in_ras(size: int, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an int16 scan (size, size, depth) with blobs off the centre, and the label map that Quadrants gives it."""
    values = np.full((size, size, depth), -50, np.int16)
    values[1:4, 2:5, 1:3] = 250
    values[5:9, 1:7, 3:6] = 280
    values[7:11, 8:10, 2:7] = 260
    x, y, _ = np.indices(values.shape)
    quadrant = 1 + (x >= size / 2) + 2 * (y >= size / 2)
    return values, np.where(values > 100, quadrant, 0).astype(np.uint8)


def ras_affine(oblique: bool) -> np.ndarray:
    affine = np.diag([0.9, 1.1, 3.0, 1.0])
    affine[:3, 3] = (-12.5, 30.25, 700.0)
    if oblique:
        cosine, sine = np.cos(0.3), np.sin(0.3)
        turn = np.array([[1, 0, 0, 0], [0, cosine, -sine, 0], [0, sine, cosine, 0], [0, 0, 0, 1]])
        affine = turn @ affine
    return affine


@pytest.mark.parametrize("oblique", [False, True])
@pytest.mark.parametrize("axcodes", ORIENTATIONS)
def test_mask_lies_on_the_right_voxels_of_the_scans_own_grid(tmp_path: Path, axcodes: str, oblique: bool) -> None:
    values, expected_ras = scan_in_ras(12, 9)
    to_axcodes = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axcodes)
    )
    scan = nib.Nifti1Image(values, ras_affine(oblique)).as_reoriented(to_axcodes)
    expected = nib.Nifti1Image(expected_ras, ras_affine(oblique)).as_reoriented(to_axcodes)
    nib.save(scan, tmp_path / "scan.nii")

    volume = read_volume(tmp_path / "scan.nii")
    labels = segment(volume, model_of(Quadrants(), 12))
    np.testing.assert_array_equal(labels, np.asanyarray(expected.dataobj))
    assert len(set(np.bincount(labels.ravel()))) == 5, "every quadrant of another size: a mirrored mask would show"

    write_label_map(tmp_path / "labels.nii.gz", labels, volume)
    written = nib.load(tmp_path / "labels.nii.gz")
    assert written.shape == scan.shape
    np.testing.assert_array_equal(written.affine, nib.load(tmp_path / "scan.nii").affine)
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), np.asanyarray(expected.dataobj))


def test_blob_keeps_its_place_when_slices_are_resized() -> None:
    values, _ = scan_in_ras(12, 9)
    large = np.kron(values, np.ones((4, 3, 1), np.int16))
    inputs = torch.from_numpy((large + 100) / 400).float()[None, None]
    for size in (40, 64):
        labels = SliceWiseInferer(size)(inputs, Recorder())[0, 0].numpy()
        truth = large > 100
        assert 2 * (labels & truth).sum() / (labels.sum() + truth.sum()) > 0.95


@pytest.mark.parametrize("size", [20, 24, 33])
@pytest.mark.parametrize("chunk", [1, 2, 5, 100])
def test_chunk_size_does_not_change_the_result(chunk: int, size: int) -> None:
    volume = noise(24, 20, 11)
    network = convolution()
    expected = SliceWiseInferer(size, slices_per_chunk=3)(volume, network)
    assert torch.equal(SliceWiseInferer(size, slices_per_chunk=chunk)(volume, network), expected)
    assert expected.unique().numel() > 1


def test_a_cpu_sees_four_slices_at_once_unless_told_otherwise() -> None:
    network = Recorder()
    SliceWiseInferer(8)(noise(8, 8, 6), network)
    assert [len(images) for images in network.seen] == [4, 2]


def test_equals_monais_slice_inferer_followed_by_argmax() -> None:
    volume = noise(24, 24, 7)
    network = convolution()
    with torch.no_grad():
        logits = SliceInferer(roi_size=(24, 24), spatial_dim=2, sw_batch_size=4)(volume, network)
    labels = SliceWiseInferer(24)(volume, network)
    assert torch.equal(labels, logits.argmax(1, keepdim=True).to(torch.uint8))


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "SLA"])
def test_network_sees_what_monais_transforms_give(tmp_path: Path, axcodes: str) -> None:
    values = np.random.default_rng(0).integers(-400, 500, (10, 14, 12)).astype(np.int16)
    to_axcodes = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axcodes)
    )
    nib.save(nib.Nifti1Image(values, ras_affine(False)).as_reoriented(to_axcodes), tmp_path / "scan.nii.gz")
    chain = Compose(
        [
            LoadImaged("image", reader=VolumeReader),
            EnsureChannelFirstd("image"),
            Orientationd("image", "RAS", labels=None),
            ScaleIntensityRanged("image", -100.0, 300.0, 0.0, 1.0, clip=True),
        ]
    )
    prepared = chain({"image": str(tmp_path / "scan.nii.gz")})["image"]
    expected = resize_images(prepared.as_tensor().permute(3, 0, 1, 2).contiguous(), (16, 16))

    scan = read_volume(tmp_path / "scan.nii.gz")
    recorder = Recorder()
    segment(scan, model_of(recorder, 16), slices_per_chunk=5)
    assert torch.equal(torch.cat(recorder.seen), expected)
    image = preprocessing_of(scan_preprocessing(WINDOW)).of_image(as_loaded(scan))
    assert torch.equal(image.affine, prepared.affine)
    np.testing.assert_array_equal(image.meta["original_affine"], prepared.meta["original_affine"])


def test_percentiles_are_of_the_whole_volume_once() -> None:
    values = np.arange(4 * 4 * 10, dtype=np.int16).reshape(4, 4, 10)
    recorder = Recorder()
    segment(in_ras(values), model_of(recorder, 4, IntensityRule("percentiles", 0.0, 100.0)), slices_per_chunk=2)
    assert len(recorder.seen) == 5
    seen = torch.cat(recorder.seen)[:, 0].permute(1, 2, 0)
    torch.testing.assert_close(seen, torch.from_numpy(values) / 159.0)


def test_percentiles_are_of_each_scan_by_itself() -> None:
    values = np.random.default_rng(0).integers(0, 100, (8, 8, 5)).astype(np.int16)
    model = model_of(convolution(), 8, IntensityRule("percentiles", 1, 99))
    labels = segment(in_ras(values), model)
    np.testing.assert_array_equal(labels, segment(in_ras(3 * values + 7), model))
    assert len(np.unique(labels)) > 1


def test_percentiles_are_of_the_whole_volume_for_networks_of_patches_too() -> None:
    values = np.tile(np.arange(0, 110, 10, dtype=np.int16), (4, 4, 1))
    model = model_of(Recorder(), (4, 4, 2), IntensityRule("percentiles", 0.0, 100.0))
    labels = segment(in_ras(values), model, slices_per_chunk=1)
    assert labels[0, 0].tolist() == [0] * 5 + [1] * 6  # Recorder says 1 above 0.4


def test_volumes_of_a_batch_are_segmented_each_by_itself() -> None:
    both = torch.cat([noise(8, 8, 5), 1 - noise(8, 8, 5)])
    labels = SliceWiseInferer(8)(both, convolution())
    assert torch.equal(labels, torch.cat([SliceWiseInferer(8)(one[None], convolution()) for one in both]))
    assert not torch.equal(labels[0], labels[1])


@pytest.mark.parametrize("kind", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "int64", "float32"])
def test_scans_of_any_number_type_have_the_same_labels(kind: str) -> None:
    values = np.random.default_rng(0).integers(0, 120, (8, 10, 5))
    expected = segment(in_ras(values.astype(np.float64)), model_of(convolution(), 8))
    assert expected.dtype == np.uint8
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(segment(in_ras(values.astype(kind)), model_of(convolution(), 8)), expected)


def test_metadata_stay_on_the_labels() -> None:
    affine = torch.from_numpy(ras_affine(True))
    volume = MetaTensor(torch.zeros(1, 1, 6, 6, 4), affine=affine, meta={"filename_or_obj": "scan.nii.gz"})
    labels = SliceWiseInferer(8)(volume, Recorder())
    assert isinstance(labels, MetaTensor)
    assert torch.equal(labels.affine, affine)
    assert labels.meta["filename_or_obj"] == "scan.nii.gz"
    assert not isinstance(SliceWiseInferer(8)(volume.as_tensor(), Recorder()), MetaTensor)


def test_networks_that_need_padding_are_padded_and_cropped() -> None:
    class Strided(nn.Module):
        size_divisor = 8

        def forward(self, images: Tensor) -> Tensor:
            assert images.shape[-1] % 8 == 0
            return torch.cat([0.5 - images, images - 0.5], dim=1)

    values, _ = scan_in_ras(12, 9)
    np.testing.assert_array_equal(segment(in_ras(values), model_of(Strided(), 12)), values > 100)


def test_autocast_runs_the_network_in_the_narrow_type() -> None:
    seen = []

    class Probe(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(1, 2, 1)

        def forward(self, images: Tensor) -> Tensor:
            seen.append(self.layer(images).dtype)
            return self.layer(images)

    for given, expected in ((None, torch.float32), ("bfloat16", torch.bfloat16), (torch.bfloat16, torch.bfloat16)):
        SliceWiseInferer(4, amp_dtype=given)(torch.zeros(1, 1, 4, 4, 2), Probe())
        assert seen.pop() == expected


def test_further_arguments_go_to_the_network_and_no_gradient_is_kept() -> None:
    def network(images: Tensor, shift: float, scale: float = 1.0) -> Tensor:
        assert not torch.is_grad_enabled()
        return torch.cat([shift - images, scale * images], dim=1)

    labels = SliceWiseInferer(4)(torch.zeros(1, 1, 4, 4, 2), network, 0.3, scale=0.0)
    assert labels.sum() == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_name_the_slice(value: float) -> None:
    def network(images: Tensor) -> Tensor:
        logits = torch.cat([images, images], dim=1)
        logits[images.amax(dim=(1, 2, 3)) > 0.9, 0, 0, 0] = value
        return logits

    volume = torch.zeros(1, 1, 4, 4, 9)
    volume[..., 7] = 1
    with pytest.raises(InputError, match=r"NaN or infinite in slice 7 of 9 \(0 is the lowest\)"):
        SliceWiseInferer(4, slices_per_chunk=5)(volume, network)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(InputError, match="must be 1 or more"):
        SliceWiseInferer(0)
    with pytest.raises(InputError, match="must be 1 or more"):
        SliceWiseInferer(8, slices_per_chunk=0)
    with pytest.raises(InputError, match="amp_dtype 'half' is unknown; choose float16, bfloat16"):
        SliceWiseInferer(8, amp_dtype="half")
    with pytest.raises(ValueError, match=r"must be \(B, 1, X, Y, Z\)"):
        SliceWiseInferer(8)(torch.zeros(1, 3, 4, 4, 4), Recorder())
    with pytest.raises(InputError, match="300 classes; a label map holds 256"):
        SliceWiseInferer(4)(torch.zeros(1, 1, 4, 4, 1), lambda images: images.expand(-1, 300, -1, -1))


def test_unsigned_voxels_become_signed_tensors(tmp_path: Path) -> None:
    for dtype, top, expected in (
        ("uint16", 9, torch.int16),
        ("uint16", 60000, torch.int32),
        ("uint32", 9, torch.int64),
    ):
        array = np.zeros((3, 4, 5), dtype)
        array[0, 0, 0] = top
        (tmp_path / "scan.nii.gz").write_bytes(gzip.compress(nib.Nifti1Image(array, np.eye(4), dtype=dtype).to_bytes()))
        tensor = as_loaded(read_volume(tmp_path / "scan.nii.gz"))
        assert tensor.dtype == expected
        assert int(tensor.max()) == top


def test_model_of_colour_images_is_refused() -> None:
    model = model_of(Quadrants(), 8)
    model.network_arguments["in_channels"] = 3
    with pytest.raises(InputError, match="takes 3 channels, a scan has one"):
        segment(None, model)


def test_real_scan_gives_a_mask_on_its_own_grid(shared_data: Path, tmp_path: Path) -> None:
    class Body(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.cat([0.2 - images, images - 0.2], dim=1)

    scan = read_volume(shared_data / "abdomen_ct" / "ct_3mm.nii.gz")
    labels = segment(scan, model_of(Body(), 224), slices_per_chunk=32)
    write_label_map(tmp_path / "body.nii.gz", labels, scan)
    again = read_label(tmp_path / "body.nii.gz", like=scan)
    truth = scan.array > -100 + 0.2 * 400
    assert again.array.shape == (122, 101, 112)
    assert 2 * (again.array & truth).sum() / (again.array.sum() + truth.sum()) > 0.95
