# SPDX-License-Identifier: Apache-2.0
"""Which commands there are: read from the files' text, for a list must not wait for torch."""

from __future__ import annotations

import ast
from pathlib import Path

_RUNS = '\nif __name__ == "__main__":'


def commands_of(package: Path) -> dict[str, str]:
    """Return the commands below a package's folder: what follows `python -m`, and the first line of its docstring."""
    found = {}
    for file in sorted(package.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        own = file == package / "__main__.py"  # the list itself
        if _RUNS in text and not own:
            parts = file.relative_to(package.parent).with_suffix("").parts
            name = ".".join(part for part in parts if part != "__main__")
            found[name] = (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]
    return found


def listed(commands: dict[str, str]) -> str:
    """Return one line a command: its name, and what it does."""
    width = max(map(len, commands))
    return "\n".join(f"  python -m {name:<{width}}  {sentence}" for name, sentence in commands.items())
