# SPDX-License-Identifier: Apache-2.0
"""The guard at the door of the bundles: overrides, required values, exit codes; and files that appear whole."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser

from pipeline.configuration import PATHS, bundle_root, check_command_line, check_overrides, check_paths, start
from pipeline.errors import InputError, find_input_error
from pipeline.files.atomic import replace_when_complete, write_json
from tests.bundles.bundle_commands import ROOT, config_files

CONFIG = """
epochs: 3
learning_rate: 0.1
seed: 0
resume: false
run_dir: null
train:
  trainer: {_target_: SomeTrainer, max_epochs: "@epochs"}
  handlers:
  - {_target_: SomeHandler}
reference: "@train"
"""


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG)
    return str(file)


@pytest.mark.parametrize(
    "override",
    [
        ["--epochs", "5"],
        ["--learning_rate=0.2"],
        ["--train::trainer::max_epochs", "1"],
        ["--train#trainer#max_epochs", "1"],
        ["--train::trainer::an_argument_left_at_its_default", "1"],
        ["--train::handlers::0::_disabled_", "True"],
        ["--reference::anything", "1"],
        ["--logging_file", "False"],
        ["--seed", "0"],
        ["--resume"],
        ["--resume", "True"],
        ["--run_dir", "some/folder"],
    ],
)
def test_known_overrides_pass(config, override):
    check_overrides(["run", "--config_file", config, *override])


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        (["--epocs", "3"], "--epochs"),
        (["--learning-rate", "3"], "--learning_rate"),
        (["--train::trianer::max_epochs", "3"], "--train::trainer"),
    ],
)
def test_mistyped_override_names_the_nearest_key(config, override, nearest):
    with pytest.raises(InputError, match=f"unknown option {override[0]}; did you mean {nearest}"):
        check_overrides(["run", "--config_file", config, *override])


@pytest.mark.parametrize("word", ["--help", "--h"])
def test_asking_for_help_names_the_command_that_lists_the_options(config, word):
    with pytest.raises(InputError, match=f"python -m pipeline options {config}"):
        check_overrides(["run", "--config_file", config, word])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (["--epochs", "0"], "--epochs is 0; give a whole number from 1"),
        (["--epochs", "-1"], "--epochs is -1"),
        (["--epochs", "many"], "--epochs is 'many'"),
        (["--epochs", "2.5"], "--epochs is 2.5"),
        (["--learning_rate=-1"], "--learning_rate is -1; give a number from 0"),
        (["--resume", "false"], "--resume is 'false'; give True or False"),
        (["--resume", "1"], "--resume is 1"),
        (["--epochs", "None"], "--epochs None: MONAI passes such an option over"),
    ],
)
def test_value_of_another_kind_is_refused(config, override, message):
    with pytest.raises(InputError, match=message):
        check_overrides(["run", "--config_file", config, *override])


def test_a_grid_takes_any_option_of_its_runs(tmp_path):
    """What `training` holds are options of train.yaml; the grid checks them before its first run."""
    file = tmp_path / "grid.yaml"
    file.write_text("training: {size: 64}\nother: {size: 64}\ngrid: {_target_: Grid, training: '@training'}\n")
    check_overrides(["run", "--config_file", str(file), "--training::precision", "float32"])
    with pytest.raises(InputError, match="unknown option --other::precision"):
        check_overrides(["run", "--config_file", str(file), "--other::precision", "float32"])


@pytest.mark.parametrize("bundle", ["gastric", "synapse"])
@pytest.mark.parametrize("overlays", [(), ("label_efficiency",)])
def test_the_grids_of_the_bundles_take_any_option_of_their_runs(bundle, overlays):
    files = str([f"{ROOT}/bundles/{bundle}/configs/{name}.yaml" for name in ("benchmark", *overlays)])
    check_overrides(["run", "--config_file", files, "--training::size", "64", "--only::students", "['enet']"])
    with pytest.raises(InputError, match="unknown option --onyl"):
        check_overrides(["run", "--config_file", files, "--onyl::students", "['enet']"])


def test_options_of_an_args_file_are_checked_too(config, tmp_path):
    arguments = tmp_path / "arguments.yaml"
    arguments.write_text(f"config_file: {config}\nepocs: 3\n")
    with pytest.raises(InputError, match="did you mean --epochs"):
        check_overrides(["run", "--args_file", str(arguments)])


@pytest.mark.parametrize("name", ["train", "paraphrase", "distill", "evaluate", "inference"])
def test_overlays_know_the_keys_of_what_they_change(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    check_overrides(["run", "--config_file", config_files("synapse", name), "--device", "cpu"])
    with pytest.raises(InputError, match="did you mean --device"):
        check_overrides(["run", "--config_file", config_files("synapse", name), "--devcie", "cpu"])


@pytest.mark.parametrize("name", ["paraphrase", "distill", "evaluate"])
def test_overlay_alone_is_refused_with_the_two_files_to_name(name):
    file = f"{ROOT}/bundles/synapse/configs/{name}.yaml"
    with pytest.raises(InputError, match=rf"differs from train.yaml; name both: .*train.yaml','.*{name}.yaml'"):
        check_command_line(arguments=["run", "--config_file", file])


@pytest.mark.parametrize("number", ["1e-4", "3e5", "1.5e3", "-2E-3"])
def test_number_that_yaml_reads_as_text_is_refused(number, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(f"epochs: 1\nlearning_rate: {number}\n")
    with pytest.raises(InputError, match=rf"config.yaml, line 2: {number} is read as text"):
        check_command_line(arguments=["run", "--config_file", str(file)])


def test_numbers_as_yaml_wants_them_and_text_in_quotes_pass(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("learning_rate: 1.0e-4\npatient: '12e4'\nname: e5\nlist: [1, 2.5]\n")
    check_command_line(arguments=["run", "--config_file", str(file)])


def test_bundle_root_is_the_folder_above_the_configs(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/train.yaml").write_text("a: 1\n")
    assert bundle_root(["run", "--config_file", str(tmp_path / "configs/train.yaml")]) == str(tmp_path)
    assert bundle_root([]) == "."


@pytest.mark.parametrize("bundle", ["synapse", "gastric"])
def test_options_whose_default_is_nought_take_fractions(bundle, monkeypatch):
    monkeypatch.chdir(ROOT)
    check_overrides(["run", "--config_file", config_files(bundle, "distill"), "--balance", "0.5"])


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("2024", r"--input is read as 2024, not as a path: write \./2024"),
        ("1e3", r"--input is read as 1000.0"),
        ("a,b", r"--input is read as \('a', 'b'\), not as a path: write \./a,b"),
        ("[a]", r"--input is read as \['a'\]"),
        ("(a)", "--input is read as 'a'"),
        ("'a'", "--input is read as 'a'"),
        ("scan ", "--input is read as 'scan'"),
        ("ﬁle", "--input is read as 'file'"),
        ("True", "--input is read as True"),
        ("None", "--input is read as None"),
        ("patient#2", "--input patient#2: MONAI takes # in a path for ::; rename it"),
        ("/data/patient#2", "MONAI takes # in a path for ::"),
        ("@Recent", r"--input @Recent: MONAI takes @ for its own syntax, not for a path: write \./@Recent"),
        ("$HOME", r"write \./\$HOME"),
        ("%scans", r"write \./%scans"),
    ],
)
@pytest.mark.parametrize("spelling", ["--input {}", "--input={}", "-input {}"])
def test_path_that_would_not_arrive_as_typed_is_refused(typed, message, spelling):
    option, separator, _ = spelling.partition(" " if " " in spelling else "=")
    arguments = [option, typed] if separator == " " else [f"{option}={typed}"]
    with pytest.raises(InputError, match=message):
        check_paths(arguments)


CHARACTERS = [chr(code) for code in range(1, 256) if chr(code) not in "/#"] + list("äöü中文🙂\u2028")


@pytest.mark.parametrize("place", ["./{}", "{}", "a{}b", "scans/{}b", "/data/{}", "a {}"])
def test_path_with_any_character_arrives_or_is_refused(place):
    arrived = 0
    for character in CHARACTERS:
        path = place.format(character)
        if path.startswith("-"):
            continue
        try:
            check_paths(["--input", path])
        except InputError:
            assert not place.startswith("./")
            continue
        parser = ConfigParser({"input": DefaultParseValue(path), "dataset": {"inputs": "@input"}})
        assert parser.get_parsed_content("dataset")["inputs"] == path
        arrived += 1
    assert arrived > len(CHARACTERS) / 2


def test_number_in_a_file_is_no_path():
    with pytest.raises(InputError, match=r"--run_dir is read as 2024, not as a path: write \./2024"):
        start({"run_dir": 2024})


def test_command_lines_of_other_programs_are_none_of_ours():
    check_command_line(["-k", "a#b", "--input", "2024"])


def test_all_paths_of_the_configs_are_known_as_such():
    for file in ROOT.glob("bundles/*/configs/*.yaml"):
        for keys in re.findall(r"configuration\.start\(\{([^}]*)\}", file.read_text()):
            assert set(re.findall(r"(\w+)':", keys)) <= set(PATHS), file


@pytest.mark.parametrize("option", [["--arm", "first#1"], ["--arm", "(alone)"]])
def test_text_that_would_be_cut_is_refused(option):
    with pytest.raises(InputError, match=r"is read as .*; put quotes into it"):
        check_paths(option)
    check_paths(["--arm", f"'{option[1]}'", "--network", "{'name': 'a#1'}", "--device", "cpu"])


def test_hash_in_a_path_of_a_file_is_refused(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("run_dir: runs/a#2\noutput_dir: '@run_dir'\n")
    with pytest.raises(InputError, match="run_dir runs/a#2: MONAI takes # in a path"):
        check_command_line(arguments=["--config_file", str(file)])


def test_several_config_files_are_merged(config, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text("more: 1\n")
    check_overrides(["--config_file", f"['{config}', '{other}']", "--more", "2"])
    check_overrides(["--config_file", f"{config},{other}", "--more", "2"])


def test_missing_required_values_are_reported_together():
    with pytest.raises(InputError, match="--dataset_dir, --run_dir"):
        start({"dataset_dir": None, "run_dir": None, "teacher": "t.pt"})


def test_input_error_is_found_behind_wrappers():
    wrapped = RuntimeError("wrapped")
    wrapped.__cause__ = InputError("the cause")
    assert str(find_input_error(wrapped)) == "the cause"
    assert find_input_error(RuntimeError("a defect")) is None


def exit_of(code: str) -> tuple[int, str]:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return result.returncode, result.stderr


def test_uncaught_input_error_is_one_line_and_exit_code_2():
    code, message = exit_of(
        "from pipeline.errors import *; report_input_errors()\n"
        "try: raise InputError('no scan\\n at x.nii')\n"
        "except InputError as e: raise RuntimeError('wrapped') from e"
    )
    assert (code, message) == (2, "error: no scan at x.nii\n")


def test_a_defect_keeps_its_traceback():
    code, message = exit_of("from pipeline.errors import *; report_input_errors(); 1 / 0")
    assert code == 1
    assert "ZeroDivisionError" in message


def test_run_command_exits_with_the_code_of_main():
    assert exit_of("from pipeline.errors import *; run_command(lambda: 1)")[0] == 1


def test_file_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "new" / "file.json"
    write_json(target, {"a": 1})
    assert target.read_text() == '{\n  "a": 1\n}\n'
    with pytest.raises(ZeroDivisionError), replace_when_complete(target) as temporary:
        temporary.write_text(f"half {1 / 0}")
    assert target.read_text() == '{\n  "a": 1\n}\n'
    assert list(target.parent.iterdir()) == [target]


def test_json_has_no_word_for_infinity(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "file.json", {"hd95_mm": float("inf")})
    assert not list(tmp_path.iterdir())


def test_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        write_json(tmp_path / "file" / "below.json", {})
