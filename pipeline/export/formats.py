# SPDX-License-Identifier: Apache-2.0
"""The formats of exported networks: how each is written, and how it is run to check that it was written right.

Every format takes any batch size and any sides of images that the network takes. The description goes into the
file: ONNX `metadata_props`, OpenVINO `rt_info`, extra files of torch's archives.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.export.file_kinds import FILE_KINDS
from pipeline.runtimes.description import INPUT, OUTPUT, Description
from pipeline.runtimes.runners import (
    ONNXRUNTIME,
    OPENVINO,
    RT_INFO,
    Run,
    load_student,
)

EXTRA_FILE = "description/{}.json"  # a name for each key in torch's archives
_AXES = ("height", "width", "depth")
_OPSET = 18
_MOST = 1 << 16  # multiples of the divisor along a side


@dataclass(frozen=True)
class Format:
    """One way to write a network.

    Attributes:
        suffix: of its files, and
        packages: that it needs, are those of `FILE_KINDS`.
        write: called with network, description and path.
        run: of a path that `write` wrote, the function from images (B, C, H, W) to logits.
    """

    suffix: str
    packages: tuple[str, ...]
    write: Callable[[nn.Module, Description, Path], None]
    run: Callable[[Path], Run]


def onnx_model(network: nn.Module, description: Description) -> Any:
    """Return a network as an ONNX model (`onnx.ModelProto`) with its description.

    Torch's older exporter takes seconds, the one by `torch.export` a minute. The latter supports other operators
    (`rms_norm`), so it is used where the older one fails. Raises `InputError` where both do.
    """
    try:
        model = _traced_onnx(network, description)
    except Exception:  # exporters raise many kinds
        program = exported_program(network, description)
        with _quiet(), _told("onnx"):
            exported = torch.onnx.export(
                program, dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False
            )
        model = exported.model_proto
    set_metadata(model, description)
    return model


def _traced_onnx(network: nn.Module, description: Description) -> Any:
    import onnx

    free = {0: "batch", **dict(enumerate(_AXES[: description.spatial_dims], start=2))}
    file = io.BytesIO()
    with _quiet(), torch.no_grad():
        torch.onnx.export(
            network,
            (_example(description),),
            file,
            dynamo=False,
            opset_version=_OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: free, OUTPUT: free},
        )
    return onnx.load_model_from_string(file.getvalue())


def _example(description: Description) -> Tensor:
    """Return example images with different sides: an exporter could take equal sides for a rule."""
    sides = [description.size_divisor * multiples for multiples in (2, 3, 4)[: description.spatial_dims]]
    return torch.zeros(2, description.in_channels, *sides)


def set_metadata(model: Any, description: Description) -> None:
    """Write the description into an ONNX model, in place."""
    del model.metadata_props[:]
    for key, value in description.to_metadata().items():
        model.metadata_props.add(key=key, value=value)


def exported_program(network: nn.Module, description: Description) -> torch.export.ExportedProgram:
    """Return what `torch.export` makes of a network, batch and sides free; `InputError` where it cannot."""
    divisor = description.size_divisor
    free: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=_MOST)}
    for axis, name in enumerate(_AXES[: description.spatial_dims], start=2):
        free[axis] = divisor * torch.export.Dim(name, min=1, max=_MOST) if divisor > 1 else torch.export.Dim(name)
    with _quiet(), _told("torch.export"), torch.no_grad():
        return torch.export.export(network, (_example(description),), dynamic_shapes=(free,))


def _write_onnx(network: nn.Module, description: Description, path: Path) -> None:
    path.write_bytes(onnx_model(network, description).SerializeToString())


def _write_openvino(network: nn.Module, description: Description, path: Path) -> None:
    write_as_openvino(onnx_model(network, description), description, path)


def write_as_openvino(model: Any, description: Description, path: Path) -> None:
    """Write an ONNX model as OpenVINO `.xml`, with its weights in a `.bin` beside it; `InputError` where it cannot."""
    import openvino

    onnx_file = path.with_suffix(".onnx")
    try:
        onnx_file.write_bytes(model.SerializeToString())
        with _told("OpenVINO"):
            converted = openvino.convert_model(onnx_file)
    finally:
        onnx_file.unlink(missing_ok=True)
    for key, value in description.to_metadata().items():
        converted.set_rt_info(value, [RT_INFO, key])
    openvino.save_model(converted, path, compress_to_fp16=False)


def _write_torch_export(network: nn.Module, description: Description, path: Path) -> None:
    torch.export.save(exported_program(network, description), path, extra_files=extra_files(description))


def _write_torchscript(network: nn.Module, description: Description, path: Path) -> None:
    with _quiet(), _told("TorchScript"):
        scripted = torch.jit.script(network)
    torch.jit.save(scripted, path, _extra_files=extra_files(description))


def extra_files(description: Description) -> dict[str, str]:
    """Return the description as the extra files of torch's archives."""
    return {EXTRA_FILE.format(key): value for key, value in description.to_metadata().items()}


def description_in(extra: Mapping[str, str | bytes], path: Path) -> Description:
    """Return the description that torch's archives gave back as extra files; `InputError` where it is none."""
    texts = {key: value if isinstance(value, str) else value.decode() for key, value in extra.items()}
    return Description.from_metadata({Path(key).stem: value for key, value in texts.items()}, path)


def _run_by(backend: str) -> Callable[[Path], Run]:
    return lambda path: load_student(path, backend).run


def _run_torch_export(path: Path) -> Run:
    with _quiet():
        return _run_module(torch.export.load(path).module())


def _run_torchscript(path: Path) -> Run:
    return _run_module(torch.jit.load(path))


def _run_module(module: Callable[[Tensor], Tensor]) -> Run:
    def run(images: np.ndarray) -> np.ndarray:
        """Return the logits of images (N, C, H, W), or volumes."""
        with torch.inference_mode():
            return module(torch.from_numpy(images)).numpy()

    return run


@contextlib.contextmanager
def _told(exporter: str) -> Iterator[None]:
    """Turn what an exporter raises into an `InputError` of one line."""
    try:
        yield
    except Exception as error:  # exporters raise many kinds
        reason = _reason(error)
        raise InputError(f"the network cannot be exported by {exporter}: {reason}; try another --format") from error


def _reason(error: BaseException) -> str:
    """Return the first line of the innermost cause, which names the operator; wrappers give advice of many lines."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep exporters from warning of their own parts, which no user can change."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(None):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


FORMATS = {
    "onnx": Format(*FILE_KINDS["onnx"], _write_onnx, _run_by(ONNXRUNTIME)),
    "openvino": Format(*FILE_KINDS["openvino"], _write_openvino, _run_by(OPENVINO)),
    "torch-export": Format(*FILE_KINDS["torch-export"], _write_torch_export, _run_torch_export),
    "torchscript": Format(*FILE_KINDS["torchscript"], _write_torchscript, _run_torchscript),
}
