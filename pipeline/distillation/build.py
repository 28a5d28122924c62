# SPDX-License-Identifier: Apache-2.0
"""Methods of distillation by the names that users type, alone or mixed."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from pipeline.distillation.adapters import describe_adapters
from pipeline.distillation.catalogue import METHODS, PARAPHRASED
from pipeline.distillation.distiller import Distiller
from pipeline.distillation.method import DistillationMethod, NetworkPair, label_cross_entropy
from pipeline.distillation.schedule import Schedule
from pipeline.distillation.terms import Term, check_settings, chosen_terms
from pipeline.errors import InputError
from pipeline.networks.shapes import check_taps, feature_maps

logger = logging.getLogger(__name__)


def build_distiller(
    method: str | None,
    teacher: nn.Module | None,
    student: nn.Module,
    out_channels: int,
    total_steps: int,
    paraphrasers: tuple[nn.Module, nn.Module] | None = None,
    preset: str = "bounded",
    settings: Mapping[str, Any] | None = None,
    inferer: Any = None,
    size: int | Sequence[int] | None = None,
    methods: Mapping[str, Any] | None = None,
    teacher_taps: Sequence[str] | None = None,
    student_taps: Sequence[str] | None = None,
    segmentation_loss: Callable[..., Any] = label_cross_entropy,
    learning_rate: float = 3e-4,
    weight_decay: float = 0.0,
    terms: Mapping[str, Callable[..., Any]] | None = None,
) -> Distiller:
    """Return the distiller for one method or several.

    Args:
        method: a key of `METHODS`, such as "graph_flow" or "kd", in place of `terms`; None takes `terms`.
        teacher: trained network with the attributes of `SegmentationNetwork`; None where no method needs one.
        student: network to train, with the same attributes, and as many axes and taps.
        out_channels: K of both networks.
        total_steps: training steps of the whole run, for schedules.
        paraphrasers: trained (shallow, deep) paraphrasers, for the methods that compare paraphrased taps.
        preset: of graph_flow.
        settings: single settings of the method to change.
        inferer: runs the teacher on a batch.
        size: side of the slices in pixels, or sides of the patches of 3D networks in voxels; checked against what the
            discriminator needs.
        methods: several methods in place of `method`: name to weight, or to `{"weight", "start", "end", "ramp"}` (see
            `Schedule`; "share" in place of the weight) with settings of the method beside them. Terms of the same name
            get the method's before them.
        teacher_taps: dotted names of two or more modules of the teacher to compare, shallow to deep; by default its
            own `taps`.
        student_taps: the same of the student.
        segmentation_loss: the run's loss of logits (B, K, ...) against labels (B, 1, ...), for methods that train a
            network of their own.
        learning_rate: of the run's optimizer, for the same methods.
        weight_decay: of the run's optimizer, for the same methods.
        terms: the methods as a config lists them, see `chosen_terms`.

    Raises:
        InputError: an unknown name, setting or tap, a method that makes no sense for segmentation, paraphrasers that
            are missing or belong to other networks, slices too small for the discriminator, a 2D network with a 3D
            one, or different numbers of taps of student and teacher.
    """
    wanted = chosen_terms(terms, method, methods, settings, preset)
    teacher = _stand_in(student, wanted) if teacher is None else teacher
    pair = NetworkPair(
        teacher,
        student,
        _tap_channels(teacher, teacher_taps),
        _tap_channels(student, student_taps),
        out_channels,
        total_steps,
        paraphrasers,
        size if isinstance(size, int) else None,
        _common_axes(teacher, student),
        segmentation_loss=segmentation_loss,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        **({} if inferer is None else {"inferer": inferer}),
    )
    _check_tap_count(pair)
    if paraphrasers is not None and not any(term.build in map(METHODS.get, PARAPHRASED) for term in wanted.values()):
        logger.warning("the paraphraser is not used: %s compares no paraphrased taps", " + ".join(wanted))
    built, schedules, groups = _built(wanted, pair)
    return Distiller(
        teacher,
        student,
        built,
        teacher_taps,
        student_taps,
        inferer=inferer,
        schedules=schedules,
        total_steps=total_steps,
        groups=groups,
    )


def check_teacher_given(teacher: str | None, **chosen: Any) -> None:
    """Refuse (`InputError`) a run whose methods need a teacher and have none, or have one and need none.

    It is checked before the data are read. A run with a teacher that it doesn't use would be compared as a distilled
    one.

    Args:
        teacher: the file of the teacher, as the user gave it, or None.
        chosen: arguments of `chosen_terms`.
    """
    wanted = chosen_terms(**chosen)
    if teacher is None:
        _refuse_without_teacher(wanted)
    elif not _learning_from_a_teacher(wanted):
        learn = "learns" if len(wanted) == 1 else "learn"
        raise InputError(f"{' and '.join(wanted)} {learn} from no teacher; leave --teacher out")


def _refuse_without_teacher(wanted: Mapping[str, Term]) -> None:
    if lacking := _learning_from_a_teacher(wanted):
        raise InputError(f"{lacking[0]} learns from a teacher; give --teacher, the model.pt of a trained network")


def _learning_from_a_teacher(wanted: Mapping[str, Term]) -> list[str]:
    return [name for name, term in wanted.items() if getattr(term.build, "needs_teacher", True)]


def _stand_in(student: nn.Module, wanted: Mapping[str, Term]) -> nn.Module:
    """Return a placeholder for the teacher that is never run; `InputError` if a method needs a teacher."""
    _refuse_without_teacher(wanted)
    return copy.deepcopy(student)


def _built(
    wanted: Mapping[str, Term], pair: NetworkPair
) -> tuple[dict[str, DistillationMethod], dict[str, Schedule], dict[str, str]]:
    """Return the parts of all methods by names of their own, the schedule of each, and its group.

    The parts of a method hold a share of the gradient as a group; a part with a share of its own is one by itself.
    """
    built: dict[str, DistillationMethod] = {}
    schedules: dict[str, Schedule] = {}
    groups: dict[str, str] = {}
    names: set[str] = set()
    for name, term in wanted.items():
        for part, module in build_method(name, pair, term.settings, term.build).items():
            if names & module.weights.keys():  # another method has a term of this name already
                module.rename_terms(f"{name}_")
            names |= module.weights.keys()
            part = part if part not in built else f"{name}_{part}"
            built[part], schedules[part], groups[part] = module, term.schedule, name
            if module.gradient_share is not None:
                schedules[part], groups[part] = replace(term.schedule, share=module.gradient_share), f"{name}: {part}"
    return built, schedules, groups


def _tap_channels(network: nn.Module, taps: Sequence[str] | None) -> tuple[int, ...]:
    """Return the channels of the named taps, or of the network's own."""
    return tuple(network.tap_channels) if taps is None else check_taps(network, taps, feature_maps(network))


