# SPDX-License-Identifier: Apache-2.0
"""MONAI's networks by their dotted names: the same network, tapped, padded, saved; and nothing else by any name."""

from __future__ import annotations

import functools
import re

import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks import nets
from torch import nn

from pipeline.data import CT_WINDOW
from pipeline.distillation import FeatureTaps
from pipeline.errors import InputError
from pipeline.networks import (
    MONAI_NETWORKS,
    PaddedInferer,
    build_network,
    feature_maps,
    load_model,
    network_recipe,
    parameter_count,
    save_model,
    tap_channels,
)
from tests.preprocessing import scan_preprocessing

MONAI = "monai.networks.nets."
DYNUNET = {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2], "filters": [4, 8, 16]}
UNET = {"channels": [4, 8, 16], "strides": [2, 2], "num_res_units": 1}
# Options that make a network small; the multiple that sides must be; the two default taps with their channels.
SMALL = {
    "AttentionUnet": (
        {"channels": [4, 8, 16, 32], "strides": [2, 2, 2]},
        8,
        {"model.1.submodule.1.submodule.0": 16, "model.1.submodule.1.submodule": 16},
    ),
    "BasicUNet": ({"features": [4, 4, 8, 8, 16, 4]}, 16, {"down_2": 8, "upcat_3": 8}),
    "DynUNet": (DYNUNET, 4, {"downsamples.0": 8, "upsamples.0": 8}),
    "FlexibleUNet": ({"backbone": "resnet18"}, 32, {"encoder.layer1": 64, "decoder.blocks.2": 64}),
    "HighResNet": ({}, 1, {"blocks.5": 32, "blocks.10": 80}),
    "MedNeXt": ({"init_filters": 4}, 16, {"enc_stages.2": 16, "dec_stages.1": 16}),
    "SegResNet": ({}, 8, {"down_layers.2": 32, "up_layers.0": 32}),
    "UNet": (UNET, 4, {"model.0": 4, "model.1.submodule": 4}),
    "VNet": ({}, 16, {"down_tr64": 64, "up_tr128": 128}),
}
NEED_EINOPS = {
    "SwinUNETR": ({"feature_size": 12}, 32, {"encoder3": 24, "decoder3": 24}),
    "UNETR": (
        {"img_size": 32, "hidden_size": 24, "mlp_dim": 48, "num_heads": 2},
        32,
        {"encoder3": 64, "decoder4": 64},
    ),
}
CASES = SMALL | NEED_EINOPS
LABELS = {0: "background", 1: "liver", 2: "spleen"}


@functools.cache
def built(short: str) -> nn.Module:
    torch.manual_seed(0)
    return build_network(MONAI + short, 1, 3, **CASES[short][0])


@pytest.fixture(params=sorted(CASES))
def short(request) -> str:
    if request.param in NEED_EINOPS:
        pytest.importorskip("einops")
    return request.param


def save(path, network, size=32):
    preprocessing = scan_preprocessing(CT_WINDOW)
    save_model(path, network, labels=LABELS, preprocessing=preprocessing, size=size, modality="CT")


def test_every_network_of_the_list_is_tried():
    assert set(MONAI_NETWORKS) == {MONAI + short for short in CASES}


