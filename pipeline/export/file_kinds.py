# SPDX-License-Identifier: Apache-2.0
"""The formats of exported networks by name: how their files end, and which packages they need."""

from __future__ import annotations

from typing import NamedTuple

from pipeline.errors import InputError
from pipeline.runtimes.runners import ONNXRUNTIME, OPENVINO, is_installed


class FileKind(NamedTuple):
    """The files of a format.

    Attributes:
        suffix: of their names.
        packages: that the format needs beside torch, as pip names them.
    """

    suffix: str
    packages: tuple[str, ...]


FILE_KINDS = {
    "onnx": FileKind(".onnx", ("onnx", "onnxscript", ONNXRUNTIME)),
    "openvino": FileKind(".xml", ("onnx", "onnxscript", OPENVINO)),
    "torch-export": FileKind(".pt2", ()),
    "torchscript": FileKind(".ts", ()),
}
INT8_FORMATS = ("onnx", "openvino")
BUNDLE = "bundle"


def check_packages(packages: tuple[str, ...]) -> None:
    """Raise `InputError` with the line to type for packages that are not installed."""
    missing = [package for package in packages if not is_installed(package)]
    if missing:
        raise InputError(f"{', '.join(missing)} not installed; pip install {' '.join(missing)}")
