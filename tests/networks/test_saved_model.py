# SPDX-License-Identifier: Apache-2.0
"""Model files: what comes back, and one clear line for each way in which a file can be unusable."""

from __future__ import annotations

import hashlib
import os
import shutil

import numpy as np
import pytest
import torch
from monai.networks.nets import SegResNet
from torch import nn

from pipeline.data import CT_WINDOW, MR_PERCENTILES
from pipeline.errors import InputError
from pipeline.networks import build_network, check_can_be_saved, load_model, save_model
from tests.preprocessing import scan_preprocessing

LABELS = {0: "background", 1: "liver", 2: "spleen"}
PREPROCESSING = scan_preprocessing(CT_WINDOW)


def save(path, network=None, **changes):
    network = build_network("enet", 1, 3) if network is None else network
    arguments = {"labels": LABELS, "preprocessing": PREPROCESSING, "size": 224, "modality": "CT", **changes}
    save_model(path, network, **arguments)
    return network


def edit(path, **changes):
    """Rewrite a model file with other parts; None takes a part out."""
    content = torch.load(path, weights_only=True)
    content.update(changes)
    torch.save({key: value for key, value in content.items() if value is not None}, path)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    save(path := tmp_path_factory.mktemp("written") / "model.pt")
    return path


@pytest.fixture
def model_file(written, tmp_path):
    return shutil.copy(written, tmp_path / "model.pt")


def test_everything_comes_back(tmp_path):
    path = tmp_path / "run" / "model.pt"
    network = save(path, selection={"epoch": 3, "dice": 0.5}, versions=["2.13"], note=None)
    model = load_model(path)
    assert (model.labels, model.preprocessing, model.size, model.modality) == (LABELS, PREPROCESSING, 224, "CT")
    assert model.network_arguments == {"name": "enet", "in_channels": 1, "out_channels": 3}
    assert model.network.arguments == model.network_arguments
    assert model.extra == {"selection": {"epoch": 3, "dice": 0.5}, "versions": ["2.13"], "note": None}
    assert model.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert model.path == path
    assert not model.network.training
    for key, value in network.state_dict().items():
        assert torch.equal(model.network.state_dict()[key], value)
    assert all(parameter.requires_grad and parameter.device.type == "cpu" for parameter in model.network.parameters())
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["model.pt"]


def test_network_of_volumes_keeps_the_sides_of_its_patches(tmp_path):
    network = build_network("monai.networks.nets.SegResNet", 1, 3, spatial_dims=3, blocks_down=(1, 1), blocks_up=(1,))
    save(tmp_path / "model.pt", network, size=(96, 64, 16))
    model = load_model(tmp_path / "model.pt")
    assert model.size == (96, 64, 16)
    assert model.network.spatial_dims == 3
    with pytest.raises(InputError, match="size of a 3D network is 96; give the three sides"):
        save(tmp_path / "model.pt", network, size=96)
    with pytest.raises(InputError, match="size of a 2D network"):
        save(tmp_path / "model.pt", size=(96, 64, 16))


def test_loading_draws_no_random_number(model_file):
    state = torch.get_rng_state()
    load_model(model_file)
    assert torch.equal(torch.get_rng_state(), state)


def test_loaded_network_trains_on(model_file):
    network = load_model(model_file).network.train()
    network(torch.rand(2, 1, 16, 16)).mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_labels_from_json_have_text_keys(tmp_path):
    save(tmp_path / "model.pt", labels={"2": "spleen", "0": "background", "1": "liver"})
    assert list(load_model(tmp_path / "model.pt").labels.items()) == list(LABELS.items())


def test_numpy_numbers_and_tuples_become_plain(tmp_path):
    save(tmp_path / "model.pt", selection={"dice": np.float64(0.25), "epoch": np.int64(4)}, seeds=(1, 2))
    extra = load_model(tmp_path / "model.pt").extra
    assert extra == {"selection": {"dice": 0.25, "epoch": 4}, "seeds": [1, 2]}
    assert type(extra["selection"]["dice"]) is float


