# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ast
import sys
from pathlib import PurePosixPath

import pytest

from pipeline.errors import InputError
from pipeline.export.bundle_scripts import bundle_scripts, script_name
from tests.bundles.bundle_commands import ROOT

LEAVES = """# SPDX-License-Identifier: Apache-2.0
\"\"\"Leaves.\"\"\"

from __future__ import annotations

import os
import math
from pathlib import Path as Place
from pipeline.roots import SCALE, deep as root

# How many.
# At most.
COUNT = 3
OTHER = os.sep


@staticmethod
def unused() -> Place:
    return Place(OTHER)


def leaf() -> float:
    return math.pi * COUNT * root()
"""
ROOTS = """# SPDX-License-Identifier: Apache-2.0
\"\"\"Roots.\"\"\"

SCALE = 2


def deep():
    return SCALE
"""
LEAF_SCRIPT = """# SPDX-License-Identifier: Apache-2.0
# From pipeline.trees.leaves of graphflow-segmentation 0.1.0.
\"\"\"Leaves.\"\"\"

from __future__ import annotations

import math
from ..roots import deep as root


# How many.
# At most.
COUNT = 3


def leaf() -> float:
    return math.pi * COUNT * root()
"""


@pytest.fixture
def small_project(tmp_path, monkeypatch):
    """Put a few modules into the place of the project's own, for as long as the test runs."""
    trees = tmp_path / "trees"
    trees.mkdir()
    (tmp_path / "roots.py").write_text(ROOTS)
    (trees / "leaves.py").write_text(LEAVES)
    (trees / "__init__.py").write_text("from pipeline.trees.leaves import leaf\n")
    monkeypatch.setattr(sys.modules["pipeline"], "__path__", [str(tmp_path)])
    yield
    for module in [name for name in sys.modules if name.startswith(("pipeline.trees", "pipeline.roots"))]:
        del sys.modules[module]


def test_only_what_is_used_is_carried_with_its_imports(small_project):
    files = bundle_scripts(["pipeline.trees.leaf"])
    assert files.pop(PurePosixPath("scripts/trees/leaves.py")) == LEAF_SCRIPT
    assert "SCALE = 2" in files.pop(PurePosixPath("scripts/roots.py"))
    assert files == {PurePosixPath("scripts/__init__.py"): "", PurePosixPath("scripts/trees/__init__.py"): ""}


def test_a_script_is_named_by_the_module_that_defines_it(small_project):
    assert script_name("pipeline.trees.leaf") == "scripts.trees.leaves.leaf"


@pytest.mark.parametrize("name", ["pipeline.trees.twig", "pipeline.no_such.leaf", "os.path.join", "pipeline.trees.os"])
def test_what_the_project_does_not_define_is_refused(small_project, name):
    with pytest.raises(InputError, match=f"{name} is no class or function of pipeline"):
        bundle_scripts([name])


def test_definitions_are_the_projects_own_and_import_nothing_of_it_by_name():
    files = bundle_scripts(["pipeline.networks.ENet", "pipeline.inference.SliceWiseInferer"])
    packages = set()
    for path, text in files.items():
        for statement in ast.parse(text).body:
            if isinstance(statement, ast.ClassDef | ast.FunctionDef):
                own = ROOT.joinpath("pipeline", *path.parts[1:]).read_text(encoding="utf-8")
                assert ast.unparse(statement) in ast.unparse(ast.parse(own))
            elif isinstance(statement, ast.ImportFrom) and not statement.level:
                packages.add(statement.module.partition(".")[0])
            elif isinstance(statement, ast.Import):
                packages |= {alias.name.partition(".")[0] for alias in statement.names}
    assert packages - set(sys.stdlib_module_names) <= {"torch", "monai", "numpy"}
