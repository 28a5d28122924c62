# SPDX-License-Identifier: Apache-2.0
"""MONAI's own checks of a bundle: properties of its workflows, and what its networks take and give."""

from __future__ import annotations

from ast import literal_eval
from pathlib import Path

from monai.bundle import create_workflow, verify_net_in_out

from tests.bundles.bundle_commands import config_files

WORKFLOWS = {"train": "train", "paraphrase": "train", "distill": "train", "evaluate": "infer", "inference": "infer"}


def missing_properties(bundle: str, config: str, dataset_dir: Path, checkpoint: Path, folder: Path) -> list[str]:
    """Return the properties that MONAI asks of a workflow of this kind and does not find in the config."""
    values = {
        "train": {"network": "enet"},
        "paraphrase": {"teacher": str(checkpoint), "student": "enet"},
        "distill": {"teacher": str(checkpoint), "student": "enet"},
        "evaluate": {"checkpoint": str(checkpoint)},
        "inference": {"checkpoint": str(checkpoint), "input": str(dataset_dir / "images"), "output_dir": str(folder)},
    }[config]
    if config != "inference":
        values |= {"dataset_dir": str(dataset_dir), "run_dir": str(folder / "run")}
    files = literal_eval(config_files(bundle, config))
    return create_workflow(config_file=files, workflow_type=WORKFLOWS[config], **values).check_properties()


def verify_network(bundle: str, network: str, dataset_dir: Path, run_dir: Path) -> None:
    """Run a network on what the metadata say it takes, from the repository; raises where it gives anything else."""
    verify_net_in_out(
        net_id="network_def",
        meta_file=f"bundles/{bundle}/configs/metadata.json",
        config_file=f"bundles/{bundle}/configs/train.yaml",
        device="cpu",
        n=1,
        p=1,
        dataset_dir=str(dataset_dir),
        run_dir=str(run_dir),
        network=network,
        width=0.125 if network == "fanet" else None,
    )