def test_arguments_may_be_given_for_a_network_built_by_its_class(tmp_path):
    network = build_network("fanet", width=0.125)
    network.arguments = {}
    with pytest.raises(ValueError, match="does not say how it was built"):
        save(tmp_path / "model.pt", network)
    arguments = {"name": "fanet", "in_channels": 1, "out_channels": 2, "width": 0.125}
    save(tmp_path / "model.pt", network, labels={0: "background", 1: "liver"}, network_arguments=arguments)
    assert load_model(tmp_path / "model.pt", expect="fanet").network_arguments == arguments


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        lambda network: torch.compile(network, backend="eager"),
        lambda network: network.to(memory_format=torch.channels_last),
    ],
    ids=["distributed", "compiled", "channels_last"],
)
def test_file_does_not_depend_on_wrapper_or_layout(tmp_path, wrap):
    torch.manual_seed(0)
    network = build_network("enet", 1, 3)
    save(tmp_path / "bare.pt", network)
    save(tmp_path / "wrapped.pt", wrap(network))
    bare, wrapped = (load_model(tmp_path / name).network.state_dict() for name in ("bare.pt", "wrapped.pt"))
    assert list(bare) == list(wrapped)
    assert all(torch.equal(value, wrapped[key]) and wrapped[key].is_contiguous() for key, value in bare.items())


def test_arguments_of_another_network_are_refused_on_saving(tmp_path):
    with pytest.raises(ValueError, match="build another network than the one given"):
        save(tmp_path / "model.pt", network_arguments={"name": "erfnet", "in_channels": 1, "out_channels": 3})
    assert not (tmp_path / "model.pt").exists()


@pytest.mark.parametrize("value", [torch.zeros(1), {"deep": [object()]}, {1, 2}, b"bytes"])
def test_values_that_are_not_plain_are_refused_on_saving(tmp_path, value):
    with pytest.raises(TypeError, match=r"extra\.note"):
        save(tmp_path / "model.pt", note=value)


@pytest.mark.parametrize(
    "labels",
    [{0: "background", 1: "liver"}, {0: "background", 1: "liver", 3: "spleen"}, {"a": "b"}, ["background"], None],
)
def test_labels_must_name_every_class(tmp_path, labels):
    with pytest.raises(InputError, match=r"its network has 3 classes: name each of 0\.\.2"):
        save(tmp_path / "model.pt", labels=labels)


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        save(tmp_path / "file" / "model.pt")


def test_failed_write_leaves_the_last_good_file(model_file, monkeypatch):
    before = model_file.read_bytes()

    def break_off(content, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", break_off)
    with pytest.raises(KeyboardInterrupt):
        save(model_file)
    assert model_file.read_bytes() == before
    assert len(list(model_file.parent.iterdir())) == 1


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(InputError, match=r"no model file at .*absent\.pt; give the model\.pt of a"):
        load_model(tmp_path / "absent.pt")
    with pytest.raises(InputError, match="is a folder"):
        load_model(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_file_that_may_not_be_read(model_file):
    model_file.chmod(0)
    with pytest.raises(InputError, match="cannot read"):
        load_model(model_file)


@pytest.mark.parametrize("kept", [0, 1, 2, 4, 100, 0.5, -10])
def test_truncated_file(model_file, kept):
    raw = model_file.read_bytes()
    model_file.write_bytes(raw[: int(len(raw) * kept) if isinstance(kept, float) else kept])
    with pytest.raises(InputError, match=r"is empty|truncated|not a model file"):
        load_model(model_file)


def test_flipped_bit_in_the_weights(model_file):
    """`torch.load` does not compare checksums and would return another network."""
    raw = bytearray(model_file.read_bytes())
    weight = torch.load(model_file, weights_only=True)["state_dict"]["stage2.0.body.0.weight"]
    raw[raw.find(weight.numpy().tobytes()) + 2] ^= 1
    model_file.write_bytes(raw)
    torch.load(model_file, weights_only=True)
    with pytest.raises(InputError, match="damaged"):
        load_model(model_file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"position": 1, "random": 2}, "its keys are position, random"),
        ({f"layer{index}": torch.zeros(1) for index in range(9)}, r"layer0, .*layer4, \.\.\."),
        ([1, 2], "it has no keys"),
        (nn.Linear(1, 1), "could run code"),
    ],
)
def test_file_of_another_kind(tmp_path, content, message):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(InputError, match=f"not a model file of this project.*{message}"):
        load_model(tmp_path / "model.pt")


@pytest.mark.parametrize("raw", [b"hello", b"\x1f\x8b" + bytes(50), b"PK\x05\x06" + bytes(18)])
def test_no_checkpoint_at_all(tmp_path, raw):
    (tmp_path / "model.pt").write_bytes(raw)
    with pytest.raises(InputError, match="not a model file"):
        load_model(tmp_path / "model.pt")


