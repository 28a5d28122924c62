# SPDX-License-Identifier: Apache-2.0
"""Slices in memory: which voxel lands where, the disk cache, speed, and volumes that must be refused."""

import importlib
import json
import os
import sys
import time

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from torch.utils.data import DataLoader

from pipeline.data import (
    CT_WINDOW,
    MR_PERCENTILES,
    IntensityRule,
    Preprocessing,
    SliceDataset,
    resize_images,
    resize_labels,
)
from pipeline.data.samples import slice_cache
from pipeline.data.samples import slices as module
from pipeline.data.samples.slice_cache import cache_key
from pipeline.errors import InputError
from pipeline.unlabelled import UNLABELLED
from tests.preprocessing import scan_preprocessing


class InMemory:
    """A preprocessing that takes volumes from a dictionary and counts its calls."""

    def __init__(self, volumes: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
        self.volumes = volumes
        self.calls = 0

    def __call__(self, entry):
        self.calls += 1
        image, label = self.volumes[entry["case"]]
        return {"image": torch.as_tensor(image), "label": torch.as_tensor(label)}


def volume(depth: int, seed: int = 0, side: int = 8) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    image = random.random((1, side, side, depth), dtype=np.float32)
    return image, (image * 3).astype(np.uint8)


def datalist(*cases: str) -> list[dict[str, str]]:
    return [{"case": case, "image": f"{case}.nii.gz", "label": f"{case}.nii.gz"} for case in cases]


def test_shrinking_averages_pixels():
    images = torch.tensor([[[[0.0, 1.0, 4.0, 5.0], [2.0, 3.0, 6.0, 7.0]]]])
    # Halving with a triangle filter of width 2 weights the near pixels 3:1 over those one further out.
    assert resize_images(torch.full((1, 1, 4, 4), 0.7), (2, 2)).flatten().tolist() == pytest.approx([0.7] * 4)
    shrunk = resize_images(images, (1, 2)).flatten()
    assert shrunk[0] < shrunk[1]
    assert shrunk.mean() == pytest.approx(3.5)


def test_shrinking_does_not_alias():
    """One bright column in four must darken evenly, not vanish or stay."""
    images = torch.zeros(1, 1, 64, 64)
    images[..., ::4] = 1.0
    inner = resize_images(images, (16, 16))[..., 2:-2]
    assert inner.min() == pytest.approx(0.25, abs=0.03)
    assert inner.max() == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.int16])
def test_labels_take_the_nearest_centre(dtype):
    labels = torch.tensor([[[[1, 2, 3, 4]] * 4]], dtype=dtype)
    shrunk = resize_labels(labels, (2, 2))
    assert shrunk.dtype == dtype
    assert shrunk.tolist() == [[[[2, 4], [2, 4]]]]
    assert torch.equal(resize_labels(resize_labels(labels, (16, 16)), (4, 4)), labels)


def test_same_size_is_left_alone():
    images = torch.rand(2, 1, 5, 6)
    assert resize_images(images, (5, 6)) is images
    assert resize_labels(images.to(torch.uint8), (5, 6)).shape == images.shape


def test_every_slice_of_every_case_in_order():
    volumes = {"a": volume(3, seed=0), "b": volume(2, seed=1)}
    dataset = SliceDataset(datalist("a", "b"), InMemory(volumes), size=8, out_channels=3)
    assert len(dataset) == 5
    assert dataset.slices == [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1)]
    for index, (case, z) in enumerate(dataset.slices):
        item = dataset[index]
        assert item["image"].shape == (1, 8, 8)
        assert (item["image"].dtype, item["label"].dtype) == (torch.float32, torch.uint8)
        assert np.array_equal(item["image"][0].numpy(), volumes[case][0][0, :, :, z])
        assert np.array_equal(item["label"][0].numpy(), volumes[case][1][0, :, :, z])
    assert dataset.images.is_contiguous()


