# SPDX-License-Identifier: Apache-2.0
"""Checks over the cases of all splits together: repeated ids, patients in two splits, missing and repeated files."""

from __future__ import annotations

import filecmp
import gzip
import os
import unicodedata
import zlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from pipeline.data.dataset.declaration import Case, listed, twice
from pipeline.errors import InputError

_CHUNK_BYTES = 1 << 20

Cases = Sequence[tuple[str, Case]]


def written_alike(name: str) -> str:
    """Return an id in the form in which ids are compared: accents composed, blanks around it dropped.

    Such differences are invisible on the screen and occur in tables edited by hand: one patient would count as two.
    """
    return unicodedata.normalize("NFC", name).strip()


def repeated_ids(cases: Cases) -> list[str]:
    """Return the ids that more than one case has."""
    return twice(written_alike(case.case) for _, case in cases)


def leaking_patients(cases: Cases) -> dict[str, tuple[str, ...]]:
    """Return each patient with cases in several splits, and those splits, sorted."""
    splits: dict[str, set[str]] = defaultdict(set)
    for split, case in cases:
        splits[written_alike(case.patient)].add(split)
    return {patient: tuple(sorted(found)) for patient, found in splits.items() if len(found) > 1}


def missing_files(cases: Cases) -> list[tuple[Case, Path]]:
    """Return every image and label that is not there, with its case."""
    # os.path: a name that is too long for the system, or that it cannot encode, is only a missing file here.
    return [(case, path) for case, path in _named(cases) if not os.path.exists(path)]


def shared_files(cases: Cases) -> list[tuple[tuple[Case, Path], ...]]:
    """Return the groups of images and labels that are one file on disk, links included; missing ones are left out."""
    owners: dict[tuple[int, int], list[tuple[Case, Path]]] = defaultdict(list)
    for case, path in _named(cases):
        if os.path.exists(path):
            status = path.stat()
            owners[status.st_dev, status.st_ino].append((case, path))
    return [tuple(group) for group in owners.values() if len(group) > 1]


def same_images(cases: Cases) -> list[tuple[Case, Case]]:
    """Return pairs of cases whose image files are equal byte by byte, or equal after unpacking from gzip.

    Only files of equal size are read, up to the first byte that differs. For gzip files, the checksum and length at the
    end are compared first. Raises `InputError` for a file that cannot be read. `data_prep.check` compares the voxels
    themselves.
    """
    alike: dict[object, list[Case]] = defaultdict(list)
    for _, case in cases:
        if os.path.isfile(case.image):
            alike[_end(case.image) if _packed(case.image) else case.image.stat().st_size].append(case)
    pairs = []
    for group in alike.values():
        seen: dict[bytes, list[Case]] = defaultdict(list)
        for case in group if len(group) > 1 else ():
            others = seen[b"" if _packed(case.image) else _sample(case.image)]
            other = next((other for other in others if _equal(case.image, other.image)), None)
            if other is None:
                others.append(case)
            else:
                pairs.append((other, case))
    return pairs


def _packed(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def _equal(path: Path, other: Path) -> bool:
    if filecmp.cmp(path, other, shallow=False):
        return True
    if not (_packed(path) and _packed(other)):
        return False
    try:
        with gzip.open(path) as stream, gzip.open(other) as twin:
            while chunk := stream.read(_CHUNK_BYTES):
                if chunk != twin.read(_CHUNK_BYTES):
                    return False
            return not twin.read(1)
    except (OSError, EOFError, zlib.error):  # damaged files are what their readers refuse
        return False


def check_cases(folder: Path, cases: Cases) -> None:
    """Refuse (`InputError`) two cases of one id, a patient in two splits, missing files, and one file for two cases."""
    duplicates = repeated_ids(cases)
    if duplicates:
        raise InputError(f"case {listed(duplicates)} is listed twice; give each scan one id")
    leaks = [f"{patient} ({listed(splits)})" for patient, splits in leaking_patients(cases).items()]
    if leaks:
        raise InputError(f"patient in more than one split: {listed(leaks)}; move all scans of a patient into one")
    missing = [f"{case.case} ({path.relative_to(folder)})" for case, path in missing_files(cases)]
    if missing:
        raise InputError(f"{len(missing)} missing files: {listed(missing)}; restore them or take the cases out")
    shared = [" and ".join(f"{path.name} of {case.case}" for case, path in group) for group in shared_files(cases)]
    if shared:
        raise InputError(f"one file in two places: {listed(shared)}; each image and each label needs its own file")
    for other, case in same_images(cases):
        raise InputError(f"cases {other.case} and {case.case} hold the same image; keep one of them")


def _named(cases: Cases) -> list[tuple[Case, Path]]:
    return [(case, path) for _, case in cases for path in (case.image, case.label) if path is not None]


def _end(path: Path) -> bytes:
    """Return the checksum and the length of the unpacked content, with which a gzip file ends."""
    return _bytes(path, max(0, path.stat().st_size - 8), 8)


def _sample(path: Path) -> bytes:
    """Return some bytes from the middle of a file, where scans of one size differ (headers and air do not)."""
    return _bytes(path, path.stat().st_size // 2, 1 << 16)


def _bytes(path: Path, start: int, length: int) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(start)
            return file.read(length)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check its permissions") from error
