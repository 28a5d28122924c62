# SPDX-License-Identifier: Apache-2.0
"""Whose configs run unasked: those of this installation, and those that the user names in the environment.

A key of the config cannot be the switch, since the config is what is not trusted yet.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pipeline.check_config.config import find, find_in_each
from pipeline.errors import InputError

TRUSTED = "GRAPHFLOW_TRUST_CONFIG"
_BUNDLES = Path(__file__).resolve().parents[2] / "bundles"


def is_trusted(file: str | os.PathLike[str]) -> bool:
    """Tell whether a config lies in this installation's bundles, or is named in `GRAPHFLOW_TRUST_CONFIG`.

    The variable holds files and folders, separated as in PATH. Links are followed first: what they point to counts.
    """
    place = Path(file).resolve()
    named = [Path(name).resolve() for name in os.environ.get(TRUSTED, "").split(os.pathsep) if name]
    return any(place.is_relative_to(trusted) for trusted in (_BUNDLES, *named))


def refuse_untrusted(files: Sequence[str | os.PathLike[str]], more: Sequence[str | os.PathLike[str]] = ()) -> None:
    """Refuse (`InputError`) configs with something outside the allow-list in a file that is not trusted.

    Args:
        files: files that MONAI merges into one config.
        more: files whose parts are put into it.
    """
    if all(is_trusted(file) for file in (*files, *more)):
        return
    found = [*find(files), *(find_in_each([*files, *more]) if more else ())]
    untrusted = [finding for finding in found if not all(map(is_trusted, finding.files))]
    if untrusted:
        file = next(file for file in reversed(untrusted[0].files) if not is_trusted(file))
        others = f" (and {len(untrusted) - 1} more)" if len(untrusted) > 1 else ""
        raise InputError(
            f"{untrusted[0]}{others}; python -m pipeline.check_config lists what speaks against running it. If you have"
            f" read that file and trust it, set {TRUSTED}={file}"
        )