def _common_axes(teacher: nn.Module, student: nn.Module) -> int:
    axes, own = (getattr(network, "spatial_dims", 2) for network in (teacher, student))
    if axes != own:
        kinds = {2: "images", 3: "volumes"}
        raise InputError(f"the teacher is for {kinds[axes]}, the student for {kinds[own]}; choose two of a kind")
    return axes


def _check_tap_count(pair: NetworkPair) -> None:
    of_teacher, of_student = len(pair.teacher_channels), len(pair.student_channels)
    if of_teacher != of_student:
        raise InputError(
            f"the teacher has {of_teacher} taps, the student {of_student}; name as many with teacher_taps and "
            "student_taps"
        )


def build_method(
    name: str, pair: NetworkPair, settings: Mapping[str, Any] | None = None, build: Callable[..., Any] | None = None
) -> dict[str, DistillationMethod]:
    """Return the parts of one method by their names: most have one, Graph Flow has its logits and its adversary too.

    Args:
        name: of the method; of `METHODS` where `build` is not given.
        pair: the networks.
        settings: of the method.
        build: called with the pair and the settings.

    Raises:
        InputError: an unknown name or setting, or a method that cannot work on this pair.
    """
    build = build or chosen_terms(None, name)[name].build
    check_settings(name, build, settings or {})
    parts = build(pair, **(settings or {}))
    parts = parts if isinstance(parts, dict) else {name: parts}
    for part, module in parts.items():
        if trained := describe_adapters(module):
            logger.info("%s: %s", part, trained)
    return parts
