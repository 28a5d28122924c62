# SPDX-License-Identifier: Apache-2.0
"""List the methods of distillation, by the names that `--method` takes, with their settings."""

from __future__ import annotations

import argparse
import inspect
from dataclasses import asdict
from typing import Any

from pipeline.command_line import CommandLine
from pipeline.errors import run_command

# Modules that bring torch are imported where they are used: --help must not wait for them.


def describe(name: str) -> str:
    """Return a method's name, what it does in one sentence, and its settings with their defaults."""
    from pipeline.distillation import catalogue
    from pipeline.distillation.methods.graph_flow_preset import PRESETS
    from pipeline.distillation.terms import settings_of

    builder = catalogue.METHODS[name]
    settings: dict[str, Any] = settings_of(builder)
    if name == "graph_flow":
        settings |= asdict(PRESETS[settings["preset"]])
    documented = builder if inspect.getmodule(builder) is catalogue else inspect.getmodule(builder)
    sentence = inspect.getdoc(documented).partition("\n")[0]
    listed = ", ".join(f"{setting}={default!r}" for setting, default in settings.items())
    return f"{name}\n    {sentence}\n    {listed}"


def main() -> int:
    """Print all methods; return 0."""
    parser().parse_args()
    from pipeline.distillation.catalogue import METHODS

    for name in METHODS:
        print(describe(name))
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the command line, which has no option."""
    return CommandLine(prog="python -m pipeline.distillation", description=__doc__)


if __name__ == "__main__":
    run_command(main)
