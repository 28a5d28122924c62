# SPDX-License-Identifier: Apache-2.0
"""`python -m pipeline.check_config FILE ...`: what the configs would run beyond the allow-list, one line each."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pipeline.check_config import find_in_each
from pipeline.errors import BAD_INPUT, run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Print every finding as `FILE: key: what`; return 2 where there are any, else 0.

    Each file is looked at by itself, so that none hides another's values; a name may be imported in any of them.
    """
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.check_config",
        description="List what a bundle config would run beyond what training and measuring need; nothing is run.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="YAML or JSON, as for --config_file")
    files = parser.parse_args(arguments).files
    found = find_in_each(files)
    for finding in found:
        print(finding)
    print(f"{len(files)} files, {len(found)} findings", file=sys.stderr)
    return BAD_INPUT if found else 0


if __name__ == "__main__":
    run_command(main)
