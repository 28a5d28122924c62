# SPDX-License-Identifier: Apache-2.0
"""`python host_monailabel.py BUNDLE MASKS SCAN...`: masks by the class with which MONAI Label's server runs bundles."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import ModuleType


def main(bundle: str, masks: str, *scans: str) -> None:
    """Segment scans by one task, as a server that answers one request after another."""
    _stand_in_for_torchvision()
    sys.modules["pipeline"] = None  # a bundle runs without this project
    from monailabel.tasks.infer.bundle import BundleInferTask

    task = BundleInferTask(bundle, {}, load_strict=True)
    for scan in scans:
        written, _told = task({"image": scan, "device": "cpu"})
        shutil.move(written, Path(masks, Path(scan).name))


def _stand_in_for_torchvision() -> None:
    """Give the two functions for pictures that MONAI Label imports and no mask needs.

    The Linux builds of torchvision in package indices are for torch with CUDA; beside a torch for CPUs they don't load.
    """
    pictures = ModuleType("torchvision.utils")
    pictures.make_grid = pictures.save_image = None
    sys.modules.update({"torchvision": ModuleType("torchvision"), "torchvision.utils": pictures})


if __name__ == "__main__":
    main(*sys.argv[1:])
