# SPDX-License-Identifier: Apache-2.0
"""List the networks; or, of one, what it costs and where it can be tapped for distillation."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pipeline.command_line import CommandLine
from pipeline.errors import run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what is asked for and return 0; raise `InputError` for a network that cannot be built."""
    options = parser().parse_args(arguments)
    from pipeline.networks.overview import overview  # brings torch; --help must not wait for it

    print("\n".join(overview(options)))
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    command = CommandLine(prog="python -m pipeline.networks", description=__doc__)
    command.add_argument(
        "name", nargs="?", metavar="NAME", help="a network or a model.pt; without it, names are listed"
    )
    command.add_argument("--taps", action="store_true", help="list the blocks whose feature maps can be compared")
    command.add_argument("--all", action="store_true", help="as --taps, with the single layers inside of blocks")
    command.add_argument("--size", type=int, metavar="N", help="side of the image, by default 224 or the file's")
    command.add_argument("--in_channels", type=int, metavar="N", help="channels of the image, by default 1")
    command.add_argument("--out_channels", type=int, metavar="N", help="classes with the background, by default 9")
    command.add_argument("--options", metavar="DICT", help="options of the network, such as \"{'width': 0.25}\"")
    return command


if __name__ == "__main__":
    run_command(main)
