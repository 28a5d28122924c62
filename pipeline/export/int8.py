# SPDX-License-Identifier: Apache-2.0
"""Networks of 8-bit weights and activations: static quantisation by onnxruntime, calibrated on training images.

The result is ONNX with pairs of QuantizeLinear and DequantizeLinear (QDQ), which onnxruntime and OpenVINO both run.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.export.formats import onnx_model, set_metadata, write_as_openvino
from pipeline.networks import PaddedInferer
from pipeline.runtimes.description import INPUT, Description


def write_int8(network: nn.Module, description: Description, images: Tensor, path: Path) -> None:
    """Write a quantised network as `.onnx`, or by another suffix as OpenVINO.

    Args:
        network: in evaluation mode, on the CPU.
        description: with `int8` True.
        images: (N, C, H, W) float32, or volumes, that show how large activations are.
        path: the file to write.

    Raises:
        InputError: a network that cannot be exported or quantised.
    """
    model = quantised(onnx_model(network, description), description, images)
    if path.suffix == ".onnx":
        path.write_bytes(model.SerializeToString())
    else:
        write_as_openvino(model, description, path)


def quantised(model: Any, description: Description, images: Tensor) -> Any:
    """Return an ONNX model with 8-bit weights (a scale for each channel) and activations, and its description.

    Args:
        model: the ONNX model in float32.
        description: with `int8` True.
        images: (N, C, H, W) float32, or volumes (N, C, X, Y, Z), that show how large activations are.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        floats, prepared, rounded = (Path(folder) / f"{name}.onnx" for name in ("floats", "prepared", "rounded"))
        onnx.save_model(model, floats)
        logging.disable(logging.WARNING)  # of its own parts, which no user can change
        try:
            # Symbolic shapes of decoders are beyond it; batch normalisations are folded all the same.
            quant_pre_process(floats, prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared,
                rounded,
                _Calibration(images, description.size_divisor),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv"],
                nodes_to_exclude=_ends(onnx.load_model(prepared)),
                per_channel=True,
                # Weights of 7 bits: CPUs without VNNI add products of 8 bits up in 16, which overflows in silence.
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        except Exception as error:  # onnxruntime raises many kinds
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise InputError(f"the network cannot be quantised ({reason}); export it without --int8") from error
        finally:
            logging.disable(logging.NOTSET)
        result = onnx.load_model(rounded)
    set_metadata(result, description)
    return result


def _ends(model: Any) -> list[str]:
    """Return the names of the first and the last convolution: there, rounding costs the most accuracy."""
    convolutions = [node.name for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose")]
    return [convolutions[0], convolutions[-1]] if convolutions else []


class _Calibration:
    """Hands onnxruntime one image after another, padded as the network needs it, in its own way: None ends them."""

    def __init__(self, images: Tensor, divisor: int) -> None:
        self._padded: Iterator[np.ndarray] = (_padded(image[None], divisor) for image in images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next image, None at the end."""
        image = next(self._padded, None)
        return None if image is None else {INPUT: image}

    def __iter__(self) -> _Calibration:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        image = self.get_next()
        if image is None:
            raise StopIteration
        return image


def _padded(image: Tensor, divisor: int) -> np.ndarray:
    """Return an image as the network gets it from `PaddedInferer`."""
    seen: list[np.ndarray] = []

    def keep(padded: Tensor) -> Tensor:
        """Stand in for the network, and keep what it is given."""
        seen.append(padded.contiguous().numpy())
        return padded

    PaddedInferer(divisor)(image, keep)
    return seen[0]
