# SPDX-License-Identifier: Apache-2.0
"""Segment scans with an exported student, without torch and MONAI: a file, a folder or a DICOM series."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.command_line import CommandLine
from pipeline.data.dataset.intensity import doubt_modality
from pipeline.data.scans.formats import scan_suffix
from pipeline.data.scans.volumes import Volume, read_volume, write_label_map
from pipeline.errors import BAD_INPUT, InputError, run_command
from pipeline.files.read_ahead import ReadAhead
from pipeline.inference.scans.scan_files import find_scans
from pipeline.inference.sources import Source
from pipeline.runtimes.runners import AUTO, RUNTIMES, Student, load_student
from pipeline.segment.slicewise import check_segments_scans, segment_volume, warm_up

SUFFIX = ".nii.gz"


def main(arguments: Sequence[str] | None = None) -> int:
    """Segment what the command line names; 0 when all went well, 1 when some scans of a folder failed, 2 when all."""
    options = parser().parse_args(arguments)
    outputs = outputs_of(options.scan, Path(options.output))
    _check_outputs(outputs, options.overwrite)
    student = load_student(Path(options.student), options.backend)
    check_segments_scans(student.description)
    volumes = ReadAhead(read_volume, [source.path for source, _ in outputs])
    warm_up(student)  # while the first scan is read
    failed = 0
    for source, output in outputs:
        try:
            _segment_next(volumes, source.case, output, student)
        except InputError as error:
            if len(outputs) == 1:
                raise
            failed += 1
            print(f"{source.case} skipped: {error}", file=sys.stderr)
    if not failed:
        return 0
    print(f"{failed} of {len(outputs)} scans failed", file=sys.stderr)
    return 1 if failed < len(outputs) else BAD_INPUT


def outputs_of(scan: str, output: Path) -> list[tuple[Source, Path]]:
    """Return each scan with the file for its labels.

    One scan goes to a file named `.nii.gz`; a folder of scans, or a DICOM series, to a folder that gets CASE.nii.gz for
    each. Raises `InputError` for what is missing or named otherwise.
    """
    sources = find_scans(scan)
    single = len(sources) == 1 and sources[0].path == Path(scan)
    if output.name.endswith(SUFFIX):
        if not single:
            raise InputError(f"{scan} is a folder of scans; give a folder as output, not {output}")
        return [(sources[0], output)]
    if scan_suffix(scan) is not None:
        raise InputError(f"label maps are written as {SUFFIX}; rename the output {output}")
    if output.is_file():
        raise InputError(f"{output} is a file; give a folder as output")
    return [(source, output / f"{source.case}{SUFFIX}") for source in sources]


def _check_outputs(outputs: Sequence[tuple[Source, Path]], overwrite: bool) -> None:
    """Refuse, before the long run, outputs that are there already or that are a scan."""
    scans = {os.path.realpath(source.path) for source, _ in outputs}
    for _, output in outputs:
        if os.path.realpath(output) in scans:
            raise InputError(f"{output} is an input and would be overwritten; choose another output")
        if output.exists() and not overwrite:
            raise InputError(f"{output} exists; choose another output, or add --overwrite")


def _segment_next(volumes: Iterator[Volume], case: str, output: Path, student: Student) -> None:
    started = time.perf_counter()
    volume = next(volumes)
    write_label_map(output, segment_volume(volume, student), volume)
    doubt = doubt_modality(student.description.modality, float(volume.array.min()), float(volume.array.max()))
    for note in (*volume.notes, *([doubt] if doubt else [])):
        print(f"{case}: {note}", file=sys.stderr)
    print(f"{case}: {time.perf_counter() - started:.1f} s by {student.backend}, {output}", flush=True)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    command = CommandLine(prog="python -m pipeline.segment", description=__doc__)
    command.add_argument(
        "student", metavar="STUDENT", help=".onnx or OpenVINO .xml that python -m pipeline.export wrote"
    )
    command.add_argument("scan", metavar="SCAN", help="a scan, a folder of scans, or a folder with one DICOM series")
    command.add_argument("output", metavar="OUTPUT", help="a .nii.gz for one scan, a folder for a folder")
    command.add_argument("--backend", choices=(AUTO, *RUNTIMES), default=AUTO, help="by default the fastest installed")
    command.add_argument("--overwrite", action="store_true", help="replace label maps that are there already")
    return command


if __name__ == "__main__":
    run_command(main)
