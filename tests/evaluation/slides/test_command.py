# SPDX-License-Identifier: Apache-2.0
"""The commands that score and draw masks of slides which any tool wrote: formats, figures, pictures, and bad input."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from pipeline.comparison import figures
from pipeline.comparison.pictures import case_rows, case_views
from pipeline.comparison.pictures.case_rows import comparison_figure
from pipeline.data import COLOUR_SLIDE, SLIDE_INTENSITY, Case, Dataset, load_dataset, write_dataset_json, write_png
from pipeline.errors import InputError
from pipeline.evaluation.__main__ import main
from pipeline.evaluation.masks.files import read_mask
from pipeline.inference.slides.label_pyramid import write_label_pyramid

HEIGHT, WIDTH = 20, 30
LABELS = {0: "background", 1: "cancer"}


def square(left: int = 5, value: int = 1) -> np.ndarray:
    """Return (20, 30) uint8 with a square of side 10 that begins in this column."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[5:15, left : left + 10] = value
    return labels


@pytest.fixture
def folder(tmp_path):
    """A dataset of two slides, a and b, and a method's masks: a two pixels off, b perfect."""
    cases = []
    for name in "ab":
        image = np.full((HEIGHT, WIDTH, 3), (230, 180, 210), np.uint8)
        image[0, 0, 0] = ord(name)
        paths = tmp_path / "images" / f"{name}.png", tmp_path / "labels" / f"{name}.png"
        write_png(paths[0], image)
        write_png(paths[1], square())
        cases.append(Case(name, name, *paths))
    declared = Dataset("toy", tmp_path, COLOUR_SLIDE, LABELS, SLIDE_INTENSITY, (), (), tuple(cases), False, 16)
    write_dataset_json(tmp_path, declared)
    write_png(tmp_path / "masks" / "a.png", square(7))
    write_png(tmp_path / "masks" / "b.png", square())
    return tmp_path


def run(folder: Path, *more: str, predictions: str = "masks", labels: str = "labels", dataset: bool = True) -> int:
    paths = ["--predictions", folder / predictions, "--labels", folder / labels, "--output", folder / "report"]
    named = ["--dataset", str(folder / "dataset.json")] if dataset else []
    return main([*map(str, paths), *named, *more])


def read(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def refused(folder: Path, match: str, *more: str, **paths) -> None:
    with pytest.raises(InputError, match=match) as caught:
        run(folder, *more, **paths)
    assert "\n" not in str(caught.value)
    assert not list(folder.glob("report/*"))


def test_two_folders(folder, capsys, caplog):
    assert run(folder) == 0
    assert {path.name for path in (folder / "report").iterdir()} == {
        "per_image.csv",
        "per_class.csv",
        "summary.json",
        "report.html",
    }
    rows = read(folder / "report" / "per_image.csv")
    assert [row["image"] for row in rows] == ["a", "b"]
    assert (rows[0]["dice"], rows[0]["hd95_px"]) == ("0.800000", "2.000000")
    assert (rows[0]["true_positive"], rows[0]["false_positive"], rows[0]["false_negative"]) == ("80", "20", "20")
    assert (rows[1]["iou"], rows[1]["hd95_px"]) == ("1.000000", "0.000000")
    accuracy, cancer, background = 1160 / 1200, 180 / 220, 980 / 1020
    mean = read(folder / "report" / "per_class.csv")[-1]
    assert (mean["accuracy"], mean["iou"]) == (f"{accuracy:.6f}", f"{(cancer + background) / 2:.6f}")
    printed = capsys.readouterr().out
    assert f"ACC {accuracy:.4f}" in printed
    assert "cases scored: 2" in printed
    summary = json.loads((folder / "report" / "summary.json").read_text())
    assert (summary["protocol"], summary["dataset"]) == ("full", "toy")
    assert summary["cases"][0]["shape"] == [HEIGHT, WIDTH]
    assert "mm" not in caplog.text  # slides have no distances in mm whose lack would be news


def test_two_files_are_a_pair_whatever_their_names(folder):
    write_png(folder / "other_tool.png", square(7))
    assert run(folder, predictions="other_tool.png", labels="labels/a.png") == 0
    (row,) = read(folder / "report" / "per_image.csv")
    assert (row["image"], row["dice"]) == ("a", "0.800000")


def test_masks_that_inference_wrote(folder):
    """Level 0 of the pyramid CASE.tif; CASE_overview.png and CASE.json beside it are no masks."""
    rng = np.random.default_rng(0)
    large = rng.integers(0, 2, (1100, 600), dtype=np.uint8)
    write_png(folder / "labels" / "a.png", large)
    (folder / "inferred").mkdir()
    for name, labels in (("a", large), ("b", square())):
        write_label_pyramid(folder / "inferred" / f"{name}.tif", [labels], labels.shape)
        write_png(folder / "inferred" / f"{name}_overview.png", np.zeros((4, 4, 3), np.uint8))
        (folder / "inferred" / f"{name}.json").write_text("{}")
    assert len(tifffile.TiffFile(folder / "inferred" / "a.tif").pages) > 1
    assert run(folder, predictions="inferred") == 0
    assert [row["iou"] for row in read(folder / "report" / "per_image.csv")] == ["1.000000"] * 2


def test_an_overview_without_its_mask_is_a_mask_by_name(folder):
    write_png(folder / "masks" / "c_overview.png", square())
    refused(folder, "no label for c_overview")


@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"compression": "zlib"},
        {"compression": "lzw"},
        {"tile": (16, 16)},
        {"rowsperstrip": 3},
        {"bigtiff": True},
        {"subifds": 1},
    ],
)
def test_tiff_of_other_tools(folder, keywords):
    path = folder / "m.tiff"
    with tifffile.TiffWriter(path, bigtiff=keywords.pop("bigtiff", False)) as writer:
        writer.write(square(), photometric="minisblack", **keywords)
        if "subifds" in keywords:
            writer.write(square()[::2, ::2], photometric="minisblack", subfiletype=1)
    assert np.array_equal(read_mask(path, {0, 1}, (HEIGHT, WIDTH)), square())


