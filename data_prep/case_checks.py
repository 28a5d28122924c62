# SPDX-License-Identifier: Apache-2.0
"""One case read to its last byte, by the readers that training and inference use."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.findings import Finding, Findings
from pipeline.data import Case, Volume, doubt_hounsfield, read_image, read_label_image, read_volume, to_ras
from pipeline.data.dataset.declaration import CHANNELS, COLOUR_SLIDE, GREY_SLIDE, Declaration
from pipeline.data.dataset.intensity import WINDOW
from pipeline.data.scans.volumes import label_counts, on_grid_of, with_label_values

_CHUNK_BYTES = 1 << 20


@dataclass
class CaseReport:
    """What was found about one case.

    `rows`: its findings. `image` and `label`: the facts of the manifest. `content` and `drawn`: hashes of the voxels,
    independent of format and voxel order, None where nothing could be read (`drawn` also for an empty label). `seen`:
    label values.
    """

    split: str
    case: Case
    rows: list[Finding] = field(default_factory=list)
    image: dict[str, Any] = field(default_factory=dict)
    label: dict[str, Any] = field(default_factory=dict)
    content: str | None = None
    drawn: str | None = None
    seen: frozenset[int] = frozenset()

    def manifest(self) -> dict[str, Any]:
        """Return the case as it stands in the manifest."""
        case = {"case": self.case.case, "patient": self.case.patient, "split": self.split, "image": self.image}
        return case if self.case.label is None else {**case, "label": self.label}


def holds_slides(declared: Declaration) -> bool:
    """Tell whether the cases are pictures of tissue, also where the declaration has mistakes."""
    return declared.modality in (GREY_SLIDE, COLOUR_SLIDE) or declared.content.get("tile_px") is not None


def check_case(declared: Declaration, split: str, case: Case) -> CaseReport:
    """Read image and label of one case and return all that was found; files that cannot be read do not stop it."""
    found, report = Findings(declared.path.parent), CaseReport(split, case)
    report.image = _file_facts(found, case.image)
    if case.label is None:
        use = "distillation alone learns from it" if split == "training" else "it cannot be scored"
        found.note(case.image, "has no label", f"{use}; add the label if there is one")
    else:
        report.label = _file_facts(found, case.label)
    (_check_tile if holds_slides(declared) else _check_scan)(found, declared, report)
    report.rows = found.rows
    return report


def _file_facts(found: Findings, path: Path) -> dict[str, Any]:
    """Return name, size and SHA-256 of a file or of a DICOM folder's files; the name alone if it is unreadable."""
    facts: dict[str, Any] = {"file": str(path.relative_to(found.folder))}
    try:
        files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
        digest, size = hashlib.sha256(), 0
        for file in files:
            with open(file, "rb") as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    size += len(chunk)
    except (OSError, ValueError):  # the reader says what is wrong with it
        return facts
    return {**facts, "bytes": size, "sha256": digest.hexdigest()}


def _check_scan(found: Findings, declared: Declaration, report: CaseReport) -> None:
    case = report.case
    image = found.attempt(case.image, read_volume, case.image)
    if image is not None:
        found.add_reader_notes(case.image, image.notes)
        report.image |= _volume_facts(image)
        report.content = _content(image)
        _note_intensities(found, declared, image)
    if case.label is None:
        return
    # The same steps as `read_label`, one by one: a label may have unknown values and lie on another grid.
    stored = found.attempt(case.label, read_volume, case.label)
    if stored is None:
        return
    report.label |= _volume_facts(stored)
    turned = stored if image is None else found.attempt(case.label, on_grid_of, image, stored)
    found.add_reader_notes(case.label, (turned or stored).notes)
    label = found.attempt(case.label, with_label_values, stored, declared.labels)
    if label is not None:
        _note_labels(found, report, label_counts(label.array), _content(label))


def _check_tile(found: Findings, declared: Declaration, report: CaseReport) -> None:
    case = report.case
    image = found.attempt(case.image, read_image, case.image, len(CHANNELS.get(declared.modality, ("grey",))))
    label = None if case.label is None else found.attempt(case.label, read_label_image, case.label, declared.labels)
    if image is not None:
        report.image |= {"shape": list(image.shape), "type": str(image.dtype)}
        report.content = _hash(image)
        if image.min() == image.max():
            found.note(case.image, f"all pixels are {image.min()}", "take it out unless it is meant so")
        if report.split == "training" and image.shape[0] != image.shape[1]:
            height, width = image.shape[:2]
            found.error(case.image, f"is {height} x {width} pixels, no square", "cut it into square training tiles")
    if label is not None:
        report.label |= {"shape": list(label.shape), "type": str(label.dtype)}
        _note_labels(found, report, np.bincount(label.ravel(), minlength=256), None)
    if image is not None and label is not None and image.shape[:2] != label.shape:
        (height, width), other = label.shape, case.image.relative_to(found.folder)
        found.error(
            case.label,
            f"has {height} x {width} pixels, but {other} has {image.shape[0]} x {image.shape[1]}",
            "give the mask that was drawn on this image",
        )


def _note_labels(found: Findings, report: CaseReport, counts: np.ndarray, content: str | None) -> None:
    values = {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    report.label["values"] = {str(value): count for value, count in values.items()}
    report.seen = frozenset(values) - {0}
    report.drawn = content if report.seen else None
    if content is not None and not report.seen:  # of scans: masks of healthy tissue come in thousands
        found.note(report.case.label, "is empty: nothing but background", "take the case out unless it is meant so")


def _note_intensities(found: Findings, declared: Declaration, image: Volume) -> None:
    low, high = float(image.array.min()), float(image.array.max())
    rule = declared.intensity
    if low == high:
        found.note(image.path, f"all voxels are {low:g}", "take it out unless it is meant so")
    elif (declared.modality or "").upper() == "CT" and rule is not None and rule.kind == WINDOW and rule.low < 0:
        fact, _, remedy = (doubt_hounsfield(low, high) or "").rpartition("; ")
        if fact:
            found.note(image.path, fact, remedy)


def _volume_facts(volume: Volume) -> dict[str, Any]:
    return {
        "shape": list(volume.array.shape),
        "spacing_mm": [round(edge, 6) for edge in volume.spacing_mm],
        "type": str(volume.array.dtype),
        "notes": list(volume.notes),
    }


def _content(volume: Volume) -> str:
    """Return a hash of the voxels that neither format, compression, number type nor voxel order changes."""
    array, _ = to_ras(volume.array, volume.affine)
    digest = hashlib.blake2b(str(array.shape).encode(), digest_size=20)
    for z in range(array.shape[2]):
        digest.update(np.ascontiguousarray(array[..., z], dtype=np.float32))
    return digest.hexdigest()


def _hash(pixels: np.ndarray) -> str:
    return hashlib.blake2b(str(pixels.shape).encode() + pixels.tobytes(), digest_size=20).hexdigest()
