# SPDX-License-Identifier: Apache-2.0
"""Compare finished runs by their reports: teacher, students alone and with each method, on one page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pipeline.command_line import CommandLine
from pipeline.errors import InputError, run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare the runs that the command line names; returns exit code 0."""
    options = parser().parse_args(arguments)
    from pipeline.comparison.write import CSV_FILE, write_comparison  # brings torch; --help must not wait for it

    if (Path(options.output) / CSV_FILE).exists() and not options.overwrite:
        raise InputError(f"{options.output} holds a comparison already: choose another folder, or pass --overwrite")
    write_comparison(options.runs, options.output, options.dataset, options.title)
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    command = CommandLine(prog="python -m pipeline.comparison", description=__doc__)
    command.add_argument("runs", nargs="+", metavar="RUN", help="run folder with its report in RUN/report")
    command.add_argument("--output", required=True, metavar="DIR", help="folder for tables, page and figures")
    command.add_argument("--dataset", metavar="DIR", help="dataset folder of the reports, for pictures of cases")
    command.add_argument("--title", help="title of the page; the dataset and the number of cases by default")
    command.add_argument("--overwrite", action="store_true", help="replace a comparison that DIR holds")
    return command


if __name__ == "__main__":
    run_command(main)
