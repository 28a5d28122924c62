# SPDX-License-Identifier: Apache-2.0
"""Random patches of volumes: what they hold, that the seed decides, and that bad cases are told by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import ClassesToIndicesd, Compose, RandCropByLabelClassesd, SpatialPadd
from torch.utils.data import DataLoader

from pipeline.data import PatchDataset, patch_augmentation
from pipeline.errors import InputError, find_input_error
from pipeline.unlabelled import UNLABELLED

KEYS = ("image", "label")
ENTRIES = [{"case": name, "image": name, "label": name} for name in ("a", "b", "c")]


def cube(entry: Mapping[str, str]) -> dict[str, Any]:
    """Return an image whose voxels are 0 .. 1 in order, with one voxel of class 1 in the upper corner."""
    image = torch.linspace(0, 1, 10 * 8 * 6).reshape(1, 10, 8, 6)
    label = torch.zeros_like(image)
    label[0, 9, 7, 5] = 1
    return {"case": entry["case"], "image": MetaTensor(image), "label": MetaTensor(label)}


def patches(size: tuple[int, int, int] = (4, 4, 4), count: int = 2, augmentation: str = "none") -> Compose:
    cropped = {"spatial_size": size, "num_classes": 2, "num_samples": count, "warn": False}
    return Compose(
        [
            SpatialPadd(KEYS, size),
            ClassesToIndicesd("label", num_classes=2),
            RandCropByLabelClassesd(KEYS, "label", indices_key="label_cls_indices", **cropped),
            patch_augmentation(augmentation),
        ]
    )


def test_patches_are_cut_from_image_and_label_alike():
    torch.manual_seed(0)
    image = cube(ENTRIES[0])["image"].as_tensor()
    for patch in PatchDataset(ENTRIES, cube, patches(count=8), 2)[0]:
        first = (image == patch["image"].min()).nonzero()[0].tolist()
        x, y, z = first[1:]
        assert torch.equal(patch["image"], image[:, x : x + 4, y : y + 4, z : z + 4])
        assert bool(patch["label"].any()) == ((x, y, z) == (6, 4, 2))


def test_small_classes_are_met_as_often_as_large_ones():
    torch.manual_seed(0)
    found = [patch["label"].any() for patch in PatchDataset(ENTRIES, cube, patches(count=200), 2)[0]]
    assert 70 < sum(map(int, found)) < 150  # one voxel of 480: by chance alone it would be a few


def test_batch_holds_the_patches_of_all_its_volumes():
    (batch,) = DataLoader(PatchDataset(ENTRIES, cube, patches(), 2), batch_size=3)
    assert batch["image"].shape == batch["label"].shape == (6, 1, 4, 4, 4)
    assert (batch["image"].dtype, batch["label"].dtype) == (torch.float32, torch.uint8)
    assert not isinstance(batch["image"], MetaTensor)


def test_volumes_without_a_label_give_patches_from_everywhere_that_are_marked():
    torch.manual_seed(0)
    entries = [ENTRIES[0], {key: value for key, value in ENTRIES[1].items() if key != "label"}]
    dataset = PatchDataset(entries, cube, patches(count=50, augmentation="affine"), 2)
    assert dataset.unlabelled_from == 1
    labelled, unlabelled = (dataset.batch([index]) for index in (0, 1))
    assert labelled["label"].max() == 1
    assert (unlabelled["label"] == UNLABELLED).all()
    assert len({float(patch.mean()) for patch in unlabelled["image"]}) > 20


def test_torchs_random_state_decides():
    """A resumed run takes up that state, and with it the patches that it would have seen."""
    dataset = PatchDataset(ENTRIES, cube, patches(augmentation="affine"), 2)
    torch.manual_seed(5)
    dataset.batch([0])
    state = torch.get_rng_state()
    first = dataset.batch([1, 2])
    torch.set_rng_state(state)
    again = PatchDataset(ENTRIES, cube, patches(augmentation="affine"), 2).batch([1, 2])
    assert all(torch.equal(first[key], again[key]) for key in KEYS)
    assert not torch.equal(first["image"], dataset.batch([1, 2])["image"])


def test_volume_is_read_once():
    read = []
    dataset = PatchDataset(ENTRIES, lambda entry: read.append(entry["case"]) or cube(entry), patches(), 2)
    for _ in range(2):
        dataset.batch([0, 1, 2])
    assert read == ["a", "b", "c"]


def test_volume_smaller_than_a_patch_is_padded_with_zeros():
    patch = PatchDataset(ENTRIES, cube, patches(size=(12, 8, 6), count=1), 2)[0][0]
    assert patch["image"].shape == (1, 12, 8, 6)
    assert not patch["image"][:, [0, 11]].any()


def test_affine_keeps_labels_whole_and_intensities_near_their_range():
    torch.manual_seed(0)
    batch = PatchDataset(ENTRIES, cube, patches(count=20, augmentation="affine"), 2).batch([0, 1])
    assert set(batch["label"].unique().tolist()) <= {0, 1}
    assert batch["image"].min() >= 0
    assert batch["image"].max() <= 1.1 + 1e-6


def bad(change: str):
    def preprocessing(entry: Mapping[str, str]) -> dict[str, Any]:
        item = cube(entry)
        if entry["case"] != "b":
            return item
        if change == "nan":
            item["image"][0, 0, 0, 0] = float("nan")
        elif change == "class":
            item["label"][0, 0, 0, 0] = 2
        elif change == "shape":
            item["label"] = item["label"][..., 1:]
        else:
            item = {**item, "image": torch.zeros(1, 8, 8), "label": torch.zeros(1, 8, 8)}
        return item

    return preprocessing


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("nan", "case b: 1 voxels of the image are NaN"),
        ("class", "case b: label values 2"),
        ("shape", "case b: image .* differ in shape"),
        ("picture", "case b: a picture has no patches"),
    ],
)
def test_bad_case_is_told_by_name(change, message):
    with pytest.raises(RuntimeError) as caught:  # MONAI wraps it; programs look for the cause
        PatchDataset(ENTRIES, bad(change), patches(), 2)
    assert re.search(message, str(find_input_error(caught.value)))


def test_no_cases_and_unknown_augmentations_are_refused():
    with pytest.raises(InputError, match="no case"):
        PatchDataset([], cube, patches(), 2)
    with pytest.raises(InputError, match="'paper' is unknown for volumes; choose one of affine, none"):
        patch_augmentation("paper")
