# SPDX-License-Identifier: Apache-2.0
r"""Pictures of tissue and their masks, whole or cut into tiles, become a dataset folder of slides.

python -m data_prep.gastric --images IMAGES --masks MASKS --output DATASET --crop 1024 --size 256 --test 0.2
python -m data_prep.gastric --source ebhi_seg --output DATASET --classes tumour

The first is the paper's preparation: training pictures are cut into crops of 1024 pixels, shrunk to 256; the others
stay whole. A bad file is left out and told, the rest goes on: thousands of tiles must not wait for one.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from tqdm import tqdm

from data_prep.building import LINKS, copy_or_link, finish, print_summary, relocated, warn
from data_prep.folder import check_folders_apart, read_labels
from data_prep.gastric_files import Failure, Found, Picture, assigned, find_pairs, read_index, roster_of
from data_prep.gastric_masks import MaskReader, parse_colours
from data_prep.splits import SplitRequests, add_split_options, split_requests_of
from pipeline.command_line import CommandLine
from pipeline.data import (
    COLOUR_SLIDE,
    GREY_SLIDE,
    SLIDE_INTENSITY,
    SPLITS,
    Case,
    Dataset,
    image_size,
    parse_labels,
    read_image,
    write_png,
)
from pipeline.data.slides.pictures import COLOUR, GREY
from pipeline.errors import InputError, run_command
from pipeline.files.atomic import new_folder
from pipeline.files.spreadsheets import cells_of

if TYPE_CHECKING:
    from data_prep.tiles import Tile

CLASSES: Mapping[int, str] = {1: "cancer"}
FAILURES_FILE = "failures.csv"
_TILE_NAME = re.compile(r"(.+)_r\d{2,}_c\d{2,}")

Read = TypeVar("Read")


@dataclass(frozen=True)
class Outcome:
    """The dataset as written, and the files that were left out of it."""

    dataset: Dataset
    failures: list[Failure]


@dataclass(frozen=True)
class Tiling:
    """How training pictures become tiles: `side` is what a tile spans, `size` what it is stored in, both in pixels.

    `cut` is False where the pictures are tiles already; `side` and `size` are then what most of them measure.
    """

    side: int
    size: int
    cut: bool

    def misfit(self, height: int, width: int, trains: bool) -> str | None:
        """Return what is wrong with the size of a picture, in pixels, or None."""
        found = f"is {width} x {height} pixels (width x height)"
        if trains and not self.cut and height != width:
            return f"{found}, no square, and training tiles must be: cut it, or give --crop"
        if trains and not self.cut and height != self.side:
            return f"{found}, but most training tiles are {self.side} x {self.side}; bring all to one size"
        if min(height, width) < self.side:
            return f"{found}, smaller than a tile of {self.side} x {self.side}; leave it out, or choose smaller tiles"
        return None


class SlideBuilder:
    """Checks pictures one after another, one in memory at a time, and writes the good ones into a dataset folder."""

    def __init__(self, folder: Path, tiling: Tiling, masks: MaskReader, channels: int, link: str | None) -> None:
        self.failures: list[Failure] = []
        self.cases: dict[str, list[Case]] = {split: [] for split in SPLITS}
        self.seen: set[int] = set()
        self.repeated = 0
        self._folder, self._tiling, self._masks = folder, tiling, masks
        self._channels, self._link = channels, link
        self._pictures: dict[bytes, Path] = {}
        self._tiles: set[bytes] = set()

    def add(self, picture: Picture) -> None:
        """Write a picture, or its tiles, if it and its mask are good; else note what is wrong with each."""
        read = self._checked(picture)
        if read is None:
            return
        image, labels = read
        if picture.split == "training":
            self.seen |= set(np.unique(labels).tolist())
        if picture.split != "training" or not self._tiling.cut:
            self._write_whole(picture, labels)
            return
        from data_prep.tiles import cut_tiles  # here, since it brings torch, for which --help must not wait

        for tile in cut_tiles(image, labels, self._tiling.side, self._tiling.size):
            self._write_tile(f"{picture.case}_r{tile.row:02d}_c{tile.column:02d}", picture.patient, tile)

    def dataset(self, name: str, labels: dict[int, str]) -> Dataset:
        """Return what was written so far as a dataset."""
        modality = COLOUR_SLIDE if self._channels == COLOUR else GREY_SLIDE
        splits = {split: tuple(cases) for split, cases in self.cases.items()}
        slides = {"spacing_known": False, "tile_px": self._tiling.side}
        return Dataset(name, self._folder, modality, labels, SLIDE_INTENSITY, **splits, **slides)

    def _checked(self, picture: Picture) -> tuple[np.ndarray, np.ndarray] | None:
        image = self._attempt(picture.image, lambda path: read_image(path, self._channels))
        labels = self._attempt(picture.mask, self._masks.read)
        if image is None:
            return None
        height, width = image.shape[:2]
        wrong = self._tiling.misfit(height, width, picture.split == "training")
        if wrong is not None:
            self._fail(picture.image, wrong)
        if labels is not None and labels.shape != (height, width):
            sizes = f"is {labels.shape[1]} x {labels.shape[0]} pixels, but {picture.image.name} {width} x {height}"
            self._fail(picture.mask, f"{sizes}; draw it on that picture")
        elif labels is not None and wrong is None and self._is_new(picture.image, image):
            return image, labels
        return None

    def _attempt(self, path: Path, read: Callable[[Path], Read]) -> Read | None:
        try:
            return read(path)
        except InputError as error:
            self._fail(path, str(error))
            return None

    def _fail(self, path: Path, error: str) -> None:
        self.failures.append(Failure.of(path, error))

    def _is_new(self, path: Path, image: np.ndarray) -> bool:
        """Tell whether no picture before had the same pixels: a copy elsewhere would be trained on and scored."""
        other = self._pictures.setdefault(_digest(image), path)
        if other != path:
            self._fail(path, f"holds the same picture as {other}; keep one of them (only the latter is used)")
        return other == path

    def _write_whole(self, picture: Picture, labels: np.ndarray) -> None:
        image_path, label_path = self._paths(picture.case, picture.image.suffix)
        copy_or_link(picture.image, image_path, self._link)
        write_png(label_path, labels)
        self.cases[picture.split].append(Case(picture.case, picture.patient, image_path, label_path))

    def _write_tile(self, name: str, patient: str, tile: Tile) -> None:
        # Empty glass looks the same in many crops, and a dataset holds no picture twice.
        digest = _digest(tile.image)
        if digest in self._tiles:
            self.repeated += 1
            return
        self._tiles.add(digest)
        image_path, label_path = self._paths(name, ".png")
        write_png(image_path, tile.image)
        write_png(label_path, tile.labels)
        self.cases["training"].append(Case(name, patient, image_path, label_path))

    def _paths(self, name: str, suffix: str) -> tuple[Path, Path]:
        return self._folder / "images" / f"{name}{suffix}", self._folder / "labels" / f"{name}.png"


def _digest(pixels: np.ndarray) -> bytes:
    content = hashlib.blake2b(np.ascontiguousarray(pixels), digest_size=16)
    content.update(str(pixels.shape).encode())
    return content.digest()


def convert(
    images: str | Path,
    masks: str | Path,
    output: str | Path,
    *,
    classes: Mapping[int, str] = CLASSES,
    colour: bool = False,
    crop_px: int | None = None,
    size: int | None = None,
    requests: SplitRequests | None = None,
    seed: int = 0,
    patients: str | Path | None = None,
    index: str | Path | None = None,
    name: str | None = None,
    mask_colours: Mapping[str, str] | None = None,
    mask_threshold: int | None = None,
    link: str | None = None,
) -> Outcome:
    """Write the dataset folder `output` from pictures and masks of one name; returns it with the files left out.

    Training pictures are cut into crops of `crop_px` pixels, stored at `size` (None: unchanged), see
    `data_prep.tiles.cut_tiles`; without `crop_px` they are tiles as they are, squares of one size. Validation and
    test pictures stay whole and are copied, or linked by `link`; labels are rewritten as class indices. Grey tiles
    become grey; whole files keep their colours, which the reader turns to grey.

    `requests`: see `splits.assign`; `patients`: a CSV with case and patient; `index`: an `index.csv` that says both,
    instead. `mask_colours` and `mask_threshold`: see `MaskReader`. `building.refuse` writes nothing if one scan is
    bad; here a bad file is left out, listed on stderr, in `failures` and in `failures.csv`. Raises `InputError`, and
    leaves nothing, for options that cannot be met (all told at once) and where no training picture is left.
    """
    images, masks = Path(images), Path(masks)
    check_folders_apart(images, masks, Path(output))
    _check_sides(crop_px, size)
    labels = parse_labels({"0": "background", **{str(value): text for value, text in classes.items()}})
    mask_reader = MaskReader(labels, mask_colours, mask_threshold)
    found = find_pairs(images, masks)
    roster = roster_of(patients, requests or {}) if index is None else read_index(Path(index), found)
    pictures = assigned(found, roster, seed, images)
    if crop_px is None:
        tiling = _tiles_as_they_are([picture.image for picture in pictures if picture.split == "training"])
    else:
        tiling = Tiling(crop_px, size or crop_px, cut=True)
        pictures = _without_tile_names(pictures, found)
    with new_folder(output) as folder:
        builder = SlideBuilder(folder, tiling, mask_reader, COLOUR if colour else GREY, link)
        for picture in tqdm(pictures, desc="reading", unit="picture", disable=None):
            builder.add(picture)
        failures = found.failures + builder.failures
        _report(failures, folder)
        _check_training(builder.cases, failures, images)
        dataset = finish(folder, builder.dataset(name or Path(output).resolve().name, labels))
    for warning in _gaps(dataset, builder):
        warn(warning)
    return Outcome(relocated(dataset, output), failures)


def _check_sides(crop_px: int | None, size: int | None) -> None:
    if size is not None and crop_px is None:
        raise InputError("--size is what crops are shrunk to; give --crop as well")
    for option, value in (("--crop", crop_px), ("--size", size)):
        if value is not None and value < 1:
            raise InputError(f"{option} {value} must be 1 pixel or more")
    if size is not None and crop_px is not None and size > crop_px:
        raise InputError(f"--size {size} is larger than --crop {crop_px}; crops are shrunk, not enlarged")


def _without_tile_names(pictures: Sequence[Picture], found: Found) -> list[Picture]:
    """Return the pictures without those that stay whole under a name which a tile of another one will have."""
    training = {picture.case for picture in pictures if picture.split == "training"}
    kept = []
    for picture in pictures:
        match = _TILE_NAME.fullmatch(picture.case)
        if match and match[1] in training and picture.case not in training:
            found.fail(picture.case, picture.image, f"is named like a tile of {match[1]}; rename it and its mask")
        else:
            kept.append(picture)
    return kept


def _tiles_as_they_are(training: Sequence[Path]) -> Tiling:
    """Return the side of most training pictures that are squares (of two equally frequent ones the larger)."""
    sides: Counter[int] = Counter()
    for path in training:
        try:
            height, width = image_size(path)
        except InputError:
            continue  # told when the picture is read
        sides.update([height] if height == width else [])
    side = max(sides, key=lambda side: (sides[side], side), default=0)
    return Tiling(side, side, cut=False)


def _report(failures: Sequence[Failure], folder: Path) -> None:
    """Print one line a failure and write `failures.csv`, the header alone where there are none."""
    for failure in failures:
        print(f"problem: {failure}", file=sys.stderr)
    with open(folder / FAILURES_FILE, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ("file", "error"), lineterminator="\n")
        writer.writeheader()
        writer.writerows(cells_of(asdict(failure)) for failure in failures)


def _check_training(cases: Mapping[str, Sequence[Case]], failures: Sequence[Failure], images: Path) -> None:
    if not cases["training"]:  # there were some, or the split would have been refused
        raise InputError(
            f"no training picture from {images} is left; {len(failures)} problems are listed above; nothing was written"
        )


def _gaps(dataset: Dataset, builder: SlideBuilder) -> list[str]:
    """Return what is allowed but worth knowing: empty splits, classes that training never sees, crops left out."""
    gaps = [f"the {split} split is empty" for split in SPLITS if not dataset.split(split)]
    gaps += [f"no training picture has {name}" for value, name in dataset.labels.items() if value not in builder.seen]
    if builder.repeated:
        gaps.append(f"{builder.repeated} crops look exactly like another one (empty glass?); one of each is kept")
    return gaps


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    command = CommandLine(prog="python -m data_prep.gastric", description=__doc__.split("\n")[0])
    add = command.add_argument
    add("--images", metavar="DIR", help="pictures: PNG, JPEG or TIFF of one page, 8 bits a channel")
    add("--masks", metavar="DIR", help="masks with the names of their pictures, or NAME_mask, NAME_anno, NAME_label")
    add("--source", metavar="DIR", help="instead: images/, masks/ and index.csv with the columns split, file, patient")
    add("--output", required=True, metavar="DIR", help="the dataset folder to make; must not exist")
    add("--color", "--colour", action="store_true", help="networks see RGB; default: grey, as in the paper")
    add("--crop", type=int, metavar="PX", help="side of the squares that training pictures are cut into")
    add("--size", type=int, metavar="PX", help="side that crops are shrunk to (default: that of the crop)")
    add("--classes", default="cancer", metavar="NAMES", help="of the labels 1, 2, … (default: %(default)s)")
    add("--mask-colors", "--mask-colours", metavar="COLOURS", help='of coloured masks: "cancer=#ff0000"')
    add("--mask-threshold", type=int, metavar="N", help="grey masks: values above N are class 1")
    add_split_options(command, "pictures")
    add("--name", help="of the dataset; default: the name of the output folder")
    add("--link", nargs="?", const="symbolic", choices=LINKS, help="link pictures that stay whole, instead of copying")
    return command


def _input_paths(given: argparse.Namespace) -> tuple[Path, Path, Path | None]:
    """Return the folders of pictures and masks, and the index if `--source` has one."""
    if given.source is None:
        if given.images is None or given.masks is None:
            raise InputError("give --images and --masks, or --source")
        return Path(given.images), Path(given.masks), None
    others = ("images", "masks", "patients", "split", *SPLITS)
    both = [f"--{option}" for option in others if getattr(given, option) is not None]
    if both:
        raise InputError(f"--source says that already: leave out {', '.join(both)}")
    source = Path(given.source)
    return source / "images", source / "masks", source / "index.csv"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns 1 where files were left out."""
    given = parser().parse_args(arguments)
    images, masks, index = _input_paths(given)
    outcome = convert(
        images,
        masks,
        given.output,
        classes=read_labels(given.classes, None),
        colour=given.color,
        crop_px=given.crop,
        size=given.size,
        requests=split_requests_of(given),
        seed=given.seed,
        patients=given.patients,
        index=index,
        name=given.name,
        mask_colours=None if given.mask_colors is None else parse_colours(given.mask_colors),
        mask_threshold=given.mask_threshold,
        link=given.link,
    )
    if given.patients is None and index is None:
        print("each picture counts as a patient of its own; give --patients where some share one")
    print_summary(outcome.dataset)
    if outcome.failures:
        print(f"  left out: {len(outcome.failures)} files, listed in {outcome.dataset.folder / FAILURES_FILE}")
    return 1 if outcome.failures else 0


if __name__ == "__main__":
    run_command(main)
