"""What `csm up` leaves on disk so that other terminals find it: its address, its logs, its traces."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path


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
    """The `csm up` that runs now, if one does."""
    running = _read(folder)
    if running is None:
        return None
    try:
        os.kill(running.pid, 0)
    except ProcessLookupError:
        return None  # it was killed before it could withdraw
    except PermissionError:
        pass
    return running


def _read(folder: Path) -> Running | None:
    try:
        return Running(**json.loads((folder / "up.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None
