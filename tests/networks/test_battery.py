# SPDX-License-Identifier: Apache-2.0
"""The same battery for every segmentation network: size, cost, shapes, gradients, taps, saving, export."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.data import CT_WINDOW
from pipeline.networks import NETWORKS, PaddedInferer, build_network, load_model, multiply_adds, save_model
from tests.preprocessing import scan_preprocessing

SMALL = {"fanet": {"width": 0.125}, "mobile_unet": {}, "enet": {}, "erfnet": {}}
AUXILIARY_HEAD = {2: 64 * 2 + 2, 9: 64 * 9 + 9}  # of FANet, computed by the original and thrown away

# Counts of the original networks, unused parts left out: (network, K) -> parameters.
PARAMETERS = {
    ("fanet", 2): 38_292_295 - AUXILIARY_HEAD[2] - 3,  # 3: a scale beside each attention module, never used
    ("fanet", 9): 38_293_205 - AUXILIARY_HEAD[9] - 3,
    ("mobile_unet", 2): 5_963_323 - 1_281_000,  # the classifier of MobileNetV2
    ("mobile_unet", 9): 5_963_351 - 1_281_000,
    ("enet", 2): 348_996,
    ("enet", 9): 350_004,
    ("erfnet", 2): 2_063_130 - (128 * 2 + 2),  # the classifier of the encoder
    ("erfnet", 9): 2_064_488 - (128 * 9 + 9),
}
# Multiply-adds of convolutions and transposed convolutions for one image, in G: (network, K, size).
GIGA_MACS = {
    ("fanet", 2, 224): 127.578442,
    ("fanet", 2, 256): 166.596872,
    ("fanet", 9, 224): 127.623399,
    ("fanet", 9, 256): 166.655592,
    ("mobile_unet", 2, 224): 0.736929,
    ("mobile_unet", 2, 256): 0.962519,
    ("mobile_unet", 9, 224): 0.737192,
    ("mobile_unet", 9, 256): 0.962863,
    ("enet", 2, 224): 0.352976,
    ("enet", 2, 256): 0.461029,
    ("enet", 9, 224): 0.365620,
    ("enet", 9, 256): 0.477544,
    ("erfnet", 2, 224): 2.529761,
    ("erfnet", 2, 256): 3.304178,
    ("erfnet", 9, 224): 2.535381,
    ("erfnet", 9, 256): 3.311518,
}
FULL_TAP_CHANNELS = {"fanet": 256, "mobile_unet": 24, "enet": 64, "erfnet": 64}


@pytest.fixture(params=sorted(NETWORKS))
def name(request) -> str:
    return request.param


def build(name: str, in_channels: int = 1, out_channels: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return build_network(name, in_channels, out_channels, **SMALL[name])


def build_without_memory(name: str, out_channels: int = 2) -> nn.Module:
    """The network at full width, with shapes but no values: as fast to run as it is to build."""
    with torch.device("meta"):
        return build_network(name, 1, out_channels)


def parameters_of(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def record_taps(network: nn.Module) -> dict[str, torch.Tensor]:
    seen = {}
    for tap in network.taps:
        network.get_submodule(tap).register_forward_hook(
            lambda module, inputs, output, tap=tap: seen.update({tap: output})
        )
    return seen


@pytest.mark.parametrize(("name", "out_channels"), sorted(PARAMETERS))
def test_parameter_count(name, out_channels):
    assert parameters_of(build_without_memory(name, out_channels)) == PARAMETERS[name, out_channels]


def test_parameter_counts_are_the_published_ones():
    """FANet and Mobile U-Net were published without batch normalisation, ENet and ERFNet with it."""
    networks = {name: build_without_memory(name) for name in NETWORKS}
    counts = {name: parameters_of(network) for name, network in networks.items()}
    norms = {
        name: parameters_of(*(module for module in network.modules() if isinstance(module, nn.BatchNorm2d)))
        for name, network in networks.items()
    }
    assert norms == {"fanet": 42_624, "mobile_unet": 42_512, "enet": 8_608, "erfnet": 6_592}
    assert counts["fanet"] == 38_292_162
    # 38,292,295 with the three scales and the auxiliary head; the published count leaves out scales and norms.
    assert counts["fanet"] + AUXILIARY_HEAD[2] - norms["fanet"] == 38_292_295 - 42_624 - 3 == 38_249_668  # 38.250 M
    assert counts["mobile_unet"] - norms["mobile_unet"] == 4_639_811  # 4.640 M
    assert counts["enet"] == 348_996  # 0.349 M
    assert counts["erfnet"] + 128 * 2 + 2 == 2_063_130  # 2.063 M


@pytest.mark.parametrize(("name", "out_channels", "size"), sorted(GIGA_MACS))
def test_multiply_adds(name, out_channels, size):
    unused = 64 * out_channels * size**2 if name == "fanet" else 0  # the auxiliary head
    expected = GIGA_MACS[name, out_channels, size]
    macs = multiply_adds(build_without_memory(name, out_channels), (1, size, size))
    assert (macs + unused) / 1e9 == pytest.approx(expected, abs=5e-7)


@pytest.mark.parametrize(("in_channels", "out_channels"), [(1, 9), (3, 2)])
def test_logits_have_the_classes_and_the_size_of_the_images(name, in_channels, out_channels):
    network = build(name, in_channels, out_channels).eval()
    with torch.no_grad():
        logits = network(torch.rand(2, in_channels, 32, 64))
    assert isinstance(logits, torch.Tensor)
    assert logits.shape == (2, out_channels, 32, 64)
    assert logits.isfinite().all()


def test_every_parameter_learns(name):
    network = build(name)
    network(torch.rand(2, 1, 64, 64)).square().mean().backward()
    idle = [key for key, value in network.named_parameters() if value.grad is None or not value.grad.isfinite().all()]
    assert not idle
    still = {key for key, value in network.named_parameters() if not value.grad.any()}
    # A bias in front of a normalisation has no effect, save for rounding.
    assert all(key.endswith("bias") for key in still)


def test_a_few_steps_fit_one_image(name):
    network = build(name).train()
    images = torch.rand(2, 1, 32, 32)
    labels = (images[:, 0] > 0.5).long().roll(1, dims=-1)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        losses.append(nn.functional.cross_entropy(network(images), labels))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]


def test_batch_of_one_at_the_smallest_size(name):
    """The deepest maps are then 1 x 1: a single value per channel, of which torch's normalisation makes nothing."""
    network = build(name)
    images = torch.rand(1, 1, network.size_divisor, network.size_divisor)
    logits = network.train()(images)
    logits.sum().backward()
    assert logits.shape[-2:] == images.shape[-2:]
    assert network.eval()(images).isfinite().all()


