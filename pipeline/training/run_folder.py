# SPDX-License-Identifier: Apache-2.0
"""One folder a run: refused when it holds another run, and a record of what was run."""

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

from pipeline import __version__, distributed
from pipeline.atomic import write_json
from pipeline.errors import InputError
from pipeline.training.checkpoints import MODEL_FILE, STATE_FILE

RECORD_FILE = "run.json"


def check_run_folder(run_dir: str | os.PathLike[str], resume: bool = False) -> None:
    """Raise `InputError` if the folder holds a run already, unless that run is to be resumed.

    A record without any checkpoint is of a run that ended before its first epoch did: its folder is free.
    """
    folder = Path(run_dir)
    taken = [name for name in (STATE_FILE, MODEL_FILE) if (folder / name).exists()]
    if taken and not resume:
        raise InputError(f"{folder} holds a run already ({taken[0]}): choose another --run_dir, or pass --resume True")


def record_run(run_dir: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
    """Write `run.json`: command, settings (primitives), versions and machine.

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
            "processes": distributed.ranks(),
        },
    }
    write_json(Path(run_dir) / RECORD_FILE, record)


def _primitive(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool, type(None), list, dict)) else str(value)
