# SPDX-License-Identifier: Apache-2.0
r"""Check a dataset folder before training: every problem of every file in one table (file, fact, remedy).

python -m data_prep.check DATASET --json manifest.json
"""

from __future__ import annotations

import argparse
import functools
import os
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep.case_checks import CaseReport, check_case, holds_slides
from data_prep.findings import ERROR, Finding, Findings, table
from data_prep.layouts import import_command, layout_of
from pipeline.command_line import CommandLine
from pipeline.data import DATASET_FILE, SPLITS
from pipeline.data.dataset.case_files import leaking_patients, repeated_ids, shared_files, written_alike
from pipeline.data.dataset.declaration import Declaration, read_declaration
from pipeline.errors import BAD_INPUT, InputError, run_command
from pipeline.files.atomic import write_json

# Cases are read side by side as long as the largest of them, unpacked, would fit this often: a compressed scan grows
# about fourfold, and scan, label and their copies are in memory together.
_MEMORY_BYTES, _GROWTH = 2 << 30, 16
_MOST_NAMED = 5
_COUNTS = {"numTraining": "training", "numTest": "test"}


@dataclass(frozen=True)
class Check:
    """What the check of a `dataset.json` found: rows, errors first, and a report of each case that could be named."""

    path: Path
    rows: list[Finding]
    reports: list[CaseReport]

    @property
    def errors(self) -> int:
        """Number of problems that training would refuse."""
        return sum(row.severity == ERROR for row in self.rows)

    def summary(self) -> str:
        """Return one line with the counts."""
        counts = f"{_count(self.errors, 'error')}, {_count(len(self.rows) - self.errors, 'note')}"
        return f"{counts} in {_count(len(self.reports), 'case')} of {self.path.parent}"

    def manifest(self) -> dict[str, Any]:
        """Return files, hashes, shapes, voxel sizes and all rows, as `--json` writes them."""
        return {
            "dataset": str(self.path.parent),
            "errors": self.errors,
            "findings": [asdict(row) for row in self.rows],
            "cases": [report.manifest() for report in self.reports],
        }


def check_dataset(folder: str | os.PathLike[str]) -> Check:
    """Check `dataset.json`, every file that it names, and all of them together; what is wrong is a row, never raised.

    Files are read by `pipeline.data`, as training and inference read them. Raises `InputError` where there is no
    dataset folder at all; for the folder of another tool, it names the command that imports it.
    """
    path = Path(folder)
    path = path / DATASET_FILE if path.is_dir() else path
    _refuse_other_layout(path.parent)
    if not path.is_file():
        raise InputError(f"no {DATASET_FILE} at {path}; make a dataset folder with python -m data_prep.folder")
    found = Findings(path.parent)
    declared = found.attempt(path, read_declaration, path)
    if declared is None:
        return Check(path, sorted(found.rows), [])
    for problem in declared.problems:
        found.refused(declared.path, problem)
    reports = _read_all(declared)
    _check_together(found, declared, reports)
    _note_gaps(found, declared, reports)
    rows = [*found.rows, *(row for report in reports for row in report.rows)]
    return Check(path, sorted(set(rows)), reports)


def _refuse_other_layout(folder: Path) -> None:
    try:
        layout = layout_of(folder)
    except InputError:  # a dataset.json that cannot be read becomes a row
        return
    if layout is not None:
        raise InputError(f"{folder} is {layout}, no dataset folder yet; import it by: {import_command(folder)}")


def _read_all(declared: Declaration) -> list[CaseReport]:
    """Return the reports of all cases in their order, read by as many threads as processors and memory allow."""
    cases = declared.cases
    with warnings.catch_warnings(), ThreadPoolExecutor(_workers(declared)) as pool:
        # Pillow's reader sets filters of its own for a while, and threads share them: none may stay behind.
        warnings.simplefilter("ignore")
        reports = pool.map(functools.partial(check_case, declared), *zip(*cases, strict=True)) if cases else ()
        return list(tqdm(reports, total=len(cases), desc="reading", unit="case", disable=None))


def _workers(declared: Declaration) -> int:
    sizes = [_size(case.image) for _, case in declared.cases]
    fitting = _MEMORY_BYTES // (_GROWTH * max([1, *sizes]))
    return max(1, min(os.cpu_count() or 1, fitting))


def _size(path: Path) -> int:
    try:
        files = path.iterdir() if path.is_dir() else [path]
        return sum(file.stat().st_size for file in files)
    except (OSError, ValueError):  # the reader says what is wrong with it
        return 0


def _check_together(found: Findings, declared: Declaration, reports: Sequence[CaseReport]) -> None:
    """Find what no case shows alone: repeated ids, patients in two splits, one file or one image for two."""
    for case in repeated_ids(declared.cases):
        found.error(declared.path, f"case {case} is listed twice", "give each scan one id")
    for patient, splits in leaking_patients(declared.cases).items():
        fact = f"patient {patient} is in more than one split: {', '.join(splits)}"
        found.error(declared.path, fact, "move all scans of a patient into one")
    for group in shared_files(declared.cases):
        for case, path in group[1:]:
            first = group[0][1].relative_to(found.folder)
            fact = f"is, in case {case.case}, one file with {first} of case {group[0][0].case}"
            found.error(path, fact, "give each image and each label its own file")
    _check_repeated(found, declared, reports)


