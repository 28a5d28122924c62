# SPDX-License-Identifier: Apache-2.0
"""Lists the converters and the check: `python -m data_prep`."""

from __future__ import annotations

import ast
import pkgutil
from pathlib import Path

import data_prep
from pipeline.errors import run_command


def converters() -> dict[str, str]:
    """Return every module of this package that has a `main`, with the first line of its docstring."""
    found = {}
    for module in pkgutil.iter_modules(data_prep.__path__):
        # Read rather than imported: listing must not wait for torch.
        tree = ast.parse((Path(data_prep.__path__[0]) / f"{module.name}.py").read_text(encoding="utf-8"))
        if module.name != "__main__" and any(isinstance(n, ast.FunctionDef) and n.name == "main" for n in tree.body):
            found[module.name] = (ast.get_docstring(tree) or "").split("\n")[0]
    return found


def main() -> int:
    """Print one line a converter."""
    print("Converters into dataset folders, and their check; python -m data_prep.NAME --help says more.\n")
    for name, sentence in converters().items():
        print(f"  python -m data_prep.{name:<14} {sentence}")
    return 0


if __name__ == "__main__":
    run_command(main)