def test_preprocessing_runs_once_a_volume():
    preprocessing = InMemory({"a": volume(4)})
    dataset = SliceDataset(datalist("a"), preprocessing, size=4, out_channels=3)
    for index in (*range(4), *range(4)):
        dataset[index]
    assert preprocessing.calls == 1


def test_resizing_is_the_shared_one(monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 3)  # the chunks must not show
    image, label = volume(7, side=20)
    dataset = SliceDataset(datalist("a"), InMemory({"a": (image, label)}), size=8, out_channels=3)
    stacked = torch.from_numpy(image).permute(3, 0, 1, 2)
    assert torch.equal(dataset.images, resize_images(stacked, (8, 8)))
    stacked = torch.from_numpy(label).permute(3, 0, 1, 2)
    assert torch.equal(dataset.labels, resize_labels(stacked, (8, 8)))


def test_batches_equal_items():
    dataset = SliceDataset(datalist("a"), InMemory({"a": volume(6)}), size=8, out_channels=3)
    order = [5, 0, 0, 3]
    for item, index in zip(dataset.__getitems__(order), order, strict=True):
        assert torch.equal(item["image"], dataset[index]["image"])
    batch = dataset.batch(torch.tensor(order))
    assert torch.equal(batch["label"], dataset.labels[order])
    batch["image"].zero_()
    assert dataset.images.any()


def test_a_loader_gives_batches():
    dataset = SliceDataset(datalist("a"), InMemory({"a": volume(6)}), size=8, out_channels=3)
    first = next(iter(DataLoader(dataset, batch_size=4)))
    assert torch.equal(first["image"], dataset.images[:4])
    assert first["label"].shape == (4, 1, 8, 8)


def test_an_epoch_does_not_wait_for_data():
    dataset = SliceDataset(datalist("a"), InMemory({"a": volume(96, side=224)}), size=224, out_channels=3)
    loader = DataLoader(dataset, batch_size=24, shuffle=True)
    list(loader)
    start = time.perf_counter()
    list(loader)
    # About 0.3 ms a slice; ten times that would already make small networks wait.
    assert (time.perf_counter() - start) / 96 < 3e-3


def test_labels_stored_as_floats_are_rounded():
    image, label = volume(2)
    dataset = SliceDataset(datalist("a"), InMemory({"a": (image, label + 1e-4)}), size=8, out_channels=3)
    assert np.array_equal(dataset.labels[1, 0].numpy(), label[0, :, :, 1])


def nifti_case(folder, orientation: str, name: str) -> dict[str, str]:
    """Write one RAS volume in another voxel order; return its entry."""
    random = np.random.default_rng(0)
    image = random.integers(-200, 300, (10, 12, 5)).astype(np.int16)
    label = random.integers(0, 3, (10, 12, 5)).astype(np.uint8)
    affine = np.diag([1.0, 1.5, 4.0, 1.0])
    change = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(orientation)
    )
    entry = {"case": name}
    for key, array in (("image", image), ("label", label)):
        path = folder / f"{name}_{key}.nii.gz"
        nib.save(nib.Nifti1Image(array, affine).as_reoriented(change), path)
        entry[key] = str(path)
    return entry


def bundle_preprocessing(rule: IntensityRule = CT_WINDOW) -> Preprocessing:
    description = scan_preprocessing(rule)
    return Preprocessing(ConfigParser({"steps": description}).get_parsed_content("steps"), description)


def test_slices_are_axial_whatever_the_stored_order(tmp_path):
    entries = [nifti_case(tmp_path, orientation, orientation) for orientation in ("RAS", "LPS", "SAL")]
    dataset = SliceDataset(entries, bundle_preprocessing(), size=12, out_channels=3)
    images = dataset.images.reshape(3, 5, 1, 12, 12)
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2])
    raw = torch.from_numpy(np.asarray(nib.load(entries[0]["image"]).dataobj).astype(np.float32))
    expected = resize_images(((raw + 125) / 400).clamp(0, 1)[None, None, :, :, 3], (12, 12))
    assert torch.allclose(dataset.images[3], expected[0], atol=1e-6)


