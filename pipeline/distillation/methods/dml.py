# SPDX-License-Identifier: Apache-2.0
"""Deep mutual learning: the student and a peer of its own kind learn together, each from the labels and the other.

Zhang et al., "Deep Mutual Learning", CVPR 2018, arXiv 1706.00384:

    L_student = S(student, labels) + KL(peer || student)
    L_peer    = S(peer, labels)    + KL(student || peer)

S is the cross-entropy there and the run's segmentation loss here, the same for both networks. The formula fits dense
prediction as it is: the divergences are means over pixels, at temperature 1. It needs no frozen teacher and runs none;
to learn from one too, add `kd` to the mix.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from pipeline.distillation.method import DistillationMethod, NetworkPair, Tapped
from pipeline.distillation.methods.extra_runs import seen_images
from pipeline.distillation.methods.kd import KnowledgeDistillationLoss
from pipeline.distillation.settings import check_number
from pipeline.networks import build_network
from pipeline.processes.distributed import average_gradients
from pipeline.unlabelled import of_labelled_items

# Power of the decay of the peer's rate: the run's schedule, which all bundles share.
POWER = 0.9


def untrained_copy(network: nn.Module) -> nn.Module:
    """Return a copy of a network with values as at its own start, from another random draw.

    `build_network` draws them again, so that a network's own initialisation is kept. A network that it did not make
    draws by each module's `reset_parameters`; a module without it keeps its values. Type, device and synchronised
    normalisations are the network's.
    """
    peer = copy.deepcopy(network).train().requires_grad_(True)
    if arguments := getattr(network, "arguments", None):
        peer.load_state_dict(build_network(**arguments).state_dict())
        return peer
    for module in peer.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return peer


class MutualLearning(DistillationMethod):
    """Mutual learning with a peer as a method with the single term `dml` = KL(peer || student).

    The peer runs on each batch beside the student and takes a step of its own after it, against the labels and the
    student's prediction; for images without a label, only against the latter. Loss, rate, schedule and weight decay are
    the run's. Several processes average its gradients by hand.

    Args:
        pair: the peer is an untrained copy of the student.
        weight: of the student's term, 1 in the paper; the peer's own divergence always has 1.
        learning_rate: of the peer's Adam, decaying as (1 - step / total_steps)^0.9; by default the run's.

    Raises:
        InputError: the learning rate is not positive.
    """

    needs_teacher = False

    def __init__(self, pair: NetworkPair, *, weight: float = 0.25, learning_rate: float | None = None) -> None:
        super().__init__({"dml": weight})
        rate = pair.learning_rate if learning_rate is None else learning_rate
        check_number("dml", "learning_rate", rate)
        self.pair, self.peer = pair, untrained_copy(pair.student)
        self.loss = KnowledgeDistillationLoss(temperature=1.0, balance=0)
        self.optimizer = torch.optim.Adam(self.peer.parameters(), lr=rate, weight_decay=pair.weight_decay)
        self.schedule = torch.optim.lr_scheduler.PolynomialLR(self.optimizer, max(pair.total_steps, 1), POWER)
        self._pending: tuple[torch.Tensor, torch.Tensor] | None = None

    def forward(self, student: Tapped, teacher: Tapped, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the scalar term `dml`; the peer's own graph waits for `after_step`.

        Shapes as in `DistillationMethod`.
        """
        logits = self.pair.inferer(seen_images(student), self.peer)
        self._pending = logits, labels
        return {"dml": self.loss(student.logits, logits)}

    def adapter_parameters(self) -> list[nn.Parameter]:
        """Return none: the peer has an optimizer of its own."""
        return []

    def after_step(self, student: Tapped, teacher: Tapped) -> dict[str, torch.Tensor]:
        """Take one step of the peer on the batch of the last `forward`; return its loss, a scalar, as `dml_peer`."""
        if self._pending is None:
            return {}
        logits, labels = self._pending
        self._pending = None
        supervised = self.pair.segmentation_loss(*of_labelled_items(logits, labels))
        loss = supervised + self.loss(logits, student.logits)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(self.peer.parameters())
        self.optimizer.step()
        self.schedule.step()
        return {"dml_peer": loss.detach()}

    def training_state(self) -> dict[str, Any]:
        """Return the peer, its optimizer and its schedule."""
        parts = {"peer": self.peer, "optimizer": self.optimizer, "schedule": self.schedule}
        return {name: part.state_dict() for name, part in parts.items()}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Take up the peer, its optimizer and its schedule."""
        self.peer.load_state_dict(state["peer"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