def test_other_versions_and_missing_parts(model_file):
    edit(model_file, labels=None, size=None)
    with pytest.raises(InputError, match="lacks labels, size"):
        load_model(model_file)
    for version in (1, 3):  # an earlier one lacks the preprocessing
        edit(model_file, format_version=version)
        with pytest.raises(InputError, match=f"format version {version}, this release reads 2; use the release that"):
            load_model(model_file)


def test_another_network_than_expected(model_file):
    assert load_model(model_file, expect="enet").network_arguments["name"] == "enet"
    with pytest.raises(InputError, match="holds network 'enet', not 'fanet'"):
        load_model(model_file, expect="fanet")


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (scan_preprocessing(MR_PERCENTILES), r"ScaleIntensityByRuled \(high 275.0, .*, this run has .*high 99.5"),
        (PREPROCESSING[:-1], r"ScaleIntensityByRuled \(.*\), this run has no such step; give"),
        ([*PREPROCESSING, {"_target_": "a.Further", "by": 2}], r"no such step, this run has Further \(by 2\); give"),
        ([PREPROCESSING[0], *reversed(PREPROCESSING[1:])], "EnsureChannelFirstd .* has ScaleIntensityByRuled"),
        ([], "LoadImaged .* this run has no such step"),
    ],
)
def test_another_preprocessing_than_that_of_the_run_is_refused(model_file, steps, message):
    assert load_model(model_file, preprocessing=scan_preprocessing(CT_WINDOW)).preprocessing == PREPROCESSING
    with pytest.raises(InputError, match=f"was trained with preprocessing {message}") as caught:
        load_model(model_file, preprocessing=steps)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": {**LABELS, 2: "kidney"}}, r"other organs \(background, liver, spleen\) than .*\(.*kidney\)"),
        ({"in_channels": 3}, "in_channels 1, the dataset has 3"),
        ({"tile_px": 512}, "tile_px None, the dataset has 512"),
    ],
)
def test_another_dataset_than_that_of_the_run_is_refused(model_file, changes, message):
    dataset = {"labels": LABELS, "in_channels": 1, "tile_px": None}
    load_model(model_file, model_requirements=dataset)
    with pytest.raises(InputError, match=f"was trained .*{message}"):
        load_model(model_file, model_requirements={**dataset, **changes})


def test_network_that_cannot_be_built(model_file):
    edit(model_file, network_arguments={"name": "unet", "in_channels": 1, "out_channels": 3})
    with pytest.raises(InputError, match="cannot build: unknown network 'unet'"):
        load_model(model_file)


def test_weights_that_do_not_fit_list_the_first_five_keys(model_file):
    state = torch.load(model_file, weights_only=True)["state_dict"]
    keys = list(state)
    changed = {f"module.{key}": value for key, value in state.items()}
    edit(model_file, state_dict=changed)
    with pytest.raises(InputError) as caught:
        load_model(model_file)
    message = str(caught.value)
    assert f"{len(keys)} missing ({', '.join(keys[:5])}, ...)" in message
    assert f"{len(keys)} unexpected (module.{keys[0]}" in message
    assert keys[5] not in message


def test_weights_of_other_classes(model_file):
    edit(model_file, network_arguments={"name": "enet", "in_channels": 1, "out_channels": 4})
    with pytest.raises(InputError, match=r"1 of another shape \(head.weight \(16, 3, 3, 3\) for \(16, 4, 3, 3\)\)"):
        load_model(model_file)


def test_weights_that_are_not_finite(tmp_path):
    network = build_network("enet", 1, 3)
    network.head.weight.data[0, 0, 0, 0] = float("nan")
    save(tmp_path / "model.pt", network)
    with pytest.raises(InputError, match=r"NaN or infinite \(head.weight\)"):
        load_model(tmp_path / "model.pt")


def test_half_precision_weights_become_the_networks_own(tmp_path):
    save(tmp_path / "model.pt", build_network("enet", 1, 3).half())
    assert {value.dtype for value in load_model(tmp_path / "model.pt").network.parameters()} == {torch.float32}


@pytest.mark.parametrize("device", ["cuda:99", "nonsense"])
def test_device_that_is_not_there(model_file, device):
    with pytest.raises(InputError, match=f"device '{device}' cannot be used"):
        load_model(model_file, device=device)


def test_network_that_no_file_could_describe_is_refused_before_training():
    check_can_be_saved(build_network("enet"))
    with pytest.raises(InputError, match=r"could not build a .*SegResNet again; use pipeline\.networks\.adopt"):
        check_can_be_saved(SegResNet(spatial_dims=2))