def test_the_cache_gives_the_same_slices_without_preparing_again(tmp_path, monkeypatch):
    entries = [nifti_case(tmp_path, "LAS", "a"), nifti_case(tmp_path, "RAS", "b")]
    arguments = (entries, bundle_preprocessing(), 8, 3)
    in_memory = SliceDataset(*arguments)
    first = SliceDataset(*arguments, cache_dir=str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_preprocess", None)  # whoever prepares volumes anew is found out
    again = SliceDataset(*arguments, cache_dir=str(tmp_path / "cache"))
    for cached in (first, again):
        assert torch.equal(cached.images, in_memory.images)
        assert torch.equal(cached.labels, in_memory.labels)
        assert cached.slices == in_memory.slices
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_entries_without_a_label_come_after_the_others_and_are_marked():
    volumes = {"a": volume(3, seed=0), "b": volume(2, seed=1)}
    listed = datalist("a", "b")
    del listed[1]["label"]
    dataset = SliceDataset(listed, InMemory(volumes), size=8, out_channels=3)
    assert dataset.unlabelled_from == 3
    assert (dataset.labels[3:] == UNLABELLED).all()
    assert dataset.labels[:3].max() < 3
    assert np.array_equal(dataset.images[3, 0].numpy(), volumes["b"][0][0, :, :, 0])


def test_a_label_of_the_mark_alone_is_no_unlabelled_case():
    image, label = volume(2)
    with pytest.raises(InputError, match="label values 255 are not among"):
        SliceDataset(datalist("a"), InMemory({"a": (image, np.full_like(label, UNLABELLED))}), size=8, out_channels=3)


@pytest.mark.parametrize("file", ["images.float32", "labels.uint8", "index.json"])
def test_cache_that_is_not_whole_is_refused(tmp_path, file):
    entries, cache = [nifti_case(tmp_path, "RAS", "a")], tmp_path / "cache"
    SliceDataset(entries, bundle_preprocessing(), 8, 3, cache_dir=str(cache))
    (damaged,) = cache.glob(f"*/{file}")
    damaged.write_bytes(damaged.read_bytes()[:-8])
    with pytest.raises(InputError, match=r"slices in .* are (damaged|not whole).*they are made anew"):
        SliceDataset(entries, bundle_preprocessing(), 8, 3, cache_dir=str(cache))


def test_cache_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(slice_cache, "sync_folder", lambda folder: synced.append(sorted(os.listdir(folder))))
    SliceDataset([nifti_case(tmp_path, "RAS", "a")], bundle_preprocessing(), 8, 3, cache_dir=str(tmp_path / "cache"))
    assert synced == [["images.float32", "index.json", "labels.uint8"]]


def test_writing_to_cached_slices_never_reaches_the_disk(tmp_path):
    entries = [nifti_case(tmp_path, "RAS", "a")]
    cache = str(tmp_path / "cache")
    SliceDataset(entries, bundle_preprocessing(), 8, 3, cache_dir=cache).images.zero_()
    assert SliceDataset(entries, bundle_preprocessing(), 8, 3, cache_dir=cache).images.any()


def test_the_key_follows_files_description_and_size_alone(tmp_path):
    entries = [nifti_case(tmp_path, "RAS", "a")]
    preprocessing = bundle_preprocessing()
    key = cache_key(entries, preprocessing.description, 8)
    assert cache_key([dict(entries[0])], scan_preprocessing(CT_WINDOW), 8) == key
    preprocessing(entries[0])
    assert cache_key(entries, preprocessing.description, 8) == key, "running the transforms changes nothing"
    assert cache_key([{**entries[0], "patient": "p"}], preprocessing.description, 8) == key, "only files are read"
    others = [cache_key(entries, preprocessing.description, 9)]
    others += [cache_key(entries, scan_preprocessing(MR_PERCENTILES), 8)]
    others += [cache_key([{**entries[0], "case": "b"}], preprocessing.description, 8)]
    for name in ("image", "label"):
        os.utime(entries[0][name], ns=(1, 1))
        others.append(cache_key(entries, preprocessing.description, 8))
        with open(entries[0][name], "ab") as file:
            file.write(b"more")
        os.utime(entries[0][name], ns=(1, 1))
        others.append(cache_key(entries, preprocessing.description, 8))
    assert len({key, *others}) == 1 + len(others)


STEP = {"_target_": "monai.transforms.intensity.dictionary.ShiftIntensityd", "keys": "image", "offset": 1}
OTHER = {"_target_": "monai.transforms.intensity.dictionary.ScaleIntensityd", "keys": "image"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([STEP], [{**STEP, "offset": 2}]),
        ([STEP], [{**STEP, "keys": "label"}]),
        ([STEP], [{**STEP, "safe": False}]),
        ([STEP], [{**STEP, "_target_": OTHER["_target_"]}]),
        ([STEP], [STEP, STEP]),
        ([STEP, OTHER], [OTHER, STEP]),
        ([{**STEP, "safe": 1}], [{**STEP, "safe": True}]),
        ([{**STEP, "deep": {"a": [1, None]}}], [{**STEP, "deep": {"a": [1, 0]}}]),
    ],
)
def test_the_key_tells_preprocessings_apart(one, other):
    assert cache_key([], one, 8) != cache_key([], other, 8)
    assert cache_key([], one, 8) == cache_key([], [dict(reversed(step.items())) for step in one], 8)