def test_it_is_monais_network(short):
    """Same seed, same values, same names: weights trained with MONAI alone fit."""
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in CASES[short][0].items()}
    torch.manual_seed(0)
    original = getattr(nets, short)(spatial_dims=2, in_channels=1, out_channels=3, **options)
    network = built(short)
    assert type(network) is type(original)
    assert parameter_count(network) == sum(parameter.numel() for parameter in original.parameters())
    state = original.state_dict()
    assert list(network.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_what_distillation_and_inference_ask_of_it(short):
    network, (options, divisor, taps) = built(short), CASES[short]
    assert (network.in_channels, network.out_channels, network.spatial_dims) == (1, 3, 2)
    assert network.size_divisor == divisor
    assert dict(zip(network.taps, network.tap_channels, strict=True)) == taps
    assert network.arguments == {
        "name": MONAI + short,
        "in_channels": 1,
        "out_channels": 3,
        "spatial_dims": 2,
        **options,
        "taps": list(taps),
    }


def test_default_taps_have_one_resolution(short):
    maps = {one.name: one for one in feature_maps(built(short))}
    assert len({maps[tap].strides for tap in built(short).taps}) == 1


def test_tapped_while_training_at_an_odd_size(short):
    network = built(short).train()
    size = (32, 32) if network.fixed_size else (37, 70)
    taps = FeatureTaps(network, network.taps)
    logits = PaddedInferer()(torch.rand(2, 1, *size), network)
    features = taps.take()
    taps.remove()
    assert logits.shape == (2, 3, *size)
    assert tuple(feature.shape[1] for feature in features) == network.tap_channels
    (logits.mean() + sum(feature.float().mean() for feature in features)).backward()
    assert any(parameter.grad is not None for parameter in network.parameters())


def test_saved_and_loaded(short, tmp_path):
    network = built(short).eval()
    save(tmp_path / "model.pt", network)
    state = torch.get_rng_state()
    loaded = load_model(tmp_path / "model.pt", expect=MONAI + short)
    assert torch.equal(torch.get_rng_state(), state)
    assert loaded.network_arguments == network.arguments
    assert (loaded.network.taps, loaded.network.tap_channels) == (network.taps, network.tap_channels)
    images = torch.rand(1, 1, 64 if not network.fixed_size else 32, 64 if not network.fixed_size else 32)
    with torch.no_grad():
        assert torch.equal(loaded.network(images), network(images))


def test_parameters_that_modules_share_are_stored_once(tmp_path):
    network = build_network(MONAI + "DynUNet", 1, 3, **{**DYNUNET, "filters": [16, 32, 64]})
    save(tmp_path / "model.pt", network)
    assert (tmp_path / "model.pt").stat().st_size < 1.5 * 4 * parameter_count(network)
    loaded = load_model(tmp_path / "model.pt").network
    assert parameter_count(loaded) == parameter_count(network)


@pytest.mark.parametrize(
    ("short", "options", "size"),
    [
        ("SegResNet", {"blocks_down": [1, 1, 1], "blocks_up": [1, 1]}, (9, 13, 17)),
        ("UNet", UNET, (9, 8, 13)),
        ("DynUNet", {**DYNUNET, "strides": [1, [1, 2, 2], 2], "upsample_kernel_size": [[1, 2, 2], 2]}, (5, 18, 9)),
    ],
)
def test_volumes_of_odd_sizes(short, options, size, tmp_path):
    network = build_network(MONAI + short, 2, 3, spatial_dims=3, **options).eval()
    volume = torch.rand(1, 2, *size)
    with torch.no_grad():
        logits = PaddedInferer()(volume, network)
    assert logits.shape == (1, 3, *size)
    save(tmp_path / "model.pt", network, size=[32, 32, 16])
    with torch.no_grad():
        assert torch.equal(PaddedInferer()(volume, load_model(tmp_path / "model.pt").network), logits)


@pytest.mark.parametrize(
    ("short", "options", "divisor"),
    [
        ("UNet", {"channels": [4, 8, 16], "strides": [2, 4]}, 8),
        ("UNet", {"channels": [4, 8], "strides": [[2, 3]]}, 6),
        ("UNet", {"channels": [4, 8, 16], "strides": [[2, 3], [2, 1]]}, 12),
        ("SegResNet", {"blocks_down": [1, 1], "blocks_up": [1]}, 2),
        ("DynUNet", {**DYNUNET, "strides": [1, [2, 1], [2, 2]], "upsample_kernel_size": [[2, 1], [2, 2]]}, 4),
        ("MedNeXt", {"init_filters": 4, "blocks_down": [1, 1], "blocks_up": [1, 1]}, 4),
    ],
)
def test_multiple_of_the_sides_follows_the_options(short, options, divisor):
    network = build_network(MONAI + short, **options).eval()
    assert network.size_divisor == divisor
    with torch.no_grad():
        assert network(torch.rand(1, 1, 3 * divisor, 2 * divisor)).shape == (1, 2, 3 * divisor, 2 * divisor)


def test_dropout_of_a_flat_vnet_drops_channels_and_no_images():
    """torch takes (B, C, H, W) for a volume of B channels: MONAI's network drops one image in two as a whole."""
    kinds = {type(module) for module in built("VNet").modules()}
    assert nn.Dropout2d in kinds
    assert nn.Dropout3d not in kinds
    with torch.device("meta"):
        volumetric = build_network(MONAI + "VNet", spatial_dims=3)
    assert nn.Dropout3d in {type(module) for module in volumetric.modules()}


def test_tap_channels_without_building():
    state = torch.get_rng_state()
    assert tap_channels({"name": MONAI + "SegResNet", "init_filters": 16}, width=None) == (64, 64)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", ["name", "_target_"])
def test_asked_for_by_a_mapping(kind):
    request = {kind: MONAI + "SegResNet", "init_filters": 8, "blocks_up": (1, 1, 1)}
    network = build_network(request, 3, 2, width=None)
    assert (network.arguments["in_channels"], network.arguments["init_filters"]) == (3, 8)
    assert network_recipe(request) == {"name": MONAI + "SegResNet", "init_filters": 8, "blocks_up": [1, 1, 1]}
    assert build_network({"name": "enet"}).arguments["name"] == "enet"


@pytest.mark.parametrize(
    "network",
    [
        {"name": MONAI + "SegResNet", "taps": ["down_layers.1", "up_layers.1"]},
        {"_target_": MONAI + "SegResNet", "_mode_": "callable", "taps": ["down_layers.1", "up_layers.1"]},
        {"_target_": "SegResNet", "_mode_": "callable", "taps": ["down_layers.1", "up_layers.1"]},
    ],
)
def test_asked_for_in_a_config(network):
    config = {
        "network": network,
        "network_def": {
            "_target_": "pipeline.networks.build_network",
            "name": "@network",
            "in_channels": 1,
            "out_channels": 4,
            "width": None,
        },
        "recipe": {"_target_": "pipeline.networks.network_recipe", "name": "@network"},
    }
    parser = ConfigParser(config)
    built = parser.get_parsed_content("network_def")
    assert isinstance(built, nets.SegResNet)
    assert (built.taps, built.out_channels) == (("down_layers.1", "up_layers.1"), 4)
    recipe = parser.get_parsed_content("recipe")
    assert recipe == {"name": MONAI + "SegResNet", "taps": ["down_layers.1", "up_layers.1"]}


def test_recipe_of_a_name_is_the_name():
    assert network_recipe("enet") == "enet"
    assert network_recipe(nets.SegResNet) == {"name": MONAI + "SegResNet"}
    with pytest.raises(InputError, match=r"network '.*SegResNet': network.preprocess is a"):
        network_recipe({"name": MONAI + "SegResNet", "preprocess": len})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("SegResNet", {}, "unknown network 'SegResNet'; did you mean 'monai.networks.nets.SegResNet'"),
        (MONAI + "SegResNett", {}, "did you mean 'monai.networks.nets.SegResNet'"),
        (MONAI + "SegResNetDS", {}, "returns a list in training; use SegResNet"),
        (MONAI + "BasicUNetPlusPlus", {}, "it returns a list; use BasicUNet"),
        (MONAI + "DenseNet121", {}, "not among the networks of MONAI that can be used"),
        (MONAI + "segresnet.SegResNet", {}, "not among the networks of MONAI"),
        (MONAI + "UNet", {"strides": [2, 2]}, "needs the options channels too"),
        (MONAI + "UNet", {"channels": [4, 8, 16], "strides": [2]}, "cannot be built"),
        (MONAI + "SegResNet", {"init_filter": 8}, "no option 'init_filter'; did you mean 'init_filters'"),
        (MONAI + "SegResNet", {"init_filters": None}, "cannot be built"),
        (MONAI + "SegResNet", {"init_filters": 9}, "cannot be built"),
        (MONAI + "SegResNet", {"width": 0.5}, "no option 'width'"),
        (MONAI + "SegResNet", {"spatial_dims": 4}, "spatial_dims .* is 4; give 2 for images or 3"),
        (MONAI + "SegResNet", {"act": nn.ReLU}, "act is a type"),
        (MONAI + "SegResNet", {"upsample_mode": "pixelshuffel"}, "cannot be built"),
        (MONAI + "SegResNet", {"out_channels": 1}, "out_channels is 1"),
        (MONAI + "DynUNet", {**DYNUNET, "deep_supervision": True}, "cannot have deep_supervision=True"),
        (MONAI + "FlexibleUNet", {"backbone": "resnet18", "pretrained": True}, "weights come from model files"),
        (MONAI + "FlexibleUNet", {"backbone": "resnet19"}, "cannot be built"),
        (MONAI + "HighResNet", {"layer_params": [{"name": "a", "n_features": 4, "kernel_size": 3}]}, "cannot be built"),
        ("enet", {"spatial_dims": 3}, "'enet' is for images, spatial_dims is 3"),
        ({"init_filters": 3}, {}, "has no name"),
        ({"name": MONAI + "SegResNet", "in_channels": 3}, {}, "another in_channels than the 1 of the data"),
        (nets.SegResNet(spatial_dims=2), {}, "finished SegResNet.*'_mode_': 'callable'"),
        (functools.partial(eval, "1 + 1"), {}, "unknown network"),
        (functools.partial(print, end=""), {}, "unknown network 'builtins.print'"),
        (nets.DenseNet121, {}, "not among the networks"),
    ],
)
def test_what_cannot_be_built(name, options, message):
    with pytest.raises(InputError, match=message):
        build_network(name, **options)


