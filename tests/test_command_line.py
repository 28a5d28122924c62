# SPDX-License-Identifier: Apache-2.0
"""Errors of a command line are one line with the nearest option."""

from __future__ import annotations

import pytest

from pipeline.command_line import CommandLine


@pytest.fixture
def command() -> CommandLine:
    line = CommandLine(prog="tool")
    line.add_argument("input", nargs="?")
    line.add_argument("--output", required=True)
    line.add_argument("--window", nargs=2, type=float)
    line.add_argument("--kind", choices=("a", "b"))
    return line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--outptu", "x"], "unknown option --outptu; did you mean --output? tool --help lists the options"),
        (["--outptu=x"], "unknown option --outptu; did you mean --output? tool --help lists the options"),
        (["x"], "the following arguments are required: --output; tool --help lists the options"),
        (["--output"], "argument --output: expected one argument; tool --help lists the options"),
        (["--output", "x", "a", "b"], "unrecognized arguments: b; tool --help lists the options"),
    ],
)
def test_an_error_is_one_line(command, words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        command.parse_args(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_what_argparse_takes_is_taken(command):
    given = command.parse_args(["--out", "x", "--window", "-125", "275", "--kind=b"])
    assert (given.output, given.window, given.kind) == ("x", [-125, 275], "b")
    assert command.parse_args(["--output", "x", "--", "--scan"]).input == "--scan"
