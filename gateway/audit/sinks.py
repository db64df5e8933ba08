"""Where records go: a file of JSON lines, or OpenTelemetry's logs. Neither ever makes the event loop wait."""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
from typing import Any, Protocol

from opentelemetry._logs import SeverityNumber
from opentelemetry.sdk._logs import LoggerProvider

from services.runtime import instruments
from services.runtime.settings import SettingError

log = logging.getLogger(__name__)

EVENT = "csm.speech.marked"
Record = dict[str, Any]
_MAX_WAITING = 10_000  # records that wait for the disk; more are lost, and counted
_CLOSE_S = 3.0


class Sink(Protocol):
    """Takes records."""

    def write(self, record: Record, time_ns: int) -> None:
        """Take a record; returns at once."""

    def close(self) -> None:
        """Write what waits; takes 3 s at most."""


class FileSink:
    """Appends JSON lines in a thread of its own. The file is opened for each batch, so it may be rotated at any time."""

    def __init__(self, path: str):
        """Raises: SettingError when the file cannot be written."""
        self._path = path
        try:
            self._append("")
        except OSError as error:
            raise SettingError(f"CSM_AUDIT_LOG={path!r}: cannot be written ({error.strerror})") from None
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="audit-file", daemon=True)
        self._thread.start()

    def write(self, record: Record, time_ns: int) -> None:
        """See Sink."""
        if self._queue.qsize() >= _MAX_WAITING:
            instruments.audit_records.add(1, {"outcome": "lost"})
            return
        self._queue.put(json.dumps(record, ensure_ascii=False) + "\n")

    def close(self) -> None:
        """See Sink."""
        self._queue.put(None)
        self._thread.join(_CLOSE_S)

    def _run(self) -> None:
        is_open = True
        while is_open:
            lines = [self._queue.get()]
            while not self._queue.empty():
                lines.append(self._queue.get())
            is_open = None not in lines
            kept = [line for line in lines if line is not None]
            try:
                self._append("".join(kept))
                outcome = "written"
            except OSError as error:
                log.error("audit trail: %d records are lost: %s: %s", len(kept), self._path, error.strerror)
                outcome = "lost"
            instruments.audit_records.add(len(kept), {"outcome": outcome})

    def _append(self, text: str) -> None:
        with open(os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a", encoding="utf-8") as file:
            file.write(text)


class OtlpSink:
    """Log records of OpenTelemetry, each an event called csm.speech.marked. They are sent in batches."""

    def __init__(self, provider: LoggerProvider):
        self._provider, self._logger = provider, provider.get_logger("csm.audit")

    def write(self, record: Record, time_ns: int) -> None:
        """See Sink."""
        attributes = {f"csm.{name}": value for name, value in record.items() if name != "time" and value is not None}
        self._logger.emit(
            timestamp=time_ns,
            event_name=EVENT,
            severity_number=SeverityNumber.INFO,
            severity_text="INFO",
            body="speech was marked",
            attributes=attributes,
        )
        instruments.audit_records.add(1, {"outcome": "written"})

    def close(self) -> None:
        """See Sink."""
        ending = threading.Thread(target=self._provider.shutdown, name="audit-shutdown", daemon=True)
        ending.start()
        ending.join(_CLOSE_S)