def test_the_key_follows_the_source_of_an_own_transform_class(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    description = [{"_target_": "own_transforms.Doubled", "keys": "image"}]

    def key_with(doubled: str, beside: str = "") -> str:
        source = f"class Doubled:\n    def __call__(self, data):\n        return {doubled}\n\n\n{beside}"
        (tmp_path / "own_transforms.py").write_text(source)
        monkeypatch.delitem(sys.modules, "own_transforms", raising=False)
        importlib.invalidate_caches()
        return cache_key([], description, 8)

    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # files of one second and size would be taken for the same
    key = key_with("2 * data")
    assert key_with("2 * data", beside="class Other:\n    pass\n") == key
    assert key_with("3 * data") != key
    assert key_with("2 * data") == key


def test_a_failed_preparation_leaves_no_cache(tmp_path):
    entry = nifti_case(tmp_path, "RAS", "a")
    with pytest.raises(InputError, match="label values 2 are not among"):
        SliceDataset([entry], bundle_preprocessing(), 8, 2, cache_dir=str(tmp_path / "cache"))
    assert list((tmp_path / "cache").iterdir()) == []


def test_cached_slices_of_more_classes_are_refused(tmp_path):
    entry = nifti_case(tmp_path, "RAS", "a")
    SliceDataset([entry], bundle_preprocessing(), 8, 3, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(InputError, match="hold label 2, but there are 2 classes"):
        SliceDataset([entry], bundle_preprocessing(), 8, 2, cache_dir=str(tmp_path / "cache"))


def test_a_cache_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    entry = nifti_case(tmp_path, "RAS", "a")
    with pytest.raises(InputError, match="choose another cache_dir"):
        SliceDataset([entry], bundle_preprocessing(), 8, 3, cache_dir=str(tmp_path / "file"))


def test_a_full_disk_is_told_before_it_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10})())
    entry = nifti_case(tmp_path, "RAS", "a")
    with pytest.raises(InputError, match="free space"):
        SliceDataset([entry], bundle_preprocessing(), 8, 3, cache_dir=str(tmp_path / "cache"))


