"""Files that may change while the process runs: certificates, keys, tokens.

Who uses them asks each time; nothing polls. While they are half written, gone or wrong, the last
good value stays, and the log says so once.
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

# A file may be written twice within one tick of its clock, and then looks unchanged: until it is
# older than this, its content is compared too (as git does with its index).
_SETTLED_S = 2.0


class InvalidFile(Exception):
    """A file cannot be used. The message is one line that names it and says why."""


class ReloadableFile(Generic[T]):
    """What some files mean together, as they are now. Safe to use from several threads."""

    def __init__(self, what: str, paths: Sequence[str | Path], load: Callable[[], T]):
        """load: reads the files and gives their meaning, or raises InvalidFile; here that ends the start."""
        self._what, self._paths, self._load = what, [Path(path) for path in paths], load
        self._lock = threading.Lock()
        self._stamp, self._contents = self._look(), self._read()
        self._value, self._stale = self._loaded(), False

    def current(self) -> T:
        """The same object for as long as the files say the same, or say nothing usable."""
        with self._lock:
            stamp = self._look()
            if stamp is not None and stamp == self._stamp:
                return self._value
            # In this order: what changes after the look is seen at the next one.
            contents = self._read()
            self._stamp = stamp
            if contents != self._contents:
                self._contents = contents
                try:
                    self._value, self._stale = self._loaded(), False
                except InvalidFile as error:
                    self._stale = True
                    log.warning("%s: the old ones stay in use: %s", self._what, error)
                else:
                    log.info("%s: read anew", self._what)
            return self._value

    def stale(self) -> bool:
        """Whether `current` gives what the files said before, since they say nothing usable now."""
        self.current()
        return self._stale

    def _loaded(self) -> T:
        value = self._load()
        if self._read() != self._contents:
            self._stamp = self._contents = None
            raise InvalidFile(f"{', '.join(map(str, self._paths))}: changed while being read")
        return value

    def _look(self) -> list[tuple[int, ...]] | None:
        """Equal for two looks only if the files are the same; None when that cannot be told yet."""
        try:
            stats = [path.stat() for path in self._paths]
        except OSError:
            return None
        now_s = time.time()
        # A date to come is no reason to wait for it: whoever writes again gives the file another.
        if any(abs(now_s - date_s) < _SETTLED_S for stat in stats for date_s in (stat.st_mtime, stat.st_ctime)):
            return None
        return [(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for stat in stats]

    def _read(self) -> list[bytes | None]:
        return [_bytes(path) for path in self._paths]


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
