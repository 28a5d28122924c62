# SPDX-License-Identifier: Apache-2.0
"""Draw cases in one picture: a row for each case, columns for the image, the label and each method's prediction.

Scans and slides alike: `dataset.json` tells which they are.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pipeline.command_line import CommandLine
from pipeline.errors import InputError, run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the comparison that the command line asks for."""
    options = parser().parse_args(arguments)
    predictions = {}
    for pair in options.predictions:
        name, equals, folder = pair.partition("=")
        if not equals or not Path(folder).is_dir():
            raise InputError(f"--predictions {pair}: give NAME=DIR with an existing folder")
        if name in predictions:
            raise InputError(f"--predictions names {name} twice; give each method a name of its own")
        predictions[name] = Path(folder)
    from pipeline.comparison.pictures.case_rows import comparison_figure, save_figure  # --help must not wait for them
    from pipeline.data import load_dataset

    cases = options.cases.split(",") if options.cases else None
    save_figure(comparison_figure(load_dataset(options.dataset), predictions, options.split, cases), options.output)
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    command = CommandLine(prog="python -m pipeline.comparison.figures", description=__doc__)
    command.add_argument("--dataset", required=True, help="folder with a dataset.json")
    command.add_argument(
        "--predictions", required=True, nargs="+", metavar="NAME=DIR", help="label maps of each method"
    )
    command.add_argument("--split", default="test", help="training, validation or test (default %(default)s)")
    command.add_argument("--cases", help="names separated by commas; all by default")
    command.add_argument("--output", required=True, help="PNG, SVG or PDF file")
    return command


if __name__ == "__main__":
    run_command(main)
