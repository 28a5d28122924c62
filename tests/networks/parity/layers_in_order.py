# SPDX-License-Identifier: Apache-2.0
"""What the references of all networks share: weights in order of definition, elementary layers, and the comparison."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.distillation.taps import FeatureTaps


def own_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]


class Layers:
    """A network's layers that hold tensors, each taken once, in the order in which they are defined.

    A reference says of each layer what the publication says (channels, kernel, bias); the weights taken must fit that.
    Batch normalisation is written out, by the batch if the network trains and by the running statistics if not.
    """

    def __init__(self, network: nn.Module) -> None:
        self.training = network.training
        own = (
            (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)) for part in network.modules()
        )
        self._waiting = deque({name: value.detach().clone() for name, value in tensors} for tensors in own if tensors)

    def take(self) -> dict[str, Tensor]:
        """Return the tensors of the next layer by name."""
        return self._waiting.popleft()

    def all_taken(self) -> bool:
        return not self._waiting

    def conv(self, x: Tensor, out: int, kernel: int | tuple[int, int], bias: bool = False, **options: int) -> Tensor:
        """A convolution; it keeps the size of the map unless `options` hold a padding."""
        layer = self.take()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        assert layer["weight"].shape == (out, x.shape[1] // options.get("groups", 1), *sides)
        assert ("bias" in layer) is bias
        same = tuple(options.get("dilation", 1) * (side // 2) for side in sides)
        return F.conv2d(x, layer["weight"], layer.get("bias"), **{"padding": same, **options})

    def conv_transposed(self, x: Tensor, out: int, kernel: int, bias: bool = True, **options: int) -> Tensor:
        layer = self.take()
        assert layer["weight"].shape == (x.shape[1], out, kernel, kernel)
        assert ("bias" in layer) is bias
        return F.conv_transpose2d(x, layer["weight"], layer.get("bias"), **options)

    def norm(self, x: Tensor, eps: float = 1e-5) -> Tensor:
        layer = self.take()
        mean, variance = layer["running_mean"], layer["running_var"]
        if self.training:
            mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        mean, variance, weight, bias = (
            vector[None, :, None, None] for vector in (mean, variance, layer["weight"], layer["bias"])
        )
        return (x - mean) / torch.sqrt(variance + eps) * weight + bias

    def prelu(self, x: Tensor) -> Tensor:
        (slope,) = self.take()["weight"]
        return torch.where(x > 0, x, slope * x)


def randomise(network: nn.Module) -> nn.Module:
    """Give values to all that starts at 0 or 1, so that nothing can be left out unseen; double precision."""
    generator = torch.Generator().manual_seed(0)
    network.double()
    for module in network.modules():
        for name, tensor in own_tensors(module):
            noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
            if name == "running_var" or (name == "weight" and tensor.ndim == 1):  # of normalisation, and PReLU's slope
                tensor.data.copy_(0.2 + noise if tensor.numel() > 1 else 0.1 + 0.3 * noise)
            elif name in ("bias", "running_mean", "gamma"):
                tensor.data.copy_(noise - 0.4)
    return network


def stop_dropout(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.eval()


def assert_parity(
    network: nn.Module, reference: Callable[[Layers, Tensor], tuple[Tensor, ...]], images: Tensor, training: bool
) -> None:
    """Taps and logits of a network are those of `reference(layers, images)`, which uses up all layers."""
    randomise(network).train(training)
    stop_dropout(network)
    layers = Layers(network)
    with torch.no_grad():
        expected = reference(layers, images)
        taps = FeatureTaps(network, network.taps)
        logits = network(images)
    assert layers.all_taken()
    for found, wanted in zip((*taps.take(), logits), expected, strict=True):
        assert float(wanted.std()) > 1e-3  # a reference that vanishes proves nothing
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)
