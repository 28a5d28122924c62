# SPDX-License-Identifier: Apache-2.0
"""What a user did wrong is told in one line and ends in exit code 2; a traceback is left for our own defects."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn

BAD_INPUT = 2


class InputError(ValueError):
    """Input that cannot be used; the message is one line: what is wrong, where (file or key), what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def input_error_behind(error: BaseException | None) -> InputError | None:
    """Return the `InputError` in the chain of causes of `error`, or None (MONAI and ignite wrap what they catch)."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, InputError):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def report_input_errors() -> None:
    """Make an uncaught `InputError` one line on stderr and exit code 2, for programs whose `main` is not ours.

    `python -m monai.bundle run` wraps every failure of a config in its own errors; the bundles' `initialize` calls
    this, and the first line that a user reads is then the cause.
    """
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """Print the cause in one line and exit; leave a defect to the hook before."""
        cause = input_error_behind(error)
        if cause is None:
            previous(kind, error, trace)
            return
        print(f"error: {cause}", file=sys.stderr)
        sys.stderr.flush()
        raise SystemExit(BAD_INPUT)

    sys.excepthook = hook


def run_command(main: Callable[[], int]) -> NoReturn:
    """Run a command's `main` and exit with its code; an `InputError` becomes one line on stderr and exit code 2."""
    try:
        code = main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        code = BAD_INPUT
    raise SystemExit(code)
