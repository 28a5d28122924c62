# SPDX-License-Identifier: Apache-2.0
"""Every bad picture and mask is told in a line of its own, and the rest goes on."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.gastric import main
from pipeline.data import load_dataset, read_label_image
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


@pytest.fixture
def source(tmp_path) -> Path:
    return four_pictures(tmp_path)


def as_grey16(path: Path) -> None:
    Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16)).save(path)


def as_mode(mode: str, suffix: str = ".png"):
    def spoil(path: Path) -> None:
        path.unlink()
        Image.fromarray(picture(0)).convert(mode).save(path.with_suffix(suffix))

    return spoil


def truncated_jpeg(path: Path) -> None:
    path.unlink()
    whole = save(path.with_suffix(".jpg"), picture(0, side=16))
    whole.write_bytes(whole.read_bytes()[:-60])


def second_name(path: Path) -> None:
    save(path.with_suffix(".jpg"), picture(0) if path.parent.name == "images" else mask(0))


BAD_FILES = {
    "palette": ("images/a.png", as_mode("P"), [], r"a\.png: has a palette; save"),
    "alpha": ("images/a.png", as_mode("RGBA"), [], r"a\.png: has an alpha channel; flatten"),
    "inks": ("images/a.png", as_mode("CMYK", ".tif"), [], r"a\.tif: holds inks \(CMYK\)"),
    "16 bits": ("images/a.png", as_grey16, [], r"a\.png: has 16 bits a channel; save"),
    "grey for colour": ("images/a.png", as_mode("L"), ["--color"], r"a\.png: is grey, but colour is asked for"),
    "truncated": ("images/a.png", truncated_jpeg, [], r"a\.jpg: is truncated or damaged .*copy it anew"),
    "empty": ("images/a.png", lambda path: path.write_bytes(b""), [], r"a\.png: is empty \(0 bytes\); copy"),
    "no picture at all": ("images/a.png", lambda path: path.write_text("soon"), [], r"a\.png: is no PNG, JPEG or TIFF"),
    "no mask": ("masks/a.png", Path.unlink, [], r"images/a\.png: has no mask of its name in .*; add it"),
    "no picture": ("images/a.png", Path.unlink, [], r"masks/a\.png: has no picture of its name in .*; add it"),
    "two pictures": ("images/a.png", second_name, [], r"a\.jpg: is not the only picture of its name, .*a\.png too"),
    "two masks": (
        "masks/a.png",
        second_name,
        [],
        r"masks/a\.jpg: is not the only mask of its name, .*a\.png too; keep",
    ),
    "empty mask": ("masks/a.png", lambda path: path.write_bytes(b""), [], r"masks/a\.png: is empty"),
    "mask of 16 bits": ("masks/a.png", as_grey16, [], r"masks/a\.png: has 16 bits"),
    "mask of another size": (
        "masks/a.png",
        lambda path: save(path, mask(0)[:, :12]),
        [],
        r"masks/a\.png: is 12 x 16 pixels, but a\.png 16 x 16; draw it on that picture",
    ),
    "mask of other values": (
        "masks/a.png",
        lambda path: save(path, np.full((16, 16), 7, np.uint8)),
        [],
        r"masks/a\.png: holds 7 \(256 pixels\), which name no class",
    ),
    "JPEG mask": ("masks/a.png", as_mode("L", ".jpg"), [], r"masks/a\.jpg: is a JPEG, .* blur values; save as PNG or"),
    "smaller than a crop": (
        "images/a.png",
        lambda path: (save(path, picture(0)[:12]), save(path.parents[1] / "masks/a.png", mask(0)[:12])),
        ["--crop", "16"],
        r"images/a\.png: is 16 x 12 pixels \(width x height\), smaller than a tile of 16 x 16; leave",
    ),
    "no square": (
        "images/a.png",
        lambda path: (save(path, picture(0)[:12]), save(path.parents[1] / "masks/a.png", mask(0)[:12])),
        [],
        r"images/a\.png: is 16 x 12 pixels \(width x height\), no square.*give --crop",
    ),
    "the same twice": (
        "images/b.png",
        lambda path: save(path, picture(0)),
        [],
        r"images/b\.png: holds the same picture as .*images/a\.png; keep one",
    ),
    "a backslash": (
        "images/a.png",
        lambda path: [
            (path.parents[1] / f"{kind}/a.png").rename(path.parents[1] / f"{kind}/a\\.png") for kind in KINDS
        ],
        [],
        r"images/a\\\.png: has a name that cannot be an id",
    ),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_left_out_and_told(source, capsys, kind):
    name, spoil, options, message = BAD_FILES[kind]
    spoil(source / name)
    assert run(source, *options) == 1
    said = capsys.readouterr()
    (line,) = problems(said.err)
    assert re.search(message, line)
    assert "left out: 1 files, listed in" in said.out
    ((file, error),) = failures(source)
    assert line == f"problem: {file}: {error}"
    dataset = load_dataset(source / "out")
    bad = Path(name).stem
    assert {case.patient for case in dataset.training} == {"a", "b"} - {bad}
    assert [case.case for case in (*dataset.validation, *dataset.test)] == ["c", "d"]


def test_a_jpeg_mask_with_a_threshold(source):
    as_mode("L", ".jpg")(source / "masks/a.png")
    assert run(source, "--mask-threshold", "127") == 0
    expected = np.asarray(Image.open(source / "masks/a.jpg")) > 127
    assert np.array_equal(read_label_image(source / "out/labels/a.png"), expected)


def test_tiles_of_another_size_than_most(source, capsys):
    for index, name in enumerate(("e", "f")):
        save(source / f"images/{name}.png", picture(20 + index, side=24))
        save(source / f"masks/{name}.png", mask(index, side=24))
    assert run(source, "--validation", "c", "--test", "f,d") == 1
    (line,) = problems(capsys.readouterr().err)
    assert re.search(r"e\.png: is 24 x 24 pixels .*most training tiles are 16 x 16; bring all to one size", line)
    dataset = load_dataset(source / "out")
    assert dataset.tile_px == 16
    assert [case.case for case in dataset.test] == ["d", "f"]


def test_a_test_picture_smaller_than_a_tile(source, capsys):
    save(source / "images/d.png", picture(3, side=8))
    save(source / "masks/d.png", mask(3, side=8))
    assert run(source) == 1
    (line,) = problems(capsys.readouterr().err)
    assert "d.png: is 8 x 8 pixels (width x height), smaller than a tile of 16 x 16" in line


def test_a_test_picture_named_like_a_tile(source, capsys):
    for kind in KINDS:
        (source / kind / "d.png").rename(source / kind / "a_r00_c01.png")
    assert run(source, "--test", "a_r00_c01", "--crop", "8") == 1
    (line,) = problems(capsys.readouterr().err)
    assert "a_r00_c01.png: is named like a tile of a; rename it and its mask" in line
    assert len(load_dataset(source / "out").training) == 12


def test_all_problems_are_told_in_one_run(source, capsys):
    for name in ("e", "f", "g"):
        save(source / f"images/{name}.png", picture(ord(name)))
        save(source / f"masks/{name}.png", mask(ord(name)))
    (source / "masks/e.png").unlink()
    (source / "images/f.png").write_bytes(b"")
    (source / "masks/f.png").write_bytes(b"")
    save(source / "masks/g.png", np.full((16, 16), 9, np.uint8))
    assert run(source) == 1
    lines = problems(capsys.readouterr().err)
    assert len(lines) == 4
    for part in ("images/e.png: ", "images/f.png: ", "masks/f.png: ", "masks/g.png: "):
        assert sum(part in line for line in lines) == 1
    assert len(failures(source)) == 4


def test_a_copy_of_a_bad_picture_is_no_copy(source):
    save(source / "images/b.png", picture(0))
    save(source / "masks/a.png", np.full((16, 16), 9, np.uint8))
    assert run(source) == 1
    assert [case.case for case in load_dataset(source / "out").training] == ["b"]
    assert [Path(file).name for file, _ in failures(source)] == ["a.png"]


def test_a_picture_without_a_patient(source, capsys):
    (source / "patients.csv").write_text("case,patient\na,anna\nc,carl\nd,dora\n")
    assert run(source, "--patients", str(source / "patients.csv")) == 1
    (line,) = problems(capsys.readouterr().err)
    assert re.search(r"images/b\.png: has no patient in .*patients\.csv; add a line for b there", line)


def test_no_training_picture_is_left(source, capsys):
    for name in ("a", "b"):
        (source / f"masks/{name}.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"no training picture from .* is left; 2 problems are listed above; nothing"):
        run(source)
    assert len(problems(capsys.readouterr().err)) == 2
    assert nothing_is_left(source)


def test_everything_is_for_the_test(source, capsys):
    with pytest.raises(InputError, match="1 problem"):
        run(source, "--test", "a,b,c,d")
    assert "no case is left to train on: of 4 cases, 4 in test" in capsys.readouterr().err
    assert nothing_is_left(source)


def test_requests_that_cannot_be_met_stop_the_run(source, capsys):
    (source / "masks/a.png").unlink()
    with pytest.raises(InputError, match="2 problems"):
        run(source, "--test", "dd")
    said = capsys.readouterr().err
    assert "no case or patient 'dd'" in said
    assert "images/a.png: has no mask" in said
    assert nothing_is_left(source)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--size", "4"], "--size is what crops are shrunk to; give --crop as well"),
        (["--crop", "4", "--size", "8"], "--size 8 is larger than --crop 4"),
        (["--crop", "0"], "--crop 0 must be 1 pixel or more"),
        (["--images", "nowhere"], "no folder of images at nowhere"),
        (["--masks", "nowhere"], "no folder of masks at nowhere"),
        (["--patients", "nowhere.csv"], "cannot read nowhere.csv"),
        (["--mask-colors", "tumour=#ff0000"], "no class 'tumour'"),
        (["--source", "nowhere", "--test", "d"], "--source says that already: leave out --images, --masks, --test"),
    ],
)
def test_bad_options(source, more, message):
    with pytest.raises(InputError, match=message):
        run(source, *more)
    assert nothing_is_left(source)


def test_folders_that_cannot_be_used(source):
    for arguments, message in (
        (["--masks", str(source / "images")], "two folders"),
        (["--output", str(source / "masks/out")], "which is read"),
    ):
        with pytest.raises(InputError, match=message):
            run(source, *arguments)
    for path in (*(source / "images").iterdir(), *(source / "masks").iterdir()):
        path.unlink()
    with pytest.raises(InputError, match="no pictures in"):
        run(source)
    with pytest.raises(InputError, match="give --images and --masks, or --source"):
        main(["--output", str(source / "out")])


def test_an_output_that_exists_is_never_touched(source):
    (source / "out").mkdir()
    (source / "out/thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        run(source)
    assert (source / "out/thesis.txt").read_text() == "mine"


def test_a_hard_link_that_is_impossible_leaves_nothing(source, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    with pytest.raises(InputError, match="no hard link to"):
        run(source, "--link", "hard")
    assert nothing_is_left(source)
