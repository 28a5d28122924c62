# SPDX-License-Identifier: Apache-2.0
"""A good dataset of three tiny cases, the ways to spoil it, and what training and the check make of it."""

from __future__ import annotations

import gzip
import json
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd
from PIL import Image

from data_prep.check import check_dataset
from data_prep.findings import Finding
from pipeline.data import (
    CT_WINDOW,
    SPLITS,
    PictureReader,
    ScaleIntensityByRuled,
    SliceDataset,
    VolumeReader,
    load_dataset,
)

AFFINE = np.diag([-0.8, -0.8, 2.0, 1.0])
ROW = [1.0, 0.0, 0.0, 0.0]
CASES = dict(zip("abc", SPLITS, strict=True))
RANDOM = np.random.default_rng(0)


def nifti(array: np.ndarray, affine: np.ndarray = AFFINE, **fields: object) -> bytes:
    """Return a NIfTI file whose header says what `fields` say, past NiBabel's own repairs."""
    content = nib.Nifti1Image(array, affine, dtype=array.dtype).to_bytes()
    header = nib.Nifti1Header(content[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + content[348:]


def drawn(value: float | None = None, dtype: str = "uint8") -> np.ndarray:
    """Return a label map with both organs, and `value` in one voxel."""
    array = np.zeros((6, 6, 6), dtype)
    array[1:3, 1:3, 1:3], array[4, 4, 4] = 1, 2
    if value is not None:
        array[5, 5, 5] = value
    return array


def scanned(seed: int = 7, value: float | None = None, dtype: str = "int16") -> np.ndarray:
    array = np.random.default_rng(seed).integers(-1000, 1000, (6, 6, 6)).astype(dtype)
    if value is not None:
        array[1, 2, 3] = value
    return array


PLAIN = nifti(scanned())
PACKED = gzip.compress(PLAIN)
STORED = gzip.compress(PLAIN, compresslevel=0)
PIXELS = RANDOM.integers(0, 256, (16, 16), dtype=np.uint8)


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :]


@dataclass
class Toy:
    """A good dataset of three cases `a`, `b` and `c`, one a split, which a row spoils before it is written."""

    folder: Path
    kind: str = "scans"
    declared: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        suffix = ".nii.gz" if self.kind == "scans" else ".png"
        modality = {"0": "CT"} if self.kind == "scans" else {"0": "grey slide"}
        low, high = (CT_WINDOW.low, CT_WINDOW.high) if self.kind == "scans" else (0, 255)
        self.declared = {
            "name": "toy",
            "modality": modality,
            "labels": {"0": "background", "1": "liver", "2": "spleen"},
            "intensity": {"rule": "window", "low": low, "high": high},
            **({"tile_px": 16} if self.kind == "slides" else {}),
        }
        for seed, (case, split) in enumerate(CASES.items()):
            image, label = f"images/{case}{suffix}", f"labels/{case}{suffix}"
            self.declared[split] = [{"case": case, "patient": f"p{case}", "image": image, "label": label}]
            if self.kind == "scans":
                moved = drawn()
                moved[0, 0, seed] = 1
                self.put(image, gzip.compress(nifti(scanned(seed))))
                self.put(label, gzip.compress(nifti(moved)))
            else:
                self.picture(image, np.roll(PIXELS, seed + 1))
                self.picture(label, np.arange(256, dtype=np.uint8).reshape(16, 16) % 3)

    def put(self, name: str, content: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)

    def picture(self, name: str, pixels: np.ndarray | Image.Image, **options: object) -> None:
        (self.folder / name).parent.mkdir(exist_ok=True)
        image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
        image.save(self.folder / name, **options)

    def written(self) -> Path:
        (self.folder / "dataset.json").write_text(json.dumps(self.declared), encoding="utf-8")
        return self.folder


Spoil = Callable[[Toy], object]


def image(content: bytes) -> Spoil:
    """Return what replaces the image of the training case; its name tells the compression as before."""
    return lambda toy: toy.put("images/a.nii.gz", content)


def header(**fields: object) -> Spoil:
    return image(gzip.compress(nifti(scanned(), **fields)))


def label(array: np.ndarray, affine: np.ndarray = AFFINE) -> Spoil:
    return lambda toy: toy.put("labels/a.nii.gz", gzip.compress(nifti(array, affine)))


def renamed(content: bytes, suffix: str) -> Spoil:
    """Return what replaces the image of the training case by a file of another format."""

    def spoil(toy: Toy) -> None:
        (toy.folder / "images/a.nii.gz").unlink()
        toy.put(f"images/a{suffix}", content)
        toy.declared["training"][0]["image"] = f"images/a{suffix}"

    return spoil


def entry(split: str, **values: object) -> Spoil:
    return lambda toy: toy.declared[split][0].update(values)


def declare(**values: object) -> Spoil:
    return lambda toy: toy.declared.update(values)


def copy(source: str, target: str) -> Spoil:
    return lambda toy: toy.put(target, (toy.folder / source).read_bytes())


def compressed_anew(toy: Toy) -> None:
    """Save the image of the training case as that of the test case, compressed in another way."""
    toy.put("images/c.nii.gz", gzip.compress(gzip.decompress((toy.folder / "images/a.nii.gz").read_bytes()), 1))


def saved_as_float(toy: Toy) -> None:
    """Save the image of the training case as that of the test case, with other numbers and in another order."""
    flip = np.diag([-1.0, 1.0, 1.0, 1.0])
    flip[0, 3] = 5
    toy.put("images/c.nii.gz", gzip.compress(nifti(scanned(0).astype("float32")[::-1], AFFINE @ flip)))


def folder_in_place_of_a_file(toy: Toy) -> None:
    (toy.folder / "images/a.nii.gz").unlink()
    (toy.folder / "images/a.nii.gz").mkdir()


def link_to_itself(toy: Toy) -> None:
    (toy.folder / "images/a.nii.gz").unlink()
    (toy.folder / "images/a.nii.gz").symlink_to(toy.folder / "images/a.nii.gz")


def spelled_with_blanks(toy: Toy) -> None:
    toy.declared["test"][0]["image"] = "images/Bauch – größer 1.nii.gz"
    (toy.folder / "images/c.nii.gz").rename(toy.folder / "images/Bauch – größer 1.nii.gz")


def saved_by_itk(suffix: str, old: bytes = b"", new: bytes = b"", packed: bool = False) -> Spoil:
    """Return what saves the image of the training case in another format, with `old` in the file replaced by `new`."""

    def spoil(toy: Toy) -> None:
        made = sitk.GetImageFromArray(scanned().T.copy())
        made.SetSpacing((0.8, 0.8, 2.0))
        path = toy.folder / f"images/a{suffix}"
        sitk.WriteImage(made, str(path), packed)
        content = path.read_bytes()
        assert old in content
        renamed(content.replace(old, new), suffix)(toy)

    return spoil


def series(*, missing: int | None = None, second: bool = False, start: bytes = b"") -> Spoil:
    """Return what replaces the image of the training case by a DICOM series of six slices."""

    def spoil(toy: Toy) -> None:
        (toy.folder / "images/a.nii.gz").unlink()
        folder = toy.folder / "images/series"
        folder.mkdir()
        toy.declared["training"][0]["image"] = "images/series"
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        for uid in ("1.2.3", "1.2.4") if second else ("1.2.3",):
            for index in range(6):
                if index == missing:
                    continue
                made = sitk.GetImageFromArray(scanned()[..., index].T.copy())
                made.SetSpacing((0.8, 0.8))
                tags = {"0008|0018": f"{uid}.{index}", "0020|000e": uid, "0020|000d": "1.2", "0008|0060": "CT"}
                tags |= {"0020|0032": f"0\\0\\{2 * index}", "0020|0037": "1\\0\\0\\0\\1\\0"}
                for tag, value in tags.items():
                    made.SetMetaData(tag, value)
                path = folder / f"{uid}.{index}.dcm"
                writer.SetFileName(str(path))
                writer.Execute(made)
                path.write_bytes(start + path.read_bytes()[len(start) :])

    return spoil


def picture(pixels: np.ndarray | Image.Image, name: str = "images/a.png", **options: object) -> Spoil:
    return lambda toy: toy.picture(name, pixels, **options)


def bytes_of(change: Callable[[bytes], bytes], name: str = "images/a.png") -> Spoil:
    return lambda toy: toy.put(name, change((toy.folder / name).read_bytes()))


def masked_as(suffix: str) -> Spoil:
    def spoil(toy: Toy) -> None:
        toy.picture(f"labels/a{suffix}", PIXELS % 3)
        toy.declared["training"][0]["label"] = f"labels/a{suffix}"

    return spoil


def train_on(folder: Path) -> None:
    """Load the dataset and prepare the slices of every split, as a training run does."""
    dataset = load_dataset(folder)
    keys = ("image", "label")
    if dataset.kind == "scans":
        steps = [LoadImaged(keys, reader=VolumeReader, dtype=None), EnsureChannelFirstd(keys, channel_dim="no_channel")]
        steps.append(Orientationd(keys, axcodes="RAS", labels=None))
    else:
        readers = (PictureReader(channels=dataset.in_channels), PictureReader(labels=dataset.labels))
        steps = [LoadImaged(key, reader=reader, dtype=None) for key, reader in zip(keys, readers, strict=True)]
        steps += [EnsureChannelFirstd("image"), EnsureChannelFirstd("label", channel_dim="no_channel")]
    preprocessing = Compose([*steps, ScaleIntensityByRuled("image", **dataset.intensity.to_dict())])
    for split in SPLITS:
        SliceDataset(dataset.datalist(split), preprocessing, 8, dataset.out_channels)


def rows_of(toy: Toy, spoil: Spoil) -> list[Finding]:
    spoil(toy)
    files = [path for path in toy.folder.rglob("*") if path.is_file()]
    assert all(path.stat().st_size < 10_000 for path in files)
    return check_dataset(toy.written()).rows


def tells(rows: list[Finding], severity: str, expected: tuple[str, str, str]) -> None:
    """Assert that exactly one row is about the file, and says fact and remedy."""
    file, fact, remedy = expected
    found = [row for row in rows if row.file == file and re.search(fact, row.fact) and re.search(remedy, row.remedy)]
    assert [row.severity for row in found] == [severity], rows
    assert "\n" not in found[0].fact + found[0].remedy
    if severity == "note":
        assert not [row for row in rows if row.severity == "error"]


def png_of(width: int, height: int) -> bytes:
    """Return a PNG whose header claims a size, with a few bytes of pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