def test_masks_of_one_bit(folder):
    Image.fromarray(square().astype(bool)).save(folder / "masks" / "a.png")
    Image.fromarray(square().astype(bool)).save(folder / "m.tif")
    assert np.array_equal(read_mask(folder / "m.tif"), square())
    assert run(folder) == 0


def test_three_classes_and_one_that_is_nowhere(folder):
    content = json.loads((folder / "dataset.json").read_text())
    content["labels"] = {**content["labels"], "2": "stroma"}
    (folder / "dataset.json").write_text(json.dumps(content))
    assert run(folder) == 0
    rows = read(folder / "report" / "per_class.csv")
    assert [row["class"] for row in rows] == ["background", "cancer", "stroma", "mean"]
    assert (rows[2]["n_absent"], rows[2]["iou"]) == ("2", "")


def test_allow_missing(folder, caplog):
    (folder / "masks" / "b.png").unlink()
    refused(folder, "no prediction for b .*--allow-missing")
    assert run(folder, "--allow-missing") == 0
    assert "1 labels without prediction (b)" in caplog.text


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: write_png(path, square()[1:]), r"a.png has 30 x 19 pixels, the image 30 x 20; give masks at"),
        (lambda path: write_png(path, square(value=3)), r"the values 3 \(100 pixels\), which name no class; known"),
        (lambda path: write_png(path, square(value=255)), r"255 \(100 pixels\).*255 stands for places that could not"),
        (lambda path: write_png(path, np.zeros((HEIGHT, WIDTH, 3), np.uint8)), "a.png is of kind RGB, no label image"),
        (lambda path: Image.fromarray(square()).convert("P").save(path), "a.png is of kind P"),
        (lambda path: Image.fromarray(square().astype(np.uint16)).save(path), "has 16 bits a channel"),
        (lambda path: path.write_bytes(path.read_bytes()[:-20]), "truncated or damaged"),
        (lambda path: path.write_bytes(b""), r"is empty \(0 bytes\)"),
        (lambda path: path.write_bytes(b"no picture"), "is no PNG, JPEG or TIFF picture"),
    ],
)
def test_a_png_that_is_no_mask_of_its_slide(folder, spoil, message):
    spoil(folder / "masks" / "a.png")
    refused(folder, f"1 of 2 cases cannot be scored: case a: .*{message}")


def write_tiff(path: Path, labels: np.ndarray, **keywords) -> None:
    tifffile.imwrite(path, labels, **{"photometric": "minisblack", **keywords})


def cut_short(path: Path, **keywords) -> None:
    write_tiff(path, np.random.default_rng(0).integers(0, 2, (HEIGHT, WIDTH), dtype=np.uint8), **keywords)
    path.write_bytes(path.read_bytes()[:-40])


