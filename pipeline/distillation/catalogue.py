# SPDX-License-Identifier: Apache-2.0
"""Every method of distillation by name: what builds it for a pair of networks.

Default weights are set by gradients, since the value of a loss does not tell how strongly it acts on the student. Each
term was given a share of about 0.1 to 2 of the gradient of the segmentation loss (`gradient_shares.py`) on CHAOS MR and
on EBHI-Seg. With today's weights, most terms have 0.1 to 1.1 on both, see docs/gradient-shares.md. With two classes,
the second term of dkd has no gradient. Shares are medians over three students at steps 0, 100 and 300: `python -m
benchmarks.gradient_shares --dataset D --teacher model.pt`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pipeline.distillation.methods.ab import ActivationBoundaries
from pipeline.distillation.methods.afd import AttentiveFeatures
from pipeline.distillation.methods.at import AttentionTransfer
from pipeline.distillation.methods.bpkd import BoundaryPrivileged
from pipeline.distillation.methods.bss import BoundarySamples
from pipeline.distillation.methods.cc import CorrelationCongruence
from pipeline.distillation.methods.coco import build_coco
from pipeline.distillation.methods.crd import ContrastiveRepresentation
from pipeline.distillation.methods.cwd import ChannelWise
from pipeline.distillation.methods.dist import StrongerTeacher
from pipeline.distillation.methods.dkd import DecoupledDistillation
from pipeline.distillation.methods.dml import MutualLearning
from pipeline.distillation.methods.emkd import EfficientMedical
from pipeline.distillation.methods.fitnet import FitNet
from pipeline.distillation.methods.fsp import FlowOfSolution
from pipeline.distillation.methods.ft import FactorTransfer
from pipeline.distillation.methods.graph_flow_preset import build_graph_flow
from pipeline.distillation.methods.ifvd import IntraClassVariation
from pipeline.distillation.methods.irg import RelationshipGraph
from pipeline.distillation.methods.kd import KnowledgeDistillation
from pipeline.distillation.methods.logit_std import StandardisedLogits
from pipeline.distillation.methods.logits_mse import LogitsMatching
from pipeline.distillation.methods.lwm import LearningWithoutMemorizing
from pipeline.distillation.methods.mean_teacher import MeanTeacher
from pipeline.distillation.methods.mgd import MaskedGeneration
from pipeline.distillation.methods.nst import NeuronSelectivity
from pipeline.distillation.methods.ofd import FeatureOverhaul
from pipeline.distillation.methods.pkt import ProbabilisticTransfer
from pipeline.distillation.methods.prototypes import ClassPrototypes
from pipeline.distillation.methods.review import KnowledgeReview
from pipeline.distillation.methods.rkd import RelationalDistillation
from pipeline.distillation.methods.skd import build_skd
from pipeline.distillation.methods.sobolev import SobolevTraining
from pipeline.distillation.methods.sp import SimilarityPreserving
from pipeline.distillation.methods.vid import VariationalInformation

# A builder takes a `NetworkPair`, then settings as keywords, which users may give. Most are the method's class itself.
METHODS: dict[str, Callable[..., Any]] = {
    "graph_flow": build_graph_flow,
    "coco": build_coco,
    "kd": KnowledgeDistillation,
    "dkd": DecoupledDistillation,
    "logit_std": StandardisedLogits,
    "dist": StrongerTeacher,
    "cwd": ChannelWise,
    "bpkd": BoundaryPrivileged,
    "at": AttentionTransfer,
    "fitnet": FitNet,
    "fsp": FlowOfSolution,
    "ft": FactorTransfer,
    "vid": VariationalInformation,
    "skd": build_skd,
    "ifvd": IntraClassVariation,
    "emkd": EfficientMedical,
    "nst": NeuronSelectivity,
    "pkt": ProbabilisticTransfer,
    "rkd": RelationalDistillation,
    "cc": CorrelationCongruence,
    "irg": RelationshipGraph,
    "sp": SimilarityPreserving,
    "crd": ContrastiveRepresentation,
    "ab": ActivationBoundaries,
    "ofd": FeatureOverhaul,
    "afd": AttentiveFeatures,
    "logits_mse": LogitsMatching,
    "dml": MutualLearning,
    "mean_teacher": MeanTeacher,
    "sobolev": SobolevTraining,
    "lwm": LearningWithoutMemorizing,
    "bss": BoundarySamples,
    "mgd": MaskedGeneration,
    "prototypes": ClassPrototypes,
    "review": KnowledgeReview,
}
# Methods that compare the teacher's taps after its paraphrasers, where those are given.
PARAPHRASED = ("graph_flow", "fsp", "ft")


def needs_teacher(options: Mapping[str, Any]) -> bool:
    """Return whether options of distill.yaml (`method` or `methods`) ask for a method that learns from a teacher."""
    named = options.get("methods") or [options.get("method", "kd")]
    return any(getattr(METHODS.get(name), "needs_teacher", True) for name in named)


def needs_paraphrasers(options: Mapping[str, Any]) -> bool:
    """Return whether options of distill.yaml (`method` or `methods`) ask for a method that uses paraphrasers."""
    named = options.get("methods") or [options.get("method", "kd")]
    return any(name in PARAPHRASED for name in named)
