# SPDX-License-Identifier: Apache-2.0
"""Pictures: pixels by hand, axes, parity with SimpleITK and tifffile, MONAI's transforms, writing."""

import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import tifffile
import torch
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged
from PIL import Image

from pipeline.data import (
    PictureReader,
    image_size,
    is_image,
    read_image,
    read_label_image,
    read_mask_colours,
    to_grey,
    write_png,
)
from pipeline.errors import InputError

# Two rows of three: nothing about it is symmetric.
PIXELS = np.array(
    [[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[255, 255, 255], [0, 0, 0], [10, 100, 200]]], dtype=np.uint8
)
# 0.299 R + 0.587 G + 0.114 B: 76.2, 149.7, 29.1; 255, 0, 84.5 (2.99 + 58.7 + 22.8 = 84.49).
GREY_PIXELS = np.array([[76, 150, 29], [255, 0, 84]], dtype=np.uint8)


def saved(path: Path, pixels: np.ndarray, **options: object) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def noise(channels: int = 3, height: int = 24, width: int = 40) -> np.ndarray:
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def smooth() -> np.ndarray:
    rows, columns = np.mgrid[:48, :64]
    return np.stack([4 * columns, 5 * rows, 255 - 2 * rows - 2 * columns], axis=2).clip(0, 255).astype(np.uint8)


def test_rows_columns_and_colours_by_hand(tmp_path):
    pixels = read_image(saved(tmp_path / "a.png", PIXELS), 3)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, PIXELS)
    assert image_size(tmp_path / "a.png") == (2, 3)


def test_grey_by_hand(tmp_path):
    pixels = read_image(saved(tmp_path / "a.png", PIXELS), 1)
    assert pixels.shape == (2, 3, 1)
    assert np.array_equal(pixels[..., 0], GREY_PIXELS)
    assert np.array_equal(to_grey(PIXELS), pixels)


def test_grey_is_the_formula_rounded():
    pixels = noise(height=64, width=64)
    assert np.abs(to_grey(pixels)[..., 0] - pixels @ [0.299, 0.587, 0.114]).max() <= 0.501


def test_a_grey_file_stays_as_it_is(tmp_path):
    pixels = read_image(saved(tmp_path / "a.png", GREY_PIXELS), 1)
    assert np.array_equal(pixels, GREY_PIXELS[..., None])


def test_pixels_can_be_written_to_as_torch_wants(tmp_path):
    for pixels in (read_image(saved(tmp_path / "a.png", PIXELS), 3), read_image(tmp_path / "a.png", 1)):
        torch.from_numpy(pixels)[0, 0] = 7
        assert (pixels[0, 0] == 7).all()


@pytest.mark.parametrize("mode", ["L", "1"])
def test_labels_are_the_values(tmp_path, mode):
    labels = np.array([[0, 1, 0], [1, 1, 0]], dtype=np.uint8)
    Image.fromarray(labels * 255 if mode == "1" else labels).convert(mode).save(tmp_path / "a.png")
    read = read_label_image(tmp_path / "a.png", known=(0, 1))
    assert read.dtype == np.uint8
    assert np.array_equal(read, labels)


def test_masks_by_hand(tmp_path):
    drawn = np.array([[0, 255, 0], [255, 255, 0]], dtype=np.uint8)
    for mode in ("L", "1"):
        Image.fromarray(drawn).convert(mode).save(tmp_path / f"{mode}.png")
        assert np.array_equal(read_mask_colours(tmp_path / f"{mode}.png"), drawn)
    assert np.array_equal(read_mask_colours(saved(tmp_path / "colour.png", PIXELS)), PIXELS)
    opaque = np.dstack([PIXELS, np.full((2, 3), 255, np.uint8)])
    assert np.array_equal(read_mask_colours(saved(tmp_path / "alpha.png", opaque)), PIXELS)


def test_a_palette_stands_for_its_colours(tmp_path):
    palette = Image.fromarray(np.array([[0, 1], [1, 2]], dtype=np.uint8), "P")
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    palette.save(tmp_path / "a.png")
    expected = [[[0, 0, 0], [255, 0, 0]], [[255, 0, 0], [0, 0, 255]]]
    assert read_mask_colours(tmp_path / "a.png").tolist() == expected


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_equal_those_of_simpleitk(tmp_path, suffix, channels):
    # Chroma of full resolution: how it is enlarged is not part of the JPEG standard.
    options = {"quality": 95, "subsampling": 0} if suffix == ".jpg" else {}
    pixels = smooth() if channels == 3 else smooth()[..., 0]
    path = saved(tmp_path / f"a{suffix}", pixels, **options)
    expected = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))).reshape(48, 64, channels)
    read = read_image(path, channels)
    assert np.abs(read.astype(int) - expected).max() <= (2 if suffix == ".jpg" else 0)
    assert np.abs(read.astype(int) - pixels.reshape(48, 64, channels)).max() <= (9 if suffix == ".jpg" else 0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"planarconfig": "separate"},
        {"compression": "zlib"},
        {"compression": "zlib", "predictor": True},
        {"compression": "zlib", "tile": (16, 16)},
        {"byteorder": ">", "rowsperstrip": 5},
        {"bigtiff": True},
    ],
    ids=lambda options: " ".join(options) or "plain",
)
def test_every_layout_of_tiff(tmp_path, options):
    pixels = noise()
    file_options = {key: options[key] for key in ("byteorder", "bigtiff") if key in options}
    page_options = {key: value for key, value in options.items() if key not in file_options}
    data = np.moveaxis(pixels, 2, 0) if "planarconfig" in options else pixels
    with tifffile.TiffWriter(tmp_path / "a.tif", **file_options) as writer:
        writer.write(data, photometric="rgb", **page_options)
    assert np.array_equal(read_image(tmp_path / "a.tif", 3), pixels)


