# SPDX-License-Identifier: Apache-2.0
"""Every method of distillation by name: what builds it for a pair of networks, or why it makes no sense here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pipeline.distillation.ab import ActivationBoundaries
from pipeline.distillation.afd import AttentiveFeatures
from pipeline.distillation.at import AttentionTransfer
from pipeline.distillation.bpkd import BoundaryPrivileged
from pipeline.distillation.bss import BoundarySamples
from pipeline.distillation.cc import CorrelationCongruence
from pipeline.distillation.coco import build_coco
from pipeline.distillation.crd import ContrastiveRepresentation
from pipeline.distillation.cwd import ChannelWise
from pipeline.distillation.dist import StrongerTeacher
from pipeline.distillation.dkd import DecoupledDistillation
from pipeline.distillation.dml import MutualLearning
from pipeline.distillation.emkd import EfficientMedical
from pipeline.distillation.fitnet import FitNet
from pipeline.distillation.fsp import FlowOfSolution
from pipeline.distillation.ft import FactorTransfer
from pipeline.distillation.graph_flow_preset import build_graph_flow
from pipeline.distillation.ifvd import IntraClassVariation
from pipeline.distillation.irg import RelationshipGraph
from pipeline.distillation.kd import KnowledgeDistillation
from pipeline.distillation.logit_std import StandardisedLogits
from pipeline.distillation.logits_mse import LogitsMatching
from pipeline.distillation.lwm import LearningWithoutMemorizing
from pipeline.distillation.mgd import MaskedGeneration
from pipeline.distillation.nst import NeuronSelectivity
from pipeline.distillation.ofd import FeatureOverhaul
from pipeline.distillation.pkt import ProbabilisticTransfer
from pipeline.distillation.prototypes import ClassPrototypes
from pipeline.distillation.review import KnowledgeReview
from pipeline.distillation.rkd import RelationalDistillation
from pipeline.distillation.skd import build_skd
from pipeline.distillation.sobolev import SobolevTraining
from pipeline.distillation.sp import SimilarityPreserving
from pipeline.distillation.vid import VariationalInformation

# A builder takes a `Pair`, then settings as keywords, which users may give: most are the method's class itself.
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
    "sobolev": SobolevTraining,
    "lwm": LearningWithoutMemorizing,
    "bss": BoundarySamples,
    "mgd": MaskedGeneration,
    "prototypes": ClassPrototypes,
    "review": KnowledgeReview,
}
UNSUITED: dict[str, str] = {}
# Methods that compare the teacher's taps after its paraphrasers, where those are given.
PARAPHRASED = ("graph_flow", "fsp", "ft")


def needs_paraphrasers(options: Mapping[str, Any]) -> bool:
    """Return whether options of distill.yaml (`method` or `methods`) ask for a method that uses paraphrasers."""
    named = options.get("methods") or [options.get("method", "kd")]
    return any(name in PARAPHRASED for name in named)