def test_package_that_is_not_installed_is_named(monkeypatch):
    class Lacking(nn.Module):
        def __init__(self, spatial_dims, in_channels, out_channels, features=()):
            raise ImportError("from einops import rearrange (No module named 'einops').\n\nFor details ...")

    monkeypatch.setattr(nets, "BasicUNet", Lacking)
    with pytest.raises(InputError, match=r"needs a package that is not installed: from einops.*Install it\.$"):
        build_network(MONAI + "BasicUNet")


def test_network_that_does_more_than_logits_is_refused(monkeypatch):
    class NetworkPair(nn.Conv2d):
        def __init__(self, spatial_dims, in_channels, out_channels, features=()):
            super().__init__(in_channels, out_channels, 1)

        def forward(self, images):
            logits = super().forward(images)
            return [logits] if self.training else logits

    monkeypatch.setattr(nets, "BasicUNet", NetworkPair)
    with pytest.raises(InputError, match=r"gives a list, not logits \(1, 2, 48, 80\)"):
        build_network(MONAI + "BasicUNet")


@pytest.fixture(scope="module")
def segresnet_file(tmp_path_factory):
    save(path := tmp_path_factory.mktemp("segresnet") / "model.pt", built("SegResNet"))
    return path


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.eval",
        "torch.nn.Linear",
        "pipeline.networks.monai_networks.build_monai_network",
        "monai.bundle.run",
        "monai.networks.nets",
        MONAI + "DenseNet121",
        MONAI + "unet.UNet",
        MONAI + "SegResNet.__init__",
        {"_target_": "os.system"},
        {"name": {"name": "enet"}},
        ["enet"],
        None,
        7,
    ],
)
def test_crafted_checkpoint_calls_for_nothing_outside_the_list(name, segresnet_file, tmp_path):
    content = torch.load(segresnet_file, weights_only=True)
    content["network_arguments"] = {"name": name, "in_channels": 1, "out_channels": 3}
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(InputError, match=re.escape(str(tmp_path)) + ".*cannot build"):
        load_model(tmp_path / "model.pt")


@pytest.mark.parametrize(
    "options",
    [
        {"norm": "os.system"},
        {"act": ["__import__", {"name": "os"}]},
        {"upsample_mode": "os.system"},
        {"pretrained": True},
        {"taps": "os.system"},
        {"init_filters": "8"},
        {3: 4},
    ],
)
def test_crafted_options_are_refused(options, segresnet_file, tmp_path):
    content = torch.load(segresnet_file, weights_only=True)
    content["network_arguments"].update(options)
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(InputError, match="cannot build"):
        load_model(tmp_path / "model.pt")
