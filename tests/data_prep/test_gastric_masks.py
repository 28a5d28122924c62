# SPDX-License-Identifier: Apache-2.0
"""What the values and colours of a mask mean, and which masks may mean anything."""

import numpy as np
import pytest
from PIL import Image

from data_prep.gastric_masks import MaskReader, parse_colours
from pipeline.errors import InputError
from tests.data_prep.gastric_pictures import mask, save

CANCER = {0: "background", 1: "cancer"}
THREE = {0: "background", 1: "gland", 2: "stroma"}
RED, GREEN, BLACK, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 0), (255, 255, 255)


def colours(*rows: list[tuple[int, int, int]]) -> np.ndarray:
    return np.array(rows, np.uint8)


GREY_MASKS = {
    "0 and 1": (CANCER, [[0, 1]], [[0, 1]]),
    "0 and 255": (CANCER, [[0, 255]], [[0, 1]]),
    "only 0": (CANCER, [[0, 0]], [[0, 0]]),
    "only 1": (CANCER, [[1, 1]], [[1, 1]]),
    "only 255": (CANCER, [[255, 255]], [[1, 1]]),
    "class numbers": (THREE, [[0, 1, 2]], [[0, 1, 2]]),
}


@pytest.mark.parametrize("kind", GREY_MASKS)
@pytest.mark.parametrize("as_colour", [False, True], ids=["grey", "saved as RGB"])
def test_values_of_grey_masks(tmp_path, kind, as_colour):
    labels, drawn, meant = GREY_MASKS[kind]
    pixels = np.array(drawn, np.uint8)
    path = save(tmp_path / "mask.png", np.stack([pixels] * 3, -1) if as_colour else pixels)
    read = MaskReader(labels).read(path)
    assert read.dtype == np.uint8
    assert read.tolist() == meant


def test_a_mask_of_one_bit(tmp_path):
    path = save(tmp_path / "mask.tif", np.array([[True, False]]))
    assert MaskReader(CANCER).read(path).tolist() == [[1, 0]]


def test_two_colours_need_no_names_where_one_is_black(tmp_path):
    reader = MaskReader(CANCER)
    red = save(tmp_path / "red.png", colours([RED, BLACK, RED]))
    assert reader.read(red).tolist() == [[1, 0, 1]]
    green = save(tmp_path / "green.png", colours([GREEN, BLACK, BLACK]))
    with pytest.raises(InputError, match="drawn in #00ff00, masks before it in #ff0000"):
        reader.read(green)


def test_named_colours(tmp_path):
    path = save(tmp_path / "mask.png", colours([RED, BLACK, GREEN]))
    given = parse_colours("stroma=#ff0000, gland = #00FF00")
    assert MaskReader(THREE, given).read(path).tolist() == [[2, 0, 1]]


def test_a_background_that_is_named_is_not_black(tmp_path):
    reader = MaskReader(CANCER, {"cancer": "#000000", "background": "#ffffff"})
    assert reader.read(save(tmp_path / "grey.png", np.array([[0, 255]], np.uint8))).tolist() == [[1, 0]]
    with pytest.raises(InputError, match=r"holds #ff0000 \(1 pixel\), which name no class"):
        reader.read(save(tmp_path / "red.png", colours([RED, WHITE])))


def test_a_palette_stands_for_its_colours(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 1]], np.uint8), mode="P")
    image.putpalette([0, 0, 0, 128, 0, 0])
    image.save(tmp_path / "mask.png")
    assert MaskReader(CANCER).read(tmp_path / "mask.png").tolist() == [[0, 1, 1]]


def test_a_threshold(tmp_path):
    path = save(tmp_path / "mask.png", np.array([[0, 127, 128, 255]], np.uint8))
    assert MaskReader(CANCER, threshold=127).read(path).tolist() == [[0, 0, 1, 1]]


