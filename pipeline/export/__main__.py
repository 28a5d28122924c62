# SPDX-License-Identifier: Apache-2.0
"""Export a trained network to ONNX, OpenVINO, torch or a MONAI bundle; it is checked to segment alike."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.command_line import CommandLine
from pipeline.errors import InputError, run_command
from pipeline.export.file_kinds import BUNDLE, FILE_KINDS, INT8_FORMATS, check_packages

if TYPE_CHECKING:
    from pipeline.export.parity import Agreement
    from pipeline.export.samples import SampleFile
    from pipeline.networks import SavedModel

    _Export = tuple[str, Callable[[], Agreement]]

REFUSED = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Export what the command line names: 0 when it is written, 1 when its masks differ from torch's."""
    options = parser().parse_args(arguments)
    _check_options(options)
    return _export(options)


def _export(options: argparse.Namespace) -> int:
    """Do it; what brings torch is imported here, so that --help and errors of options need not wait for it."""
    from pipeline.export.parity import ParityError
    from pipeline.export.samples import sample_files
    from pipeline.networks import load_model

    model = load_model(options.model)
    files = sample_files(model, options.slices)
    shown, export = (_bundle_export if options.format == BUNDLE else _file_export)(options, model, files)
    try:
        found = export()
    except ParityError as error:
        print(f"error: {error} on {shown}; nothing is written", file=sys.stderr)
        return REFUSED
    print("\n".join([f"agreement with torch on {shown}:", *found.lines()]))
    print(_told(options))
    return 0


def _file_export(options: argparse.Namespace, model: SavedModel, files: list[SampleFile]) -> _Export:
    """Return what one of `FILE_KINDS` will be compared on, in words, and what writes it."""
    from pipeline.export.exporting import export_network
    from pipeline.export.parity import smooth_images
    from pipeline.export.samples import Samples, samples_of

    samples = samples_of(model, files) if files else Samples(smooth_images(model))
    count = len(samples.images)
    shown = f"{count} images of {options.slices}" if files else f"{count} smooth random images (no --slices)"
    return shown, lambda: export_network(model, Path(options.output), options.format, samples, options.int8)


def _bundle_export(options: argparse.Namespace, model: SavedModel, files: list[SampleFile]) -> _Export:
    """Return what a bundle will be compared on, in words, and what writes it."""
    from pipeline.export.bundle import write_bundle
    from pipeline.export.bundle_parity import MOST_COMPARED, made_up_image
    from pipeline.export.samples import spread

    report = None if options.report is None else Path(options.report)
    images = [files[index].image for index in spread(len(files), MOST_COMPARED)]
    noun = "scan" if model.tile_px is None else "picture"
    shown = f"{len(images)} of {len(files)} {noun}s of {options.slices}" if files else f"a made-up {noun} (no --slices)"

    def export() -> Agreement:
        """Write the bundle; a made-up image is on disk while it is compared."""
        with tempfile.TemporaryDirectory() as folder:
            compared = images or [made_up_image(model, Path(folder))]
            return write_bundle(model, Path(options.output), compared, report)

    return shown, export


def _told(options: argparse.Namespace) -> str:
    """Return what has been written, in a line."""
    if options.format == BUNDLE:
        return f"{options.output}: a MONAI bundle that runs without this project; docs/README.md in it says how"
    exported, own = (_megabytes(Path(path)) for path in (options.output, options.model))
    return f"{options.output}: {exported:.2f} MB, {options.model} has {own:.2f} MB"


def _check_options(options: argparse.Namespace) -> None:
    """Refuse, before anything is loaded, what cannot be written."""
    if options.int8 and options.format not in INT8_FORMATS:
        raise InputError(f"--int8 is for {' and '.join(INT8_FORMATS)}, not {options.format}; leave it out")
    if options.int8 and options.slices is None:
        raise InputError("--int8 is calibrated on training images; give some by --slices")
    if options.format == BUNDLE:
        return
    if options.report is not None:
        raise InputError(f"--report is for the model card of a {BUNDLE}, not {options.format}; leave it out")
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
    command.add_argument("output", metavar="OUTPUT", help=f"the file ({suffixes}); of a bundle a new folder or .zip")
    command.add_argument("--format", required=True, choices=(*FILE_KINDS, BUNDLE))
    command.add_argument("--int8", action="store_true", help="8-bit weights and activations (onnx, openvino)")
    command.add_argument(
        "--slices",
        metavar="SCAN_OR_FOLDER",
        help="training scans, pictures of tiles, or a dataset folder, whose labels then judge --int8; the export is "
        "compared on up to 64 images of them, a bundle on up to 3 files; without them on made-up images",
    )
    command.add_argument("--report", metavar="RUN/report", help="of a bundle: evaluation whose figures its card has")
    return command


if __name__ == "__main__":
    run_command(main)
