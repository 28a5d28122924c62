# SPDX-License-Identifier: Apache-2.0
"""Command lines whose errors are one line, as those of the bundles' configs are."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from pipeline.errors import BAD_INPUT, tell


class CommandLine(argparse.ArgumentParser):
    """argparse's parser, but for its errors.

    argparse prints the whole usage, and of a mistyped option that is required it says only that the right one lacks.
    """

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """Return the options of `args`, by default those of the process; an error ends the process with code 2."""
        words = sys.argv[1:] if args is None else list(args)
        self._refuse_unknown(words)
        return super().parse_args(words, namespace)

    def _refuse_unknown(self, words: Sequence[str]) -> None:
        options = [option for option in self._option_string_actions if option.startswith("--")]
        for word in words[: words.index("--") if "--" in words else None]:
            name = word.partition("=")[0]
            if name.startswith("--") and not any(option.startswith(name) for option in options):
                nearest = difflib.get_close_matches(name, options, n=1, cutoff=0)[0]
                self.error(f"unknown option {name}; did you mean {nearest}?")

    def error(self, message: str) -> NoReturn:
        """End the process with the message in one line."""
        separator = "" if message.endswith("?") else ";"
        raise SystemExit(tell(f"{message}{separator} {self.prog} --help lists the options", BAD_INPUT))
