# SPDX-License-Identifier: Apache-2.0
"""Training that begins with the weights of an earlier model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from pipeline.errors import InputError
from pipeline.networks.saved_model import load_model, unwrapped


def take_weights(
    network: nn.Module, path: str | os.PathLike[str] | None, model_requirements: Mapping[str, Any]
) -> None:
    """Give a network in training the weights of a model file; None leaves it as it is.

    Args:
        network: as `build_network` or `adopt` returns it.
        path: a `model.pt`, or the `model_last.pt` of a finished run to train it longer.
        model_requirements: `Dataset.model_requirements` of the training data.

    Raises:
        InputError: the file holds another network, or is of other organs or channels than the data.
    """
    if path is None:
        return
    model, bare = load_model(path, model_requirements=model_requirements), unwrapped(network)
    if model.network_arguments != bare.arguments:
        raise InputError(
            f"--initial_weights {path} holds the network {model.network_arguments}, this run trains {bare.arguments}; "
            "give the same --network and options, or another file"
        )
    bare.load_state_dict(model.network.state_dict())
