# SPDX-License-Identifier: Apache-2.0
"""Networks that a config builds by their class: what they are given, their model files, and which are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks import nets
from torch import Tensor, nn

from pipeline.data import CT_WINDOW
from pipeline.distillation import FeatureTaps
from pipeline.errors import InputError, find_input_error
from pipeline.networks import (
    PaddedInferer,
    adopt,
    build_network,
    check_can_be_saved,
    feature_maps,
    load_model,
    save_model,
)
from pipeline.networks.adopted import build_adopted
from tests.preprocessing import scan_preprocessing

MONAI = "monai.networks.nets."
AUTOENCODER = {"_target_": "AutoEncoder", "channels": [4, 8, 8], "strides": [2, 2, 2]}
LABELS = {0: "background", 1: "liver", 2: "spleen"}
ATTRIBUTES = ("in_channels", "out_channels", "spatial_dims", "size_divisor", "fixed_size", "taps", "tap_channels")


class Hourglass(nn.Module):
    """Halves an image `levels` times and doubles it again, with sums of equal sides: a network of one's own."""

    def __init__(self, in_channels: int, out_channels: int, levels: int = 2, width: int = 4) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, width, 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(width, width, 2, stride=2) for _ in range(levels))
        self.up = nn.ModuleList(nn.ConvTranspose2d(width, width, 2, stride=2) for _ in range(levels))
        self.head = nn.Conv2d(width, out_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        features, skipped = self.first(images), []
        for down in self.down:
            skipped.append(features)
            features = down(features).relu()
        for up in self.up:
            features = up(features).relu() + skipped.pop()
        return self.head(features)


class AnySize(Hourglass):
    """Brings its logits back to the image's sides, whatever they are."""

    def forward(self, images: Tensor) -> Tensor:
        features = self.first(images)
        for down in self.down:
            features = down(features).relu()
        return nn.functional.interpolate(self.head(features), size=images.shape[-2:])


class ListOfLogits(Hourglass):
    def forward(self, images: Tensor) -> list[Tensor]:
        return [super().forward(images)]


class ListInTraining(Hourglass):
    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        logits = super().forward(images)
        return [logits] if self.training else logits


class Whim(nn.Module):
    """Is another network each time that it is built."""

    built = 0

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        Whim.built += 1
        self.first = nn.Conv2d(in_channels, 4 + Whim.built, 3, padding=1)
        self.second = nn.Conv2d(4 + Whim.built, 4, 3, padding=1)
        self.head = nn.Conv2d(4, out_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.second(self.first(images)))


def own(network_class: type[nn.Module], **options: Any) -> dict[str, Any]:
    return {"_target_": f"{__name__}.{network_class.__name__}", "in_channels": 1, "out_channels": 3, **options}


def of_monai(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"spatial_dims": 2, "in_channels": 1, "out_channels": 3, **config, **changes}


def adopted(network_def: Any, in_channels: int = 1, out_channels: int = 3, spatial_dims: int = 2) -> nn.Module:
    """Return the network of a config, adopted as the bundles do it."""
    config = {
        "network_def": network_def,
        "trained_network": {
            "_target_": "pipeline.networks.adopt",
            "network": "@network_def",
            "description": {"_target_": "pipeline.described.describe", "key": "network_def"},
            "in_channels": in_channels,
            "out_channels": out_channels,
            "spatial_dims": spatial_dims,
        },
    }
    parser = ConfigParser(config)
    network = parser.get_parsed_content("trained_network")
    assert network is parser.get_parsed_content("network_def")
    return network


def refused(*arguments: Any, **options: Any) -> str:
    """Return the line by which a network is refused; MONAI wraps it, and programs look for the cause."""
    with pytest.raises(RuntimeError) as caught:
        adopted(*arguments, **options)
    line = str(find_input_error(caught.value))
    assert "\n" not in line
    return line


def save(path, network, size=32):
    preprocessing = scan_preprocessing(CT_WINDOW)
    save_model(path, network, labels=LABELS, preprocessing=preprocessing, size=size, modality="CT")


def logits_of(network: nn.Module, *sides: int) -> Tensor:
    images = torch.rand(1, network.in_channels, *sides, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return PaddedInferer()(images, network.eval())


KNOWN = {
    "SegResNet": {"init_filters": 8, "blocks_down": [1, 2, 2]},
    "UNet": {"channels": [4, 8, 16], "strides": [2, 2], "num_res_units": 1},
    "AttentionUnet": {"channels": [4, 8, 16, 32], "strides": [2, 2, 2]},
    "VNet": {},
}
KNOWN["SegResNet"]["blocks_up"] = [1, 1]


class TestClassesOfTheList:
    @pytest.mark.parametrize("short", sorted(KNOWN))
    @pytest.mark.parametrize("prefix", ["", MONAI], ids=["short", "dotted"])
    def test_they_get_what_build_network_gives(self, short, prefix, tmp_path):
        expected = build_network(MONAI + short, 1, 3, **KNOWN[short])
        network = adopted(of_monai({"_target_": prefix + short, **KNOWN[short]}))
        assert type(network) is getattr(nets, short)
        for attribute in ATTRIBUTES:
            assert getattr(network, attribute) == getattr(expected, attribute), attribute
        assert network.arguments == {"spatial_dims": 2, **expected.arguments}
        assert [type(module) for module in network.modules()] == [type(module) for module in expected.modules()]
        save(tmp_path / "model.pt", network)
        loaded = load_model(tmp_path / "model.pt", expect=MONAI + short)
        assert loaded.network_arguments == network.arguments
        assert torch.equal(logits_of(loaded.network, 37, 70), logits_of(network, 37, 70))

    def test_defaults_of_the_class_count_where_the_config_has_none(self):
        network = adopted({"_target_": "SegResNet", "out_channels": 3}, spatial_dims=3)
        assert (network.in_channels, network.out_channels, network.spatial_dims) == (1, 3, 3)
        check_can_be_saved(network)

    def test_classes_of_this_package_get_their_name(self, tmp_path):
        network = adopted({"_target_": "pipeline.networks.FANet", "in_channels": 1, "out_channels": 3, "width": 0.125})
        assert network.arguments == {"name": "fanet", "in_channels": 1, "out_channels": 3, "width": 0.125}
        save(tmp_path / "model.pt", network)
        assert load_model(tmp_path / "model.pt", expect="fanet").network_arguments == network.arguments

    def test_networks_of_build_network_stay_as_they_are(self):
        arguments = {"in_channels": 1, "out_channels": 3, "taps": ["stage1", "up4"]}
        network = adopted({"_target_": "pipeline.networks.build_network", "name": "enet", **arguments})
        assert network.arguments == {"name": "enet", **arguments}
        assert network.taps == ("stage1", "up4")


class TestOtherClasses:
    @pytest.mark.parametrize(("levels", "divisor"), [(1, 2), (2, 4), (3, 8), (4, 16), (5, 32), (7, 128)])
    def test_the_least_multiple_is_found(self, levels, divisor):
        network = adopted(own(Hourglass, levels=levels))
        assert network.size_divisor == divisor
        assert not network.fixed_size
        assert logits_of(network, divisor, 3 * divisor).shape == (1, 3, divisor, 3 * divisor)
        assert logits_of(network, 37, 70).shape == (1, 3, 37, 70)

    def test_a_network_that_takes_any_size_is_never_padded(self):
        network = adopted(own(AnySize))
        assert network.size_divisor == 1
        assert logits_of(network, 37, 70).shape == (1, 3, 37, 70)

    def test_of_monais_too(self, tmp_path):
        network = adopted(of_monai(AUTOENCODER))
        assert network.size_divisor == 8
        assert network.arguments["name"] == "monai.networks.nets.autoencoder.AutoEncoder"
        save(tmp_path / "model.pt", network)
        loaded = load_model(tmp_path / "model.pt").network
        assert torch.equal(logits_of(loaded, 37, 70), logits_of(network, 37, 70))

    def test_of_volumes_too(self, tmp_path):
        network = adopted(of_monai(AUTOENCODER, spatial_dims=3), spatial_dims=3)
        assert (network.spatial_dims, network.size_divisor) == (3, 8)
        save(tmp_path / "model.pt", network, size=[32, 32, 16])
        loaded = load_model(tmp_path / "model.pt")
        assert loaded.size == (32, 32, 16)
        assert torch.equal(logits_of(loaded.network, 9, 13, 17), logits_of(network, 9, 13, 17))

    @pytest.mark.parametrize("config", [own(Hourglass, levels=3), of_monai(AUTOENCODER)], ids=["own", "MONAI's"])
    def test_tapped_while_training_at_an_odd_size(self, config):
        network = adopted(config).train()
        strides = {one.name: one.strides for one in feature_maps(network)}
        assert [strides[tap] for tap in network.taps] == [(4, 4), (4, 4)]
        taps = FeatureTaps(network, network.taps)
        logits = PaddedInferer()(torch.rand(2, 1, 37, 70), network)
        features = taps.take()
        taps.remove()
        assert logits.shape == (2, 3, 37, 70)
        assert tuple(feature.shape[1] for feature in features) == network.tap_channels
        (logits.mean() + sum(feature.mean() for feature in features)).backward()
        assert all(parameter.grad is not None for parameter in network.parameters())

    def test_the_network_itself_is_left_as_it_is(self):
        torch.manual_seed(0)
        network = Hourglass(1, 3).eval()
        before = {key: value.clone() for key, value in network.state_dict().items()}
        random = torch.get_rng_state()
        assert adopt(network, own(Hourglass), 1, 3) is network
        assert torch.equal(torch.get_rng_state(), random)
        assert not network.training
        assert list(network.state_dict()) == list(before)
        assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


class TestModelFiles:
    @pytest.fixture
    def network(self) -> nn.Module:
        return adopted(own(Hourglass, levels="$1 + 2", width=6))

    @pytest.fixture
    def model_file(self, network, tmp_path, monkeypatch):
        monkeypatch.setenv("GRAPHFLOW_TRUSTED_MODULES", __name__)
        save(tmp_path / "model.pt", network)
        return tmp_path / "model.pt"

    @pytest.mark.parametrize("trusted", [__name__, "tests.networks", "tests"])
    def test_own_class_comes_back_where_its_module_is_trusted(self, network, model_file, trusted, monkeypatch):
        monkeypatch.setenv("GRAPHFLOW_TRUSTED_MODULES", f"another,{trusted}")
        state = torch.get_rng_state()
        loaded = load_model(model_file, expect=f"{__name__}.Hourglass")
        assert torch.equal(torch.get_rng_state(), state)
        assert type(loaded.network) is Hourglass
        assert loaded.network_arguments == network.arguments
        for attribute in ATTRIBUTES:
            assert getattr(loaded.network, attribute) == getattr(network, attribute)
        assert torch.equal(logits_of(loaded.network, 37, 70), logits_of(network, 37, 70))
        save(model_file, loaded.network)
        assert load_model(model_file).network_arguments == network.arguments

    def test_what_is_kept_of_it_is_plain(self, network):
        assert network.arguments == {
            "name": f"{__name__}.Hourglass",
            "in_channels": 1,
            "out_channels": 3,
            "spatial_dims": 2,
            "taps": list(network.taps),
            "options": {"in_channels": 1, "out_channels": 3, "levels": 3, "width": 6},
        }

    @pytest.mark.parametrize("trusted", ["", "tests.network", "tests.networks.test_adopted.Hourglass", "monai"])
    def test_own_class_is_refused_where_its_module_is_not_trusted(self, model_file, trusted, monkeypatch):
        monkeypatch.setenv("GRAPHFLOW_TRUSTED_MODULES", trusted)
        with pytest.raises(
            InputError, match=r"cannot build: 'tests\.networks\.test_adopted\.Hourglass' is none"
        ) as one:
            load_model(model_file)
        assert str(model_file) in str(one.value)
        assert f"export GRAPHFLOW_TRUSTED_MODULES={__name__}" in str(one.value)
        assert "\n" not in str(one.value)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"name": "os.system"}, "'os.system' is none of"),
            ({"name": "torch.nn.Linear"}, "'torch.nn.Linear' is none of"),
            ({"name": "monai.bundle.run"}, "'monai.bundle.run' is none of"),
            ({"name": "pipeline.networks.adopted.nn.Linear"}, "'torch.nn.modules.linear.Linear' is none of"),
            ({"name": None}, "None is none of"),
            ({"name": ["os.system"]}, "is none of"),
            ({"name": "pipeline.networks.adopted.adopt"}, "is not installed, or no Module"),
            ({"name": "pipeline.networks.absent.Network"}, "is not installed, or no Module"),
            ({"name": f"{__name__}.Absent"}, "is not installed, or no Module; put its module on PYTHONPATH"),
            ({"name": f"{__name__}.own"}, "is not installed, or no Module"),
            ({"options": {"in_channels": 1, "out_channels": 3, "depth": 3}}, "unexpected keyword argument 'depth'"),
            ({"options": {"out_channels": 3}}, "missing 1 required positional argument: 'in_channels'"),
            ({"options": {"in_channels": 1, "out_channels": 4}}, "gives no logits"),
            ({"taps": ["down.0", "absent"]}, "has no module 'absent'"),
            ({"taps": "down.0"}, "has no module 'd'"),
            ({"further": 1}, "unexpected keyword argument 'further'"),
        ],
    )
    def test_crafted_arguments_are_refused_in_one_line(self, model_file, changes, message):
        content = torch.load(model_file, weights_only=True)
        content["network_arguments"].update(changes)
        torch.save(content, model_file)
        with pytest.raises(InputError) as caught:
            load_model(model_file)
        assert f"{model_file} describes a network that this release cannot build: " in str(caught.value)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_weights_of_other_options_are_refused(self, model_file):
        content = torch.load(model_file, weights_only=True)
        content["network_arguments"]["options"]["width"] = 5
        torch.save(content, model_file)
        with pytest.raises(InputError, match=r"does not fit the network it names, .*Hourglass: .* of another shape"):
            load_model(model_file)

    def test_it_can_be_saved_before_training_or_it_is_told(self, network):
        check_can_be_saved(network)
        with pytest.raises(InputError, match=r"model\.pt would build another .*Whim than network_def: .*first\.weight"):
            check_can_be_saved(adopted(own(Whim)))


