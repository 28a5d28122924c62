# SPDX-License-Identifier: Apache-2.0
"""What a user did wrong is told in one line and ends in exit code 2; a traceback is left for our own defects."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import NoReturn

BAD_INPUT = 2
BROKEN_PIPE = 141  # 128 + SIGPIPE
INTERRUPTED = 130  # 128 + SIGINT, as shells count

# What a disk says that is full, over quota, limited, read-only, broken, or gone from the network.
_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE})


class InputError(ValueError):
    """Input that cannot be used; the message is one line: what is wrong, where (file or key), what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def find_input_error(error: BaseException | None) -> InputError | None:
    """Return the `InputError` in the chain of causes of `error`, or None (MONAI and ignite wrap what they catch)."""
    return next((cause for cause in _chain(error) if isinstance(cause, InputError)), None)


def find_disk_error(error: BaseException | None) -> OSError | None:
    """Return what a full, read-only or failing disk said in the chain of causes of `error`, or None."""
    causes = (cause for cause in _chain(error) if isinstance(cause, OSError))
    return next((cause for cause in causes if cause.errno in _DISK_ERRORS), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, its cause, the cause of that, and so on."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__


def report_input_errors() -> None:
    """Make an uncaught `InputError` one line on stderr and exit code 2, for programs whose `main` is not ours.

    `python -m monai.bundle run` wraps every failure of a config in its own errors; the bundles' `initialize` calls
    this, and the first line that a user reads is then the cause. Likewise for a disk that cannot be written (exit
    code 2) and for Ctrl-C (130).
    """
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """Print the cause in one line and exit; leave a defect to the hook before."""
        told = line_and_code(error)
        if told is None:
            previous(kind, error, trace)
            return
        raise SystemExit(tell(*told))

    sys.excepthook = hook


def run_command(main: Callable[[], int]) -> NoReturn:
    """Run a command's `main` and exit with its code; what `report_input_errors` names becomes one line likewise.

    Such a command is the work of one process: of several that torchrun starts, the first does it.
    """
    if (os.environ.get("WORLD_SIZE") or "1") != "1":
        if (rank := os.environ.get("RANK", "0")) != "0":
            print(f"process {rank} has nothing to do: this command is the work of one, process 0", file=sys.stderr)
            raise SystemExit(0)
        os.environ["WORLD_SIZE"] = "1"  # what it may start itself is not one of several either
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # `COMMAND | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its end
        code = BROKEN_PIPE
    except (Exception, KeyboardInterrupt) as error:
        told = line_and_code(error)
        if told is None:
            raise
        code = tell(*told)
    raise SystemExit(code)


def line_and_code(error: BaseException) -> tuple[str, int] | None:
    """Return what to tell of an error that the user can mend, and the exit code; None for a defect."""
    cause = find_input_error(error)
    disk = find_disk_error(error)
    if isinstance(error, KeyboardInterrupt):
        return "stopped by Ctrl-C", INTERRUPTED
    if cause is not None:
        return str(cause), BAD_INPUT
    if disk is not None:
        where = f"cannot use {disk.filename}" if disk.filename else "cannot write"
        return f"{where}: {disk.strerror}; free space or mend the disk, then start again", BAD_INPUT
    return None


def tell(line: str, code: int) -> int:
    """Print the line of an error on stderr; returns `code`."""
    print(f"error: {line}", file=sys.stderr, flush=True)
    return code
