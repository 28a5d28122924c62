# SPDX-License-Identifier: Apache-2.0
"""What is done to images before a network sees them: arithmetic beside MONAI's, the way back, what is refused."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    Flipd,
    MapTransform,
    OneOf,
    RandFlipd,
    RandGaussianNoised,
    ScaleIntensityRanged,
    ScaleIntensityRangePercentilesd,
)

from pipeline.data import (
    CT_WINDOW,
    MR_PERCENTILES,
    SLIDE_INTENSITY,
    IntensityRule,
    Preprocessing,
    ScaleIntensityByRuled,
    check_preprocessing,
    preprocessing_of,
)
from pipeline.errors import InputError
from tests.preprocessing import scan_preprocessing, tile_preprocessing

FLIP = {"_target_": "monai.transforms.spatial.dictionary.Flipd", "keys": ["image", "label"], "spatial_axis": 0}
SPACING = {
    "_target_": "monai.transforms.spatial.dictionary.Spacingd",
    "keys": ["image", "label"],
    "pixdim": [1.0, 1.0, 2.0],
    "mode": ["bilinear", "nearest"],
}


def scaled(values: Any, rule: IntensityRule) -> Any:
    return ScaleIntensityByRuled("image", **rule.to_dict())({"image": values})["image"]


def raw(dtype: str = "float32", sides: tuple[int, ...] = (1, 16, 17, 5)) -> np.ndarray:
    return np.random.default_rng(0).gamma(2.0, 100.0, sides).astype(dtype)


class TestScaling:
    def test_window_by_hand(self):
        hu = torch.tensor([[-1000, -125, 75, 275, 3000]], dtype=torch.int16)
        assert scaled(hu, CT_WINDOW).tolist() == [[0, 0, 0.5, 1, 1]]
        pixels = torch.tensor([[0, 51, 255]], dtype=torch.uint8)
        torch.testing.assert_close(scaled(pixels, SLIDE_INTENSITY), torch.tensor([[0, 0.2, 1]]))

    def test_percentiles_by_hand(self):
        values = torch.arange(101, dtype=torch.int16).reshape(1, 101, 1)
        out = scaled(values, IntensityRule("percentiles", 10, 90)).ravel()
        assert (out[0], out[10], out[50], out[90], out[100]) == (0, 0, 0.5, 1, 1)

    # MONAI's window of uint8 wraps around, and its percentiles take floats alone: it is given floats of all types.
    @pytest.mark.parametrize("dtype", ["float32", "float64", "int16", "uint8", "int32"])
    def test_window_equals_monais_range(self, dtype):
        values = torch.from_numpy(raw(dtype))
        monais = ScaleIntensityRanged("image", -125, 275, 0.0, 1.0, clip=True)
        expected = monais({"image": values.float()})["image"]
        torch.testing.assert_close(scaled(values, CT_WINDOW), expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("dtype", ["float32", "float64", "int16", "uint8"])
    @pytest.mark.parametrize("rule", [MR_PERCENTILES, IntensityRule("percentiles", 20, 60)], ids=["MR", "narrow"])
    def test_percentiles_equal_monais(self, dtype, rule):
        values = torch.from_numpy(raw(dtype))
        monais = ScaleIntensityRangePercentilesd("image", rule.low, rule.high, 0.0, 1.0, clip=True)
        expected = monais({"image": values.float()})["image"]
        torch.testing.assert_close(scaled(values, rule), expected, rtol=0, atol=1e-5)

    def test_percentiles_count_the_whole_image_and_not_each_channel(self):
        image = torch.zeros(2, 4, 4)
        image[1] = 100.0
        assert scaled(image, IntensityRule("percentiles", 0, 100)).unique().tolist() == [0, 1]

    @pytest.mark.parametrize("rule", [CT_WINDOW, MR_PERCENTILES])
    @pytest.mark.parametrize("make", [np.array, torch.tensor, MetaTensor], ids=["array", "tensor", "MetaTensor"])
    @pytest.mark.parametrize("dtype", ["float32", "int16"])
    def test_the_input_is_left_and_the_result_is_float32(self, rule, make, dtype):
        values = make(raw(dtype))
        entry = {"image": values, "case": "a"}
        out = ScaleIntensityByRuled("image", **rule.to_dict())(entry)
        assert out["image"].dtype == torch.float32
        assert (np.asarray(values) == raw(dtype)).all()
        assert entry["image"] is values
        assert out["case"] == "a"
        assert isinstance(out["image"], MetaTensor) == isinstance(values, MetaTensor)
        np.testing.assert_array_equal(out["image"], scaled(torch.from_numpy(raw(dtype)), rule))

    @pytest.mark.parametrize("dtype", [torch.int16, torch.float32])
    def test_a_constant_image_becomes_zeros(self, dtype):
        assert not scaled(torch.full((1, 3, 3, 3), 7, dtype=dtype), MR_PERCENTILES).any()

    def test_place_and_history_of_an_image_are_kept(self):
        affine = torch.diag(torch.tensor([0.5, 0.5, 3.0, 1.0], dtype=torch.float64))
        image = MetaTensor(torch.from_numpy(raw()), affine=affine, meta={"filename_or_obj": "a.nii.gz"})
        flip = Flipd("image", spatial_axis=0)
        flipped = flip({"image": image})["image"]
        out = scaled(flipped, CT_WINDOW)
        assert torch.equal(out.affine, flipped.affine)
        assert out.meta["filename_or_obj"] == "a.nii.gz"
        assert out.applied_operations == flipped.applied_operations
        back = flip.inverse({"image": out})["image"]
        assert torch.equal(back.affine, affine)
        assert torch.equal(back.as_tensor(), scaled(image, CT_WINDOW).as_tensor())

    def test_several_keys_are_scaled_each_by_itself(self):
        both = {"a": torch.tensor([0.0, 10.0]), "b": torch.tensor([100.0, 300.0])}
        out = ScaleIntensityByRuled(("a", "b"), "percentiles", 0, 100)(both)
        assert out["a"].tolist() == out["b"].tolist() == [0, 1]

    def test_missing_keys(self):
        with pytest.raises(KeyError, match="label"):
            ScaleIntensityByRuled("label", "window", 0, 1)({"image": torch.zeros(1)})
        entry = {"image": torch.zeros(1)}
        assert ScaleIntensityByRuled("label", "window", 0, 1, allow_missing_keys=True)(entry) == entry

    def test_what_has_no_percentiles_is_refused(self):
        with pytest.raises(InputError, match="no percentiles; repair the scan"):
            scaled(torch.tensor([1.0, float("nan")]), MR_PERCENTILES)

    def test_impossible_rules_are_refused(self):
        with pytest.raises(InputError, match="low 5 is not below high 1"):
            ScaleIntensityByRuled("image", "window", 5, 1)
        with pytest.raises(InputError, match="'median' is unknown"):
            ScaleIntensityByRuled("image", "median", 1, 5)


class TestPreprocessing:
    @pytest.mark.parametrize(
        ("transforms", "named"),
        [
            ([RandFlipd("image")], "RandFlipd"),
            ([Flipd("image"), RandFlipd("image"), RandGaussianNoised("image")], "RandFlipd, RandGaussianNoised"),
            ([Compose([Flipd("image"), Compose([RandFlipd("image")])])], "RandFlipd"),
            ([OneOf([Flipd("image"), Flipd("label")])], "OneOf"),
        ],
    )
    def test_random_transforms_are_refused(self, transforms, named):
        with pytest.raises(InputError, match=f"^preprocessing has {named}, which is random; put it into the augment"):
            Preprocessing(transforms, [])

    def test_a_list_of_fixed_transforms_may_hold_others(self):
        preprocessing = Preprocessing([Compose([Flipd("image", spatial_axis=0)])], [FLIP])
        assert preprocessing.description == [FLIP]
        assert preprocessing.of_image(torch.tensor([[[1.0], [2.0]]])).tolist() == [[[2.0], [1.0]]]

    def test_description_runs_again_without_reading_files(self):
        description = scan_preprocessing(CT_WINDOW)
        preprocessing = preprocessing_of(description)
        assert preprocessing.description == description[1:]
        values = raw("int16", (4, 5, 6))
        image = preprocessing.of_image(MetaTensor(torch.from_numpy(values), affine=torch.eye(4)))
        assert image.shape == (1, 4, 5, 6)
        np.testing.assert_allclose(image[0], np.clip((values + 125.0) / 400, 0, 1), atol=1e-6)

    def test_labels_go_along_where_there_are_some(self):
        preprocessing = preprocessing_of([*scan_preprocessing(CT_WINDOW), FLIP])
        label = torch.arange(24).reshape(2, 3, 4)
        entry = {
            "image": MetaTensor(label.float(), affine=torch.eye(4)),
            "label": MetaTensor(label, affine=torch.eye(4)),
        }
        assert torch.equal(preprocessing(entry)["label"][0].as_tensor(), label.flip(0))
        assert set(preprocessing({"image": entry["image"]})) == {"image"}

    def test_threads_that_lack_a_label_do_not_disturb_each_other(self):
        second_is_inside, first_is_done = threading.Event(), threading.Event()

        class Wait(MapTransform):
            """Holds the first thread until the second is here, and the second until the first is done."""

            def __call__(self, data):
                if data["image"].sum() == 0:
                    assert second_is_inside.wait(30)
                else:
                    second_is_inside.set()
                    assert first_is_done.wait(30)
                return dict(data)

        preprocessing = Preprocessing([Wait("image"), Flipd(["image", "label"])], [])
        with ThreadPoolExecutor(2) as threads:
            first = threads.submit(preprocessing, {"image": torch.zeros(1, 2, 2)})
            first.add_done_callback(lambda _: first_is_done.set())
            second = threads.submit(preprocessing, {"image": torch.ones(1, 2, 2)})
        assert set(first.result()) == set(second.result()) == {"image"}

    def test_tiles_are_scaled_alone(self):
        tile = torch.tensor([[[0.0, 51.0, 255.0]]])
        out = preprocessing_of(tile_preprocessing(SLIDE_INTENSITY)).of_image(tile)
        torch.testing.assert_close(out, torch.tensor([[[0.0, 0.2, 1.0]]]))

    def test_classes_of_modules_that_are_not_trusted_are_refused(self):
        own = {"_target_": "tests.data.test_preprocessing.Doubled", "keys": "image"}
        with pytest.raises(InputError, match=r"is none of monai.* pipeline\.data; if you trust the file"):
            preprocessing_of([own])
        with pytest.raises(InputError, match=r"^'monai\.transforms\.io\.dictionary\.SaveImaged' is none of"):
            preprocessing_of([{"_target_": "monai.transforms.io.dictionary.SaveImaged", "keys": "image"}])
        reached = "pipeline.data.samples.slice_cache.monai.transforms.SaveImaged"
        with pytest.raises(InputError, match=r"^'monai\.transforms\.io\.dictionary\.SaveImaged' is none of"):
            preprocessing_of([{"_target_": reached, "keys": "image"}])
        with pytest.raises(InputError, match="Doubled is not installed, or no Transform"):
            preprocessing_of([own], ["tests.data.test_preprocessing"])


def affine_of(axes: tuple[int, ...], signs: tuple[int, ...]) -> torch.Tensor:
    """Return an affine whose voxel axes are turned and mirrored, with a spacing and an origin of its own."""
    affine = torch.zeros(4, 4, dtype=torch.float64)
    for voxel_axis, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[axis, voxel_axis] = sign * (0.8, 1.5, 4.0)[voxel_axis]
    affine[:, 3] = torch.tensor([-10.0, 20.0, 30.0, 1.0])
    return affine


class TestWayBack:
    @pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
    @pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, 1), (1, -1, -1), (-1, -1, -1)])
    def test_turns_and_flips_are_undone_exactly(self, axes, signs):
        values = torch.from_numpy(raw("float32", (4, 5, 6)))
        affine = affine_of(axes, signs)
        preprocessing = preprocessing_of([*scan_preprocessing(CT_WINDOW), FLIP])
        image = preprocessing.of_image(MetaTensor(values, affine=affine))
        pred = MetaTensor((image.as_tensor() > 0.5).to(torch.uint8)).copy_meta_from(image)
        back = preprocessing.to_own_grid()({"pred": pred, "image": image})["pred"]
        assert back.dtype == torch.uint8
        assert torch.equal(back.as_tensor()[0], (values > 75).to(torch.uint8))
        torch.testing.assert_close(back.affine, affine)

    def test_another_spacing_returns_to_the_voxels_of_the_file_by_the_nearest(self):
        label = torch.zeros(10, 12, 6)
        label[2:8, 3:9, 2:4] = 7
        affine = torch.diag(torch.tensor([-2.0, -2.0, 4.0, 1.0], dtype=torch.float64))
        description = scan_preprocessing(IntensityRule("window", 0, 7))
        preprocessing = preprocessing_of([*description[:3], SPACING, description[3]])
        image = preprocessing.of_image(MetaTensor(label, affine=affine))
        assert image.shape == (1, 19, 23, 11)
        pred = MetaTensor((image.as_tensor() > 0.5).to(torch.uint8) * 7).copy_meta_from(image)
        back = preprocessing.to_own_grid()({"pred": pred, "image": image})["pred"]
        assert back.unique().tolist() == [0, 7]
        assert torch.equal(back[0].as_tensor(), label.to(torch.uint8))
        torch.testing.assert_close(back.affine, affine)


LOAD, *STEPS = scan_preprocessing(CT_WINDOW)


class TestCheck:
    @pytest.mark.parametrize("reader", ["pipeline.data.VolumeReader", "pipeline.data.scans.monai_reader.VolumeReader"])
    def test_what_inference_repeats_is_taken(self, reader):
        check_preprocessing([{**LOAD, "reader": reader}, *STEPS], "scans")

    @pytest.mark.parametrize(
        "description",
        [
            [{**LOAD, "reader": "ITKReader"}, *STEPS],
            [{**LOAD, "reader": "monai.data.image_reader.NibabelReader"}, *STEPS],
            [{**LOAD, "reader": None}, *STEPS],
            [{key: value for key, value in LOAD.items() if key != "reader"}, *STEPS],
            [LOAD, LOAD, *STEPS],
            [LOAD, *STEPS, {**LOAD, "keys": "label", "reader": "ITKReader"}],
            [STEPS[0], LOAD, *STEPS[1:]],
            STEPS,
            [],
        ],
        ids=["ITK", "Nibabel", "none", "default", "twice", "two", "late", "missing", "empty"],
    )
    def test_what_inference_could_not_repeat_is_refused(self, description):
        with pytest.raises(
            InputError, match=r"must begin with its only LoadImaged, of reader pipeline\.data\.Volume"
        ) as one:
            check_preprocessing(description, "scans")
        assert "\n" not in str(one.value)
