# SPDX-License-Identifier: Apache-2.0
"""Drawn slides: nuclei and colours by hand, cancer that differs but not by its darkness alone, one large TIFF."""

from itertools import pairwise

import numpy as np
import pytest
import tifffile
from scipy import ndimage

from data_prep.phantom_slides import draw_picture, main, make
from data_prep.phantom_tissue import Nuclei, Stain, Tissue
from data_prep.phantom_whole_slide import DrawnSlide, oriented, write_whole_slide
from pipeline.data import COLOUR_SLIDE, GREY_SLIDE, load_dataset, read_image, read_label_image, to_grey
from pipeline.data.slides.open import open_slide
from pipeline.errors import InputError, run_command

SIDE = 256


@pytest.fixture(scope="module")
def pictures():
    return [draw_picture(0, index, SIDE) for index in range(8)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make(tmp_path_factory.mktemp("slides") / "data", images=6, side=SIDE, colour=True, crop_px=128, size=64)


@pytest.fixture(scope="module")
def slide_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "slide.tif"
    assert main(["--whole-slide", str(path), "--side", "1200"]) == 0
    return path


def nucleus(row: float = 12, column: float = 12, **options: float) -> Nuclei:
    values = {"long": 3.0, "short": 3.0, "angle": 0.0, "amount": 0.5, **options}
    return Nuclei(np.array([row]), np.array([column]), *(np.array([value]) for value in values.values()))


def stamped(nuclei: Nuclei) -> np.ndarray:
    canvas = np.zeros((25, 25), np.float32)
    nuclei.stamp(canvas)
    return canvas


def test_a_round_nucleus_by_hand():
    canvas = stamped(nucleus())
    # The rim lies 3 pixels from the centre and is one pixel soft: full at 2, half at 3, nothing at 4.
    assert canvas[12, 12:17].tolist() == pytest.approx([0.5, 0.5, 0.5, 0.25, 0.0])
    assert np.array_equal(canvas, canvas.T)
    assert canvas.sum() == pytest.approx(0.5 * np.pi * 9, rel=0.03)


def test_a_slender_nucleus_lies_along_its_angle():
    # Angle 0 points along the columns, to the right; a quarter turn down the rows.
    flat, upright = (stamped(nucleus(long=6.0, short=1.5, angle=angle)) for angle in (0.0, np.pi / 2))
    assert (flat[12] > 0.24).sum() == 13
    assert (flat[:, 12] > 0.24).sum() == 3
    assert np.allclose(upright, flat.T, atol=1e-6)


def test_the_darker_nucleus_covers_and_the_edge_of_the_picture_cuts():
    canvas = np.full((25, 25), 0.3, np.float32)
    nucleus(row=0, amount=0.2).stamp(canvas)
    assert (canvas == np.float32(0.3)).all()
    nucleus(row=-30).stamp(canvas)
    assert (canvas == np.float32(0.3)).all()
    nucleus(row=0).stamp(canvas)
    assert canvas[0, 12] == 0.5
    assert canvas[24].max() == np.float32(0.3)


def test_colours_by_hand():
    stain = Stain(np.array([[1.0, 0.5, 0.0], [0.0, 1.0, 0.0]], np.float32), np.array([200, 240, 250], np.float32))
    haematoxylin, eosin = np.array([[0.0, 1.0, 0.0]]), np.array([[0.0, 0.0, 2.0]])
    expected = [[200, 240, 250], [20, 240 / 10**0.5, 250], [200, 2.4, 250]]
    assert np.allclose(stain.colours(haematoxylin, eosin)[0], expected, rtol=1e-5)


def test_eight_ways_to_lay_down_a_piece():
    piece = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert len({oriented(piece, way).tobytes() for way in range(8)}) == 8
    assert np.array_equal(oriented(piece, 0), piece)
    assert np.array_equal(oriented(piece, 4), piece[:, ::-1])


def test_pictures_depend_on_seed_and_index_alone(pictures):
    for first, again in zip(pictures[2], draw_picture(0, 2, SIDE), strict=True):
        assert np.array_equal(first, again)
    assert not np.array_equal(draw_picture(1, 2, SIDE)[0], pictures[2][0])
    assert len({pixels.tobytes() for pixels, _ in pictures}) == 8


def test_pictures_and_masks_are_what_convert_takes(pictures):
    for pixels, mask in pictures:
        assert pixels.dtype == mask.dtype == np.uint8
        assert pixels.shape == (SIDE, SIDE, 3)
        assert set(np.unique(mask)) <= {0, 255}


def test_every_fourth_picture_is_healthy(pictures):
    shares = np.array([(mask > 0).mean() for _, mask in pictures])
    assert (shares[[3, 7]] == 0).all()
    assert (shares[[0, 1, 2, 4, 5, 6]] > 0.05).all()
    assert shares.max() < 0.95


def glass_of(pixels: np.ndarray) -> np.ndarray | None:
    """Return the colour of clear glass, if a hundredth of a picture has one and the same bright colour."""
    colours, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    bright = counts.argmax()
    return colours[bright] if counts[bright] > 0.01 * SIDE**2 and colours[bright].min() > 220 else None


def test_pictures_of_a_patient_share_one_stain(pictures):
    glass = {index: glass_of(pixels) for index, (pixels, _) in enumerate(pictures)}
    pairs = [
        (glass[a], glass[b], a // 2 == b // 2)
        for a in glass
        for b in range(a)
        if glass[a] is not None and glass[b] is not None
    ]
    assert {same_patient for *_, same_patient in pairs} == {True, False}
    assert all(np.array_equal(first, second) == same_patient for first, second, same_patient in pairs)


def test_there_is_no_cancer_on_glass(pictures):
    for pixels, mask in pictures:
        glass = glass_of(pixels)
        if glass is not None:
            on_glass = (pixels == glass).all(2) & (mask > 0)
            # Open lumina in cancer are as clear as glass.
            assert on_glass.sum() < 0.06 * SIDE**2
            assert not ndimage.binary_erosion(on_glass, iterations=12).any()


def test_cancer_is_darker_in_the_large_and_not_told_by_single_pixels(pictures):
    separations = []
    for pixels, mask in pictures:
        grey, cancer = to_grey(pixels)[..., 0].astype(float), mask > 0
        tissue = ndimage.uniform_filter(grey, 9) < 225
        if not cancer.any():
            continue
        around = ndimage.gaussian_filter(grey, 16)
        assert around[cancer].mean() < around[tissue & ~cancer].mean() - 8
        separations.append(separation(grey[tissue], cancer[tissue]))
    assert 0.55 < np.mean(separations) < 0.75


def separation(grey: np.ndarray, cancer: np.ndarray) -> float:
    """Return how often a pixel of cancer is darker than one that is not (the area under the ROC curve)."""
    order = grey.argsort()
    ranks = np.empty(len(grey))
    ranks[order] = np.arange(1, len(grey) + 1)
    inside = cancer.sum()
    return 1 - (ranks[cancer].sum() - inside * (inside + 1) / 2) / (inside * (len(grey) - inside))


def test_cancer_holds_more_haematoxylin_and_no_gland_is_lost():
    """Half of one tissue is cancer: its nuclei are more and larger, and the labels follow the outlines of glands."""
    halves = np.zeros((SIDE, SIDE), bool)
    halves[:, : SIDE // 2] = True
    drawn = Tissue(np.random.default_rng(0), np.ones((SIDE, SIDE), np.float32), halves)
    dark = drawn.haematoxylin > 0.35
    assert dark[:, : SIDE // 2].mean() > 1.5 * dark[:, SIDE // 2 :].mean()
    assert 0.4 < drawn.labels.mean() < 0.6
    assert not np.array_equal(drawn.labels, halves)


def test_without_tissue_there_is_glass_alone():
    random = np.random.default_rng(0)
    drawn = Tissue(random, np.zeros((64, 64), np.float32), np.ones((64, 64), bool))
    stain = Stain.drawn(random)
    assert not drawn.labels.any()
    assert (drawn.colours(stain) == np.rint(stain.glass)).all()


def test_a_dataset_of_six(dataset):
    assert load_dataset(dataset.folder) == dataset
    assert dataset.labels == {0: "background", 1: "cancer"}
    assert dataset.modality == COLOUR_SLIDE
    assert dataset.tile_px == 128
    patients = [{case.patient for case in dataset.split(name)} for name in ("training", "validation", "test")]
    assert patients == [{"patient_00"}, {"patient_01"}, {"patient_02"}]
    assert {read_image(case.image, 3).shape for case in dataset.training} == {(64, 64, 3)}
    assert {read_image(case.image, 3).shape for case in (*dataset.validation, *dataset.test)} == {(SIDE, SIDE, 3)}


def test_what_is_written_is_what_was_drawn(dataset, pictures):
    case = dataset.validation[0]
    assert case.case == "phantom_02"
    assert np.array_equal(read_image(case.image, 3), pictures[2][0])
    assert np.array_equal(read_label_image(case.label, (0, 1)), pictures[2][1] // 255)


def test_the_command_writes_a_grey_dataset_and_says_so(tmp_path, capsys):
    assert main(["--output", str(tmp_path / "out"), "--images", "7", "--side", "128"]) == 0
    assert "test: 1 cases of 1 patients: phantom_06" in capsys.readouterr().out
    dataset = load_dataset(tmp_path / "out")
    assert dataset.modality == GREY_SLIDE
    assert dataset.tile_px == 128
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_the_slide_has_three_levels_in_tiles(slide_file):
    with tifffile.TiffFile(slide_file) as tiff:
        assert [page.shape for page in tiff.pages] == [(1200, 1200, 3), (300, 300, 3), (75, 75, 3)]
        assert all(page.tile == (512, 512) and page.compression == 8 for page in tiff.pages)
        assert len(tiff.series) == 1
        assert len(tiff.series[0].levels) == 3
        levels = [page.asarray().astype(float) for page in tiff.pages]
    for fine, coarse in pairwise(levels):
        side = len(coarse)
        means = fine.reshape(side, 4, side, 4, 3).mean((1, 3))
        assert np.abs(means - coarse).max() <= 0.5
    assert (levels[0][:8] == levels[0][0, 0]).all()
    assert 0.2 < (levels[0] == levels[0][0, 0]).all(2).mean() < 0.9


def test_the_slide_is_read_as_one(slide_file):
    with open_slide(slide_file) as slide:
        assert (slide.height, slide.width) == (1200, 1200)
        assert slide.pixel_um == pytest.approx(0.5)
        assert slide.notes == []
        drawn = DrawnSlide(1200, seed=0)
        tiles = list(drawn.tiles(0))
        assert len(tiles) == 9
        assert np.array_equal(slide.read(512, 0, 512, 512), tiles[3])
        assert np.array_equal(slide.read(1024, 1024, 176, 176), tiles[8][:176, :176])
        assert slide.unreadable == []


def test_seeds_of_slides_differ():
    assert not np.array_equal(next(DrawnSlide(512, seed=1).tiles(0)), next(DrawnSlide(512, seed=0).tiles(0)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "5"], "--images 5 is too small; give 6 or more"),
        (["--side", "100"], "--side 100 is too small; give 128 or more"),
        (["--seed", "-1"], "--seed -1 is too small; give 0 or more"),
        (["--side", "128", "--crop", "256"], "--crop 256 is larger than the pictures"),
        (["--side", "128", "--crop", "64", "--size", "128"], "--size 128 is larger than --crop 64"),
        (["--side", "128", "--size", "64"], "give --crop as well"),
    ],
)
def test_arguments_that_make_no_dataset(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        main(["--output", str(tmp_path / "out"), *arguments])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("a.tif", ["--side", "256"], "--side 256 is too small; give 512 or more"),
        ("a.tif", ["--crop", "256", "--color"], "--color, --crop is for datasets; leave it out with --whole-slide"),
        ("a.svs", [], "is to be a TIFF; name it .tif"),
        ("there.tif", [], "exists already"),
        ("there.tif/a.tif", [], "cannot write"),
    ],
)
def test_arguments_that_make_no_slide(tmp_path, name, arguments, message):
    (tmp_path / "there.tif").write_text("")
    with pytest.raises(InputError, match=message):
        main(["--whole-slide", str(tmp_path / name), *arguments])
    assert [path.name for path in tmp_path.iterdir()] == ["there.tif"]


@pytest.mark.parametrize(
    "arguments", [[], ["--output", "a", "--whole-slide", "b.tif"], ["--output", "a", "--imgs", "9"]]
)
def test_commands_that_say_too_little_or_too_much(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_a_slide_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(DrawnSlide, "tiles", lambda self, level: iter([np.zeros((512, 512, 3), np.uint8)]))
    with pytest.raises((RuntimeError, StopIteration, ValueError)):
        write_whole_slide(tmp_path / "a.tif", 1200)
    assert list(tmp_path.iterdir()) == []


def test_exit_codes(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: main(["--output", str(tmp_path / "o"), "--images", "1"]))
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: --images 1 is too small; give 6 or more\n"
