# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.runtimes.description import Description, describe_model
from pipeline.runtimes.runners import is_installed, load_student
from tests.export.students import LABELS, SEGRESNET, student

pytest.importorskip("onnx")
from pipeline.export.file_kinds import check_packages
from pipeline.export.formats import (
    FORMATS,
    description_in,
    exported_program,
    extra_files,
    onnx_model,
)

NETWORKS = {
    "erfnet": {"name": "erfnet"},
    "mobile_unet": {"name": "mobile_unet"},
    "enet": {"name": "enet"},
    "fanet": {"name": "fanet", "width": 0.125},
    "segresnet": {"name": SEGRESNET, "init_filters": 8},
    "segresnet of volumes": {"name": SEGRESNET, "init_filters": 8, "spatial_dims": 3, "size": [32, 16, 16]},
}


def needs(name: str) -> None:
    if not all(is_installed(package) for package in FORMATS[name].packages):
        pytest.skip(f"{name} needs {', '.join(FORMATS[name].packages)}")


def round_trip(tmp_path: Path, network: str, name: str) -> None:
    """Write a network and compare its logits on batches and sides that the exporter did not see."""
    needs(name)
    model = student(tmp_path / "model.pt", **NETWORKS[network])
    path = tmp_path / f"student{FORMATS[name].suffix}"
    FORMATS[name].write(model.network, describe_model(model), path)
    run = FORMATS[name].run(path)
    divisor, dims = model.network.size_divisor, model.network.spatial_dims
    for batch, multiples in ((1, (2, 2, 2)), (3, (4, 3, 2)), (1, (9, 13, 2))):
        images = torch.rand(batch, 1, *(divisor * times for times in multiples[:dims]))
        assert_logits_equal(run, model.network, images)


def assert_logits_equal(run: Callable[[np.ndarray], np.ndarray], network: nn.Module, images: Tensor) -> None:
    with torch.inference_mode():
        np.testing.assert_allclose(run(images.numpy()), network(images).numpy(), atol=1e-4)


@pytest.mark.parametrize("name", ["onnx", "openvino", "torchscript"])
@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_comes_back_from_every_format(tmp_path, network, name):
    round_trip(tmp_path, network, name)


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_comes_back_from_torch_export(tmp_path, network):
    round_trip(tmp_path, network, "torch-export")


class RootMeanSquareOfClasses(nn.Module):
    """A network with a normalisation that the older exporter does not know."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits = self.network(images).movedim(1, -1)
        return nn.functional.rms_norm(logits, logits.shape[-1:]).movedim(-1, 1)


@pytest.mark.slow
def test_the_newer_exporter_takes_what_the_older_refuses(tmp_path):
    model = student(tmp_path / "model.pt", "enet")
    network = RootMeanSquareOfClasses(model.network).eval()
    FORMATS["onnx"].write(network, describe_model(model), tmp_path / "student.onnx")
    assert_logits_equal(FORMATS["onnx"].run(tmp_path / "student.onnx"), network, torch.rand(1, 1, 64, 96))


class TestDescription:
    def test_what_the_file_says_is_what_the_model_file_said(self, tmp_path):
        model = student(tmp_path / "model.pt", "enet", size=24)
        description = describe_model(model)
        assert (description.labels, description.size, description.modality) == (LABELS, 24, "CT")
        assert (description.in_channels, description.out_channels, description.size_divisor) == (1, 4, 8)
        assert description.preprocessing == model.preprocessing
        assert (description.source_sha256, description.tile_px) == (model.sha256, None)
        assert Description.from_metadata(description.to_metadata(), tmp_path) == description
        assert json.loads(description.to_metadata()["labels"]) == {
            "0": "background",
            **{str(k): LABELS[k] for k in (1, 2, 3)},
        }

    @pytest.mark.parametrize("name", ["onnx", "openvino"])
    def test_runtimes_read_it(self, tmp_path, name):
        needs(name)
        model = student(tmp_path / "model.pt", SEGRESNET, size=[16, 16, 8], spatial_dims=3, init_filters=8)
        path = tmp_path / f"student{FORMATS[name].suffix}"
        FORMATS[name].write(model.network, describe_model(model), path)
        assert load_student(path).description == describe_model(model)

    @pytest.mark.parametrize(
        ("name", "load"),
        [
            ("torchscript", lambda path, files: torch.jit.load(path, _extra_files=files)),
            ("torch-export", lambda path, files: torch.export.load(path, extra_files=files)),
        ],
    )
    def test_torchs_archives_keep_it(self, tmp_path, name, load):
        description = describe_model(student(tmp_path / "model.pt", "erfnet", tile_px=896))
        files, path = dict.fromkeys(extra_files(description), ""), tmp_path / f"student{FORMATS[name].suffix}"
        FORMATS[name].write(nn.Conv2d(3, len(LABELS), 3, padding=1), description, path)
        load(path, files)
        assert description_in(files, path) == description

    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"format": '"other"'}, "no exported student"),
            ({"format": "{"}, "damaged description"),
            ({"format_version": "99"}, "format version 99"),
            ({"labels": "[1]"}, "damaged description"),
        ],
    )
    def test_other_metadata_are_refused(self, tmp_path, changes, named):
        metadata = describe_model(student(tmp_path / "model.pt", "enet")).to_metadata()
        with pytest.raises(InputError, match=named):
            Description.from_metadata({**metadata, **changes}, tmp_path)
        with pytest.raises(InputError, match="damaged description"):
            Description.from_metadata({key: value for key, value in metadata.items() if key != "size"}, tmp_path)
        with pytest.raises(InputError, match="no exported student"):
            Description.from_metadata({}, tmp_path)


class Choosing(nn.Module):
    """Decides by the values of its images and computes eigenvalues: neither can be exported."""

    def forward(self, images: Tensor) -> Tensor:
        if images.sum() > 0:
            return images
        return images + torch.linalg.eigvals(images[..., :2, :2]).real.sum()


def test_what_cannot_be_exported_is_one_line(tmp_path):
    description = describe_model(student(tmp_path / "model.pt", "enet"))
    for export in (onnx_model, exported_program):
        with pytest.raises(InputError, match="cannot be exported by"):
            export(Choosing(), description)


def test_a_package_that_is_not_installed_is_named_with_the_line_to_type():
    with pytest.raises(InputError, match="pip install no_such_package"):
        check_packages(("torch", "no_such_package"))
