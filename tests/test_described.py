# SPDX-License-Identifier: Apache-2.0
"""Components of a config as plain data, and back: what is kept of references, and what is never built."""

from __future__ import annotations

import json
from typing import Any

import pytest
from monai.bundle import ConfigParser
from monai.transforms import Flipd, MapTransform, SpatialPadd, Transform
from torch import nn

from pipeline.described import build, describe
from pipeline.errors import InputError, find_input_error

DESCRIBE = {"_target_": "pipeline.described.describe", "key": "part"}
FLIP = "monai.transforms.spatial.dictionary.Flipd"
PAD = "monai.transforms.croppad.dictionary.SpatialPadd"
MODULES = ("monai.transforms.croppad", "monai.transforms.spatial")


class Holder(Transform):
    """A transform that takes anything."""

    def __init__(self, **held: Any) -> None:
        self.held = held

    def __call__(self, data: Any) -> Any:
        return data


HOLDER = f"{__name__}.Holder"


def described(part: Any, **config: Any) -> Any:
    """Return what a config that holds `part` gets from `describe`, which it calls as the bundles do."""
    return ConfigParser({"part": part, "description": DESCRIBE, **config}).get_parsed_content("description")


def refused(part: Any, **config: Any) -> str:
    """Return the line by which a config is refused; MONAI wraps it, and programs look for the cause."""
    with pytest.raises(RuntimeError) as caught:
        described(part, **config)
    line = str(find_input_error(caught.value))
    assert "\n" not in line
    return line


class TestDescribe:
    def test_names_become_those_of_classes_in_their_modules(self):
        assert described({"_target_": "Flipd", "keys": "image"}) == {"_target_": FLIP, "keys": "image"}
        assert described({"_target_": "monai.transforms.Flipd", "keys": "image"})["_target_"] == FLIP
        assert described({"_target_": HOLDER}) == {"_target_": HOLDER}

    def test_references_and_expressions_become_their_values(self):
        part = {
            "_target_": HOLDER,
            "a": "@side",
            "b": "$2 * @side",
            "c": ["@side", "$(1, @keys[0])"],
            "d": {"e": "@keys"},
        }
        expected = {"_target_": HOLDER, "a": 8, "b": 16, "c": [8, [1, "image"]], "d": {"e": ["image", "label"]}}
        assert described(part, side=8, keys=["image", "label"]) == expected

    def test_values_of_other_components_are_taken_when_they_are_built(self):
        part = {"_target_": HOLDER, "rule": "$@rule.kind", "low": "$@rule.low"}
        rule = {"_target_": "pipeline.data.IntensityRule", "kind": "window", "low": -125, "high": "@high"}
        assert described(part, rule=rule, high=275) == {"_target_": HOLDER, "low": -125.0, "rule": "window"}

    def test_chains_of_references_lead_to_the_component(self):
        flip = {"_target_": "Flipd", "keys": "image"}
        assert described("@first", first="@second", second="@third::inner", third={"inner": flip}) == described(flip)
        assert described(["@first", flip], first="@second", second=flip) == [described(flip)] * 2
        assert described("@all", all=["@first", flip], first=flip) == [described(flip)] * 2

    def test_what_is_disabled_is_left_out_of_lists(self):
        flip, pad = {"_target_": "Flipd", "keys": "image"}, {"_target_": "SpatialPadd", "keys": "image"}
        switched = [{**pad, "_disabled_": disabled} for disabled in (True, "$@off", "@off", "true")]
        assert described([*switched, flip], off=True) == [described(flip)]
        kept = [{**flip, "_disabled_": disabled} for disabled in (False, "$not @off", "false")]
        assert described(kept, off=True) == [described(flip)] * 3

    def test_words_of_the_config_alone_are_not_kept(self):
        part = {"_target_": "Flipd", "keys": "image", "_desc_": "mirrors", "_requires_": "@side", "_mode_": "default"}
        assert described(part, side=8) == {"_target_": FLIP, "keys": "image"}

    def test_nested_components_are_described(self):
        inner = {"_target_": "SpatialPadd", "keys": "@key", "spatial_size": "$@side + 1"}
        part = {"_target_": HOLDER, "inner": {"_target_": HOLDER, "deeper": inner}}
        pad = {"_target_": PAD, "keys": "image", "spatial_size": 9}
        expected = {"_target_": HOLDER, "inner": {"_target_": HOLDER, "deeper": pad}}
        assert described(part, side=8, key="image") == expected

    def test_order_of_arguments_does_not_show(self):
        one, other = (
            {"_target_": "Flipd", **more}
            for more in ({"keys": "a", "spatial_axis": 0}, {"spatial_axis": 0, "keys": "a"})
        )
        assert json.dumps(described(one)) == json.dumps(described(other))

    def test_classes_become_their_names(self):
        assert described({"_target_": HOLDER, "kind": "$torch.nn.ReLU"}, imports=["$import torch"]) == {
            "_target_": HOLDER,
            "kind": "torch.nn.modules.activation.ReLU",
        }

    def test_the_described_component_itself_can_be_used_beside(self):
        config = {"part": [{"_target_": "Flipd", "keys": "image"}], "description": DESCRIBE}
        both = {"_target_": "pipeline.data.Preprocessing", "transforms": "@part", "description": "@description"}
        preprocessing = ConfigParser({**config, "both": both}).get_parsed_content("both")
        assert isinstance(preprocessing.transforms[0], Flipd)
        assert preprocessing.description == [{"_target_": FLIP, "keys": "image"}]

    @pytest.mark.parametrize(
        ("part", "message"),
        [
            ([{"_target_": HOLDER, "call": "$lambda item: item"}], "part::0::call is a function; "),
            (
                {"_target_": HOLDER, "call": {"deep": [1, "$len"]}},
                r"part::call.deep[1] is a builtin_function_or_method; ",
            ),
            ({"_target_": HOLDER, "inner": {"_target_": HOLDER, "call": "$len"}}, "part::inner::call is a builtin"),
            ({"_target_": HOLDER, "values": "$__import__('torch').ones(2)"}, "part::values is a Tensor; "),
            ([{"_target_": "Flippd", "keys": "image"}], "part::0: there is no Flippd; check the name"),
            ({"_target_": "absent.module.Class"}, "part: there is no absent.module.Class; check the name"),
            (3, "part of the config is 3; write a component with _target_ there"),
            ([{"keys": "image"}], "part::0 of the config is {'keys': 'image'}; write a component"),
            ("$[1, 2]", "part of the config is '$[1, 2]'; write a component"),
        ],
    )
    def test_what_is_not_plain_is_refused_with_its_place(self, part, message):
        assert refused(part).startswith(message)

    def test_without_a_config_nobody_knows_what_is_meant(self):
        with pytest.raises(RuntimeError, match="describe is called by a config"):
            describe("part")


