# SPDX-License-Identifier: Apache-2.0
"""Grids as a bundle's configs plan them, without a training."""

from __future__ import annotations

from monai.bundle import ConfigParser

from pipeline.grid import Grid
from tests.bundles.bundle_commands import ROOT


def grid_of(bundle: str, names: list[str], **given: object) -> Grid:
    """Return the grid of a bundle's configs, given one after the other, with these options."""
    configs = ROOT / "bundles" / bundle / "configs"
    parser = ConfigParser(ConfigParser.load_config_files([str(configs / f"{name}.yaml") for name in names]))
    for key, value in ({"dataset_dir": "D", "run_dir": "R", "bundle_root": str(configs.parent)} | given).items():
        parser[key] = value
    return parser.get_parsed_content("grid")