def two_pages(path: Path) -> None:
    write_tiff(path, np.stack([square(), square()]))


def marked_as_rotated(path: Path) -> None:
    write_tiff(path, square(), extratags=[(274, "H", 1, 6, True)])


def damaged(path: Path) -> None:
    write_tiff(path, np.random.default_rng(0).integers(0, 2, (HEIGHT, WIDTH), dtype=np.uint8), compression="zlib")
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        offset = file.pages[0].dataoffsets[0]
    content[offset : offset + 30] = bytes(30)
    path.write_bytes(content)


def vast(path: Path) -> None:
    """A header that claims 65,000 x 65,000 pixels, and data of a few."""
    write_tiff(path, square())
    content = path.read_bytes()
    for tag, length in ((256, WIDTH), (257, HEIGHT)):
        entry = next(
            start for start in range(len(content) - 12) if content[start : start + 2] == tag.to_bytes(2, "little")
        )
        place = content.index(length.to_bytes(2, "little"), entry + 8)
        content = content[:place] + (65000).to_bytes(2, "little") + content[place + 2 :]
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: write_tiff(path, square()[1:]), r"a.tif has 30 x 19 pixels, the image 30 x 20"),
        (lambda path: write_tiff(path, square(value=255)), r"255 \(100 pixels\).*255 stands for places"),
        (lambda path: write_tiff(path, square().astype(np.uint16)), r"values of 16 bits \(uint16\)"),
        (lambda path: write_tiff(path, square().astype(np.float32)), r"values of 32 bits \(float32\)"),
        (lambda path: write_tiff(path, square().astype(np.int8)), r"values of 8 bits \(int8\)"),
        (lambda path: write_tiff(path, np.zeros((HEIGHT, WIDTH, 3), np.uint8), photometric="rgb"), "colours .rgb, 3"),
        (lambda path: write_tiff(path, square(), photometric="miniswhite"), "holds colours .miniswhite, 1 channels"),
        (lambda path: Image.fromarray(square()).convert("P").save(path), "holds colours .palette"),
        (lambda path: write_tiff(path, square(), compression="jpeg"), "is compressed as JPEG, which may change class"),
        (two_pages, "a.tif holds 2 pictures; keep the mask alone"),
        (marked_as_rotated, "is to be rotated by viewers"),
        (cut_short, "a.tif is truncated: [0-9]+ of at least [0-9]+ bytes"),
        (lambda path: cut_short(path, compression="zlib"), "a.tif is truncated"),
        (damaged, "is no TIFF picture, or a damaged one"),
        (vast, r"a.tif has 65000 x 65000 pixels, the image 30 x 20"),
        (lambda path: path.write_bytes(b""), "is no TIFF picture, or a damaged one"),
        (lambda path: path.write_text("<html>404</html>"), "is no TIFF picture"),
    ],
)
def test_a_tiff_that_is_no_mask_of_its_slide(folder, write, message):
    (folder / "masks" / "a.png").unlink()
    write(folder / "masks" / "a.tif")
    refused(folder, f"1 of 2 cases cannot be scored: case a: .*{message}")


def test_every_bad_case_is_told(folder):
    write_png(folder / "masks" / "a.png", square()[1:])
    write_png(folder / "masks" / "b.png", square(value=7))
    refused(folder, r"2 of 2 cases cannot be scored: case a: .*30 x 19.*; case b: .*values 7")


def test_one_case_twice(folder):
    write_tiff(folder / "masks" / "a.tif", square())
    refused(folder, "are one case by name")


def test_jpeg_is_no_mask(folder):
    (folder / "jpeg").mkdir()
    Image.fromarray(square() * 100).save(folder / "jpeg" / "a.jpg")
    refused(folder, r"jpeg holds no label map; give .png, .tif, .tiff", predictions="jpeg")


def test_masks_without_a_dataset(folder):
    refused(folder, "holds no label map; .*name their dataset.json with --dataset", dataset=False)


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        ("mm", "'mm' is for scans, but these are slides; choose one of full, paper"),
        ("transunet", "choose one of full, paper"),
        ("paper", "finished masks cannot follow; score masks with full, .*evaluate.yaml"),
    ],
)
def test_protocols_that_masks_of_slides_cannot_follow(folder, protocol, message):
    refused(folder, message, "--protocol", protocol)


