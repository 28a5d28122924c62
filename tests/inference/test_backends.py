# SPDX-License-Identifier: Apache-2.0
"""Networks of inference and evaluation that run outside of torch."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from pipeline.errors import InputError
from pipeline.inference import backend_of, backends, inferer_of, network_on, tile_inferer_of, told_backend
from pipeline.processes.bfloat16 import EMULATE
from tests.export.students import SEGRESNET, student

RUNTIMES = ("onnxruntime", "openvino")


def on(model, backend: str):
    for package in ("onnx", backend):
        pytest.importorskip(package)
    return network_on(model, backend_of(backend, "cpu"))


@pytest.mark.parametrize("backend", RUNTIMES)
@pytest.mark.parametrize(
    ("size", "shape", "dims"), [(27, (40, 35, 5), 2), ([16, 16, 8], (24, 20, 11), 3)], ids=["slices", "patches"]
)
def test_volumes_get_the_labels_of_torch(tmp_path, backend, size, shape, dims):
    model = student(tmp_path / "model.pt", SEGRESNET, size=size, spatial_dims=dims, init_filters=8)
    volume = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(0))
    labels, expected = (inferer_of(model)(volume, network) for network in (on(model, backend), model.network.eval()))
    assert (labels != expected).float().mean() < 1e-3
    assert expected.unique().numel() > 1


@pytest.mark.parametrize("backend", RUNTIMES)
def test_tiles_of_slides_get_the_labels_of_torch(tmp_path, backend):
    model = student(tmp_path / "model.pt", "erfnet", size=32, tile_px=48)
    images = torch.randint(0, 200, (1, 3, 100, 70), generator=torch.Generator().manual_seed(0)).float()
    labels, expected = (
        tile_inferer_of(model)(images, network) for network in (on(model, backend), model.network.eval())
    )
    assert (labels != expected).float().mean() < 1e-3


def test_torch_is_the_network_itself(tmp_path, monkeypatch):
    monkeypatch.setenv(EMULATE, "1")
    model = student(tmp_path / "model.pt", "enet")
    assert network_on(model, backend_of("torch", "cpu", "bfloat16")) is model.network
    assert told_backend("torch") == {}
    assert told_backend("openvino") == {"backend": "openvino"}


@pytest.mark.parametrize(
    ("installed", "machine", "device", "precision", "expected"),
    [
        ({"onnx", "onnxruntime", "openvino"}, "x86_64", "cpu", "float32", "openvino"),
        ({"onnx", "onnxruntime", "openvino"}, "arm64", "cpu", "float32", "onnxruntime"),
        ({"onnx", "onnxruntime"}, "x86_64", "cpu", "float32", "onnxruntime"),
        ({"onnx"}, "x86_64", "cpu", "float32", "torch"),
        ({"onnxruntime", "openvino"}, "x86_64", "cpu", "float32", "torch"),
        ({"onnx", "onnxruntime", "openvino"}, "x86_64", "cuda", "float32", "torch"),
        ({"onnx", "onnxruntime", "openvino"}, "x86_64", "cpu", "bfloat16", "torch"),
    ],
)
def test_auto_follows_its_rule_and_tells(monkeypatch, caplog, installed, machine, device, precision, expected):
    monkeypatch.setenv(EMULATE, "1")
    monkeypatch.setattr(backends, "is_installed", lambda name: name in installed)
    monkeypatch.setattr(backends.platform, "machine", lambda: machine)
    with caplog.at_level(logging.INFO):
        assert backend_of("auto", device, precision) == expected
    assert f"backend auto: {expected}" in caplog.text


@pytest.mark.parametrize(
    ("name", "precision", "named"),
    [
        ("tensorrt", "float32", "choose torch, onnxruntime, openvino, auto"),
        ("openvino", "float32", "pip install openvino onnx"),
        ("onnxruntime", "float32", "pip install onnxruntime onnx"),
    ],
)
def test_what_is_not_there_is_one_line(monkeypatch, name, precision, named):
    monkeypatch.setattr(backends, "is_installed", lambda name: False)
    with pytest.raises(InputError, match=named):
        backend_of(name, "cpu", precision)


def test_another_precision_is_torchs_alone(monkeypatch):
    monkeypatch.setattr(backends, "is_installed", lambda name: True)
    with pytest.raises(InputError, match="float32, not bfloat16"):
        backend_of("openvino", "cpu", "bfloat16")


def test_a_runtime_that_segments_otherwise_is_refused(tmp_path, monkeypatch):
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package)
    monkeypatch.setattr(backends, "_runner", lambda content, backend: lambda images: -np.repeat(images, 4, axis=1))
    with pytest.raises(InputError, match="backend onnxruntime cannot be used"):
        network_on(student(tmp_path / "model.pt", SEGRESNET, init_filters=8), "onnxruntime")
