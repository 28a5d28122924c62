# SPDX-License-Identifier: Apache-2.0
"""A trained student as a standalone MONAI bundle: it runs wherever MONAI does, without this project."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from shutil import make_archive

import nibabel as nib
import numpy as np
import torch

import pipeline
from pipeline.data.scans.volumes import read_volume
from pipeline.errors import InputError
from pipeline.export.bundle_card import model_card
from pipeline.export.bundle_configs import LOGGING, classes_of_project, inference_config, is_of_slides, metadata
from pipeline.export.bundle_scripts import bundle_scripts
from pipeline.files.atomic import new_folder, replace_when_complete
from pipeline.inference.segmentation import segment
from pipeline.networks.saved_model import SavedModel


def write_bundle(
    model: SavedModel,
    destination: Path,
    scans: Sequence[Path] = (),
    zipped: bool = False,
    report: Path | None = None,
) -> Path:
    """Write a standalone bundle of a model, whole or not at all, and return its path.

    Args:
        model: to export.
        destination: a new folder, or archive if `zipped`; its name is the bundle's. Its parents are made.
        scans: NIfTI files on which the bundle's masks must equal this project's in every voxel; for models of scans.
        zipped: write a zip archive of the folder instead; `destination` gets the suffix `.zip` if it lacks it.
        report: the folder of an evaluation of this model on scans, whose figures go into the model card.

    Raises:
        InputError: `destination` exists or cannot be written; the network or a transform is from a package that a
            bundle cannot contain; a report is of another model; a scan cannot be read, or the bundle gives another
            mask for it.
    """
    destination = Path(destination)
    if zipped:
        destination = destination.with_name(f"{destination.name.removesuffix('.zip')}.zip")
    if destination.exists():
        raise InputError(f"{destination} exists; choose a new name, or remove it first")
    _check_scans(model, scans)
    name = destination.name.removesuffix(".zip") if zipped else destination.name
    files = _files(model, name, report)
    if not zipped:
        with new_folder(destination) as folder:
            _fill(folder, files, model)
            _compare(folder, model, scans)
        return destination
    with tempfile.TemporaryDirectory() as parent, replace_when_complete(destination) as archive:
        folder = Path(parent, name)
        _fill(folder, files, model)
        _compare(folder, model, scans)
        make_archive(str(archive.with_suffix("")), "zip", parent, name)
    return destination


def _check_scans(model: SavedModel, scans: Sequence[Path]) -> None:
    if scans and is_of_slides(model):
        raise InputError(f"{model.path} is of slides, not of scans; leave the scans out")
    for scan in scans:
        if not str(scan).endswith((".nii", ".nii.gz")):
            raise InputError(f"{scan}: a bundle reads NIfTI alone; give .nii or .nii.gz to compare masks on")


def _files(model: SavedModel, name: str, report: Path | None) -> dict[str, str]:
    """Return the bundle's text files by their paths in it."""
    config = inference_config(model)
    scripts = bundle_scripts(classes_of_project(config))
    return {
        "LICENSE": _license(),
        "docs/README.md": model_card(model, name, report),
        "configs/metadata.json": json.dumps(metadata(model, name), indent=2) + "\n",
        "configs/inference.json": json.dumps(config, indent=2) + "\n",
        "configs/logging.conf": LOGGING,
        **{str(path): text for path, text in scripts.items()},
    }


def _fill(folder: Path, files: dict[str, str], model: SavedModel) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (folder / "models").mkdir()
    # Nothing but the weights: around them, MONAI Label would find none of its names and run an untrained network.
    weights = {key: value.detach().cpu().clone() for key, value in model.network.state_dict().items()}
    torch.save(weights, folder / "models" / "model.pt")


def _license() -> str:
    """Return this project's licence: from its repository, or from what pip has installed."""
    beside = Path(pipeline.__file__).resolve().parents[1] / "LICENSE"
    if beside.is_file():
        return beside.read_text(encoding="utf-8")
    try:
        text = distribution("graphflow-segmentation").read_text("licenses/LICENSE")
    except PackageNotFoundError:
        text = None
    if text is None:
        raise InputError(f"no LICENSE beside {beside.parent / 'pipeline'}; install graphflow-segmentation again")
    return text


def _compare(folder: Path, model: SavedModel, scans: Sequence[Path]) -> None:
    """Run the bundle on scans, as its users do, and refuse (`InputError`) a mask that is not this project's own."""
    for scan in scans:
        expected = segment(read_volume(scan), model)
        with tempfile.TemporaryDirectory() as work:
            mask = _mask_by_bundle(folder, Path(scan).resolve(), Path(work))
        different = int((mask != expected).sum()) if mask.shape == expected.shape else mask.size
        if different:
            raise InputError(f"{scan}: {different} voxels of the bundle's mask are not this project's; don't use it")


def _mask_by_bundle(folder: Path, scan: Path, work: Path) -> np.ndarray:
    config = (folder / "configs" / "inference.json").resolve()
    command = [sys.executable, "-B", "-m", "monai.bundle", "run", "--config_file", str(config)]
    command += ["--dataset_dir", str(scan), "--output_dir", str(work / "masks")]
    result = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
    masks = list((work / "masks").glob("*_seg.nii.gz"))
    if result.returncode != 0 or len(masks) != 1:
        last = (result.stderr.strip() or "no message").splitlines()[-1]
        raise InputError(f"{scan}: the bundle gives no mask of it ({last}); segment it by this project instead")
    return np.asarray(nib.load(masks[0]).dataobj)
