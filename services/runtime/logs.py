"""Logs: one JSON object (or one line of text) a record, with trace and span ids. Never text or audio of callers."""

from __future__ import annotations

import json
import logging
import sys
import time

from opentelemetry import trace

# What a LogRecord has by itself; whatever else it carries came through `extra`.
_OWN = set(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


_STRANGERS_DOING = {  # what gRPC logs as an error with its traceback, and what it is
    "Invalid encoding": "metadata of a call is not UTF-8",  # and would be there byte for byte, tokens too
    "ExecuteBatchError raised in core": "a caller left while its status was being sent",
}


class GrpcFilter(logging.Filter):
    """Keeps what strangers send out of gRPC's own records, and makes DEBUG of what is no fault of this server."""

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith("grpc"):
            return True
        for beginning, meaning in _STRANGERS_DOING.items():
            if str(record.msg).startswith(beginning):
                record.msg, record.args, record.exc_info = meaning, (), None
                record.levelno, record.levelname = logging.DEBUG, "DEBUG"
                return logging.getLogger().isEnabledFor(logging.DEBUG)
        if isinstance(record.args, tuple):
            record.args = tuple(f"({len(arg)} bytes)" if isinstance(arg, bytes) else arg for arg in record.args)
        return True


class _JsonFormatter(logging.Formatter):
    def __init__(self, service: str):
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "service": self._service,
            "message": record.getMessage(),
            **{key: value for key, value in record.__dict__.items() if key not in _OWN},
        }
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            line["trace_id"], line["span_id"] = f"{span.trace_id:032x}", f"{span.span_id:016x}"
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(service: str, *, level: str = "INFO", form: str = "json") -> None:
    """Send every log record of this process to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    if form == "json":
        handler.setFormatter(_JsonFormatter(service))
    else:
        handler.setFormatter(logging.Formatter(f"%(asctime)s {service} %(levelname)s %(message)s"))
    handler.addFilter(GrpcFilter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.captureWarnings(True)
