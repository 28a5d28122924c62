# SPDX-License-Identifier: Apache-2.0
"""Which prediction belongs to which label: by case id, the file name without its format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.dataset.dataset import SCANS, SLIDES
from pipeline.data.scans.case_names import match_names
from pipeline.data.scans.volumes import SUFFIXES, scan_suffix
from pipeline.errors import InputError
from pipeline.evaluation.masks.files import MASK_SUFFIXES, is_overview, mask_suffix

# For each kind of dataset, the function that gives the suffix of a label map (None for another file), and all suffixes.
_FORMATS: dict[str, tuple[Callable[[Path], str | None], tuple[str, ...]]] = {
    SCANS: (scan_suffix, SUFFIXES),
    SLIDES: (mask_suffix, MASK_SUFFIXES),
}


@dataclass(frozen=True)
class CasePair:
    """The two files of one case."""

    case: str
    prediction: Path
    label: Path


@dataclass(frozen=True)
class Matching:
    """Pairs by case id, labels that nobody predicted, and predictions that have no label."""

    pairs: tuple[CasePair, ...]
    missing: tuple[str, ...]
    extra: tuple[str, ...]


def match_cases(predictions: Path, labels: Path, allow_missing: bool = False, kind: str = SCANS) -> Matching:
    """Match label maps of two folders by case id; two files are a pair whatever their names.

    `kind` is "scans" or "slides". For scans, nnU-Net's `_0000` and Slicer's `.seg` at the end of a name are ignored,
    see `match_names`. Files of other formats and hidden files are skipped. Raises `InputError` for a path that does not
    exist, a folder without label maps, one id twice in a folder, one file on both sides, nothing in common, and, unless
    `allow_missing`, for cases that have only one of the two files; the message lists all of them.
    """
    predicted, labelled = _files(predictions, kind), _files(labels, kind)
    if predictions.is_file() and labels.is_file():
        return Matching((_pair(case_id(labels, kind), predictions, labels),), (), ())
    matched = match_names(predicted, labelled) if kind == SCANS else _equal_names(predicted, labelled)
    missing = tuple(sorted(labelled.keys() - {name for _, name in matched.values()}))
    extra = tuple(sorted(predicted.keys() - {name for name, _ in matched.values()}))
    if not matched:
        raise InputError(
            f"no case id is in both {predictions} ({', '.join(extra)}) and {labels} ({', '.join(missing)}); "
            "name predictions as their labels"
        )
    if (missing or extra) and not allow_missing:
        parts = [f"no prediction for {', '.join(missing)}"] if missing else []
        parts += [f"no label for {', '.join(extra)}"] if extra else []
        raise InputError(
            f"{' and '.join(parts)} ({predictions} against {labels}); "
            "add the files, or score the rest with --allow-missing"
        )
    pairs = [_pair(case, predicted[first], labelled[second]) for case, (first, second) in sorted(matched.items())]
    return Matching(tuple(pairs), missing, extra)


def _equal_names(first: dict[str, Path], second: dict[str, Path]) -> dict[str, tuple[str, str]]:
    return {name: (name, name) for name in first.keys() & second.keys()}


def case_id(path: Path, kind: str = SCANS) -> str:
    """Return the file name without `.nii.gz`, `.nii`, `.nrrd`, `.mha` or another suffix known for the kind."""
    suffix_of, _ = _FORMATS[kind]
    return path.name[: -len(suffix_of(path) or "") or None]


def _pair(case: str, prediction: Path, label: Path) -> CasePair:
    if prediction.samefile(label):
        raise InputError(f"{prediction} is both prediction and label of case {case}; give two different files")
    return CasePair(case, prediction, label)


def _files(path: Path, kind: str) -> dict[str, Path]:
    """Return case id to file for a folder or a single file."""
    if not path.exists():
        raise InputError(f"no such file or folder: {path}; check the path")
    found = [path] if path.is_file() else sorted(path.iterdir())
    suffix_of, suffixes = _FORMATS[kind]
    files: dict[str, Path] = {}
    for file in found:
        if file.name.startswith(".") or not file.is_file() or suffix_of(file) is None or is_overview(file):
            continue
        other = files.setdefault(case_id(file, kind), file)
        if other is not file:
            raise InputError(f"{other} and {file.name} are one case by name; keep one of them")
    if not files:
        pictures = kind == SCANS and any(mask_suffix(file) for file in found)
        hint = "; for masks of slides, name their dataset.json with --dataset" if pictures else ""
        raise InputError(f"{path} holds no label map; give {', '.join(suffixes)}{hint}")
    return files
