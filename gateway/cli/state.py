"""What commands leave on disk for each other: where a `csm up` listens, and which request was the last one."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from services.runtime.settings import StartError

MOST = 16  # `csm up` at once


@dataclass(frozen=True)
class Running:
    """A `csm up` of this user. traces: the folder of its trace store; None when spans go elsewhere."""

    address: str
    pid: int
    traces: str | None


def state_dir() -> Path:
    """CSM_STATE_DIR, else XDG_STATE_HOME/csm, else ~/.local/state/csm."""
    if folder := os.environ.get("CSM_STATE_DIR"):
        return Path(folder)
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "csm"


def announce(running: Running, folder: Path) -> None:
    """Make `running` the one that others find."""
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f"up.json.{running.pid}"
    draft.write_text(json.dumps(asdict(running)))
    draft.replace(folder / "up.json")


def withdraw(running: Running, folder: Path) -> None:
    """Take it back, unless another has been announced since."""
    if _read(folder) == running:
        (folder / "up.json").unlink(missing_ok=True)


def find(folder: Path) -> Running | None:
    """The `csm up` that runs now, if one does; of several, the one that was first."""
    return next(iter(running(folder)), None)


def running(folder: Path) -> list[Running]:
    """All that run now, in the order of their places."""
    found = [_read(place) for place in places(folder)]
    return [one for one in found if one is not None and _is_alive(one.pid)]


def places(folder: Path) -> list[Path]:
    """Where a `csm up` runs or has run: `folder` itself, and beside it one for each that ran at the same time."""
    return [folder, *(folder / f"up-{number}" for number in range(2, MOST + 1) if (folder / f"up-{number}").is_dir())]


@contextmanager
def claim(folder: Path) -> Iterator[Path]:
    """A place in `folder` that no other `csm up` uses while the block lasts: its note, its logs, its traces.

    The kernel holds the claim and drops it with the process, so a killed one leaves nothing in the way.
    Raises: StartError when MOST run already.
    """
    for place in (folder, *(folder / f"up-{number}" for number in range(2, MOST + 1))):
        place.mkdir(parents=True, exist_ok=True)
        with (place / "up.lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield place
            return
    raise StartError(f"{MOST} `csm up` use {folder} already; CSM_STATE_DIR names another folder")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False  # it was killed before it could withdraw
    except PermissionError:
        pass
    return True


@dataclass(frozen=True)
class Said:
    """The last request that a command made. traces: the folder that its trace goes to; None when that is unknown."""

    trace_id: str
    traces: str | None


def remember(said: Said, folder: Path) -> None:
    """Make `said` the last one. A folder that cannot be written is no reason to fail what was said."""
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f"said.json.{os.getpid()}"
        draft.write_text(json.dumps(asdict(said)))
        draft.replace(folder / "said.json")


def last_said(folder: Path) -> Said | None:
    """The last request, if one is known."""
    try:
        said = Said(**json.loads((folder / "said.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return said if isinstance(said.trace_id, str) and isinstance(said.traces, str | None) else None


def _read(folder: Path) -> Running | None:
    try:
        return Running(**json.loads((folder / "up.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None
