# SPDX-License-Identifier: Apache-2.0
"""Small pictures and masks for the tests of data_prep.gastric, and a run of it."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.gastric import main

KINDS = ("images", "masks")


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def picture(seed: int, side: int = 16, channels: int = 3) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, channels)).astype(np.uint8)
    return pixels[..., 0] if channels == 1 else pixels


def mask(seed: int, side: int = 16, top: int = 255) -> np.ndarray:
    return (np.random.default_rng(100 + seed).random((side, side)) < 0.5).astype(np.uint8) * np.uint8(top)


def four_pictures(folder: Path) -> Path:
    for index, name in enumerate(("a", "b", "c", "d")):
        save(folder / "images" / f"{name}.png", picture(index))
        save(folder / "masks" / f"{name}.png", mask(index))
    return folder


def run(source: Path, *more: str) -> int:
    folders = ["--images", str(source / "images"), "--masks", str(source / "masks"), "--output", str(source / "out")]
    requests = [] if {"--split", "--test", "--training"} & set(more) else ["--validation", "c", "--test", "d"]
    return main([*folders, *requests, *more])


def failures(source: Path) -> list[tuple[str, str]]:
    with open(source / "out/failures.csv", newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["file", "error"]
    return [tuple(row) for row in rows]


def problems(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("problem: ")]


def nothing_is_left(source: Path) -> bool:
    return not (source / "out").exists() and not any(path.name.startswith(".") for path in source.iterdir())
