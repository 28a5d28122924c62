# SPDX-License-Identifier: Apache-2.0
"""Lists the converters and the check: `python -m data_prep`."""

from __future__ import annotations

from pathlib import Path

from pipeline.commands import commands_of, listed
from pipeline.errors import run_command


def main() -> int:
    """Print one line a converter."""
    print("Converters into dataset folders, and their check; python -m data_prep.NAME --help says more.\n")
    print(listed(commands_of(Path(__file__).parent)))
    return 0


if __name__ == "__main__":
    run_command(main)
