# SPDX-License-Identifier: Apache-2.0
"""Which names a config may use: modules whose functions and classes build, train and measure, and run nothing else.

Names are followed through the installed packages as MONAI would follow them, so that a module that another one merely
imports (`monai.data.utils.pickle`) is told from a part of it. Only modules of the list are imported for that.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

# Each with all modules below it.
ALLOWED_MODULES = (
    "pipeline",
    *(f"monai.{name}" for name in ("data", "engines", "handlers", "inferers", "losses", "metrics", "networks")),
    *("monai.optimizers", "monai.transforms", "monai.visualize"),
    *(f"monai.utils.{name}" for name in ("enums", "misc", "type_conversion")),
    *(f"ignite.{name}" for name in ("engine", "handlers", "metrics")),
    *(f"torch.{name}" for name in ("amp", "cuda", "distributions", "fft", "linalg", "nn", "optim", "special")),
    *("torch.utils.checkpoint", "torch.utils.data", "torch.utils.tensorboard"),
    *("numpy.fft", "numpy.linalg", "numpy.random"),
)
# Names that these modules export themselves, but not the modules below them.
_EXPORTING = ("monai.utils", "numpy", "torch")
# Of the standard library: a module with the names that may be used of it, all its public ones where none are listed.
_STANDARD: dict[str, frozenset[str]] = {
    "collections": frozenset({"Counter", "OrderedDict", "defaultdict"}),
    "copy": frozenset({"copy", "deepcopy"}),
    "functools": frozenset({"partial", "reduce"}),
    **dict.fromkeys(("datetime", "itertools", "math"), frozenset()),
}
# What of the above runs code by its name, unpickles, downloads code, or reads and writes any file.
_DENIED = frozenset(
    {
        *("monai.data.torchscript_utils", "monai.networks.trt_compiler", "monai.networks.blocks.hyena"),
        *("monai.handlers.clearml_handlers", "monai.handlers.mlflow_handler", "monai.handlers.trt_handler"),
        *("monai.losses.perceptual", "monai.networks.nets.flexible_unet.FlexUNetEncoderRegister"),
        *("monai.utils.misc.run_cmd", "monai.utils.misc.save_obj", "pipeline.grid.workers"),
        *("torch.CompilationUnit", "torch.PyTorchFileReader", "torch.PyTorchFileWriter", "torch.from_file"),
        *("torch.import_ir_module", "torch.import_ir_module_from_buffer", "torch.load", "torch.save"),
        *("torch.cuda.gds", "torch.cuda.jiterator", "torch.cuda.memory.CUDAPluggableAllocator", "torch.cuda.tunable"),
        "torch.utils.data.datapipes",
        *(f"numpy.{name}" for name in ("load", "save", "savez", "savez_compressed", "savetxt", "loadtxt", "test")),
        *(f"numpy.{name}" for name in ("DataSource", "fromfile", "fromregex", "genfromtxt", "memmap")),
    }
)
# Arguments of these may be the name of something to call, which MONAI then looks up.
NAME_TAKERS = frozenset(
    {
        *(f"monai.transforms.io.array.{name}" for name in ("LoadImage", "SaveImage")),
        *(f"monai.transforms.io.dictionary.{name}" for name in ("LoadImaged", "SaveImaged")),
        *("monai.inferers.inferer.PatchInferer", "monai.networks.nets.flexible_unet.FlexibleUNet"),
    }
)
# What methods are called, too.
_HARMLESS_NAMES = {"array", "code", "copy", "math", "profile", "queue", "select", "string", "time", "trace"}
# Attributes through which objects lead to frames, modules, files or processes.
_RISKY_ATTRIBUTES = frozenset(
    {
        *("f_back", "f_builtins", "f_code", "f_globals", "f_locals", "format", "format_map", "mro"),
        *("dump", "dumps", "exec", "from_file", "fromfile", "import_module", "load_library", "loads", "memmap"),
        *("multiprocessing_context", "open", "popen", "read_text", "reducer", "spawn", "system", "tofile"),
        *("unlink", "write_bytes", "write_text"),
    }
) | (sys.stdlib_module_names - _HARMLESS_NAMES)
_RISKY_STARTS = ("_", "ag_", "co_", "cr_", "gi_", "tb_")
_MISSING = object()
UNKNOWN = "does not exist"


def objection_to_name(dotted: str, expression: bool = False) -> str | None:
    """Return what speaks against a dotted name, such as a `_target_`, or None; looked up as `pydoc.locate` does it."""
    parts = [part for part in dotted.split(".") if part]
    if not parts or not _is_near_allowed(parts[0]):
        return f"{dotted} is outside the allow-list"
    return objection_to_chain(import_module(parts[0]), parts[1:], expression)


def objection_to_module(name: str) -> str | None:
    """Return what speaks against importing a module of that name, or None."""
    if any(part.startswith("_") for part in name.split(".")):
        return f"{name} is private"
    if not _is_near_allowed(name):
        return f"import of {name}, which is outside the allow-list"
    try:
        import_module(name)
    except ImportError:
        return f"import of {name}, which {UNKNOWN}"
    return None


def objection_to_chain(start: ModuleType, parts: list[str], expression: bool = False) -> str | None:
    """Return what speaks against `start.part.part...`, or None; `expression`: where nobody looks at its arguments."""
    value: Any = start
    for index, part in enumerate(parts):
        path = f"{getattr(value, '__name__', '...')}.{part}"
        if value is _MISSING or not isinstance(value, ModuleType):
            objection = objection_to_attribute(part)
            value = _MISSING if value is _MISSING else getattr(value, part, _MISSING)
        elif part.startswith(_RISKY_STARTS):
            return f"{path} is private"
        else:
            value, objection = _member(value, part)
        if objection is not None:
            return objection
        if index == len(parts) - 1 and not isinstance(value, ModuleType):
            return _objection_to_home(value, ".".join([start.__name__, *parts]), expression)
    return f"{value.__name__} is a whole module, whose parts cannot be checked where they are used"


def objection_to_attribute(name: str) -> str | None:
    """Return what speaks against an attribute of that name of an object that only running the config would tell."""
    if name.startswith(_RISKY_STARTS):
        return f"private attribute {name}"
    return f"attribute {name}" if name in _RISKY_ATTRIBUTES else None


def _member(module: ModuleType, part: str) -> tuple[Any, str | None]:
    """Return what a module has under a name, and what speaks against it."""
    path = f"{module.__name__}.{part}"
    if _is_denied(path):
        return None, f"{path} runs code or touches any file"
    value = getattr(module, part, _MISSING)
    if value is _MISSING and _is_near_allowed(path):
        try:
            value = import_module(path)
        except ImportError:
            return None, f"{path} {UNKNOWN}"
    if value is _MISSING:
        return None, f"{path} is outside the allow-list" if _is_module(path) else f"{path} {UNKNOWN}"
    if isinstance(value, ModuleType):
        genuine = value.__name__ == path and _is_near_allowed(path)
        return value, None if genuine else f"{path} is the module {value.__name__}, which is outside the allow-list"
    names = _STANDARD.get(module.__name__)
    if names and part not in names:
        return None, f"{path} is outside the allow-list"
    return value, None


def _objection_to_home(value: Any, path: str, expression: bool) -> str | None:
    """Return what speaks against an object by the place where it is defined."""
    module = getattr(value, "__module__", None)
    if not isinstance(module, str):
        return None  # a constant, or a function in C of the module that exports it
    home = f"{module}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    if _is_denied(home):
        return f"{path} is {home}, which runs code or touches any file"
    if expression and home in NAME_TAKERS:
        return f"{path} in an expression, where the names that it may be given to look up cannot be checked"
    if module in _STANDARD or _is_allowed(module):
        return None
    exporter, package = path.rpartition(".")[0], path.partition(".")[0]
    private = module.startswith(f"{package}._")  # torch._C, numpy._core
    if module.partition(".")[0] == package and (private or exporter in ("numpy", "torch")):
        return None
    return f"{path} is {home}, which is outside the allow-list"


def _is_allowed(module: str) -> bool:
    return module in _EXPORTING or any(f"{module}.".startswith(f"{name}.") for name in ALLOWED_MODULES)


def _is_near_allowed(module: str) -> bool:
    """Tell whether a module is of the list, or on the way to one (`monai`, `torch.utils`)."""
    if _is_denied(module):
        return False
    on_the_way = any(f"{name}.".startswith(f"{module}.") for name in ALLOWED_MODULES)
    return on_the_way or module in _STANDARD or _is_allowed(module)


def _is_module(path: str) -> bool:
    try:
        return find_spec(path) is not None
    except (ImportError, ValueError):  # below something that is no package
        return False


def _is_denied(path: str) -> bool:
    return any(f"{path}.".startswith(f"{name}.") for name in _DENIED)
