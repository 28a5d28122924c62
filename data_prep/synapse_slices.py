# SPDX-License-Identifier: Apache-2.0
"""Synapse as TransUNet passes it on: `train_npz/case0005_slice000.npz` and `test_vol_h5/case0001.npy.h5`.

The arrays hold (rows, columns) slices of [-125, 275] HU mapped to [0, 1]; neither voxel size nor orientation came
along. The values go back to HU, so that a model which learned from them can segment scans from a scanner. Orientation
is told by the organs: a left kidney lies left of the right one, kidneys behind the stomach, the liver above both.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from data_prep.building import write_nifti
from data_prep.synapse_protocol import LABELS, TEST, TRAINING, TRAINING_SLICES
from pipeline.data import CT_WINDOW, Case
from pipeline.errors import InputError
from pipeline.files.texts import read_text

_SLICE = re.compile(r"(case\d{4})_slice(\d{3})\.npz")
_VOLUME = re.compile(r"(case\d{4})\.npy\.h5")
_VALUE = {name: value for value, name in LABELS.items()}

# Pairs of organs whose centres lie apart in one direction, in every patient without a mirrored body.
_LEFT = (("left kidney", "right kidney"), ("spleen", "liver"))
_BACK = (("left kidney", "stomach"), ("right kidney", "stomach"), ("left kidney", "pancreas"))
_UP = (("liver", "right kidney"), ("spleen", "left kidney"))
# The least distance that counts as evidence, as a fraction of the array's side.
_EVIDENCE = 0.03
_ORIENTATION_CASES = 3


@dataclass(frozen=True)
class Axes:
    """Where the axes of a (slices, rows, columns) array point.

    `across` and `front` are the axes (1 or 2) along the left-right and the front-back direction; each sign is 1 where
    indices grow to the right, to the front and to the head.
    """

    across: int
    right: int
    forward: int
    up: int

    @property
    def front(self) -> int:
        """The axis of the front-back direction: the other one in the slice."""
        return 3 - self.across

    def to_ras(self, array: np.ndarray) -> np.ndarray:
        """Return a view (x, y, z) of a (slices, rows, columns) array, with x to the right, y to the front, z up."""
        return np.transpose(array, (self.across, self.front, 0))[:: self.right, :: self.forward, :: self.up]

    def __str__(self) -> str:
        front = f"the {'front' if self.forward > 0 else 'back'}"
        side = f"the {'right' if self.right > 0 else 'left'}"
        rows, columns = (side, front) if self.across == 1 else (front, side)
        return f"rows to {rows}, columns to {columns}, slices {'up' if self.up > 0 else 'down'}"


# As slices are looked at: the first row is the front, the first column the patient's right.
DISPLAYED = Axes(across=2, right=-1, forward=-1, up=1)


def axes_by_organs(label_volumes: Iterable[np.ndarray]) -> Axes | None:
    """Return where the axes of (slices, rows, columns) label maps point, or None where the organs do not tell."""
    evidence = np.mean([_evidence(labels) for labels in label_volumes] or [np.zeros((3, 3))], axis=0)
    left, back, up = evidence
    across = 1 + int(abs(left[2]) > abs(left[1]))
    signals = np.array([left[across], back[3 - across], up[0]])
    if (np.abs(signals) < _EVIDENCE).any():
        return None
    signs = np.sign(signals).astype(int).tolist()
    return Axes(across, right=-signs[0], forward=-signs[1], up=signs[2])


def _evidence(labels: np.ndarray) -> np.ndarray:
    """Return (3, 3): mean vectors to the left, the back and the head, in fractions of the sides; 0 without organs."""
    centres = {}
    for value in np.unique(labels):
        centres[int(value)] = np.array([axis.mean() for axis in np.nonzero(labels == value)]) / labels.shape
    vectors = np.zeros((3, 3))
    for row, pairs in enumerate((_LEFT, _BACK, _UP)):
        apart = [centres[_VALUE[a]] - centres[_VALUE[b]] for a, b in pairs if {_VALUE[a], _VALUE[b]} <= centres.keys()]
        vectors[row] = np.mean(apart, axis=0) if apart else 0.0
    return vectors


class SliceCases:
    """The cases of a folder in TransUNet's form."""

    spacing_known = False

    def __init__(self, source: Path) -> None:
        self._slices: dict[str, dict[int, Path]] = {}
        self._volumes: dict[str, Path] = {}
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.notes: list[str] = []
        self._axes: Axes | None = None
        for path in sorted(source.rglob("case*.*")):
            if match := _SLICE.fullmatch(path.name):
                self._add(self._slices.setdefault(match[1], {}), int(match[2]), path)
            elif match := _VOLUME.fullmatch(path.name):
                self._add(self._volumes, match[1], path)
        if self._volumes:
            _h5py()
        self._listed = {name: _read_list(source, name) for name in ("train.txt", "test_vol.txt")}

    def _add(self, found: dict, key: object, path: Path) -> None:
        if key in found:
            self.problems.append(f"two files of one name: {found[key]} and {path}; keep one")
        found[key] = path

    @property
    def cases(self) -> set[str]:
        """Ids of all cases that were found."""
        return {*self._slices, *self._volumes}

    def missing(self) -> list[str]:
        """Return one line for each case of the protocol that is absent or lacks slices."""
        lines = [f"{case}: no {case}_slice*.npz" for case in TRAINING if case not in self._slices]
        lines += [f"{case}: no {case}.npy.h5" for case in TEST if case not in self._volumes]
        for case, slices in sorted(self._slices.items()):
            absent = sorted(self._expected(case) - slices.keys())
            if absent:
                names = ", ".join(f"{number:03d}" for number in absent[:5]) + (", …" if absent[5:] else "")
                lines.append(f"{case}: {len(absent)} of {len(self._expected(case))} slices are missing ({names})")
        listed = self._listed["test_vol.txt"] or set()
        return lines + [
            f"{case}: listed in test_vol.txt, but not there" for case in sorted(listed - self.cases - {*TEST})
        ]

    def _expected(self, case: str) -> set[int]:
        """Return the slice numbers that `train.txt` names, or those of the published data."""
        listed = self._listed["train.txt"]
        if listed is None:
            return set(range(TRAINING_SLICES.get(case, 0)))
        prefix = f"{case}_slice"
        return {int(name.removeprefix(prefix)) for name in listed if name.startswith(prefix)}

    def write(self, case: str, folder: Path, link: str | None = None) -> Case:
        """Write one case as NIfTI in HU, voxels of 1 mm, axes to the right, front and head. `link` has no effect."""
        axes = self._orientation()
        image, label = self._read(case)
        paths = folder / "images" / f"{case}.nii.gz", folder / "labels" / f"{case}.nii.gz"
        for path, array in zip(paths, (self._hounsfield(case, image), label), strict=True):
            write_nifti(path, np.ascontiguousarray(axes.to_ras(array)), np.eye(4))
        return Case(case, case, *paths)

    def description(self) -> str:
        """Return what was found, for the user."""
        slices = sum(len(found) for found in self._slices.values())
        return f"{slices} training slices of {len(self._slices)} cases (npz), {len(self._volumes)} test volumes (h5)"

    def _orientation(self) -> Axes:
        """Return one orientation for all cases: they were prepared by one script."""
        if self._axes is None:
            self._axes = axes_by_organs(itertools.islice(self._readable_labels(), _ORIENTATION_CASES))
            if self._axes is None:
                self._axes = DISPLAYED
                self.warnings.append(f"the organs do not tell the orientation; taken as displayed: {DISPLAYED}")
            else:
                self.notes.append(f"orientation, told by the organs: {self._axes}")
        return self._axes

    def _readable_labels(self) -> Iterator[np.ndarray]:
        """Yield label maps one by one; what cannot be read is told when that case is written."""
        for case in (*sorted(self._volumes), *sorted(self._slices)):
            with contextlib.suppress(InputError):
                yield self._read(case)[1]

    def _read(self, case: str) -> tuple[np.ndarray, np.ndarray]:
        """Return image float32 and label uint8, both (slices, rows, columns)."""
        if case in self._volumes:
            image, label = _read_h5(self._volumes[case])
        else:
            image, label = _read_slices([path for _, path in sorted(self._slices[case].items())])
        if image.ndim != 3 or image.shape != label.shape:
            raise InputError(
                f"case {case}: image {image.shape} and label {label.shape} must both be (slices, rows, columns)"
            )
        return image, _whole_labels(case, label)

    def _hounsfield(self, case: str, image: np.ndarray) -> np.ndarray:
        """Return int16 HU from values in [0, 1]; HU are whole numbers, so nothing is lost."""
        low, high = float(image.min()), float(image.max())
        if not (np.isfinite([low, high]).all() and low >= -1e-3 and high <= 1 + 1e-3):
            raise InputError(f"case {case}: values {low:g}..{high:g} are not within 0..1, as TransUNet prepares them")
        if low > 1e-3 or high < 1 - 1e-3:
            self.warnings.append(f"case {case}: values {low:g}..{high:g} do not span 0..1; its HU may be off")
        return np.rint(image * (CT_WINDOW.high - CT_WINDOW.low) + CT_WINDOW.low).astype(np.int16)