def test_an_index_names_the_slices(tmp_path):
    entry = nifti_case(tmp_path, "RAS", "a")
    SliceDataset([entry], bundle_preprocessing(), 8, 3, cache_dir=str(tmp_path / "cache"))
    (index,) = (tmp_path / "cache").glob("*/index.json")
    assert json.loads(index.read_text())["shape"] == [5, 1, 8, 8]


def with_value(array: np.ndarray, value: float) -> np.ndarray:
    changed = array.astype(np.float32)
    changed[0, 1, 2, 1] = value
    return changed


@pytest.mark.parametrize(
    ("image", "label", "message"),
    [
        (with_value(volume(2)[0], np.nan), volume(2)[1], "case a: 1 voxels of the image are NaN"),
        (with_value(volume(2)[0], np.inf), volume(2)[1], "case a: 1 voxels of the image are NaN or infinite"),
        (volume(2)[0], with_value(volume(2)[1], 3), "case a: label values 3 are not among 0..2"),
        (volume(2)[0], with_value(volume(2)[1], -1), "case a: label values -1"),
        (volume(2)[0], with_value(volume(2)[1], 1.5), r"case a: label values 1\.5"),
        (volume(2)[0], with_value(volume(2)[1], np.nan), "case a: label values nan"),
        (volume(2)[0], with_value(volume(2)[1], np.inf), "case a: label values inf"),
        (volume(2)[0], volume(3)[1], r"case a: image \(1, 8, 8, 2\) and label \(1, 8, 8, 3\) differ"),
        (volume(2)[0][0], volume(2)[1][0], r"case a: the image is \(8, 8, 2\) after preprocessing"),
        (volume(0)[0], volume(0)[1], "case a: the volume is empty"),
    ],
)
def test_volumes_that_are_refused(image, label, message):
    with pytest.raises(InputError, match=message):
        SliceDataset(datalist("a"), InMemory({"a": (image, label)}), size=8, out_channels=3)


def test_image_and_label_on_different_grids():
    image, label = (torch.as_tensor(part) for part in volume(2))
    moved = torch.eye(4, dtype=torch.float64)
    moved[0, 3] = 5.0

    def preprocessing(entry):
        return {"image": MetaTensor(image, affine=torch.eye(4)), "label": MetaTensor(label, affine=moved)}

    with pytest.raises(InputError, match=r"case a: image and label lie on different grids .* origin by 5 mm"):
        SliceDataset(datalist("a"), preprocessing, size=8, out_channels=3)


def test_a_broken_file_is_told_by_case(tmp_path):
    entry = nifti_case(tmp_path, "RAS", "a")
    with open(entry["image"], "r+b") as file:
        file.truncate(60)
    with pytest.raises(InputError, match=r"case a: .*a_image\.nii\.gz"):
        SliceDataset([entry], bundle_preprocessing(), 8, 3)


def test_a_defect_of_the_preprocessing_names_the_case():
    def preprocessing(entry):
        raise KeyError("image")

    with pytest.raises(RuntimeError, match="preprocessing failed for case a"):
        SliceDataset(datalist("a"), preprocessing, 8, 3)


def test_intensities_outside_zero_to_one_are_said(caplog):
    image, label = volume(2)
    SliceDataset(datalist("a"), InMemory({"a": (image * 300, label)}), size=8, out_channels=3)
    assert "case a: intensities" in caplog.text


def test_no_case():
    with pytest.raises(InputError, match="no case to take slices from"):
        SliceDataset([], InMemory({}), 8, 3)


def test_too_little_memory_is_told_early(monkeypatch):
    monkeypatch.setattr(module, "_available_gigabytes", lambda: 1e-9)
    preprocessing = InMemory({"a": volume(2), "b": volume(2)})
    with pytest.raises(InputError, match="set cache_dir"):
        SliceDataset(datalist("a", "b"), preprocessing, 8, 3)
    assert preprocessing.calls == 1
