# SPDX-License-Identifier: Apache-2.0
"""The loaded network run by onnxruntime or OpenVINO: torch's masks but for rounding, on CPUs often in less time."""

from __future__ import annotations

import logging
import platform

import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.networks import SavedModel
from pipeline.processes.bfloat16 import check_bfloat16
from pipeline.runtimes.runners import (
    AUTO,
    ONNXRUNTIME,
    OPENVINO,
    X86,
    Run,
    is_installed,
    onnxruntime_session,
    openvino_core,
    runner_of_openvino,
    runner_of_session,
)

logger = logging.getLogger(__name__)

TORCH = "torch"
BACKENDS = (TORCH, ONNXRUNTIME, OPENVINO, AUTO)
_EXPORTER = "onnx"  # runtimes read the network as ONNX


def backend_of(name: str, device: str | torch.device, precision: str = "float32") -> str:
    """Return the backend that a config names; for "auto" the one that is chosen, which is logged.

    "auto" is torch on a GPU and for any precision but float32. On a CPU it is OpenVINO if installed and the CPU is x86,
    else onnxruntime if installed, else torch.

    Args:
        name: one of `BACKENDS`.
        device: where torch would run the network.
        precision: the one in which torch would run it.

    Raises:
        InputError: another name, a package that is not installed, a precision that only torch has, or bfloat16 on a
            CPU that only emulates it.
    """
    if name not in BACKENDS:
        raise InputError(f"backend {name!r} is unknown; choose {', '.join(BACKENDS)}")
    if name == AUTO:
        name = _fastest(torch.device(device), precision)
        logger.info("backend auto: %s", name)
    if name == TORCH:
        if precision == "bfloat16":
            check_bfloat16(device)
        return name
    missing = [package for package in (name, _EXPORTER) if not is_installed(package)]
    if missing:
        raise InputError(f"backend {name} needs {', '.join(missing)}; pip install {' '.join(missing)}, or take torch")
    if precision != "float32":
        raise InputError(f"backend {name} runs in float32, not {precision}; leave out precision, or take torch")
    return name


def _fastest(device: torch.device, precision: str) -> str:
    if device.type != "cpu" or precision != "float32" or not is_installed(_EXPORTER):
        return TORCH
    if is_installed(OPENVINO) and platform.machine().lower() in X86:
        return OPENVINO
    return ONNXRUNTIME if is_installed(ONNXRUNTIME) else TORCH


def told_backend(backend: str) -> dict[str, str]:
    """Return the backend for the summary of an evaluation: nothing for torch, which is the reference."""
    return {} if backend == TORCH else {"backend": backend}


def network_on(model: SavedModel, backend: str) -> nn.Module:
    """Return the network of `model`, or a module that runs it in another backend.

    Args:
        model: a loaded model.
        backend: from `backend_of`.

    Raises:
        InputError: a network that cannot be exported, or that gives other masks in the backend.
    """
    return model.network if backend == TORCH else RuntimeNetwork(model, backend)


class RuntimeNetwork(nn.Module):
    """A network that runs outside of torch on the CPU: images (B, C, H, W) to logits (B, K, H, W), or 3D patches.

    It has the attributes of `SegmentationNetwork` that inferers need for padding, and no weights. It is compared with
    torch's network once, on smooth random images, as `pipeline.export` does it.
    """

    def __init__(self, model: SavedModel, backend: str) -> None:
        super().__init__()
        network = model.network
        self.in_channels, self.out_channels = network.in_channels, network.out_channels
        self.spatial_dims, self.size_divisor = network.spatial_dims, network.size_divisor
        self.fixed_size, self.backend = network.fixed_size, backend
        self._run = _exported(model, backend)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, K, ...) of images (B, C, ...), on the device of `images`."""
        logits = torch.from_numpy(self._run(images.detach().cpu().float().contiguous().numpy()))
        return logits.to(images.device)


def _exported(model: SavedModel, backend: str) -> Run:
    """Return the function from images to logits of a network that is exported in memory."""
    # Loaded here, since nothing of it is needed where torch runs the network.
    from pipeline.export.formats import onnx_model
    from pipeline.export.parity import ParityError, agreement, check_parity, smooth_images
    from pipeline.runtimes.description import describe_model

    network = model.network.cpu()  # runtimes have the CPU alone
    content = onnx_model(network, describe_model(model)).SerializeToString()
    run = _runner(content, backend)
    try:
        check_parity(agreement(network, run, smooth_images(model), model.labels), int8=False)
    except ParityError as error:
        raise InputError(f"backend {backend} cannot be used for this network: {error}; take torch") from error
    return run


def _runner(content: bytes, backend: str) -> Run:
    if backend == ONNXRUNTIME:
        return runner_of_session(onnxruntime_session(content))
    return runner_of_openvino(openvino_core().read_model(content))