def _read_list(source: Path, name: str) -> set[str] | None:
    """Return the names in TransUNet's list file, or None where there is none."""
    found = sorted(source.rglob(name))
    if not found:
        return None
    return {Path(line.strip()).name.removesuffix(".npz") for line in read_text(found[0]).splitlines() if line.strip()}


def _read_slices(paths: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    images, labels = [], []
    for path in paths:
        try:
            with np.load(path, allow_pickle=False) as content:
                images.append(content["image"].astype(np.float32))
                labels.append(content["label"])
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise InputError(f"{path}: cannot read image and label: {error}; restore the file") from error
        if images[-1].shape != images[0].shape or images[-1].shape != labels[-1].shape:
            raise InputError(f"{path}: image {images[-1].shape}, label {labels[-1].shape}; expected {images[0].shape}")
    return np.stack(images), np.stack(labels)


def _h5py() -> ModuleType:
    """Return h5py, which nothing but this form of the data needs."""
    try:
        import h5py
    except ImportError as error:
        raise InputError("h5py is needed to read TransUNet's *.npy.h5; install it: pip install h5py") from error
    return h5py


def _read_h5(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with _h5py().File(path, "r") as content:
            return content["image"][()].astype(np.float32), content["label"][()]
    except (OSError, KeyError, AttributeError, ValueError) as error:
        raise InputError(f"{path}: cannot read image and label: {error}; restore the file") from error


def _whole_labels(case: str, label: np.ndarray) -> np.ndarray:
    values = np.unique(label)
    wrong = [f"{value:g}" for value in values.tolist() if value not in LABELS]
    if wrong:
        raise InputError(f"case {case}: label values {', '.join(wrong[:8])} are not among 0..{max(LABELS)}")
    return label.astype(np.uint8)