class TestRefused:
    @pytest.mark.parametrize(
        ("config", "message"),
        [
            (own(Hourglass, out_channels=4), r"it gives (1, 4, "),
            (own(ListOfLogits), "it gives a list, not (1, 3, "),
            (own(ListInTraining), "it gives a list, not (1, 3, "),
            (of_monai(AUTOENCODER, out_channels=2), "it gives (1, 2, "),
            (of_monai({"_target_": "DenseNet121"}), "it gives (1, 3), not (1, 3, "),
            (of_monai({"_target_": "BasicUNetPlusPlus", "features": [4, 4, 4, 4, 4, 4]}), "it gives a list"),
            (own(Hourglass, in_channels=2), ""),
            (of_monai(AUTOENCODER, spatial_dims=3), ""),
            (own(Hourglass, levels=8), ""),
        ],
        ids=["classes", "list", "list in training", "autoencoder", "one vector", "plus plus", "channels", "3D", "deep"],
    )
    def test_whatever_gives_no_logits_of_the_image(self, config, message):
        line = refused(config)
        assert "gives no logits for images of any multiple up to 128 pixels: " in line
        assert message in line

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"in_channels": 3}, "network_def has in_channels 1, the data need 3; correct it"),
            ({"out_channels": 2}, "network_def has out_channels 3, the data need 2; correct it"),
            ({"spatial_dims": 3}, "network_def has spatial_dims 2, the data need 3; correct it"),
        ],
    )
    @pytest.mark.parametrize("target", [f"{MONAI}SegResNet", "pipeline.networks.build_network"])
    def test_known_networks_of_other_data(self, target, given, message):
        name = {} if target.endswith("SegResNet") else {"name": f"{MONAI}SegResNet"}
        assert refused(of_monai({"_target_": target, **name}), **given) == message

    def test_what_is_no_network(self):
        assert (
            refused({"_target_": "Flipd", "keys": "image"}) == "network_def builds a Flipd; give the class of a network"
        )

    def test_options_that_no_file_could_keep(self):
        assert refused(own(Hourglass, width="$torch.tensor(4)"), 1, 3).startswith("network_def::width is a Tensor; ")

    def test_known_classes_with_options_that_build_network_refuses(self):
        config = {"_target_": "DynUNet", "kernel_size": [3] * 3, "strides": [1, 2, 2], "upsample_kernel_size": [2, 2]}
        line = refused(of_monai(config, filters=[4, 8, 16], deep_supervision=True))
        assert "cannot have deep_supervision=True" in line


class TestWeightsFromElsewhere:
    @pytest.mark.parametrize(
        ("name", "options"),
        [
            (
                "monai.networks.nets.hovernet.HoVerNet",
                {"mode": "fast", "pretrained_url": "http://nowhere.invalid/w.pt"},
            ),
            ("monai.networks.nets.flexible_unet.FlexibleUNet", {"backbone": "efficientnet-b0", "pretrained": True}),
            ("monai.networks.nets.efficientnet.EfficientNetBN", {"model_name": "efficientnet-b0"}),
        ],
    )
    def test_no_model_file_makes_monai_fetch_any(self, name, options):
        with pytest.raises(InputError, match=r"would load weights by pretrained.*; a model file has its own"):
            build_adopted(name, 1, 2, 2, [], options)


def test_a_network_with_one_map_has_no_taps_and_trains_by_logits():
    network = adopt(nn.Conv2d(1, 3, 1), {"_target_": "torch.nn.Conv2d"}, 1, 3)
    assert network.taps == ()
    assert network.tap_channels == ()
