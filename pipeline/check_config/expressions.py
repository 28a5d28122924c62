# SPDX-License-Identifier: Apache-2.0
"""What a `$` expression of a config would do, told from its syntax tree."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType

from monai.bundle import ReferenceResolver

from pipeline.check_config.names import UNKNOWN, objection_to_attribute, objection_to_chain, objection_to_name

# What an imported name stands for: a module, and what was taken from it.
Imported = tuple[ModuleType, tuple[str, ...]]
REFERENCES = "__local_refs"  # what MONAI calls the dictionary that it puts in the place of @references
_BUILTINS = frozenset(
    {
        *("abs", "all", "any", "bool", "dict", "divmod", "enumerate", "filter", "float", "frozenset", "int"),
        *("isinstance", "len", "list", "map", "max", "min", "pow", "print", "range", "reversed", "round", "set"),
        *("slice", "sorted", "str", "sum", "tuple", "zip"),
    }
)
_NODES = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Constant, ast.Name),
    *(ast.Attribute, ast.Subscript, ast.Slice, ast.List, ast.Tuple, ast.Set, ast.Dict, ast.Starred),
    *(ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.comprehension, ast.Lambda, ast.arguments),
    *(ast.arg, ast.Call, ast.keyword, ast.JoinedStr, ast.FormattedValue),
    *(ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.expr_context),
)
_DOTTED = re.compile(r"\.*[A-Za-z_]\w*(\.+[A-Za-z_]\w*)+")
_FILE_ENDINGS = frozenset({"conf", "csv", "gz", "jpg", "json", "log", "md", "nii", "png", "pt", "py", "tif", "txt"})
_ROOTS = frozenset({"pipeline", "monai", "ignite", "torch", "numpy"})


def import_of(text: str) -> ast.Import | ast.ImportFrom | None:
    """Return the statement by which MONAI takes an expression as an import, None for any other expression."""
    try:
        first = next(iter(ast.parse(text).body), None)
    except (SyntaxError, ValueError):
        return None
    return first if isinstance(first, ast.Import | ast.ImportFrom) else None


def substituted(expression: str) -> str:
    """Return an expression, `$` included, with every @reference replaced as MONAI does it: also within strings."""
    references = {name: name for name in ReferenceResolver.match_refs_pattern(expression)}
    return str(ReferenceResolver.update_refs_pattern(expression, references))


def objections_to_expression(
    text: str, modules: Mapping[str, Iterable[Imported]], import_references: Mapping[str, object]
) -> list[str]:
    """Return what speaks against an expression, as `substituted` gives it, without its `$`.

    Args:
        text: the expression.
        modules: what each imported name may stand for.
        import_references: ids of the config that are, or hold, an import.
    """
    try:
        tree = ast.parse(text.lstrip(" \t"), mode="eval")
    except (SyntaxError, ValueError) as error:
        return [f"not an expression ({error})"]
    return list(dict.fromkeys(_Inspector(tree, modules, import_references).objections()))


def objection_to_text(text: str) -> str | None:
    """Return what speaks against a string that looks like the name of something to call, or None."""
    if not _DOTTED.fullmatch(text):
        return None
    parts = [part for part in text.split(".") if part]
    known = parts[0] in _ROOTS or parts[0] in sys.stdlib_module_names
    if not known or parts[-1].lower() in _FILE_ENDINGS:
        return None
    objection = objection_to_name(text)
    return None if objection is None or objection.endswith(UNKNOWN) else objection


class _Inspector:
    """Walks one syntax tree; a chain of attributes is followed from its root, once."""

    def __init__(
        self,
        tree: ast.AST,
        modules: Mapping[str, Iterable[Imported]],
        import_references: Mapping[str, object],
    ) -> None:
        self.tree, self.modules, self.import_references = tree, modules, import_references
        nodes = list(ast.walk(tree))
        bound = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        self.bound = bound | {node.arg for node in nodes if isinstance(node, ast.arg)}
        self.subscripted = {id(node.value) for node in nodes if isinstance(node, ast.Subscript)}
        self.inner = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}

    def objections(self) -> Iterator[str]:
        """Yield what of the expression is outside the allow-list, in words."""
        for name in sorted(self.bound):
            if name in self.modules or name.startswith("_"):
                yield f"{name} is given another meaning"
        for node in ast.walk(self.tree):
            if not isinstance(node, _NODES):
                yield f"{type(node).__name__} in an expression"
            elif isinstance(node, ast.Attribute) and id(node) not in self.inner:
                yield from self._chain(node)
            elif isinstance(node, ast.Name) and id(node) not in self.inner:
                yield from self._name(node)
            elif isinstance(node, ast.Subscript):
                yield from self._reference(node)
            elif isinstance(node, ast.keyword):
                yield from _option(node.arg, node.value)
            elif isinstance(node, ast.Dict):
                for key, value in zip(node.keys, node.values, strict=True):
                    yield from _option(key.value if isinstance(key, ast.Constant) else None, value)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                objection = objection_to_text(node.value)
                if objection is not None:
                    yield f"{node.value!r}: {objection}"

    def _chain(self, node: ast.Attribute) -> Iterator[str]:
        parts: list[str] = []
        root: ast.expr = node
        while isinstance(root, ast.Attribute):
            parts.insert(0, root.attr)
            root = root.value
        if isinstance(root, ast.Name) and root.id in self.modules:
            yield from self._imported(root.id, parts)
            return
        if isinstance(root, ast.Name):
            yield from self._name(root)
        for part in parts:
            objection = objection_to_attribute(part)
            if objection is not None:
                yield objection

    def _name(self, node: ast.Name) -> Iterator[str]:
        if node.id == REFERENCES:
            if id(node) not in self.subscripted:  # there `_reference` looks at them
                yield f"{REFERENCES} without the name of a reference"
        elif node.id in self.bound:
            return
        elif node.id in self.modules:
            yield from self._imported(node.id, [])
        elif node.id not in _BUILTINS:
            yield f"name {node.id}"

    def _imported(self, name: str, parts: list[str]) -> Iterator[str]:
        for module, taken in self.modules[name]:
            objection = objection_to_chain(module, [*taken, *parts], expression=True)
            if objection is not None:
                yield objection

    def _reference(self, node: ast.Subscript) -> Iterator[str]:
        if isinstance(node.value, ast.Name) and node.value.id == REFERENCES:
            name = node.slice.value if isinstance(node.slice, ast.Constant) else None
            if not isinstance(name, str):
                yield f"{REFERENCES} without the name of a reference"
            elif name in self.import_references:
                yield f"@{name} is, or holds, an import"


def _option(name: object, value: ast.expr) -> Iterator[str]:
    constant = value.value if isinstance(value, ast.Constant) else None
    objection = objection_to_option(name, constant) if isinstance(value, ast.Constant) else None
    if name in ("weights_only", "allow_pickle") and not isinstance(value, ast.Constant):
        objection = f"{name} that is computed"
    if objection is not None:
        yield objection


def objection_to_option(name: object, value: object) -> str | None:
    """Return what speaks against an argument of that name and value, or None: options that let files run code."""
    if name == "weights_only" and value is not True:
        return f"weights_only={value!r} lets a checkpoint run code"
    if name == "allow_pickle" and value is not False:
        return f"allow_pickle={value!r} lets a file run code"
    return None