BAD_MASKS = {
    "another value": (
        CANCER,
        {},
        [[0, 1, 255, 255]],
        r"holds 255 \(2 pixels\), which name no class; known are 0 and 1",
    ),
    "grey levels": (CANCER, {}, [[0, 3, 254, 255]], r"holds 3 \(1 pixel\), 254 \(1 pixel\), 255 \(1 pixel\), which"),
    "255 of three": (THREE, {}, [[0, 255]], r"holds 255 \(1 pixel\), which name no class; known are 0\.\.2"),
    "many values": (CANCER, {}, [list(range(20))], r"7 \(1 pixel\), 12 more, which name no class"),
    "three colours": (CANCER, {}, [[RED, GREEN, GREEN, BLACK]], r"holds #00ff00 \(2 pixels\), #000000 \(1 pixel\), #f"),
    "no black": (CANCER, {}, [[RED, WHITE]], r"mean: --mask-colors \"cancer=#rrggbb\""),
    "one colour": (CANCER, {}, [[RED, RED]], r"holds #ff0000 \(2 pixels\); say what"),
    "colours of three": (THREE, {}, [[RED, BLACK]], "say what they mean"),
    "unnamed colour": (
        CANCER,
        {"colours": {"cancer": "#ff0000"}},
        [[RED, GREEN, BLACK]],
        r"holds #00ff00 \(1 pixel\), which name no class; known are #000000, #ff0000",
    ),
    "colour and threshold": (CANCER, {"threshold": 127}, [[RED, BLACK]], "in colour, and --mask-threshold is for grey"),
    "0 and 1 and threshold": (CANCER, {"threshold": 127}, [[0, 1]], "holds 0 and 1, all below --mask-threshold 127"),
}


@pytest.mark.parametrize("kind", BAD_MASKS)
def test_a_mask_that_may_mean_anything_is_refused(tmp_path, kind):
    labels, options, drawn, message = BAD_MASKS[kind]
    path = save(tmp_path / "mask.png", np.array(drawn, np.uint8))
    with pytest.raises(InputError, match=message):
        MaskReader(labels, **options).read(path)


def test_jpeg_masks_are_never_guessed(tmp_path):
    path = save(tmp_path / "mask.jpg", mask(0, side=32), quality=60)
    assert len(np.unique(np.asarray(Image.open(path)))) > 2
    with pytest.raises(InputError, match="JPEG masks blur values; save as PNG or give --mask-threshold 127"):
        MaskReader(CANCER).read(path)
    with pytest.raises(InputError, match=r"JPEG masks blur values; save as PNG$"):
        MaskReader(THREE).read(path)
    read = MaskReader(CANCER, threshold=127).read(path)
    assert np.array_equal(read, np.asarray(Image.open(path)) > 127)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (CANCER, {"colours": {"cancr": "#ff0000"}}, "no class 'cancr'; did you mean 'cancer'"),
        (CANCER, {"colours": {"cancer": "red"}}, "'red' of cancer is no colour such as #ff0000"),
        (CANCER, {"colours": {"cancer": "#000000"}}, "#000000 stands for two classes; background is black unless"),
        (THREE, {"colours": {"gland": "#ff0000"}}, "no colour for stroma"),
        (THREE, {"threshold": 9}, "tells one class from the background, not 2"),
        (CANCER, {"threshold": 255}, r"255 is not in 0\.\.254"),
        (CANCER, {"threshold": 9, "colours": {"cancer": "#ff0000"}}, "not both"),
    ],
)
def test_options_of_masks_that_do_not_fit(labels, options, message):
    with pytest.raises(InputError, match=message):
        MaskReader(labels, **options)


@pytest.mark.parametrize("text", ["cancer", "=#ff0000", "cancer=#ff0000,cancer=#00ff00", ""])
def test_colours_that_cannot_be_parsed(text):
    with pytest.raises(InputError, match="is not a name of its own with a colour"):
        parse_colours(text)
