# SPDX-License-Identifier: Apache-2.0
"""The paraphraser and the discriminator: sizes, definitions, and what their training needs of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.distillation.discriminator import Discriminator, SelfAttention
from pipeline.networks import Paraphraser


def parameters_of(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("factor_channels", "count"), [(24, 1_301_448), (64, 1_549_248)])
def test_paraphraser_parameter_count(factor_channels, count):
    assert parameters_of(Paraphraser(256, factor_channels)) == count


def test_paraphraser_of_volumes_keeps_resolution_too():
    paraphraser, tap = Paraphraser(8, 3, spatial_dims=3), torch.randn(2, 8, 5, 4, 3)
    assert paraphraser.encode(tap).shape == (2, 3, 5, 4, 3)
    assert paraphraser(tap).shape == tap.shape
    # Kernels of 27: 8 x 8, 8 x 3 and 3 x 3 there, the same back; biases 8 + 3 + 3 and 3 + 8 + 8.
    assert parameters_of(paraphraser) == 2 * 27 * (64 + 24 + 9) + 33


def test_paraphraser_keeps_resolution_and_reconstructs_the_channels():
    paraphraser, tap = Paraphraser(32, 6), torch.randn(2, 32, 7, 9)
    assert paraphraser.encode(tap).shape == (2, 6, 7, 9)
    assert paraphraser(tap).shape == tap.shape
    assert torch.equal(paraphraser(tap), paraphraser.decoder(paraphraser.encode(tap)))
    assert (paraphraser.in_channels, paraphraser.factor_channels) == (32, 6)


def test_paraphraser_ends_each_half_in_a_leaky_relu_of_slope_a_tenth():
    paraphraser, tap = Paraphraser(4, 2), torch.randn(1, 4, 5, 5)
    for half in (paraphraser.encoder, paraphraser.decoder):
        layers = list(half)
        assert [type(layer) for layer in layers[1::2]] == [nn.LeakyReLU] * 3
        assert {layer.negative_slope for layer in layers[1::2]} == {0.1}
    kept = tap.clone()
    paraphraser(tap)
    assert torch.equal(tap, kept)  # nothing works in place on the teacher's map


@pytest.mark.parametrize(("classes", "count"), [(2, 3_174_275), (9, 3_181_443)])
def test_discriminator_parameter_count(classes, count):
    assert parameters_of(Discriminator(classes)) == count


@pytest.mark.parametrize(("size", "side"), [(256, 13), (224, 11), (64, 1)])
def test_discriminator_scores_patches(size, side):
    with torch.device("meta"):
        discriminator = Discriminator(2).eval()
        assert discriminator(torch.empty(1, 2, size, size)).shape == (1, 1, side, side)


def test_discriminator_refuses_logits_that_leave_no_score():
    with pytest.raises(ValueError, match="64 x 64 or more"):
        Discriminator(2)(torch.zeros(1, 2, 64, 48))


def test_discriminator_sees_squashed_logits():
    torch.manual_seed(0)
    discriminator = Discriminator(2).eval()
    sure = torch.full((1, 2, 64, 64), 50.0)
    torch.testing.assert_close(discriminator(sure), discriminator(20 * sure))


def test_attention_by_hand_and_silent_at_the_start():
    attention, features = SelfAttention(8), torch.randn(1, 8, 3, 3)
    assert torch.equal(attention(features), features)
    nn.init.zeros_(attention.query.weight)
    nn.init.zeros_(attention.query.bias)
    nn.init.ones_(attention.gamma)
    # With all queries 0 every position attends to all alike: the mean of the values is added everywhere.
    expected = features + attention.value(features).mean((2, 3), keepdim=True)
    torch.testing.assert_close(attention(features), expected)


def test_attention_looks_up_values_by_the_key_that_answers_the_query():
    attention = SelfAttention(8)
    with torch.no_grad():
        for part in (attention.query, attention.key, attention.value):
            part.weight.zero_()
            part.bias.zero_()
        attention.query.weight[0, 0] = attention.key.weight[0, 1] = 100.0
        attention.value.weight[2, 2] = attention.gamma[0] = 1.0
    features = torch.zeros(1, 8, 1, 3)
    features[0, 0] = torch.tensor([1.0, 0.0, 0.0])  # position 0 asks
    features[0, 1] = torch.tensor([0.0, 0.0, 1.0])  # position 2 answers
    features[0, 2] = torch.tensor([3.0, 6.0, 9.0])  # values
    # Position 0 takes the value of 2; the others ask nothing and take the mean 6.
    torch.testing.assert_close(attention(features)[0, 2], torch.tensor([[3.0 + 9, 6.0 + 6, 9.0 + 6]]))


def test_gradient_penalty_reaches_the_discriminators_weights():
    torch.manual_seed(0)
    discriminator = Discriminator(2)
    for module in discriminator.modules():
        if isinstance(module, SelfAttention):
            nn.init.ones_(module.gamma)
    logits = torch.randn(2, 2, 64, 64, requires_grad=True)
    (gradient,) = torch.autograd.grad(discriminator(logits).sum(), logits, create_graph=True)
    (gradient.flatten(1).norm(dim=1) - 1).square().mean().backward()
    weights = [value for key, value in discriminator.named_parameters() if not key.endswith("bias")]
    assert all(value.grad is not None and value.grad.isfinite().all() and value.grad.any() for value in weights)


def test_real_fake_and_penalty_share_one_backward():
    discriminator = Discriminator(2)
    real, fake = torch.randn(2, 2, 64, 64), torch.randn(2, 2, 64, 64)
    (discriminator(fake).mean() - discriminator(real).mean()).backward()
    assert all(value.grad is not None for value in discriminator.parameters())


def test_spectral_norm_bounds_the_largest_singular_value():
    torch.manual_seed(0)
    discriminator, logits = Discriminator(2).train(), torch.randn(1, 2, 64, 64)
    with torch.no_grad():
        for _ in range(20):
            discriminator(logits)
    normed = [module for module in discriminator.layers if hasattr(module, "parametrizations")]
    assert [module.out_channels for module in normed] == [64, 128, 256, 512]
    discriminator.eval()
    for module in normed:
        assert torch.linalg.matrix_norm(module.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.05)


def test_state_survives_saving(tmp_path):
    torch.manual_seed(0)
    first, second = Discriminator(2), Discriminator(2)
    first(torch.randn(1, 2, 64, 64))
    torch.save(first.state_dict(), tmp_path / "discriminator.pt")
    second.load_state_dict(torch.load(tmp_path / "discriminator.pt", weights_only=True))
    logits = torch.randn(1, 2, 64, 64)
    assert torch.equal(first.eval()(logits), second.eval()(logits))
