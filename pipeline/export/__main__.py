# SPDX-License-Identifier: Apache-2.0
"""Export a trained network for other runtimes; nothing is written unless the export segments as the network does."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from pipeline.errors import InputError, run_command
from pipeline.export.description import describe_model
from pipeline.export.formats import FORMATS, check_packages
from pipeline.export.int8 import INT8_FORMATS, write_int8
from pipeline.export.parity import Agreement, ParityError, agreement, check_parity, smooth_images
from pipeline.export.samples import Samples, sample_files, samples_of
from pipeline.files.atomic import replace_when_complete
from pipeline.networks import SavedModel, load_model

BUNDLE = "bundle"
REFUSED = 1
_ONNX = "onnx"


def main(arguments: Sequence[str] | None = None) -> int:
    """Export what the command line names: 0 when it is written, 1 when its masks differ from torch's."""
    options = _parser().parse_args(arguments)
    _check_options(options)
    model, destination = load_model(options.model), Path(options.output)
    files = sample_files(model, options.slices)
    if options.format == BUNDLE:
        from pipeline.export.bundle import write_bundle

        write_bundle(model, destination, [file.image for file in files])
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


def export_network(model: SavedModel, destination: Path, name: str, samples: Samples, int8: bool = False) -> Agreement:
    """Write a network in the format `name` of `FORMATS`, whole or not at all; return how far it agrees with torch.

    Args:
        model: on the CPU.
        destination: the file; OpenVINO has its weights in a `.bin` beside it.
        name: a key of `FORMATS`.
        samples: to compare on; for `int8` to calibrate on, too.
        int8: round weights and activations to 8 bits.

    Raises:
        InputError: a network that cannot be exported, a folder that cannot be written.
        ParityError: masks that differ from torch's; nothing is written then.
    """
    kind, description = FORMATS[name], describe_model(model, int8)
    write: Callable[[Path], None] = lambda path: kind.write(model.network, description, path)  # noqa: E731
    if int8:
        write = lambda path: write_int8(model.network, description, samples.images, path)  # noqa: E731
    with ExitStack() as stack:
        temporary = stack.enter_context(replace_when_complete(destination))
        if name == "openvino":  # OpenVINO names the weights after the file; they are renamed first
            stack.enter_context(replace_when_complete(destination.with_suffix(".bin")))
        write(temporary)
        found = agreement(model.network, kind.run(temporary), samples.images, model.labels, samples.truth)
        check_parity(found, int8)
    return found


def _check_options(options: argparse.Namespace) -> None:
    """Refuse, before anything is loaded, what cannot be written."""
    if options.int8 and options.format not in INT8_FORMATS:
        raise InputError(f"--int8 is for {' and '.join(INT8_FORMATS)}, not {options.format}; leave it out")
    if options.int8 and options.slices is None:
        raise InputError("--int8 is calibrated on training images; give some by --slices")
    if options.format == BUNDLE:
        return
    suffix = FORMATS[options.format].suffix
    if Path(options.output).suffix != suffix:
        raise InputError(f"{options.format} files are named {suffix}; rename the output {options.output}")
    if os.path.realpath(options.output) == os.path.realpath(options.model):
        raise InputError(f"{options.output} is the model itself; choose another output")
    check_packages(FORMATS[options.format].packages)
    if options.int8:
        check_packages(FORMATS[_ONNX].packages)


def _megabytes(path: Path) -> float:
    files = [path, path.with_suffix(".bin")] if path.suffix == FORMATS["openvino"].suffix else [path]
    return sum(file.stat().st_size for file in files) / 1e6


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipeline.export", description=__doc__)
    parser.add_argument("model", metavar="MODEL", help="model.pt of a training or distillation run")
    suffixes = ", ".join(kind.suffix for kind in FORMATS.values())
    parser.add_argument("output", metavar="OUTPUT", help=f"the file ({suffixes}); of a bundle the folder")
    parser.add_argument("--format", required=True, choices=(*FORMATS, BUNDLE))
    parser.add_argument("--int8", action="store_true", help="8-bit weights and activations (onnx, openvino)")
    parser.add_argument(
        "--slices",
        metavar="SCAN_OR_FOLDER",
        help="training scans, pictures of tiles, or a dataset folder, whose labels then judge --int8",
    )
    return parser


if __name__ == "__main__":
    run_command(main)
