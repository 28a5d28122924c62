# SPDX-License-Identifier: Apache-2.0
"""Writes docs/options.md, the table of all options of configs and commands: `python docs/write_options.py`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pipeline.commands import commands_of  # noqa: E402
from pipeline.options import as_table, command_options, config_options  # noqa: E402

_BUNDLES = {"synapse": "scans", "gastric": "slides"}
_CONFIGS = ("train", "paraphrase", "distill", "volumes", "evaluate", "inference", "benchmark")
_HEAD = """# Options

This page is made from the code: `python docs/write_options.py`. The same list in a terminal:
`python -m pipeline options bundles/synapse/configs/train.yaml`.

## Configs

Options of `python -m monai.bundle run --config_file CONFIG`, typed as `--name value`. A config that changes another one
(`distill.yaml` changes `train.yaml`) has the options of that too; its table lists what it adds or sets anew.
An empty default is None.
"""


def page() -> str:
    """Return the page as Markdown."""
    parts = [_HEAD]
    for bundle, what in _BUNDLES.items():
        for name in _CONFIGS:
            file = ROOT / "bundles" / bundle / "configs" / f"{name}.yaml"
            if file.is_file():
                parts.append(f"### {bundle}/{name}.yaml ({what})\n\n{as_table(config_options([file]))}\n")
    parts.append("## Commands\n")
    for command, sentence in (commands_of(ROOT / "data_prep") | commands_of(ROOT / "pipeline")).items():
        options = command_options(_module(command).parser())
        table = as_table(options) if options else "No options."
        parts.append(f"### python -m {command}\n\n{sentence}\n\n{table}\n")
    return "\n".join(parts)


def _module(command: str) -> object:
    """Return the module with a command's `parser`."""
    package = (ROOT / Path(*command.split("."))).is_dir()
    return importlib.import_module(f"{command}.__main__" if package else command)


if __name__ == "__main__":
    (ROOT / "docs" / "options.md").write_text(page(), encoding="utf-8")
