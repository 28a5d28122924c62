# SPDX-License-Identifier: Apache-2.0
"""The list of commands: `python -m pipeline`; the options of a config: `python -m pipeline options CONFIG ...`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pipeline.command_line import CommandLine
from pipeline.commands import commands_of, listed
from pipeline.errors import run_command
from pipeline.options import as_text, config_files, config_options

_ROOT = Path(__file__).resolve().parents[1]
# In the order in which they are used; files are those of a bundle's configs/.
_CONFIGS = {
    "train.yaml": "train one network: the teacher, or a student alone",
    "train.yaml, paraphrase.yaml": "train the paraphrasers that Graph Flow needs",
    "train.yaml, distill.yaml": "train a student under a teacher",
    "train.yaml, evaluate.yaml": "score a model on the test split",
    "inference.yaml": "segment scans or slides",
    "benchmark.yaml": "train and compare a whole grid of students and methods",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the list, or the options of configs; returns exit code 0."""
    command = parser()
    given = command.parse_args(arguments)
    if given.command is None:
        command.print_help()
        return 0
    files = config_files(given.config)
    names = ", ".join(file.name for file in files)
    print(f"Options of {names}, typed as --name value; a default that is empty is None.\n")
    print(as_text(config_options(files)))
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the command line, whose description is the list."""
    command = CommandLine(
        prog="python -m pipeline",
        usage="python -m pipeline [options CONFIG ...]",
        description=_overview(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parts = command.add_subparsers(dest="command", metavar="options CONFIG ...", title="options of a config")
    options = parts.add_parser("options", help="lists the options of a config, with default and meaning")
    options.add_argument(
        "config", nargs="+", metavar="CONFIG", help="a config of a bundle; the file that it changes is found beside it"
    )
    return command


def _overview() -> str:
    width = max(map(len, _CONFIGS))
    configs = "\n".join(f"  {files:<{width}}  {what}" for files, what in _CONFIGS.items())
    data_prep = _ROOT / "data_prep"
    return "\n".join(
        [
            "Train, distill, evaluate and segment by configs of bundles/synapse (scans) or bundles/gastric (slides):",
            "python -m monai.bundle run --config_file FILE --option value; several files as \"['A.yaml','B.yaml']\"\n",
            configs,
            "\nEverything else; --help says more:\n",
            listed(commands_of(_ROOT / "pipeline") | (commands_of(data_prep) if data_prep.is_dir() else {})),
        ]
    )


if __name__ == "__main__":
    run_command(main)
