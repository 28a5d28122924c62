# SPDX-License-Identifier: Apache-2.0
"""How strongly a loss acts on the student: the length of its gradient as a share of the segmentation loss's.

The value of a loss does not tell that. With g the gradient by all of the student's parameters as one vector,

    share(L) = |g(L)| / |g(segmentation)|,   both for the batch of all processes
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from pipeline.processes.distributed import averaged

# A method is measured in each of its FIRST steps, then in every INTERVAL-th; a measurement costs a backward pass.
FIRST, INTERVAL = 10, 10
# Weight of a new measurement in the running estimate: with a tenth every ten steps, it forgets in about a hundred.
RATE = 0.1


def gradient_shares(
    losses: Mapping[str, torch.Tensor], segmentation: torch.Tensor, parameters: Sequence[nn.Parameter]
) -> dict[str, torch.Tensor]:
    """Return the share of each loss by its name, scalars without a graph; collective.

    Graphs are kept, and no `grad` of a parameter is changed. A loss that does not depend on the student has share 0.

    Args:
        losses: weighted, scalars.
        segmentation: the segmentation loss, a scalar that reaches the student.
        parameters: the student's, all of which require gradients.
    """
    of_segmentation = _gradient(segmentation, segmentation, parameters).norm()
    return {name: _gradient(loss, segmentation, parameters).norm() / of_segmentation for name, loss in losses.items()}


def _gradient(loss: torch.Tensor, segmentation: torch.Tensor, parameters: Sequence[nn.Parameter]) -> torch.Tensor:
    """Return the gradient of `loss`, flat, the mean over processes."""
    # Adding zero times the segmentation loss runs backward through the whole student in every process: synchronised
    # batch normalisation waits for all of them.
    found = torch.autograd.grad(loss + 0 * segmentation, parameters, retain_graph=True, materialize_grads=True)
    return averaged({"gradient": torch.cat([gradient.flatten() for gradient in found])})["gradient"]


class GradientShares:
    """Holds the gradients of methods at chosen shares, by a factor on each method's loss.

    The factor is the wanted share, divided by a running estimate of the share without a factor. The estimate is the
    geometric mean of the first measurements, then an exponential moving mean of their logarithms.

    Args:
        wanted: the share to hold, by the name of the method; other methods are left alone.
    """

    def __init__(self, wanted: Mapping[str, float]) -> None:
        self.wanted = dict(wanted)
        self._steps, self._measurements = (dict.fromkeys(wanted, 0) for _ in range(2))
        self._log_share = dict.fromkeys(wanted, 0.0)

    def factor(self, name: str) -> float:
        """Return the factor on a method's loss: 1 for one that is not held, 0 before its first measurement."""
        if name not in self.wanted:
            return 1.0
        return self.wanted[name] / math.exp(self._log_share[name]) if self._measurements[name] else 0.0

    def follow(
        self, losses: Mapping[str, torch.Tensor], segmentation: torch.Tensor, parameters: Sequence[nn.Parameter]
    ) -> None:
        """Count a step of the methods and measure those whose turn it is; collective.

        Args:
            losses: scalar loss of each method that counts at this step, without its factor.
            segmentation: the segmentation loss, a scalar, as in `gradient_shares`.
            parameters: the student's, as in `gradient_shares`.
        """
        due = {name: loss for name, loss in losses.items() if self._is_due(name)}
        for name in losses:
            self._steps[name] += 1
        if due:
            for name, share in gradient_shares(due, segmentation, parameters).items():
                self._take(name, float(share))

    def _is_due(self, name: str) -> bool:
        return self._steps[name] < FIRST or self._steps[name] % INTERVAL == 0

    def _take(self, name: str, share: float) -> None:
        if not 0 < share < math.inf:  # no gradient yet, or one that half precision cannot hold
            return
        self._measurements[name] += 1
        rate = max(RATE, 1 / self._measurements[name])
        self._log_share[name] += rate * (math.log(share) - self._log_share[name])

    def state_dict(self) -> dict[str, Any]:
        """Return the estimates and how often each was measured: primitives."""
        parts = {"steps": self._steps, "measurements": self._measurements, "log_share": self._log_share}
        return {name: dict(part) for name, part in parts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` returned for the same methods."""
        self._steps, self._measurements = dict(state["steps"]), dict(state["measurements"])
        self._log_share = dict(state["log_share"])