def test_white_may_be_0_in_a_picture(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", 255 - GREY_PIXELS, photometric="miniswhite")
    assert np.array_equal(read_image(tmp_path / "a.tif", 1)[..., 0], GREY_PIXELS)


def test_the_content_counts_and_not_the_name(tmp_path):
    saved(tmp_path / "a.png", PIXELS).rename(tmp_path / "a.jpg")
    assert np.array_equal(read_image(tmp_path / "a.jpg", 3), PIXELS)


def test_what_a_picture_is_by_name():
    assert all(is_image(name) for name in ("a.png", "b.JPG", "c.jpeg", "d.TIF", Path("e/f.tiff")))
    assert not any(is_image(name) for name in ("a.nii.gz", "png", "a.svs", "a.png.txt"))


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3)])
def test_what_is_written_is_read(tmp_path, shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    write_png(tmp_path / "new" / "a.png", pixels)
    assert np.array_equal(
        read_image(tmp_path / "new" / "a.png", 3 if shape[-1] == 3 else 1).squeeze(), pixels.squeeze()
    )
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]


def test_writing_what_is_no_continuous_memory(tmp_path):
    write_png(tmp_path / "a.png", PIXELS[:, ::-1])
    assert np.array_equal(read_image(tmp_path / "a.png", 3), PIXELS[:, ::-1])


def load(image: str, label: str, channels: int = 3) -> Compose:
    return Compose(
        [
            LoadImaged(image, reader=PictureReader(channels=channels)),
            LoadImaged(label, reader=PictureReader(labels=(0, 1))),
            EnsureChannelFirstd((image, label)),
        ]
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_monai_gets_channels_first_and_rows_before_columns(tmp_path, channels):
    labels = np.array([[0, 1, 0], [1, 1, 0]], dtype=np.uint8)
    write_png(tmp_path / "label.png", labels)
    case = {"image": saved(tmp_path / "a.png", PIXELS), "label": str(tmp_path / "label.png")}
    loaded = load("image", "label", channels)(case)
    assert tuple(loaded["image"].shape) == (channels, 2, 3)
    assert loaded["image"].tolist() == np.moveaxis(read_image(tmp_path / "a.png", channels), 2, 0).tolist()
    assert tuple(loaded["label"].shape) == (1, 2, 3)
    assert loaded["label"][0].tolist() == labels.tolist()
    assert loaded["image"].meta["filename_or_obj"] == str(tmp_path / "a.png")


def test_monai_passes_the_reason_on(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"a\.png is empty"):
        LoadImaged("image", reader=PictureReader(channels=3))({"image": tmp_path / "a.png"})
    write_png(tmp_path / "label.png", np.full((2, 3), 7, np.uint8))
    with pytest.raises(InputError, match=r"holds the values 7 \(6 pixels\), which name no class; known are \[0, 1\]"):
        LoadImaged("label", reader=PictureReader(labels=(0, 1)))({"label": tmp_path / "label.png"})


def test_a_reader_is_of_images_or_of_labels():
    for arguments in ({}, {"channels": 3, "labels": (0, 1)}):
        with pytest.raises(ValueError, match="give channels for images, or labels"):
            PictureReader(**arguments)
    with pytest.raises(InputError, match="2 files for one image"):
        PictureReader(channels=3).get_data(("a.png", "b.png"))
    assert PictureReader(channels=1).verify_suffix(["a.png", "b.tif"])
    assert not PictureReader(channels=1).verify_suffix(["a.png", "b.nii"])


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="this system does not list open files")
def test_no_file_stays_open(tmp_path):
    """A picture that was refused after it had been opened stayed open as long as the error was kept."""
    saved(tmp_path / "alpha.png", np.dstack([PIXELS, PIXELS[..., 0]]))
    saved(tmp_path / "deep.png", GREY_PIXELS.astype(np.uint16))
    before, errors = len(os.listdir("/dev/fd")), []
    for name in ("alpha.png", "deep.png"):
        with pytest.raises(InputError) as caught:
            read_image(tmp_path / name, 3)
        errors.append(caught)
    assert image_size(saved(tmp_path / "a.png", PIXELS)) == (2, 3)
    assert len(os.listdir("/dev/fd")) == before
