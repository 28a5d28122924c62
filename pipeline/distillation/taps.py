# SPDX-License-Identifier: Apache-2.0
"""Feature maps of any network, read by the dotted names of its modules while the network itself stays as it is."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import torch
from torch import nn

from pipeline.errors import InputError


class FeatureTaps:
    """Keeps the output of the named modules of a network during each forward pass, by forward hooks.

    With hooks, `forward` still returns only logits, so that any third-party network can be teacher or student.
    A wrapper that holds the network as `.module` (DistributedDataParallel) is looked through.

    Args:
        network: the network to tap.
        names: dotted module names in the order in which `take` returns their outputs, shallow to deep.

    Raises:
        InputError: a name is not a module of the network; the message lists the nearest names.
    """

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        network = network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
        modules = dict(network.named_modules())
        self.names = tuple(names)
        self._outputs: dict[str, torch.Tensor] = {}
        for name in self.names:
            if not name or name not in modules:
                raise InputError(_unknown_tap(network, name, list(modules)))
        self._handles = [modules[name].register_forward_hook(self._keeper(name)) for name in self.names]

    def _keeper(self, name: str):
        def keep(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
            """Hold the output until it is taken."""
            self._outputs[name] = output

        return keep

    def take(self) -> tuple[torch.Tensor, ...]:
        """Return the outputs of the last forward pass, each (B, c, h, w) or (B, c, d, h, w), and forget them.

        Raises:
            RuntimeError: a tapped module did not run since the last call.
        """
        missing = [name for name in self.names if name not in self._outputs]
        if missing:
            raise RuntimeError(f"tapped modules did not run in the last forward pass: {', '.join(missing)}")
        outputs = tuple(self._outputs[name] for name in self.names)
        self._outputs.clear()
        return outputs

    def remove(self) -> None:
        """Take the hooks off the network."""
        for handle in self._handles:
            handle.remove()
        self._outputs.clear()


def _unknown_tap(network: nn.Module, name: str, candidates: list[str]) -> str:
    named = [candidate for candidate in candidates if candidate]
    near = difflib.get_close_matches(name, named, n=5, cutoff=0.4) or named[:10]
    return f"{type(network).__name__} has no module '{name}' to tap; the nearest names are {', '.join(near)}"