def _check_repeated(found: Findings, declared: Declaration, reports: Sequence[CaseReport]) -> None:
    """Find one image under two ids, whatever its format or compression, and one drawn label under two."""
    files = [{path for _, path in group} for group in shared_files(declared.cases)]
    for report, first in _alike((report.content or report.image.get("sha256"), report) for report in reports):
        if not any({report.case.image, first.case.image} <= group for group in files):
            fact = f"holds the same image as case {first.case.case} ({first.split})"
            found.error(report.case.image, f"{fact}, here in {report.split}", "keep one of them")
    for report, first in _alike((report.drawn, report) for report in reports):
        fact = f"holds the same label as case {first.case.case}"
        found.note(report.case.label, fact, "make sure that it was drawn on this image")


def _alike(keyed: Iterable[tuple[str | None, CaseReport]]) -> list[tuple[CaseReport, CaseReport]]:
    """Return every report whose key an earlier one has, with the first of them; None is like nothing."""
    first: dict[str, CaseReport] = {}
    pairs = [(report, first.setdefault(key, report)) for key, report in keyed if key is not None]
    return [(report, other) for report, other in pairs if report is not other]


def _note_gaps(found: Findings, declared: Declaration, reports: Sequence[CaseReport]) -> None:
    """Note splits without cases or without an organ, ids that a file system may confuse, and files without a case."""
    for split in SPLITS:
        mine = [report for report in reports if report.split == split]
        if not mine:
            found.note(declared.path, f"the {split} split has no usable case", "add cases where that step is wanted")
            continue
        seen = frozenset().union(*(report.seen for report in mine))
        for value, organ in (declared.labels or {}).items():
            if value not in seen | {0}:
                remedy = "training cannot learn it" if split == "training" else "it gets no score there"
                found.note(declared.path, f"no case of the {split} split has a {organ}", f"{remedy}; move a case there")
    for key, split in _COUNTS.items():
        listed = declared.content.get(split)
        if key in declared.content and isinstance(listed, list) and declared.content[key] != len(listed):
            fact = f"{key} is {declared.content[key]!r}, but {len(listed)} cases are listed"
            found.note(declared.path, fact, "the list counts")
    _note_similar_ids(found, declared)
    if holds_slides(declared):
        _note_tiles(found, declared, reports)
    _note_unnamed_files(found, declared)


def _note_similar_ids(found: Findings, declared: Declaration) -> None:
    """Note ids of cases or patients that differ in capitals alone: one file on many disks, perhaps one person."""
    for kind in ("case", "patient"):
        spellings: dict[str, set[str]] = defaultdict(set)
        for _, case in declared.cases:
            name = written_alike(getattr(case, kind))
            spellings[name.casefold()].add(name)
        for names in spellings.values():
            if len(names) > 1:
                fact = f"{kind} ids that differ in capitals alone: {', '.join(sorted(names))}"
                found.note(declared.path, fact, "make sure that they are different ones")


def _note_tiles(found: Findings, declared: Declaration, reports: Sequence[CaseReport]) -> None:
    empty = [report.case.case for report in reports if report.label.get("values", {}).keys() == {"0"}]
    if empty:
        fact = f"{_count(len(empty), 'mask')} with nothing but background: {_some(empty)}"
        found.note(declared.path, fact, "none needed if no tissue of a class is there")
    shapes = {tuple(report.image["shape"][:2]) for report in reports if report.split == "training" and report.content}
    if len(shapes) > 1:
        sizes = ", ".join(f"{height} x {width}" for height, width in sorted(shapes)[:_MOST_NAMED])
        fact = f"training tiles of {len(shapes)} sizes: {sizes}"
        found.note(declared.path, fact, "they are resized to one; make sure that they span as much tissue")


def _note_unnamed_files(found: Findings, declared: Declaration) -> None:
    """Note files that lie beside images or labels and belong to no case, in one row a folder."""
    named = {path for _, case in declared.cases for path in (case.image, case.label) if path is not None}
    for folder in sorted({path.parent for path in named if path.parent != found.folder and path.parent.is_dir()}):
        others = sorted(path.name for path in folder.iterdir() if path not in named and not path.name.startswith("."))
        if others:
            found.note(
                folder,
                f"{_count(len(others), 'file')} of no usable case: {_some(others)}",
                "add them to dataset.json if meant",
            )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST_NAMED]) + (", …" if len(names) > _MOST_NAMED else "")


def _check_target(target: str, check: Check) -> None:
    """Refuse to write the manifest over `dataset.json` or a file of a case."""
    inputs = [check.path]
    inputs += [path for report in check.reports for path in (report.case.image, report.case.label) if path is not None]
    if os.path.realpath(target) in {os.path.realpath(path) for path in inputs}:
        raise InputError(f"--json {target} would overwrite a file of the dataset; choose another name")


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    command = CommandLine(prog="python -m data_prep.check", description=__doc__.split("\n")[0])
    command.add_argument("dataset", metavar="DATASET", help="a dataset folder, or its dataset.json")
    command.add_argument("--json", metavar="FILE", help="write files, hashes, shapes, voxel sizes and findings there")
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line: the table on stdout, exit code 0 with notes alone and 2 with errors."""
    given = parser().parse_args(arguments)
    check = check_dataset(given.dataset)
    if check.rows:
        print(table(check.rows))
    print(check.summary())
    if given.json is not None:
        _check_target(given.json, check)
        write_json(given.json, check.manifest())
    return BAD_INPUT if check.errors else 0


if __name__ == "__main__":
    run_command(main)
