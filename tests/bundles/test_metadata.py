# SPDX-License-Identifier: Apache-2.0
"""What every bundle declares: metadata that verify, pinned versions, targets that can be imported."""

from __future__ import annotations

import json
from ast import literal_eval
from pathlib import Path

import jsonschema
import pytest
from monai.bundle import ComponentLocator, ConfigParser
from monai.utils import optional_import
from packaging.requirements import Requirement

from tests.bundles.bundle_commands import ROOT, config_files

pytestmark = pytest.mark.usefixtures("in_repository_root")
BUNDLES = ("synapse", "gastric")
CONFIGS = ("train", "paraphrase", "distill", "evaluate", "inference", "multi_gpu")
SCHEMA = json.loads((ROOT / "bundles/metadata_schema.json").read_text())


def metadata_of(bundle: str) -> dict:
    return json.loads(Path(f"bundles/{bundle}/configs/metadata.json").read_text())


@pytest.mark.parametrize("bundle", BUNDLES)
def test_metadata_fits_the_schema_in_the_tree(bundle):
    jsonschema.validate(metadata_of(bundle), SCHEMA)


def test_schema_refuses_metadata_without_a_version():
    metadata = metadata_of("synapse")
    del metadata["version"]
    with pytest.raises(jsonschema.ValidationError, match="version"):
        jsonschema.validate(metadata, SCHEMA)


@pytest.mark.parametrize("bundle", BUNDLES)
def test_metadata_names_the_pinned_versions(bundle):
    metadata = metadata_of(bundle)
    lines = (line.partition("#")[0].strip() for line in Path("requirements.txt").read_text().splitlines())
    pinned = [Requirement(line) for line in lines if line]
    newest = [pin for pin in pinned if pin.marker is None or pin.marker.evaluate({"python_version": "3.11"})]
    pins = {pin.name: str(pin.specifier).removeprefix("==") for pin in newest}
    assert metadata["monai_version"] == pins["monai"]
    assert metadata["pytorch_version"] == pins["torch"]
    assert metadata["numpy_version"] == pins["numpy"]
    for name, version in metadata["required_packages_version"].items():
        assert pins[name] == version


@pytest.mark.parametrize("bundle", BUNDLES)
@pytest.mark.parametrize("config", CONFIGS)
def test_every_target_can_be_imported(bundle, config):
    parser = ConfigParser(ConfigParser.load_config_files(literal_eval(config_files(bundle, config))))
    locator, pending = ComponentLocator(), [parser.config]
    targets = set()
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            assert not item.startswith("%"), f"{item} is a macro, which names a file by its path from one directory"
        elif isinstance(item, dict):
            targets.update([item["_target_"]] if "_target_" in item else [])
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
    assert targets
    for target in targets:
        module, _, name = target.rpartition(".")
        found = optional_import(module, name=name)[1] if module else bool(locator.get_component_module_name(target))
        assert found, target


# What volumes.yaml needs of paraphrase.yaml: slides have no third axis.
OF_VOLUMES = ('  patches_per_volume: "@patches_per_volume"\n', ', spatial_dims: "@spatial_dims"')


@pytest.mark.parametrize("config", ["logging.conf", "multi_gpu.yaml", "benchmark.yaml", "paraphrase.yaml"])
def test_what_both_bundles_say_alike_is_a_file_of_each(config):
    files = [Path(f"bundles/{bundle}/configs/{config}") for bundle in BUNDLES]
    assert not any(file.is_symlink() for file in files)
    scans, slides = (file.read_text() for file in files)
    if config == "paraphrase.yaml":
        for option in OF_VOLUMES:
            assert option in scans
            scans = scans.replace(option, "")
    assert scans == slides
