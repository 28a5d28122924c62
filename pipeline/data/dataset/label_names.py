# SPDX-License-Identifier: Apache-2.0
"""Names of label values as other tools write them: Decathlon's `{"1": "liver"}`, nnU-Net's `{"liver": 1}`, a list."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.errors import InputError

BACKGROUND = "background"
_IGNORE = "ignore"  # nnU-Net's name for voxels that nobody labelled


def names_in_order(names: str) -> dict[int, str]:
    """Return `"liver,spleen"` as value to name: 0 is the background, the names count from 1 on.

    Raises `InputError` for a name that is empty, stands twice, or is the background's.
    """
    listed = [name.strip() for name in names.split(",")]
    if not all(listed) or len({BACKGROUND, *listed}) <= len(listed):
        raise InputError(f"organs {names!r}: each needs a name of its own; separate them by commas")
    return dict(enumerate((BACKGROUND, *listed)))


def label_names(content: Any) -> dict[int, str]:
    """Return the labels of a JSON file as value to name, sorted by value; 0 is the background, named or not.

    `content` maps values to names or names to values, alone or under the key `labels`. Values may have gaps. Raises
    `InputError` for regions (one name for several values), for a label `ignore`, and for what names no value.
    """
    if isinstance(content, Mapping) and isinstance(content.get("labels"), Mapping):
        content = content["labels"]
    if not isinstance(content, Mapping) or not content:
        raise InputError('labels must be an object such as {"0": "background", "1": "liver"}')
    _refuse_regions(content)
    pairs = [_value_and_name(key, value) for key, value in content.items()]
    names = {0: BACKGROUND, **dict(sorted(pairs))}
    _check_names(pairs, names)
    return names


def _refuse_regions(content: Mapping[Any, Any]) -> None:
    regions = [str(name) for name, value in content.items() if isinstance(value, list | tuple)]
    if regions:
        raise InputError(
            f"labels: {', '.join(regions)} are regions of several values, and regions overlap; give every value a name "
            'of its own, such as {"edema": 1, "core": 2}'
        )


def _value_and_name(key: Any, value: Any) -> tuple[int, str]:
    """Return the pair of one entry, whichever side is the number."""
    for number, name in ((key, value), (value, key)):
        whole = _whole(number)
        if isinstance(name, str) and whole is not None:
            return whole, BACKGROUND if whole == 0 and name.strip().lower() == BACKGROUND else name.strip()
    raise InputError(f'labels: {key!r}: {value!r} names no value from 0 to 255; write "1": "liver"')


def _whole(number: Any) -> int | None:
    """Return a label value, which JSON may hold as text, or None."""
    if isinstance(number, bool) or not isinstance(number, int | str):
        return None
    text = str(number).strip()
    return int(text) if text.isascii() and text.isdigit() and int(text) < 256 else None


def _check_names(pairs: list[tuple[int, str]], names: Mapping[int, str]) -> None:
    if len(dict(pairs)) < len(pairs) or not all(names.values()) or len(set(names.values())) < len(names):
        listed = ", ".join(f"{value} {name!r}" for value, name in pairs)
        raise InputError(f"labels: {listed}: each value needs one name, and each name one value; correct them")
    if names[0] != BACKGROUND:
        raise InputError(f"labels: value 0 is {names[0]!r}; 0 must be 'background'")
    if len(names) == 1:
        raise InputError("labels: the background alone; name one organ at least")
    if _IGNORE in names.values():
        raise InputError(
            "labels: 'ignore' marks voxels that nobody labelled, which can be neither learned nor scored here; "
            "finish those labels, or make these voxels background and take the name out"
        )
