"""What commands leave on disk for each other: where a `csm up` listens, and the last request."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from services.runtime.settings import StartError

MAX_INSTANCES = 16  # `csm up` at once


@dataclass(frozen=True)
class Running:
    """A `csm up` of this user. traces: the folder of its trace store; None when spans go elsewhere."""

    address: str
    pid: int
    traces: str | None


def state_dir() -> Path:
    """CSM_STATE_DIR, else XDG_STATE_HOME/csm, else ~/.local/state/csm, else a folder of this user's in /tmp.

    Raises: StartError when that last one belongs to another user.
    """
    if named := os.environ.get("CSM_STATE_DIR"):
        return Path(named)
    if named := os.environ.get("XDG_STATE_HOME"):
        return Path(named) / "csm"
    home = Path(os.path.expanduser("~"))  # "~" itself where there is neither HOME nor an entry in passwd
    if os.environ.get("HOME") != "" and home.is_absolute() and home.is_dir():
        return home / ".local" / "state" / "csm"
    folder = Path(tempfile.gettempdir(), f"csm-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise StartError(f"{folder} is open to other users, and there is no home folder: set CSM_STATE_DIR")
    return folder


def register(running: Running, folder: Path) -> None:
    """Make `running` the one that others find."""
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f"up.json.{running.pid}"
    draft.write_text(json.dumps(asdict(running)))
    draft.replace(folder / "up.json")


def unregister(running: Running, folder: Path) -> None:
    """Take it back, unless another has registered since."""
    if _read(folder) == running:
        (folder / "up.json").unlink(missing_ok=True)


def find(folder: Path) -> Running | None:
    """The `csm up` that runs now, if one does; of several, the one that was first."""
    return next(iter(running(folder)), None)


def running(folder: Path) -> list[Running]:
    """All that run now, in the order of their folders."""
    found = [_read(directory) for directory in instance_dirs(folder)]
    return [one for one in found if one is not None and _is_alive(one.pid)]


def instance_dirs(folder: Path) -> list[Path]:
    """Where a `csm up` runs or has run: `folder` itself, and `up-2`, `up-3` … in it for those at the same time."""
    return [
        folder,
        *(folder / f"up-{number}" for number in range(2, MAX_INSTANCES + 1) if (folder / f"up-{number}").is_dir()),
    ]


@contextmanager
def acquire_instance_dir(folder: Path) -> Iterator[Path]:
    """A directory in `folder` that no other `csm up` uses while the block lasts: its note, its logs, its traces.

    The kernel holds the lock and drops it with the process, so a killed one leaves nothing in the way.
    Raises: StartError when MAX_INSTANCES run already.
    """
    for directory in (folder, *(folder / f"up-{number}" for number in range(2, MAX_INSTANCES + 1))):
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / "up.lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield directory
            return
    raise StartError(f"{MAX_INSTANCES} `csm up` use {folder} already; CSM_STATE_DIR names another folder")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False  # it was killed before it could unregister
    except PermissionError:
        pass
    return True


@dataclass(frozen=True)
class LastRequest:
    """The last request that a command made. traces: the folder that its trace goes to; None when that is unknown."""

    trace_id: str
    traces: str | None


def save_last_request(request: LastRequest, folder: Path) -> None:
    """Make `request` the last one. A folder that cannot be written is no reason to fail."""
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f"last_request.json.{os.getpid()}"
        draft.write_text(json.dumps(asdict(request)))
        draft.replace(folder / "last_request.json")


def last_request(folder: Path) -> LastRequest | None:
    """The last request, if one is known."""
    try:
        last = LastRequest(**json.loads((folder / "last_request.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return last if isinstance(last.trace_id, str) and isinstance(last.traces, str | None) else None


def _read(folder: Path) -> Running | None:
    try:
        return Running(**json.loads((folder / "up.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None
