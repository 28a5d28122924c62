# SPDX-License-Identifier: Apache-2.0
"""Writing a trained network in another format: whole, or not at all where the export segments otherwise."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from pipeline.export.formats import FORMATS
from pipeline.export.int8 import write_int8
from pipeline.export.parity import Agreement, agreement, check_parity
from pipeline.export.samples import Samples
from pipeline.files.atomic import replace_when_complete
from pipeline.networks import SavedModel
from pipeline.runtimes.description import describe_model


def export_network(model: SavedModel, destination: Path, name: str, samples: Samples, int8: bool = False) -> Agreement:
    """Write a network in the format `name` of `FORMATS`, whole or not at all; return how far it agrees with torch.

    Args:
        model: on the CPU.
        destination: the file; OpenVINO has its weights in a `.bin` beside it.
        name: a key of `FORMATS`.
        samples: to compare on; for `int8` to calibrate on, too.
        int8: round weights and activations to 8 bits.

    Raises:
        InputError: a network that cannot be exported, a folder that cannot be written.
        ParityError: masks that differ from torch's; nothing is written then.
    """
    kind, description = FORMATS[name], describe_model(model, int8)
    write: Callable[[Path], None] = lambda path: kind.write(model.network, description, path)  # noqa: E731
    if int8:
        write = lambda path: write_int8(model.network, description, samples.images, path)  # noqa: E731
    with ExitStack() as stack:
        temporary = stack.enter_context(replace_when_complete(destination))
        if name == "openvino":  # OpenVINO names the weights after the file; they are renamed first
            stack.enter_context(replace_when_complete(destination.with_suffix(".bin")))
        write(temporary)
        found = agreement(model.network, kind.run(temporary), samples.images, model.labels, samples.truth)
        check_parity(found, int8)
    return found
