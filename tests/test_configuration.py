# SPDX-License-Identifier: Apache-2.0
"""The guard at the door of the bundles: overrides, required values, exit codes; and files that appear whole."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pipeline.atomic import replace_when_complete, write_json
from pipeline.configuration import check_overrides, start
from pipeline.errors import InputError, input_error_behind

CONFIG = """
epochs: 3
learning_rate: 0.1
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
        ["--epochs", "-1"],
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


def test_several_config_files_are_merged(config, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text("more: 1\n")
    check_overrides(["--config_file", f"['{config}', '{other}']", "--more", "2"])
    check_overrides(["--config_file", f"{config},{other}", "--more", "2"])


def test_missing_required_values_are_reported_together():
    with pytest.raises(InputError, match="--dataset_dir, --run_dir"):
        start({"dataset_dir": None, "run_dir": None, "teacher": "t.pt"}, arguments=[])


def test_input_error_is_found_behind_wrappers():
    wrapped = RuntimeError("wrapped")
    wrapped.__cause__ = InputError("the cause")
    assert str(input_error_behind(wrapped)) == "the cause"
    assert input_error_behind(RuntimeError("a defect")) is None


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
