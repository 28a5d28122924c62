# SPDX-License-Identifier: Apache-2.0
"""Distillation: taps, methods and the distiller that joins them."""

from pipeline.lazy_names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "build": ("build_distiller", "check_teacher_given"),
        "catalogue": ("METHODS", "needs_paraphrasers", "needs_teacher"),
        "distiller": ("Distiller",),
        "method": ("DistillationMethod", "NetworkPair", "Tapped"),
        "methods.adversarial": ("AdversarialDistillation", "discriminator_loss", "gradient_penalty"),
        "methods.graph_flow": ("Graph", "GraphFlow", "GraphFlowLoss", "salience_graph", "variation_graph"),
        "methods.graph_flow_preset": ("PRESETS", "GraphFlowPreset", "build_graph_flow", "graph_flow_preset"),
        "methods.kd": ("KnowledgeDistillation", "KnowledgeDistillationLoss"),
        "methods.review": ("KnowledgeReview",),
        "schedule": ("Schedule",),
        "taps": ("FeatureTaps",),
        "terms": ("describe_terms",),
    },
)
