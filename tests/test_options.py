# SPDX-License-Identifier: Apache-2.0
"""Options of configs and commands: default and comment as they stand in the file, and the page that lists them all."""

from __future__ import annotations

import argparse
import runpy
from pathlib import Path

import pytest

from pipeline.__main__ import main
from pipeline.errors import InputError
from pipeline.options import Option, as_table, as_text, command_options, config_files, config_options

ROOT = Path(__file__).resolve().parents[1]
BASE = """# What it is.

# --- what users set ---
size: 224                     # side in pixels
rate: 3.0e-4                  # it decays,
                              # to zero
name: "a # b"
device: "$pick()"             # the fastest
output: "@size"
# Terms of the loss.
terms:
  kd: {weight: 1.0}

# --- what is built from it ---
hidden: 1                     # not an option
"""
OVERLAY = """overlay_of: base.yaml
# --- what users set ---
size: 96
extra: [1, 2]                 # of its own
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "overlay.yaml").write_text(OVERLAY)
    return tmp_path


def test_first_block_by_hand(folder):
    assert config_options([folder / "base.yaml"]) == [
        Option("--size", "224", "side in pixels"),
        Option("--rate", "0.0003", "it decays, to zero"),
        Option("--name", "a # b", ""),
        Option("--device", "computed", "the fastest"),
        Option("--output", "that of --size", ""),
        Option("--terms", "{'kd': {'weight': 1.0}}", "Terms of the loss."),
    ]


def test_an_overlay_brings_the_file_that_it_changes_and_sets_its_defaults(folder):
    files = config_files([str(folder / "overlay.yaml")])
    assert files == [folder / "base.yaml", folder / "overlay.yaml"]
    options = {option.name: option for option in config_options(files)}
    assert options["--size"] == Option("--size", "96", "side in pixels")
    assert options["--extra"] == Option("--extra", "[1, 2]", "of its own")


def test_files_as_config_file_takes_them(folder):
    both = [folder / "base.yaml", folder / "overlay.yaml"]
    base, overlay = map(str, both)
    for given in ([base, overlay], [f"{base},{overlay}"], [f"['{base}','{overlay}']"]):
        assert config_files(given) == both


def test_options_of_a_command_by_hand():
    parser = argparse.ArgumentParser()
    parser.add_argument("scan", metavar="SCAN", help="a file")
    parser.add_argument("--seed", type=int, default=3, help="of draws (default %(default)s)")
    parser.add_argument("--kind", choices=("a", "b"), required=True)
    assert command_options(parser) == [
        Option("SCAN", "", "a file; required"),
        Option("--seed", "3", "of draws (default 3)"),
        Option("--kind", "", "a or b; required"),
    ]


def test_text_and_table():
    options = [Option("--a", "1", "x | y"), Option("--long", "", "z")]
    assert as_text(options).splitlines() == ["--a     1  x | y", "--long     z"]
    assert as_table(options).splitlines()[2:] == ["| `--a` | `1` | x \\| y |", "| `--long` |  | z |"]


def test_a_missing_config_is_one_line_that_names_those_that_are_there(folder):
    with pytest.raises(InputError, match=r"cannot read .*tarin.yaml: No such file.*holds base.yaml, overlay.yaml"):
        main(["options", str(folder / "tarin.yaml")])


@pytest.mark.parametrize(
    ("text", "message"), [("a: [", "no YAML file"), ("- 1", "holds no keys"), ("a: 1", "no block of")]
)
def test_files_that_are_no_configs(tmp_path, text, message):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        main(["options", str(tmp_path / "a.yaml")])


@pytest.mark.parametrize("bundle", ["synapse", "gastric"])
def test_every_option_of_the_bundles_has_a_meaning(bundle):
    for file in (ROOT / "bundles" / bundle / "configs").glob("*.yaml"):
        if "what users set" in file.read_text():
            options = config_options(config_files([str(file)]))
            assert [option.name for option in options if not option.meaning] == [], file


def test_the_page_of_all_options_is_that_of_the_code():
    page = runpy.run_path(str(ROOT / "docs" / "write_options.py"))["page"]
    assert (ROOT / "docs" / "options.md").read_text(encoding="utf-8") == page(), "run python docs/write_options.py"