def test_images_of_a_batch_do_not_mix_in_evaluation(name):
    network, images = build(name).eval(), torch.rand(3, 1, 32, 32)
    with torch.no_grad():
        alone = torch.cat([network(image[None]) for image in images])
        torch.testing.assert_close(network(images), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (5, 70), (33, 31), (64, 96)])
def test_any_size_through_the_padded_inferer(name, size):
    network = build(name).eval()
    with torch.no_grad():
        logits = PaddedInferer()(torch.rand(1, 1, *size), network)
    assert logits.shape == (1, 2, *size)
    assert logits.isfinite().all()


@pytest.mark.parametrize("shape", [(1, 1, 36, 64), (1, 1, 64, 36), (1, 1, 0, 32)])
def test_size_that_does_not_fit_names_the_multiple(name, shape):
    network = build(name)
    with pytest.raises(ValueError, match=rf"multiples of {network.size_divisor}, not {shape[2]} x {shape[3]}"):
        network(torch.empty(shape))


@pytest.mark.parametrize("shape", [(1, 2, 32, 32), (1, 32, 32)])
def test_images_of_another_kind_are_refused(name, shape):
    with pytest.raises(ValueError, match=r"takes images \(B, 1, H, W\)"):
        build(name)(torch.empty(shape))


def test_taps_are_at_a_quarter_of_the_resolution(name):
    network, size = build_without_memory(name), 224
    seen = record_taps(network)
    network.eval()(torch.empty(1, 1, size, size, device="meta"))
    expected = [(1, FULL_TAP_CHANNELS[name], size // 4, size // 4)] * 2
    assert [seen[tap].shape for tap in network.taps] == expected
    assert network.tap_channels == (FULL_TAP_CHANNELS[name],) * 2


def test_taps_still_hold_what_their_module_gave_when_the_pass_is_over(name):
    """A layer that works in place on a tapped map would hand distillation another map."""
    network, copies = build(name), {}
    for tap in network.taps:
        network.get_submodule(tap).register_forward_hook(
            lambda module, inputs, output, tap=tap: copies.update({tap: output.detach().clone()})
        )
    seen = record_taps(network)
    network(torch.rand(2, 1, 32, 32))
    for tap, channels in zip(network.taps, network.tap_channels, strict=True):
        assert seen[tap].shape[1] == channels
        assert torch.equal(seen[tap], copies[tap])


def test_same_seed_same_network(name):
    first, second = build(name).state_dict(), build(name).state_dict()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_saved_and_loaded_network_gives_the_same_logits(name, tmp_path):
    network, images = build(name, out_channels=3), torch.rand(2, 1, 32, 32)
    network.train()(images)  # so that running statistics are not those of a fresh network
    save_model(
        tmp_path / "model.pt",
        network,
        labels={0: "background", 1: "liver", 2: "spleen"},
        preprocessing=scan_preprocessing(CT_WINDOW),
        size=32,
        modality="CT",
    )
    loaded = load_model(tmp_path / "model.pt", expect=name)
    assert loaded.network_arguments == {"name": name, "in_channels": 1, "out_channels": 3, **SMALL[name]}
    with torch.no_grad():
        assert torch.equal(loaded.network(images), network.eval()(images))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_compiles_into_one_graph(name, mode):
    network, images = getattr(build(name), mode)(), torch.rand(2, 1, 32, 32)
    torch.compiler.reset()
    assert torch.compile(network, backend="eager", fullgraph=True)(images).shape == (2, 2, 32, 32)


@pytest.mark.slow
def test_exports_with_a_free_batch(name):
    network, images = build(name).eval(), torch.rand(3, 1, 32, 32)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(network, (images,), dynamic_shapes=({0: batch},), strict=False)
    with torch.no_grad():
        for count in (3, 1):
            torch.testing.assert_close(program.module()(images[:count]), network(images[:count]), rtol=1e-4, atol=1e-5)


def test_runs_under_autocast(name):
    network = build(name)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(torch.rand(2, 1, 32, 32))
    logits.float().mean().backward()
    assert logits.isfinite().all()


def test_is_scripted_with_equal_logits(name):
    network = build(name, out_channels=3).eval()
    scripted = torch.jit.script(network)
    images = torch.rand(2, 1, 64, 96)
    assert torch.equal(scripted(images), network(images))
    assert scripted.train()(images).shape == (2, 3, 64, 96)
