# SPDX-License-Identifier: Apache-2.0
"""Packages that offer the names of their modules without importing these before a name is used (PEP 562).

A program that reads scans and needs no network then starts without torch and MONAI, which take seconds and 400 MB.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def lazy_names(
    package: str, modules: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return `__getattr__`, `__dir__` and `__all__` of a package.

    Args:
        package: its `__name__`.
        modules: dotted name of a module below the package, without the package's own -> the names that it gives.
    """
    home = {name: f"{package}.{module}" for module, names in modules.items() for name in names}

    def get(name: str) -> Any:
        """Import the module of `name` and keep the name in the package, so that this is asked once."""
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(home[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    def listed() -> list[str]:
        """Return what `dir` of the package shows."""
        return sorted({*vars(sys.modules[package]), *home})

    get.home = home
    return get, listed, sorted(home)


def home_of(package: str, name: str) -> str | None:
    """Return the dotted name of the module that a package takes `name` from lazily; None where it does not."""
    offered = getattr(importlib.import_module(package), "__getattr__", None)
    return getattr(offered, "home", {}).get(name)
