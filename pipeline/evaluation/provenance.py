# SPDX-License-Identifier: Apache-2.0
"""Where figures come from: checkpoint, versions, command and machine, for `summary.json`."""

from __future__ import annotations

import math
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import numpy as np

from pipeline import __version__
from pipeline.evaluation.statistics import BOOTSTRAP_RESAMPLES, BOOTSTRAP_SEED
from pipeline.evaluation.surface import Spacing, check_spacing
from pipeline.files.digest import sha256_of

_PACKAGES = ("monai", "torch", "numpy", "scipy", "nibabel", "pytorch-ignite")


def describe_run(
    checkpoint: str | os.PathLike[str] | None = None, seeds: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Return command, checkpoint with its SHA-256, seeds, versions and machine, as JSON primitives.

    Raises `InputError` for a checkpoint that cannot be read.
    """
    return {
        "command": shlex.join(sys.orig_argv),
        "checkpoint": None if checkpoint is None else {"path": str(checkpoint), "sha256": sha256_of(checkpoint)},
        "seeds": {**(seeds or {}), "bootstrap": BOOTSTRAP_SEED},
        "bootstrap_resamples": BOOTSTRAP_RESAMPLES,
        "versions": {
            "pipeline": __version__,
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in _PACKAGES},
        },
        "machine": {"platform": platform.platform(), "cpu_count": os.cpu_count()},
    }


def describe_case(case: str, shape: tuple[int, ...], spacing_mm: Spacing | None, **seconds: float) -> dict[str, Any]:
    """Return a case's entry in the summary: shape, spacing and the seconds of each step.

    Where axes are not at right angles, `steps_mm` is a matrix whose columns are the steps in mm along each axis.
    """
    spacing = None if spacing_mm is None else check_spacing(spacing_mm, len(shape))
    lengths = spacing if spacing is None or spacing.ndim == 1 else np.linalg.norm(spacing, axis=0)
    return {
        "case": case,
        "shape": list(shape),
        "spacing_mm": None if lengths is None else lengths.round(6).tolist(),
        **({} if lengths is spacing else {"steps_mm": spacing.round(6).tolist()}),
        "seconds": {step: round(value, 4) for step, value in seconds.items()},
    }


def json_number(value: float | None) -> float | None:
    """Return a number for JSON: None for inf and NaN, which JSON cannot hold; the counts in the file tell which."""
    return value if value is None or math.isfinite(value) else None
