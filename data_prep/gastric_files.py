# SPDX-License-Identifier: Apache-2.0
"""Which mask belongs to which picture, whose picture it is, and every file that cannot be used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.building import refuse, warn
from data_prep.patients import listed_patients, read_rows
from data_prep.splits import SplitRequests, assign, list_request
from pipeline.data import SPLITS, is_image
from pipeline.errors import InputError

# What tools append to the name of a picture when they save its mask.
MASK_SUFFIXES = ("_mask", "_masks", "_anno", "_annotation", "_label", "_labels", "_seg", "_gt")
_SPLIT_NAMES = {"train": "training", "val": "validation", "valid": "validation", **{split: split for split in SPLITS}}


@dataclass(frozen=True)
class Failure:
    """A file that is left out, and why, with what to do."""

    file: str
    error: str

    @classmethod
    def of(cls, path: Path, error: object) -> Failure:
        """Return the failure of one file, on one line; a message that begins with the file loses its name."""
        return cls(str(path), " ".join(str(error).removeprefix(f"{path} ").split()))

    def __str__(self) -> str:
        return " ".join(f"{self.file}: {self.error}".split())


@dataclass(frozen=True)
class NetworkPair:
    """A picture and its mask, as found on disk."""

    case: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class Picture(NetworkPair):
    """A picture and its mask, with the patient and the split that they belong to."""

    patient: str
    split: str


@dataclass
class Found:
    """Pairs in the order of their names; files without a use; and the case ids that those would have had."""

    pairs: list[NetworkPair] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    unusable: set[str] = field(default_factory=set)

    def fail(self, case: str, path: Path, error: str) -> None:
        """Note a file that cannot be used, and so its case."""
        self.failures.append(Failure.of(path, error))
        self.unusable.add(case)


def find_pairs(images: Path, masks: Path) -> Found:
    """Return pictures and masks of one name; a mask may have one of `MASK_SUFFIXES` where none has the bare name.

    Two pictures of one name fail, as nothing tells which is meant; so do two masks, and files without a partner.
    Raises `InputError` for folders that do not exist.
    """
    pictures, left = _by_stem(images, "images"), _by_stem(masks, "masks")
    drawn = {stem: left.pop(stem) for stem in pictures if stem in left}
    for stem in [stem for stem in pictures if stem not in drawn]:
        drawn[stem] = [path for suffix in MASK_SUFFIXES for path in left.pop(stem + suffix, ())]
    found = Found()
    for stem, files in pictures.items():
        if len(files) > 1 or len(drawn[stem]) > 1:
            several, kind = (files, "picture") if len(files) > 1 else (drawn[stem], "mask")
            others = ", ".join(path.name for path in several[1:])
            found.fail(stem, several[0], f"is not the only {kind} of its name, there is {others} too; keep one")
        elif not drawn[stem]:
            found.fail(stem, files[0], f"has no mask of its name in {masks}; add it, or take the picture away")
        elif not stem.strip() or "\\" in stem:
            found.fail(stem, files[0], "has a name that cannot be an id (blank, or with a backslash); rename it")
        else:
            found.pairs.append(NetworkPair(stem, files[0], drawn[stem][0]))
    for stem, files in left.items():
        for path in files:
            found.fail(_bare(stem), path, f"has no picture of its name in {images}; add it, or take the mask away")
    return found


def _by_stem(folder: Path, kind: str) -> dict[str, list[Path]]:
    """Return the pictures in a folder by stem, sorted; files of other formats are left out with a warning."""
    if not folder.is_dir():
        raise InputError(f"no folder of {kind} at {folder}; correct the path")
    stems: dict[str, list[Path]] = {}
    others = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if is_image(path):
            stems.setdefault(path.stem, []).append(path)
        elif not path.is_dir():
            others.append(path.name)
    if others:
        shown = ", ".join(others[:5]) + (" and others" if len(others) > 5 else "")
        warn(f"{len(others)} files in {folder} are no PNG, JPEG or TIFF and are left out: {shown}")
    return stems


def _bare(stem: str) -> str:
    return next((stem.removesuffix(suffix) for suffix in MASK_SUFFIXES if stem.endswith(suffix)), stem)


@dataclass
class Roster:
    """Whose each picture is (None: each is its own patient), which split it is wished in, and what is wrong with it.

    `source` names the file that says so.
    """

    patients: Mapping[str, str] | None
    requests: SplitRequests
    source: str = ""
    problems: list[str] = field(default_factory=list)

    def patients_of(self, found: Found) -> dict[str, str]:
        """Return case to patient of all pairs; one that is not listed fails, and is taken out of `found`.

        Cases that failed are listed too where a request names them: one bad file does not make a request unknown.
        """
        if self.patients is None:
            listed: Mapping[str, str] = {pair.case: pair.case for pair in found.pairs}
        else:
            listed = self.patients
        pairs, found.pairs = found.pairs, [pair for pair in found.pairs if listed.get(pair.case)]
        for pair in (pair for pair in pairs if not listed.get(pair.case)):
            found.fail(pair.case, pair.image, f"has no patient in {self.source}; add a line for {pair.case} there")
        named = {part.strip() for request in self.requests.values() if request for part in request.split(",")}
        failed = {case: listed.get(case) or case for case in sorted(found.unusable)}
        failed = {case: patient for case, patient in failed.items() if {case, patient} & named}
        return {**{pair.case: listed[pair.case] for pair in found.pairs}, **failed}


def roster_of(patients: str | Path | None, requests: SplitRequests) -> Roster:
    """Return what a CSV file with the columns `case` and `patient`, if any, and the requests of the user say."""
    if patients is None:
        return Roster(None, requests)
    listed, problems = listed_patients(patients)
    return Roster(listed, requests, str(patients), problems)


def read_index(path: Path, found: Found) -> Roster:
    """Return what an `index.csv` says, with the columns `split`, `file` (with or without suffix) and `patient`.

    Splits are train, val and test, or training and validation. Rows without a picture become failures of `found`.
    """
    patients: dict[str, str] = {}
    names: dict[str, list[str]] = {split: [] for split in SPLITS}
    problems = []
    for row in read_rows(path, ("split", "file", "patient")):
        case = Path(row["file"]).stem if is_image(row["file"]) else Path(row["file"]).name
        split = _SPLIT_NAMES.get(row["split"].lower())
        if split is None:
            problems.append(f"{path}: split {row['split']!r} of {case} is none of train, val and test")
        elif not row["patient"] or not case:
            problems.append(f"{path}: a row lacks its {'file' if row['patient'] else 'patient'} ({row['file']!r})")
        elif case in patients:
            problems.append(f"{path}: {case} stands in two rows; keep one")
        else:
            patients[case] = row["patient"]
            names[split].append(case)
    known = {pair.case for pair in found.pairs} | found.unusable
    for case in sorted(patients.keys() - known):
        found.fail(case, path, f"names {case}, but there is no such picture; add it, or take the row out")
    return Roster(patients, {split: list_request(cases) for split, cases in names.items()}, str(path), problems)


def assigned(found: Found, roster: Roster, seed: int, images: Path) -> list[Picture]:
    """Return the pairs with patient and split; those that a fraction for training leaves over are not among them.

    Raises `InputError`, after listing all that was found so far, where the requests cannot be met or nothing is there:
    which picture trains is not to be guessed.
    """
    patient_of = roster.patients_of(found)
    splits, wrong = assign(patient_of, roster.requests, seed) if found.pairs else ({}, [])
    problems = [*roster.problems, *wrong]
    if problems or not found.pairs:
        refuse([*map(str, found.failures), *problems], images)
        raise InputError(f"no pictures in {images}; give a folder of PNG, JPEG or TIFF files")
    split_of = {case: split for split, cases in splits.items() for case in cases}
    return [
        Picture(pair.case, pair.image, pair.mask, patient_of[pair.case], split_of[pair.case])
        for pair in found.pairs
        if pair.case in split_of
    ]