class TestBuild:
    def test_a_description_becomes_what_the_config_builds(self):
        part = {"_target_": "SpatialPadd", "keys": ["image"], "spatial_size": "$[@side, 4]", "mode": "edge"}
        built = build(described(part, side=8), Transform, MODULES)
        assert type(built) is SpatialPadd
        assert built.keys == ("image",)
        assert built.padder.spatial_size == [8, 4]

    def test_the_description_is_left_as_it_is(self):
        description = {"_target_": FLIP, "keys": "image"}
        build(description, Transform, MODULES)
        assert description == {"_target_": FLIP, "keys": "image"}

    def test_own_modules_must_be_named(self):
        with pytest.raises(InputError, match=r"is none of monai.* if you trust the file, export GRAPHFLOW_TRUSTED_MOD"):
            build({"_target_": HOLDER}, Transform, MODULES)
        assert build({"_target_": HOLDER, "a": [1]}, Transform, (*MODULES, __name__)).held == {"a": [1]}

    @pytest.mark.parametrize(
        "name",
        [
            "os.system",
            "builtins.eval",
            "monai.transforms.io.dictionary.SaveImaged",
            "monai.transforms.spatial",
            "monai.transforms.spatialised.Flipd",
            "monai.transforms.spatial_.Flipd",
            "Flipd",
            "",
            None,
            7,
            ["monai.transforms.spatial.dictionary.Flipd"],
            {"_target_": FLIP},
        ],
    )
    def test_classes_of_other_modules_are_refused(self, name):
        with pytest.raises(
            InputError, match=r"is none of monai\.transforms\.croppad, monai\.transforms\.spatial; if"
        ) as one:
            build({"_target_": name, "keys": "image"}, Transform, MODULES)
        assert "\n" not in str(one.value)

    def test_a_description_without_a_class_is_refused(self):
        with pytest.raises(InputError, match=r"None is none of monai\.transforms"):
            build({"keys": "image"}, Transform, MODULES)

    @pytest.mark.parametrize(
        ("name", "base"),
        [
            (FLIP, nn.Module),
            ("monai.transforms.spatial.dictionary.Absentd", Transform),
            ("monai.transforms.spatial.absent.Flipd", Transform),
            ("monai.transforms.spatial.functional.resize", Transform),
            ("monai.transforms.spatial.dictionary.Flipd.__init__", Transform),
            ("monai.transforms.spatial.dictionary", Transform),
        ],
    )
    def test_classes_of_another_kind_and_what_is_no_class_are_refused(self, name, base):
        with pytest.raises(
            InputError, match=f"{name} is not installed, or no {base.__name__}; put its module on"
        ) as one:
            build({"_target_": name, "keys": "image"}, base, MODULES)
        assert "\n" not in str(one.value)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"keys": "image", "axis": 1}, "unexpected keyword argument 'axis'"),
            ({}, "missing 1 required positional argument: 'keys'"),
            ({"keys": []}, "keys must be non empty"),
            ({"keys": "image", 3: 4}, "keywords must be strings"),
        ],
    )
    def test_wrong_arguments_are_one_line(self, arguments, message):
        with pytest.raises(InputError, match=rf"{FLIP} cannot be built from its description: .*{message}") as one:
            build({"_target_": FLIP, **arguments}, MapTransform, MODULES)
        assert "\n" not in str(one.value)

    def test_a_module_that_fails_while_it_is_imported_is_one_line(self, tmp_path, monkeypatch):
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "broken_transforms.py").write_text("raise OSError('no licence')\n")
        with pytest.raises(InputError, match=r"^broken_transforms\.Doubled cannot be imported: no licence$"):
            build({"_target_": "broken_transforms.Doubled"}, Transform, ["broken_transforms"])
