"""Files that may change while the process runs: certificates, keys, tokens.

They are looked at when their value is needed, not by a timer. While they are half written, missing or wrong, the
last good value stays in use, and the log says so once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

log = logging.getLogger(__name__)
T = TypeVar("T")

# A file may be written twice within one tick of its clock, and then its stat is the same: while it is
# younger than this, its content is compared too (as git does with its index).
_RACY_S = 2.0


class InvalidFile(Exception):
    """A file cannot be used. The message is one line that names it and says why."""


class ReloadableFile(Generic[T]):
    """The value that some files give together, as they are now. Safe to use from several threads."""

    def __init__(self, what: str, paths: Sequence[str | Path], load: Callable[[], T]):
        """what: for the log. load: reads the files and gives the value. Raises: InvalidFile, as `load` does."""
        self._what, self._paths, self._load = what, [Path(path) for path in paths], load
        self._lock = threading.Lock()
        self._stats = self._stat()
        self._contents: list[bytes | None] | None = self._read()
        self._value, self._stale = self._loaded(), False

    def current(self) -> T:
        """The value; the same object while the files have not changed, or cannot be used."""
        with self._lock:
            stats = self._stat()
            if stats is not None and stats == self._stats:
                return self._value
            # In this order: a change after `_stat` is seen at the next call.
            contents = self._read()
            self._stats = stats
            if contents != self._contents:
                self._contents = contents
                try:
                    self._value, self._stale = self._loaded(), False
                except InvalidFile as error:
                    self._stale = True
                    log.warning("%s: the old ones stay in use: %s", self._what, error)
                else:
                    log.info("%s: reloaded", self._what)
            return self._value

    def stale(self) -> bool:
        """Whether `current` gives an older value, since the files cannot be used now."""
        self.current()
        return self._stale

    def _loaded(self) -> T:
        value = self._load()
        if self._read() != self._contents:
            self._stats = self._contents = None
            raise InvalidFile(f"{', '.join(map(str, self._paths))}: changed while being read")
        return value

    def _stat(self) -> list[tuple[int, ...]] | None:
        """Equal for two calls only if the files are the same; None when that cannot be known yet."""
        try:
            stats = [path.stat() for path in self._paths]
        except OSError:
            return None
        now_s = time.time()
        # A date in the future is no reason to wait for it: the next write changes it.
        if any(abs(now_s - date_s) < _RACY_S for stat in stats for date_s in (stat.st_mtime, stat.st_ctime)):
            return None
        return [(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for stat in stats]

    def _read(self) -> list[bytes | None]:
        return [_bytes(path) for path in self._paths]


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
