# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: refused where another run has used it or uses it, and a record of what was run."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import monai
import torch

from pipeline import __version__
from pipeline.data import Dataset
from pipeline.data.dataset.labelled import LABELLED_FILE
from pipeline.errors import InputError
from pipeline.files.atomic import remove_unfinished, write_json
from pipeline.files.folder_lock import lock_folder, unlock_folder
from pipeline.processes import distributed
from pipeline.training.checkpoints import MODEL_FILE, STATE_FILE, resumes

RECORD_FILE = "run.json"


def check_run_folder(run_dir: str | os.PathLike[str], resume: bool | str = False) -> None:
    """Reserve the folder for this run until the process ends; no other run can use it, and nothing is overwritten.

    A folder with a record but no checkpoint is free: its run ended before it saved anything. Files that a killed
    process left half written are removed.

    Args:
        run_dir: made if missing, and removed at the end if nothing was written into it.
        resume: True goes on with the run in the folder, "auto" does so if there is one, False allows no run there.

    Raises:
        InputError: another process is using the folder, it holds a run that is not to be resumed, there is no run to
            resume, or it cannot be written.
    """
    folder = Path(run_dir)
    if distributed.is_main():
        lock_folder(folder)
    try:
        _check_content(folder, resume)
    except InputError:
        unlock_folder(folder)
        raise
    if distributed.is_main():
        remove_unfinished(folder)


def _check_content(folder: Path, resume: bool | str) -> None:
    taken = [name for name in (STATE_FILE, MODEL_FILE) if (folder / name).exists()]
    if resumes(resume, folder / STATE_FILE):
        if STATE_FILE not in taken:
            raise InputError(f"{folder} holds no {STATE_FILE} to resume; start without --resume, or with --resume auto")
    elif taken:
        raise InputError(f"{folder} holds a run already ({taken[0]}): choose another --run_dir, or pass --resume True")


def record_run(run_dir: str | os.PathLike[str], settings: Mapping[str, Any], dataset: Dataset | None = None) -> None:
    """Write `run.json`: command, settings (primitives), versions and machine.

    Where training cases of `dataset` lack a label, `labelled_patients.json` lists the patients who have one, as
    `--labelled_patients` takes it.

    Raises:
        InputError: the folder cannot be written.
    """
    if not distributed.is_main():
        return
    record = {
        "command": shlex.join(sys.orig_argv),
        "settings": {name: _primitive(value) for name, value in settings.items()},
        "versions": {"pipeline": __version__, "monai": monai.__version__, "torch": torch.__version__},
        "machine": {
            "platform": platform.platform(),
            "threads": torch.get_num_threads(),
            "processes": distributed.world_size(),
        },
    }
    write_json(Path(run_dir) / RECORD_FILE, record)
    if dataset is not None and dataset.unlabelled_cases:
        write_json(Path(run_dir) / LABELLED_FILE, dataset.labelled_patients)


def _primitive(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool, type(None), list, dict)) else str(value)
