# SPDX-License-Identifier: Apache-2.0
"""A process of a run that ends takes the others down; why it ended is told in one line, once.

Processes note where they are when they start, and why they end when they can. Whoever loses the connection looks at
these notes, and at the processes of its own machine. Processes that write to one terminal or log tell one line there.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from pathlib import Path
from types import TracebackType

import torch.distributed as dist

from pipeline.errors import InputError, find_disk_error, find_input_error, line_and_code, tell

EXIT_LOST_RANK = 1  # exit code of a process that ends because another did, and could not say why
_SEARCH_S = 5.0
_POLL_S = 0.1
# What gloo and NCCL say of a peer that is gone or silent; both raise plain RuntimeErrors for some of it.
_CONNECTION_ERRORS = (
    "closed by peer",
    "reset by peer",
    "timed out",
    "timeout",
    "remote process",
    "broken pipe",
    "socket closed",
)


def report_ends(store: dist.Store, rank: int, world_size: int) -> None:
    """Note on `store` where this process is, and from now on why it ends; tell that, or which other is lost, once.

    An uncaught error that comes of a lost connection is told as the other's end, and has its exit code, 1 if that is
    unknown. A defect goes to the hook that was there before.
    """
    store.set(f"address/{rank}", f"{platform.node()} {_process_space()} {os.getpid()}")
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """Note the end of this process, and report another's."""
        connection_error = find_connection_error(error)
        told = line_and_code(error)
        if connection_error is not None:
            told = describe_lost_ranks(store, rank, world_size, connection_error), _code_of_lost(store, world_size)
        else:
            _note_end(store, rank, error, EXIT_LOST_RANK if told is None else told[1])
        if told is None:
            previous(kind, error, trace)
            return
        if _is_first_to_tell(store):
            tell(*told)
        raise SystemExit(told[1])

    sys.excepthook = hook


def ended_ranks(store: dist.Store, rank: int, world_size: int) -> str:
    """Return what is known of the ends of the processes other than `rank`, an empty text if none has ended."""
    return "; ".join(filter(None, (_ended(store, other) for other in range(world_size) if other != rank)))


def leave(store: dist.Store, rank: int, world_size: int) -> None:
    """Note that this process is done with `store`.

    Where rank 0 holds the notes itself (torchrun does it otherwise), it waits a moment for others to read them.
    """
    try:
        store.set(f"left/{rank}", "")
        if rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            give_up = time.monotonic() + _SEARCH_S
            while time.monotonic() < give_up and not all(_has_left(store, other) for other in range(1, world_size)):
                time.sleep(_POLL_S)
    except dist.DistError:  # its holder is gone, and nobody else can read them
        return


def find_connection_error(error: BaseException | None) -> BaseException | None:
    """Return the error in a chain of causes that says that another process is gone or silent, or None."""
    if find_input_error(error) is not None or find_disk_error(error) is not None:
        return None
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, dist.DistError) or (
            type(error) is RuntimeError and any(words in str(error).lower() for words in _CONNECTION_ERRORS)
        ):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def describe_lost_ranks(store: dist.Store, rank: int, world_size: int, connection_error: BaseException) -> str:
    """Return one line about the processes that have ended, or else do not answer: where, and why if they could say so.

    Args:
        store: the processes' notes.
        rank: this process.
        world_size: number of processes.
        connection_error: the error by which this process lost the others.
    """
    others = [other for other in range(world_size) if other != rank]
    try:
        store.set(f"lost/{rank}", "")
        give_up = time.monotonic() + _SEARCH_S
        while time.monotonic() < give_up:  # a socket closes a moment before its process is gone
            if ended := ended_ranks(store, rank, world_size):
                return ended
            time.sleep(_POLL_S)
        silent = [other for other in others if not store.check([f"lost/{other}"])] or others
        places = ", ".join(f"rank {other} on {_address(store, other)[0]}" for other in silent)
    except dist.DistError:
        return f"rank {rank} on {platform.node()} lost the process that holds the rendezvous; see its output"
    said = " ".join(str(connection_error).split())[:200]
    return f"no answer from {places}: it hangs, or ended on another machine; see its output ({said})"


def _code_of_lost(store: dist.Store, world_size: int) -> int:
    """Return the exit code of a process that noted why it ended; 1 where none did."""
    try:
        noted = [store.get(f"code/{rank}") for rank in range(world_size) if store.check([f"code/{rank}"])]
    except dist.DistError:
        noted = []
    return int(noted[0]) if noted else EXIT_LOST_RANK


def _is_first_to_tell(store: dist.Store) -> bool:
    """Return whether no other process has told the end of the run on the terminal, pipe or file of this one."""
    try:
        output = os.fstat(sys.stderr.fileno())
        return store.add(f"told/{platform.node()}/{output.st_dev}/{output.st_ino}", 1) == 1
    except (dist.DistError, OSError):  # the notes are gone, or nobody shares this output
        return True


def _has_left(store: dist.Store, rank: int) -> bool:
    return store.check([f"left/{rank}"]) or _is_dead(*_address(store, rank))


def _ended(store: dist.Store, rank: int) -> str:
    """Return what is known of the end of a process, an empty text if nothing is."""
    host, space, pid = _address(store, rank)
    if store.check([f"end/{rank}"]):
        return f"rank {rank} on {host} ended: {store.get(f'end/{rank}').decode()}"
    if _is_dead(host, space, pid):
        return f"rank {rank} on {host} (process {pid}) ended without a word; see its output and torchrun's table"
    return ""


def _address(store: dist.Store, rank: int) -> list[str]:
    """Return host, space of process ids and process id that a process noted when it started."""
    if not store.check([f"address/{rank}"]):
        return ["an unknown machine", "", "0"]
    return store.get(f"address/{rank}").decode().rsplit(" ", 2)


def _note_end(store: dist.Store, rank: int, error: BaseException, code: int) -> None:
    cause = find_input_error(error) or error
    reason = str(cause) if isinstance(cause, InputError) else f"{type(cause).__name__}: {cause}"
    try:
        store.set(f"code/{rank}", str(code))
        store.set(f"end/{rank}", " ".join(reason.split())[:500] or type(cause).__name__)
    except dist.DistError:  # the store is gone too, and the error itself matters more
        return


def _process_space() -> str:
    """Return the name of the space that process ids are unique in: containers of one machine have their own."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return "unknown"


def _is_dead(host: str, space: str, pid: str) -> bool:
    """Return whether a process is known to have ended: of another machine nothing is known."""
    return (host, space) == (platform.node(), _process_space()) and not _is_alive(int(pid))


def _is_alive(pid: int) -> bool:
    """Return whether a process of this machine runs; one that waits for its parent to read its exit code does not."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return not Path("/proc/self/stat").exists()  # a system without /proc tells nothing
    return fields.rpartition(")")[2].split()[0] not in ("Z", "X")
