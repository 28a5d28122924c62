# SPDX-License-Identifier: Apache-2.0
"""Runtimes that run exported networks without torch: onnxruntime and OpenVINO."""

from __future__ import annotations

import functools
import importlib.util
import platform
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import InputError
from pipeline.runtimes.description import OUTPUT, Description

ONNXRUNTIME, OPENVINO = "onnxruntime", "openvino"
AUTO = "auto"
RUNTIMES = (OPENVINO, ONNXRUNTIME)
RT_INFO = "graphflow"  # where an OpenVINO file keeps the description
X86 = ("x86_64", "amd64", "i386", "i686")

Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Student:
    """An exported network that is ready to run.

    Attributes:
        description: what its file says of it.
        run: images (B, C, H, W) float32, sides multiples of `description.size_divisor`, to logits (B, K, H, W) float32;
            volumes likewise with three sides. Several threads may call it.
        backend: the runtime that runs it.
        path: the file.
    """

    description: Description
    run: Run
    backend: str
    path: Path


def is_installed(runtime: str) -> bool:
    """Tell whether a runtime can be imported, without importing it."""
    return importlib.util.find_spec(runtime) is not None


def check_installed(package: str) -> None:
    """Raise `InputError` that says how to install a package which is not there."""
    if not is_installed(package):
        raise InputError(f"{package} is not installed; pip install {package}, or name another backend")


def fastest_runtime(suffix: str = ".onnx") -> str:
    """Return the runtime that `auto` stands for: OpenVINO where it is installed on an x86 CPU, else onnxruntime.

    OpenVINO alone reads `.xml` files. Raises `InputError` where neither is installed.
    """
    if suffix == ".xml" or (platform.machine().lower() in X86 and is_installed(OPENVINO)):
        return OPENVINO
    if is_installed(ONNXRUNTIME) or not is_installed(OPENVINO):
        check_installed(ONNXRUNTIME)
        return ONNXRUNTIME
    return OPENVINO


def load_student(path: Path, backend: str = AUTO) -> Student:
    """Return an exported `.onnx` or OpenVINO `.xml` file, ready to run on the CPU.

    Raises:
        InputError: no such file, one of another kind or damaged, a backend that is not installed or cannot read it.
    """
    suffix = path.suffix.lower()
    if suffix not in (".onnx", ".xml"):
        raise InputError(
            f"{path} is neither an .onnx nor an OpenVINO .xml file; make one with python -m pipeline.export"
        )
    if not path.is_file():
        raise InputError(f"no such file: {path}; make one with python -m pipeline.export")
    if backend == AUTO:
        backend = fastest_runtime(suffix)
    if backend == ONNXRUNTIME and suffix == ".xml":
        raise InputError(f"onnxruntime reads no OpenVINO files such as {path}; choose --backend openvino")
    check_installed(backend)
    metadata, run = (_load_onnxruntime if backend == ONNXRUNTIME else _load_openvino)(path)
    return Student(Description.from_metadata(metadata, path), run, backend, path)


def onnxruntime_session(model: str | bytes) -> Any:
    """Return a session on the CPU of a file or of its bytes; it keeps no memory between runs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.enable_cpu_mem_arena = False  # it would keep the most that any run has needed
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _load_onnxruntime(path: Path) -> tuple[dict[str, str], Run]:
    try:
        session = onnxruntime_session(str(path))
    except Exception as error:  # onnxruntime raises kinds of its own
        raise _unreadable(path, error) from error
    return session.get_modelmeta().custom_metadata_map, runner_of_session(session)


def runner_of_session(session: Any) -> Run:
    """Return the function from images to logits of an onnxruntime session."""
    (given,) = session.get_inputs()
    return lambda images: session.run([OUTPUT], {given.name: images})[0]


@functools.cache
def openvino_core() -> Any:
    """Return OpenVINO's core, one for the process and until its end.

    The first network that is compiled gives its thread another stack for signal handlers. OpenVINO frees that stack
    with the last core or network, on whatever thread that happens. The next signal, such as Ctrl-C, then ends the
    process by a segmentation fault.
    """
    import openvino

    return openvino.Core()


def _load_openvino(path: Path) -> tuple[dict[str, str], Run]:
    try:
        model = openvino_core().read_model(path)
        run = runner_of_openvino(model)
    except Exception as error:  # OpenVINO raises RuntimeError for all that it cannot read
        raise _unreadable(path, error) from error
    return _metadata_of(model, path.suffix.lower()), run


def _metadata_of(model: Any, suffix: str) -> dict[str, str]:
    """Return what the file says of itself: OpenVINO's own files by rt_info; it keeps ONNX's properties elsewhere."""
    key = RT_INFO if suffix == ".xml" else "framework"
    if not model.has_rt_info([key]):
        return {}
    return {name: value.astype(str) for name, value in model.get_rt_info([key]).astype(dict).items()}


def runner_of_openvino(model: Any) -> Run:
    """Return the function from images to logits of an OpenVINO model on the CPU, in full precision.

    It may be called from several threads. Images go one by one, on as many cores as there are, to a network compiled
    for their size: a batch in one piece, or a network for any size, takes a third more time.
    """
    compiled, compiling = functools.cache(functools.partial(_compile_openvino, model)), threading.Lock()

    def run(images: np.ndarray) -> np.ndarray:
        """Return the logits of images (N, C, H, W), or volumes."""
        with compiling:  # the cache alone would let two threads compile the same
            network = compiled(images.shape[1:])
        requests = [network.create_infer_request() for _ in images]
        for request, image in zip(requests, images, strict=True):
            request.start_async([image[None]])
        for request in requests:
            request.wait()
        return np.concatenate([request.get_output_tensor().data for request in requests])

    return run


def _compile_openvino(model: Any, size: tuple[int, ...]) -> Any:
    """Return the network that takes one image (C, H, W), or volume, of `size` at a time."""
    import openvino
    from openvino import properties

    fixed = model.clone()
    fixed.reshape({fixed.inputs[0]: openvino.PartialShape([1, *size])})
    hints = {
        properties.hint.inference_precision(): openvino.Type.f32,  # bfloat16 where the CPU has it, by default
        properties.hint.performance_mode(): properties.hint.PerformanceMode.THROUGHPUT,
        properties.hint.enable_cpu_pinning(): False,  # other threads prepare images and labels meanwhile
    }
    return openvino_core().compile_model(fixed, "CPU", hints)


def _unreadable(path: Path, error: Exception) -> InputError:
    reason = str(error).partition("\n")[0] or type(error).__name__
    return InputError(f"{path} cannot be read as an exported network ({reason}); export it again")