def test_protocol_full_is_not_for_scans(folder):
    refused(folder, "'full' is for slides, but these are scans; choose one of mm", "--protocol", "full", dataset=False)


def test_a_mask_that_is_not_there(folder):
    for name in ("none.png", "none.tif"):
        with pytest.raises(InputError, match=f"no .* at .*{name}"):
            read_mask(folder / name)


class TestPicture:
    def test_rows_columns_and_colours(self, folder):
        (folder / "pyramids").mkdir()
        for name in "ab":
            write_label_pyramid(folder / "pyramids" / f"{name}.tif", [square(7)], (HEIGHT, WIDTH))
        methods = {"student": folder / "masks", "teacher": folder / "pyramids"}
        drawn = comparison_figure(load_dataset(folder), methods)
        assert [axis.get_title() for axis in drawn.axes[:4]] == ["image", "label", "student", "teacher"]
        assert [drawn.axes[index].get_ylabel() for index in (0, 4)] == ["a", "b"]
        image, label, student, teacher = (axis.images[0].get_array() for axis in drawn.axes[:4])
        assert image.shape == (HEIGHT, WIDTH, 3)
        assert image[10, 10].tolist() == [230, 180, 210]
        stain, orange = np.array([230, 180, 210]) / 255, np.array([0xE6, 0x9F, 0x00]) / 255
        np.testing.assert_allclose(label[10, 5], 0.7 * stain + 0.3 * orange, atol=1e-6)
        np.testing.assert_allclose(label[10, 4], stain, atol=1e-6)
        np.testing.assert_allclose(student[10, 5], stain, atol=1e-6)
        np.testing.assert_array_equal(student, teacher)
        assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["cancer"]

    def test_outline_runs_around_the_class(self, folder):
        drawn = comparison_figure(load_dataset(folder), {}, cases=["a"])
        (outline,) = drawn.axes[1].collections
        points = outline.get_paths()[0].vertices
        assert points.min(axis=0).tolist() == [4.5, 4.5]
        assert points.max(axis=0).tolist() == [14.5, 14.5]

    def test_unreadable_parts_are_grey_and_in_the_legend(self, folder):
        mask = square()
        mask[:3, :4] = 255
        write_png(folder / "masks" / "a.png", mask)
        drawn = comparison_figure(load_dataset(folder), {"student": folder / "masks"}, cases=["a"])
        assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["cancer", "unreadable"]
        np.testing.assert_allclose(drawn.axes[2].images[0].get_array()[0, 0], [128 / 255] * 3, atol=1e-6)

    def test_large_slides_are_drawn_small(self, folder, monkeypatch):
        monkeypatch.setattr(case_views, "SLIDE_PX", 15)
        drawn = comparison_figure(load_dataset(folder), {}, cases=["a"])
        picture = drawn.axes[1].images[0].get_array()
        assert picture.shape == (10, 15, 3)
        tinted = np.abs(picture[5] - picture[0, -1]).sum(axis=1) > 0.1
        assert tinted.tolist() == [3 <= column <= 7 for column in range(15)] or tinted.tolist() == [
            2 <= column <= 6 for column in range(15)
        ]

    def test_command_writes_the_picture(self, folder):
        output = folder / "picture.png"
        arguments = ["--dataset", str(folder), "--predictions", f"s={folder / 'masks'}", "--output", str(output)]
        assert figures.main(arguments) == 0
        assert Image.open(output).size[0] == round(2.4 * 3 * 150)

    def test_bad_input(self, folder):
        dataset = load_dataset(folder)
        write_png(folder / "small" / "a.png", square()[1:])
        for methods, message in (
            ({"s": folder / "nowhere"}, "holds no mask of case a; give one of a.png, a.tif, a.tiff"),
            ({"s": folder / "small"}, "30 x 19 pixels"),
        ):
            with pytest.raises(InputError, match=message):
                comparison_figure(dataset, methods)
        write_tiff(folder / "masks" / "a.tif", square())
        with pytest.raises(InputError, match="several masks of case a"):
            comparison_figure(dataset, {"s": folder / "masks"})

    def test_more_cases_than_a_picture_holds(self, folder, monkeypatch):
        monkeypatch.setattr(case_rows, "MOST_CASES", 1)
        with pytest.raises(InputError, match="2 cases are too many for one picture; name up to 1 with --cases"):
            comparison_figure(load_dataset(folder), {})
