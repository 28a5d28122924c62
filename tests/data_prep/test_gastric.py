# SPDX-License-Identifier: Apache-2.0
"""Pictures and masks as a dataset of slides: tiles, whole pictures, splits, and a folder with an index."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.gastric import convert, main
from data_prep.tiles import cut_tiles
from pipeline.data import COLOUR_SLIDE, GREY_SLIDE, SLIDE_INTENSITY, load_dataset, read_image, read_label_image
from pipeline.errors import InputError
from tests.data_prep.gastric_pictures import (
    KINDS,
    failures,
    four_pictures,
    mask,
    nothing_is_left,
    picture,
    problems,
    run,
    save,
)

CANCER = {0: "background", 1: "cancer"}
THREE = {0: "background", 1: "gland", 2: "stroma"}
RED, GREEN, BLACK, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 0), (255, 255, 255)


def colours(*rows: list[tuple[int, int, int]]) -> np.ndarray:
    return np.array(rows, np.uint8)


@pytest.fixture
def source(tmp_path) -> Path:
    return four_pictures(tmp_path)


def test_tiles_as_they_are(source, capsys):
    assert run(source, "--name", "stomach") == 0
    dataset = load_dataset(source / "out")
    assert (dataset.name, dataset.modality, dataset.tile_px) == ("stomach", GREY_SLIDE, 16)
    assert dataset.labels == CANCER
    assert dataset.intensity == SLIDE_INTENSITY
    assert not dataset.spacing_known
    assert [case.case for case in dataset.training] == ["a", "b"]
    assert [case.case for case in dataset.validation] == ["c"]
    assert [case.case for case in dataset.test] == ["d"]
    for case in (*dataset.training, *dataset.test):
        assert case.image.read_bytes() == (source / "images" / case.image.name).read_bytes()
    assert np.array_equal(read_label_image(dataset.test[0].label), mask(3) // 255)
    assert failures(source) == []
    said = capsys.readouterr()
    assert problems(said.err) == []
    assert "tiles of 16 pixels, classes: 1 cancer" in said.out
    assert "a patient of its own" in said.out


def test_crops_of_training_pictures_alone(source):
    assert run(source, "--crop", "8", "--size", "4") == 0
    dataset = load_dataset(source / "out")
    assert dataset.tile_px == 8
    names = [f"{name}_r0{row}_c0{column}" for name in "ab" for row in (0, 1) for column in (0, 1)]
    assert [case.case for case in dataset.training] == names
    assert {case.patient for case in dataset.training} == {"a", "b"}
    case = dataset.training[5]
    assert case.image.name == case.label.name == "b_r00_c01.png"
    grey = np.asarray(Image.fromarray(picture(1)).convert("L"))[..., None]
    (tile,) = cut_tiles(grey[:8, 8:], (mask(1) // 255)[:8, 8:], 8, 4)
    assert np.array_equal(np.asarray(Image.open(case.image)), tile.image[..., 0])
    assert np.array_equal(read_label_image(case.label), tile.labels)
    assert dataset.test[0].image.read_bytes() == (source / "images/d.png").read_bytes()
    assert read_label_image(dataset.test[0].label).shape == (16, 16)


def test_crops_in_colour_put_together_are_the_picture(source):
    assert run(source, "--color", "--crop", "4") == 0
    dataset = load_dataset(source / "out")
    assert (dataset.modality, dataset.in_channels, dataset.tile_px) == (COLOUR_SLIDE, 3, 4)
    tiles = [read_image(case.image, 3) for case in dataset.training if case.patient == "a"]
    rows = [np.concatenate(tiles[start : start + 4], axis=1) for start in range(0, 16, 4)]
    assert np.array_equal(np.concatenate(rows), picture(0))


@pytest.mark.parametrize("suffix", ["_mask", "_anno", "_label"])
def test_masks_with_a_common_suffix(source, suffix):
    for path in sorted((source / "masks").iterdir()):
        path.rename(path.with_name(f"{path.stem}{suffix}.png"))
    assert run(source) == 0
    assert load_dataset(source / "out").test[0].label.name == "d.png"


def test_the_bare_name_comes_first(source, capsys):
    save(source / "masks/a_mask.png", mask(9))
    assert run(source) == 1
    assert np.array_equal(read_label_image(source / "out/labels/a.png"), mask(0) // 255)
    (line,) = problems(capsys.readouterr().err)
    assert "a_mask.png: has no picture of its name" in line


def test_a_picture_may_be_called_mask(source):
    for kind in ("images", "masks"):
        (source / kind / "b.png").rename(source / kind / "a_mask.png")
    assert run(source) == 0
    assert [case.case for case in load_dataset(source / "out").training] == ["a", "a_mask"]


@pytest.mark.parametrize(("link", "symbolic"), [(["--link"], True), (["--link", "hard"], False)])
def test_links(source, link, symbolic):
    assert run(source, *link) == 0
    placed = source / "out/images/a.png"
    assert placed.samefile(source / "images/a.png")
    assert placed.is_symlink() == symbolic
    assert not (source / "out/labels/a.png").is_symlink()


def test_patients_stay_together(source):
    (source / "patients.csv").write_text("case,patient\na,anna\nb,bert\nc,anna\nd,dora\n")
    assert run(source, "--patients", str(source / "patients.csv"), "--test", "anna", "--crop", "8") == 0
    dataset = load_dataset(source / "out")
    assert [case.case for case in dataset.test] == ["a", "c"]
    assert {case.patient for case in dataset.training} == {"bert", "dora"}


def test_a_fraction_for_training_leaves_the_rest_out(source):
    assert run(source, "--training", "0.5", "--test", "d") == 0
    dataset = load_dataset(source / "out")
    assert (len(dataset.training), len(dataset.validation), len(dataset.test)) == (2, 0, 1)


def test_a_split_file_may_name_a_picture_that_fails(source):
    (source / "split.json").write_text(json.dumps({"training": ["a"], "validation": ["b"], "test": ["c", "d"]}))
    (source / "masks/d.png").unlink()
    assert run(source, "--split", str(source / "split.json")) == 1
    assert [case.case for case in load_dataset(source / "out").test] == ["c"]


def test_classes_by_number_and_by_colour(source):
    for name in ("a", "b", "c"):
        save(source / f"masks/{name}.png", np.tile(np.array([0, 1, 2, 0], np.uint8), (16, 4)))
    assert run(source, "--classes", "gland,stroma") == 1
    (source / "out").rename(source / "numbers")
    for name in ("a", "b", "c", "d"):
        save(source / f"masks/{name}.png", np.tile(colours([BLACK, RED, GREEN, BLACK]), (16, 4, 1)))
    given = ["--classes", "gland,stroma", "--mask-colors", "gland=#ff0000,stroma=#00ff00"]
    assert run(source, *given) == 0
    assert load_dataset(source / "out").labels == THREE
    by_number, by_colour = (read_label_image(source / kind / "labels/a.png") for kind in ("numbers", "out"))
    assert np.array_equal(by_number, by_colour)


def test_what_is_allowed_but_odd_is_said(source, capsys):
    for name in ("a", "b"):
        save(source / f"masks/{name}.png", np.zeros((16, 16), np.uint8))
    (source / "images/notes.txt").write_text("stained on Monday")
    assert run(source, "--test", "d") == 0
    said = capsys.readouterr().err
    assert "no training picture has cancer" not in said  # c has
    assert "the validation split is empty" in said
    assert "1 files in" in said
    assert "left out: notes.txt" in said
    (source / "out").rename(source / "first")
    assert run(source) == 0
    assert "warning: no training picture has cancer" in capsys.readouterr().err


def test_empty_glass_is_kept_once(source, capsys):
    glass = picture(0)
    glass[:8] = 255
    save(source / "images/a.png", glass)
    assert run(source, "--crop", "8") == 0
    names = [case.case for case in load_dataset(source / "out").training]
    assert names[:3] == ["a_r00_c00", "a_r01_c00", "a_r01_c01"]
    assert len(names) == 7
    assert "1 crops look exactly like another one" in capsys.readouterr().err


INDEX = "split,file,grade,patient\ntrain,a,high,p1\ntrain,b.png,low,p1\nval,c,high,p2\ntest,d,low,p3\n"


def run_index(source: Path, text: str) -> int:
    (source / "index.csv").write_text(text)
    return main(["--source", str(source), "--output", str(source / "out"), "--classes", "tumour"])


def test_an_index(source, capsys):
    assert run_index(source, INDEX) == 0
    dataset = load_dataset(source / "out")
    assert [(case.case, case.patient) for case in dataset.training] == [("a", "p1"), ("b", "p1")]
    assert [(case.case, case.patient) for case in dataset.validation] == [("c", "p2")]
    assert [(case.case, case.patient) for case in dataset.test] == [("d", "p3")]
    assert dataset.organs == {1: "tumour"}
    assert "a patient of its own" not in capsys.readouterr().out


def test_a_file_called_like_a_fraction(source):
    for kind in KINDS:
        (source / kind / "d.png").rename(source / kind / "1.5.png")
    assert run_index(source, INDEX.replace("test,d,", "test,1.5,")) == 0
    assert [case.case for case in load_dataset(source / "out").test] == ["1.5"]


def test_rows_and_pictures_without_each_other(source, capsys):
    assert run_index(source, INDEX.replace("train,b.png", "train,e")) == 1
    lines = problems(capsys.readouterr().err)
    assert len(lines) == 2
    assert re.search(r"index\.csv: names e, but there is no such picture; add it, or take the row out", lines[0])
    assert re.search(r"images/b\.png: has no patient in .*index\.csv; add a line for b there", lines[1])
    assert [case.case for case in load_dataset(source / "out").training] == ["a"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (INDEX.replace("val,", "dev,"), "split 'dev' of c is none of train, val and test"),
        (INDEX.replace("high,p2", "high,"), r"a row lacks its patient \('c'\)"),
        (INDEX + "test,a,high,p1\n", "a stands in two rows"),
        (INDEX.replace("low,p3", "low,p1"), "patient p1 is in test and in training"),
    ],
)
def test_an_index_that_contradicts_itself_stops_the_run(source, capsys, text, message):
    with pytest.raises(InputError, match=r"problems? in"):
        run_index(source, text)
    assert re.search(message, "\n".join(problems(capsys.readouterr().err)))
    assert nothing_is_left(source)


def test_an_index_of_other_columns(source):
    with pytest.raises(InputError, match="lacks the columns split, file and patient in its first line"):
        run_index(source, "name,set\na,train\n")


def test_the_published_tiles_of_ebhi(shared_data, tmp_path):
    ebhi = shared_data / "ebhi_seg"
    with open(ebhi / "index.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["patient"] in ("2001837", "2012118")]
    for row in rows:
        for kind, suffix in (("images", "jpg"), ("masks", "png")):
            target = tmp_path / kind / f"{row['file']}.{suffix}"
            target.parent.mkdir(exist_ok=True)
            target.symlink_to(ebhi / kind / target.name)
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    assert run_index(tmp_path, "\n".join(lines) + "\n") == 0
    dataset = load_dataset(tmp_path / "out")
    assert dataset.tile_px == 224
    assert [case.patient for case in dataset.training] == ["2001837"]
    assert {case.patient for case in dataset.test} == {"2012118"}
    drawn = {row["file"]: float(row["fg_fraction"]) for row in rows}
    for case in (*dataset.training, *dataset.test):
        assert read_label_image(case.label).mean() == pytest.approx(drawn[case.case], abs=1e-3)


def test_convert_from_a_program(source):
    outcome = convert(source / "images", source / "masks", source / "out", colour=True, crop_px=8, size=4)
    assert outcome.failures == []
    assert outcome.dataset.folder == source / "out"
    assert all(case.image.is_file() for case in outcome.dataset.training)
