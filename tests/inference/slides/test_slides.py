# SPDX-License-Identifier: Apache-2.0
"""Slides from files to files: the pyramid, the picture, the description, and what happens to bad ones."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import torch
from monai.engines import SupervisedEvaluator
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.data import IntensityRule, preprocessing_of
from pipeline.data.slides.base import UNREADABLE, ArraySlide, Slide, Unreadable
from pipeline.data.slides.pictures import write_png
from pipeline.errors import InputError
from pipeline.inference import (
    FAILURES_FILE,
    SlideDataset,
    SlideFile,
    SlideLabelWriter,
    TileInferer,
    find_slides,
    inferer_of,
    segment_slides,
    slide_batch,
    slide_loader,
)
from pipeline.inference.slides import slide_dataset
from tests.preprocessing import tile_preprocessing

PREPROCESSING = tile_preprocessing(IntensityRule("window", 0.0, 255.0))
LABELS = {0: "background", 1: "gland", 2: "tumour"}


class Darkness(nn.Module):
    """Class 1 below two thirds of white, 2 below a third."""

    in_channels = 3

    def forward(self, images: Tensor) -> Tensor:
        grey = images.mean(dim=1, keepdim=True)
        return torch.cat([grey - 2 / 3, 1 / 6 - (grey - 1 / 2).abs(), 1 / 3 - grey], dim=1)


@pytest.fixture
def model() -> SimpleNamespace:
    return SimpleNamespace(
        network=Darkness(),
        labels=LABELS,
        preprocessing=PREPROCESSING,
        size=32,
        tile_px=32,
        sha256="abc123",
        modality="RGB slide",
    )


def tissue(height: int = 150, width: int = 200, seed: int = 0) -> np.ndarray:
    """Return smooth random colours (H, W, 3) uint8; the right quarter is glass."""
    coarse = torch.rand(1, 3, height // 16 + 2, width // 16 + 2, generator=torch.Generator().manual_seed(seed))
    pixels = (F.interpolate(coarse, size=(height, width), mode="bilinear")[0] * 200).to(torch.uint8)
    pixels = pixels.permute(1, 2, 0).numpy().copy()
    pixels[:, 3 * width // 4 :] = 245
    return pixels


def expected_labels(pixels: np.ndarray) -> np.ndarray:
    mean = pixels.astype(np.float64).mean(axis=2) / 255
    return ((mean < 2 / 3).astype(np.uint8) + (mean < 1 / 3)).astype(np.uint8)


def save(path: Path, pixels: np.ndarray | None = None, pixel_um: float | None = None) -> Path:
    """Write a slide as tiled TIFF."""
    path.parent.mkdir(exist_ok=True)
    size = {} if pixel_um is None else {"resolution": (1e4 / pixel_um, 1e4 / pixel_um), "resolutionunit": "CENTIMETER"}
    pixels = tissue() if pixels is None else pixels
    tifffile.imwrite(path, pixels, tile=(64, 64), compression="zlib", photometric="rgb", metadata=None, **size)
    return path


def damage(path: Path, segment: int) -> None:
    """Overwrite the middle of a tile's bytes."""
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages[0].dataoffsets[segment], tiff.pages[0].databytecounts[segment]
    with open(path, "r+b") as file:
        file.seek(offset + count // 3)
        file.write(b"\xff" * (count // 3))


def failures(folder: Path) -> list[dict[str, str]]:
    with open(folder / FAILURES_FILE, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# --- files ------------------------------------------------------------------------------------------------------------


def test_single_slide_gives_map_picture_and_description(tmp_path: Path, model: SimpleNamespace) -> None:
    pixels = tissue()
    path = save(tmp_path / "in" / "patient 7.tif", pixels, pixel_um=0.5)
    assert segment_slides(path, tmp_path / "out", model) == 0
    out = tmp_path / "out"
    assert sorted(os.listdir(out)) == [
        "failures.csv",
        "manifest.csv",
        "patient 7.json",
        "patient 7.tif",
        "patient 7_overview.png",
    ]
    labels = tifffile.imread(out / "patient 7.tif")
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, expected_labels(pixels))
    with Image.open(out / "patient 7_overview.png") as picture:
        assert (picture.height, picture.mode) == (150 + 2 * 20 + 6, "RGB")  # two classes in the legend
        assert picture.width >= 200

    told = json.loads((out / "patient 7.json").read_text())
    counts = np.bincount(labels.ravel(), minlength=3)
    assert (told["case"], told["input"]) == ("patient 7", str(path))
    assert (told["height"], told["width"]) == (150, 200)
    assert told["pixel_um"] == pytest.approx(0.5)
    assert told["tissue_share"] == 0.75
    assert list(told["classes"]) == ["gland", "tumour"]
    assert told["classes"]["tumour"] == {
        "label": 2,
        "colour": "#56B4E9",
        "pixels": counts[2],
        "area_mm2": pytest.approx(counts[2] * 0.25e-6, abs=1e-6),
        "share_of_tissue": pytest.approx(counts[2] / (0.75 * 30000), abs=1e-5),
    }
    # Tiles every 24 pixels; columns 6 and 7 of 8 begin at 144 and 168: the last one is glass.
    assert told["tiles"] == {"total": 6 * 8, "run": 6 * 7, "background": 6}
    assert (told["unreadable_pixels"], told["unreadable"]) == (0, [])
    assert (told["checkpoint_sha256"], told["notes"]) == ("abc123", [])
    assert 0 < told["seconds"] < 60
    assert failures(out) == []


def test_pictures_go_the_same_way(tmp_path: Path, model: SimpleNamespace) -> None:
    pixels = tissue()
    save(tmp_path / "in" / "a.tiff", pixels)
    write_png(tmp_path / "in" / "b.png", pixels)
    Image.fromarray(pixels).save(tmp_path / "in" / "c.jpg", quality=100, subsampling=0)
    (tmp_path / "in" / "notes.txt").write_text("passed over")
    (tmp_path / "in" / "._a.tiff").write_bytes(b"passed over too")
    assert segment_slides(tmp_path / "in", tmp_path / "out", model) == 0
    for case in "abc":
        labels = tifffile.imread(tmp_path / "out" / f"{case}.tif")
        assert (labels != expected_labels(pixels)).mean() < (0.02 if case == "c" else 1e-9)
    told = json.loads((tmp_path / "out" / "b.json").read_text())
    assert (told["pixel_um"], told["classes"]["gland"]["area_mm2"]) == (None, None)


def test_without_background_the_share_of_tissue_is_unknown(tmp_path: Path, model: SimpleNamespace) -> None:
    path = save(tmp_path / "a.tif")
    assert segment_slides(path, tmp_path / "out", model, background=None) == 0
    told = json.loads((tmp_path / "out" / "a.json").read_text())
    assert told["tissue_share"] is told["classes"]["gland"]["share_of_tissue"] is None
    assert told["tiles"] == {"total": 48, "run": 48, "background": 0}


def test_slide_of_glass_alone(tmp_path: Path, model: SimpleNamespace) -> None:
    path = save(tmp_path / "a.tif", np.full((100, 90, 3), 250, np.uint8))
    assert segment_slides(path, tmp_path / "out", model) == 0
    told = json.loads((tmp_path / "out" / "a.json").read_text())
    assert (told["tissue_share"], told["classes"]["gland"]["share_of_tissue"]) == (0.0, None)
    assert told["tiles"]["run"] == 0
    assert not tifffile.imread(tmp_path / "out" / "a.tif").any()


def test_unreadable_level_is_listed_and_the_map_is_whole(
    tmp_path: Path, model: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "in" / "a.tif")
    save(tmp_path / "in" / "b.tif")
    opened = slide_dataset.open_slide

    def open_with_lost_level(given: Path) -> Slide:
        slide = opened(given)
        if Path(given) == path:
            slide.unreadable.append(Unreadable(2, 0, 0, slide.height, slide.width, "no tile decodes"))
        return slide

    monkeypatch.setattr(slide_dataset, "open_slide", open_with_lost_level)
    assert segment_slides(tmp_path / "in", tmp_path / "out", model) == 1
    labels, whole = (tifffile.imread(tmp_path / "out" / f"{case}.tif") for case in "ab")
    assert np.array_equal(labels, whole)
    with open(tmp_path / "out" / "failures.csv", newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["case"] == "a"
    assert "level 2 cannot be read" in row["error"]


def test_damaged_tile_is_marked_and_listed(tmp_path: Path, model: SimpleNamespace) -> None:
    path = save(tmp_path / "in" / "a.tif")
    damage(path, 5)  # the second of four in the second row
    save(tmp_path / "in" / "b.tif")
    assert segment_slides(tmp_path / "in", tmp_path / "out", model) == 1
    labels, whole = (tifffile.imread(tmp_path / "out" / f"{case}.tif") for case in "ab")
    lost = np.zeros(labels.shape, bool)
    lost[64:128, 64:128] = True
    assert (labels[lost] == UNREADABLE).all()
    assert (labels[~lost] <= 2).all()
    beside = lost | (np.indices(lost.shape)[0] < 0)
    beside[32:160, 32:160] = True  # a white hole lies in the tiles around it
    assert np.array_equal(labels[~beside], whole[~beside])
    told = json.loads((tmp_path / "out" / "a.json").read_text())
    assert told["unreadable_pixels"] == 64 * 64
    (part,) = told["unreadable"]
    assert {key: part[key] for key in ("level", "top", "left", "height", "width")} == {
        "level": 0, "top": 64, "left": 64, "height": 64, "width": 64,
    }  # fmt: skip
    (row,) = failures(tmp_path / "out")
    assert (row["case"], row["file"]) == ("a", str(path))
    assert "64 x 64 at x=64, y=64" in row["error"]
    with Image.open(tmp_path / "out" / "a_overview.png") as picture:
        assert picture.getpixel((100, 100)) in ((0, 0, 0), (255, 221, 0))

    assert segment_slides(path, tmp_path / "alone", model) == 1, "also when it is the only slide"


def test_bad_slides_in_a_folder_are_recorded_and_the_rest_goes_on(tmp_path: Path, model: SimpleNamespace) -> None:
    for name in ("a.tif", "d.tif"):
        save(tmp_path / "in" / name)
    (tmp_path / "in" / "b.tif").write_bytes(b"<html>not found</html>")
    write_png(tmp_path / "in" / "c.png", tissue(31, 200))
    assert segment_slides(tmp_path / "in", tmp_path / "out", model) == 1
    rows = failures(tmp_path / "out")
    assert [row["case"] for row in rows] == ["b", "c"]
    assert "200 x 31 pixels, fewer than the 32 x 32 of a tile" in rows[1]["error"]
    assert {path.name[0] for path in (tmp_path / "out").iterdir()} == {"a", "d", "f", "m"}


def test_slide_that_fails_midway_leaves_nothing(tmp_path: Path, model: SimpleNamespace) -> None:
    class Fragile(Darkness):
        def forward(self, images: Tensor) -> Tensor:
            logits = super().forward(images)
            return logits / (images.amin() > 0.01).float()

    model.network = Fragile()
    spoiled = tissue() // 2 + 20
    spoiled[140, 100] = 0
    save(tmp_path / "in" / "a.tif", spoiled)
    save(tmp_path / "in" / "b.tif", tissue() // 2 + 20)
    assert segment_slides(tmp_path / "in", tmp_path / "out", model, background=None) == 1
    assert sorted(os.listdir(tmp_path / "out")) == ["b.json", "b.tif", "b_overview.png", "failures.csv", "manifest.csv"]
    (row,) = failures(tmp_path / "out")
    assert row["case"] == "a"
    assert "NaN or infinite in the tile at x=" in row["error"]
    with pytest.raises(InputError, match="NaN or infinite"):
        segment_slides(tmp_path / "in" / "a.tif", tmp_path / "alone", model)
    assert os.listdir(tmp_path / "alone") == []


def test_folder_without_a_good_slide_gives_code_2_and_a_single_bad_one_an_error(
    tmp_path: Path, model: SimpleNamespace
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.tif", "b.png"):
        (tmp_path / "in" / name).write_bytes(b"")
    assert segment_slides(tmp_path / "in", tmp_path / "out", model) == 2
    assert [row["case"] for row in failures(tmp_path / "out")] == ["a", "b"]
    with pytest.raises(InputError, match=r"b\.png is empty"):
        segment_slides(tmp_path / "in" / "b.png", tmp_path / "out", model)


def test_output_that_would_overwrite_an_input_is_refused(tmp_path: Path, model: SimpleNamespace) -> None:
    path = save(tmp_path / "in" / "a.tif")
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(InputError, match=r"a\.tif is an input and would be overwritten"):
        segment_slides(path, tmp_path / "in", model)
    picture = tmp_path / "in" / "b_overview.png"
    write_png(picture, tissue())
    write_png(tmp_path / "in" / "b.png", tissue())
    with pytest.raises(InputError, match=r"b_overview\.png is an input"):
        segment_slides([picture, tmp_path / "in" / "b.png"], tmp_path / "in", model)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before


def test_output_folder_is_tried_before_anything_is_read(tmp_path: Path, model: SimpleNamespace) -> None:
    (tmp_path / "bad.tif").write_bytes(b"")
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match="cannot write into"):
        segment_slides(tmp_path / "bad.tif", tmp_path / "file" / "out", model)


def test_full_disk_is_told_and_leaves_nothing(
    tmp_path: Path, model: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.inference.slides.label_pyramid.zlib.compress", full)
    with pytest.raises(InputError, match=r"cannot write .*a\.tif: No space left on device"):
        segment_slides(save(tmp_path / "a.tif", np.full((600, 600, 3), 90, np.uint8)), tmp_path / "out", model)
    assert os.listdir(tmp_path / "out") == []


# --- what is found ----------------------------------------------------------------------------------------------------


def test_slides_are_found_by_their_suffix(tmp_path: Path) -> None:
    for name in ("b.SVS", "a.png", "c.mrxs", "notes.txt", ".hidden.tif"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "c").mkdir()
    assert [source.case for source in find_slides(tmp_path)] == ["a", "b", "c"]
    assert [source.path.name for source in find_slides(tmp_path / "b.SVS")] == ["b.SVS"]
    assert find_slides([SlideFile("mine", tmp_path / "a.png")])[0].case == "mine"


def test_jpegs_beside_an_index_file_are_parts_of_its_slide(tmp_path: Path) -> None:
    for name in ("a.vms", "a(0,0).jpg", "a(1,0).jpg", "b.png"):
        (tmp_path / name).write_bytes(b"")
    assert [source.path.name for source in find_slides(tmp_path)] == ["a.vms", "b.png"]


def test_inputs_that_name_no_slides(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file or folder: .*a\.tif, .*b\.svs; check the path"):
        SlideDataset([tmp_path / "a.tif", tmp_path / "b.svs"])
    with pytest.raises(InputError, match=r"no slide in .*; give \.png, "):
        SlideDataset(tmp_path)
    for name in ("a.png", "a.tif"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match=r"two slides named a would share one output: .*a\.png, .*a\.tif"):
        SlideDataset(tmp_path)
    (tmp_path / "a.txt").write_bytes(b"")
    with pytest.raises(InputError, match=r"a\.txt is no slide by its name"):
        list(SlideDataset(tmp_path / "a.txt"))


# --- MONAI ------------------------------------------------------------------------------------------------------------


def test_as_the_parts_of_a_monai_evaluator(tmp_path: Path) -> None:
    class Normed(Darkness):
        """Batch statistics would change every tile, were the network in training mode."""

        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, images: Tensor) -> Tensor:
            return super().forward(self.norm(images))

    for index, name in enumerate("ab"):
        save(tmp_path / "in" / f"{name}.tif", tissue(seed=index))
    (tmp_path / "in" / "bad.tif").write_bytes(b"")
    slides = SlideDataset(tmp_path / "in")
    writer = SlideLabelWriter(tmp_path / "out", slides, LABELS, "abc123")
    network, inferer = Normed().train(), TileInferer(32, 32, preprocessing_of(PREPROCESSING))
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=slide_loader(slides),
        network=network,
        prepare_batch=slide_batch,
        inferer=inferer,
        val_handlers=[writer],
        decollate=False,
    )
    evaluator.run()
    assert network.training
    assert [path.name for path in writer.written] == ["a.tif", "b.tif"]
    assert [failure.case for failure in slides.failures] == ["bad"]
    with pytest.raises(SystemExit, match="1"):
        writer.exit_if_failed()
    network.eval()
    for index, name in enumerate("ab"):
        bands = inferer.bands(ArraySlide(tissue(seed=index)), network)
        assert np.array_equal(tifffile.imread(tmp_path / "out" / f"{name}.tif"), np.concatenate(list(bands)))
    evaluator.run()
    assert (len(slides.failures), len(writer.written)) == (1, 2), "a second run begins anew"


def test_slides_are_closed_when_they_are_written(tmp_path: Path, model: SimpleNamespace, monkeypatch) -> None:
    opened = []

    class Closing(ArraySlide):
        closed = False

        def close(self) -> None:
            self.closed = True

    def open_one(path: Path) -> Closing:
        assert all(slide.closed for slide in opened), "one slide is open at a time"
        opened.append(Closing(tissue() if path.stem != "b" else tissue(20, 20), path))
        return opened[-1]

    monkeypatch.setattr("pipeline.inference.slides.slide_dataset.open_slide", open_one)
    for name in "abc":
        save(tmp_path / "in" / f"{name}.tif")
    assert segment_slides(tmp_path / "in", tmp_path / "out", model) == 1
    assert [slide.closed for slide in opened] == [True] * 3


def test_models_and_inputs_do_not_mix(tmp_path: Path, model: SimpleNamespace) -> None:
    model.network_arguments = {"in_channels": 1}
    with pytest.raises(InputError, match="trained on tiles of slides, not on scans"):
        inferer_of(model)
    model.tile_px = None
    with pytest.raises(InputError, match="trained on scans, not on slides"):
        segment_slides(save(tmp_path / "a.tif"), tmp_path / "out", model)
