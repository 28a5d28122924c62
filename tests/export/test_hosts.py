# SPDX-License-Identifier: Apache-2.0
"""Standalone bundles run by the classes of other programs, which give this project's own masks.

Each program has an environment of its own, which also sees the packages of the project's. It is made in the folder that
the environment variable HOST_ENVIRONMENTS names, for the next time too, or else in a temporary one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline.export.bundle import write_bundle
from pipeline.networks import SavedModel
from tests.bundles.bundle_commands import assert_done, run
from tests.environments import make_environment, python_of, without_project
from tests.export.students import SEGRESNET, student

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
PLAIN = np.diag([0.8, 0.9, 3.0, 1.0])
AFFINES = {
    "plain": PLAIN,
    "turned": np.array([[0, 0, -1.5, 40], [-0.7, 0, 0, 5], [0, 0.7, 0, -60], [0, 0, 0, 1]]),
    "oblique": nib.affines.from_matvec(nib.eulerangles.euler2mat(0.2, 0.1, 0.3), [1, 2, 3]) @ PLAIN,
}


@pytest.fixture(scope="module", params=["monailabel", "monaideploy"])
def host(request, tmp_path_factory) -> list[str]:
    """Return the command of a program that runs bundles; its environment is made where it is missing."""
    kept = os.environ.get("HOST_ENVIRONMENTS")
    folder = (Path(kept).resolve() if kept else tmp_path_factory.mktemp("hosts")) / request.param
    python = python_of(folder)
    requirements, installed = HERE / f"requirements-{request.param}.txt", folder / "installed.txt"
    if not installed.is_file() or installed.read_bytes() != requirements.read_bytes():
        make_environment(folder, "--no-deps", "--requirement", requirements)
        shutil.copy(requirements, installed)
    _show_own_packages(python)
    return [str(python), str(HERE / f"host_{request.param}.py")]


def _show_own_packages(python: Path) -> None:
    """Let an environment see the packages of this one; after pip, which would leave them out."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    Path(own, "project.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    """Return a folder with scans along the patient's axes, with permuted and turned axes, and oblique."""
    folder = tmp_path_factory.mktemp("scans")
    voxels = np.random.default_rng(0).normal(75, 150, (23, 27, 9)).round().astype(np.int16)
    for name, affine in AFFINES.items():
        nib.save(nib.Nifti1Image(voxels, affine), folder / f"{name}.nii.gz")
    return folder


def _of_slices(path: Path) -> SavedModel:
    return student(path, "enet")


def _of_volumes(path: Path) -> SavedModel:
    options = {"spatial_dims": 3, "init_filters": 4, "blocks_down": (1, 1), "blocks_up": (1,)}
    return student(path, SEGRESNET, (16, 16, 6), **options, norm=("GROUP", {"num_groups": 2}))


@pytest.mark.parametrize("make", [_of_slices, _of_volumes])
def test_masks_of_other_programs_are_the_projects_own_to_the_voxel(host, make, scans, tmp_path):
    model = make(tmp_path / "model.pt")
    write_bundle(model, bundle := tmp_path / "bundle")
    own, masks = tmp_path / "own", tmp_path / "masks"
    masks.mkdir()
    assert_done(run("synapse", "inference", "--checkpoint", model.path, "--input", scans, "--output_dir", own))
    command = [*host, bundle, masks, *sorted(scans.iterdir())]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=without_project(), cwd=tmp_path)
    assert_done(result)
    for scan in scans.iterdir():
        expected, found = (nib.load(folder / scan.name) for folder in (own, masks))
        labels = np.asarray(found.dataobj)
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, np.asarray(expected.dataobj))
        np.testing.assert_allclose(found.affine, expected.affine, atol=1e-5)
        assert len(np.unique(labels)) > 1
