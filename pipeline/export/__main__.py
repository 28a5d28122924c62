# SPDX-License-Identifier: Apache-2.0
"""Export a trained network to ONNX, OpenVINO, torch or a MONAI bundle; it is checked to segment alike."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.command_line import CommandLine
from pipeline.errors import InputError, run_command
from pipeline.export.file_kinds import BUNDLE, FILE_KINDS, INT8_FORMATS, check_packages

REFUSED = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Export what the command line names: 0 when it is written, 1 when its masks differ from torch's."""
    options = parser().parse_args(arguments)
    _check_options(options)
    return _export(options)


def _export(options: argparse.Namespace) -> int:
    """Do it; what brings torch is imported here, so that --help and errors of options need not wait for it."""
    from pipeline.export.exporting import export_network
    from pipeline.export.parity import ParityError, smooth_images
    from pipeline.export.samples import Samples, sample_files, samples_of
    from pipeline.networks import load_model

    model, destination = load_model(options.model), Path(options.output)
    files = sample_files(model, options.slices)
    if options.format == BUNDLE:
        from pipeline.export.bundle import write_bundle

        write_bundle(model, destination, [file.image for file in files])
        print(f"{destination}: a MONAI bundle that runs without this project; docs/README.md in it says how")
        return 0
    samples = samples_of(model, files) if files else Samples(smooth_images(model))
    count = len(samples.images)
    shown = f"{count} images of {options.slices}" if files else f"{count} smooth random images (no --slices)"
    try:
        found = export_network(model, destination, options.format, samples, options.int8)
    except ParityError as error:
        print(f"error: {error} on {shown}; nothing is written", file=sys.stderr)
        return REFUSED
    print("\n".join([f"agreement with torch on {shown}:", *found.lines()]))
    print(f"{destination}: {_megabytes(destination):.2f} MB, {options.model} has {_megabytes(model.path):.2f} MB")
    return 0


def _check_options(options: argparse.Namespace) -> None:
    """Refuse, before anything is loaded, what cannot be written."""
    if options.int8 and options.format not in INT8_FORMATS:
        raise InputError(f"--int8 is for {' and '.join(INT8_FORMATS)}, not {options.format}; leave it out")
    if options.int8 and options.slices is None:
        raise InputError("--int8 is calibrated on training images; give some by --slices")
    if options.format == BUNDLE:
        return
    suffix = FILE_KINDS[options.format].suffix
    if Path(options.output).suffix != suffix:
        raise InputError(f"{options.format} files are named {suffix}; rename the output {options.output}")
    if os.path.realpath(options.output) == os.path.realpath(options.model):
        raise InputError(f"{options.output} is the model itself; choose another output")
    check_packages(FILE_KINDS[options.format].packages)
    if options.int8:
        check_packages(FILE_KINDS["onnx"].packages)


def _megabytes(path: Path) -> float:
    files = [path, path.with_suffix(".bin")] if path.suffix == FILE_KINDS["openvino"].suffix else [path]
    return sum(file.stat().st_size for file in files) / 1e6


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    command = CommandLine(prog="python -m pipeline.export", description=__doc__)
    command.add_argument("model", metavar="MODEL", help="model.pt of a training or distillation run")
    suffixes = ", ".join(kind.suffix for kind in FILE_KINDS.values())
    command.add_argument("output", metavar="OUTPUT", help=f"the file ({suffixes}); of a bundle the folder")
    command.add_argument("--format", required=True, choices=(*FILE_KINDS, BUNDLE))
    command.add_argument("--int8", action="store_true", help="8-bit weights and activations (onnx, openvino)")
    command.add_argument(
        "--slices",
        metavar="SCAN_OR_FOLDER",
        help="training scans, pictures of tiles, or a dataset folder, whose labels then judge --int8",
    )
    return command


if __name__ == "__main__":
    run_command(main)
