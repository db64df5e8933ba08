"""OTLP JSON files: what an OpenTelemetry collector's file exporter writes, one batch of spans a line, and what
Tempo and Jaeger answer to who asks them for a trace. (These wrap the batches, and may write ids as base64.)

A file may hold many requests and be large, so it is read line by line, and only what is asked for is kept.
"""

from __future__ import annotations

import base64
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from gateway.cli.trace.collector import spans_of
from gateway.cli.trace.spans import Span, is_request

_IDS = ("traceId", "spanId", "parentSpanId")


class MalformedFile(Exception):
    """Says which line of which file, and what is wrong with it."""


def requests_in(path: Path) -> dict[str, list[Span]]:
    """Trace id → the gateway's own spans of it, newest first. Raises: MalformedFile, OSError."""
    found: dict[str, list[Span]] = defaultdict(list)
    batches = 0
    for batch in _batches(path, re.compile("csm-gateway")):
        batches += 1
        for trace_id, span in batch:
            if is_request(span):
                found[trace_id].append(span)
    if not batches:
        raise MalformedFile(
            f'{path}: holds no spans of a csm gateway; expected are lines of {{"resourceSpans": [...]}}'
        )
    return dict(sorted(found.items(), key=lambda item: max(span.start_ns for span in item[1]), reverse=True))


def read_trace(path: Path, trace_id: str) -> list[Span]:
    """The spans of one trace, by start; empty when it is not there. Raises: MalformedFile, OSError."""
    holding = re.compile(f"(?i:{trace_id})|{re.escape(base64.b64encode(bytes.fromhex(trace_id)).decode())}")
    found = [span for batch in _batches(path, holding) for of, span in batch if of == trace_id]
    return sorted(found, key=lambda span: span.start_ns)


def _batches(path: Path, holding: re.Pattern[str]) -> Iterator[list[tuple[str, Span]]]:
    """(trace id, span) pairs, batch by batch, of at least those batches whose text matches `holding`."""
    for place, batch in _documents(path, holding):
        batch = _unwrapped(batch)
        if not isinstance(batch, dict) or not isinstance(batch.get("resourceSpans", []), list):
            raise MalformedFile(f'{place}: is no batch of OTLP spans, {{"resourceSpans": [...]}}')
        if "resourceSpans" not in batch:
            continue  # metrics and logs may lie in the same file
        try:
            request = json_format.ParseDict(
                _decoded({"resourceSpans": batch["resourceSpans"]}),
                trace_service_pb2.ExportTraceServiceRequest(),
                ignore_unknown_fields=True,
            )
        except (json_format.ParseError, ValueError, RecursionError) as error:
            raise MalformedFile(f"{place}: {_short(error)}") from error
        yield list(spans_of(request))


def _documents(path: Path, holding: re.Pattern[str]) -> Iterator[tuple[str, Any]]:
    """(where, parsed JSON): a line each, or the whole file when its first line is no document by itself."""
    number, first = 0, None
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip() or (first is not None and not holding.search(line)):
                    continue
                first = first or number
                try:
                    document = json.loads(line)
                except json.JSONDecodeError as error:
                    if number == first:
                        break
                    if line.endswith("\n"):  # else it is being written just now
                        raise MalformedFile(f"{path}, line {number}: no JSON ({_short(error)})") from error
                    return
                for batch in document if isinstance(document, list) else [document]:
                    yield f"{path}, line {number}", batch
            else:
                return
        # Someone has laid it out for reading, or put the batches into a list.
        whole = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise MalformedFile(f"{path}, line {error.lineno}: no JSON ({error.msg})") from error
    except UnicodeDecodeError as error:
        raise MalformedFile(
            f"{path}: no text; a compressed or binary file must be turned into OTLP JSON first"
        ) from error
    except RecursionError as error:
        raise MalformedFile(f"{path}, line {number}: nested too deep") from error
    for batch in whole if isinstance(whole, list) else [whole]:
        yield str(path), batch


def _unwrapped(document: Any) -> Any:
    """Tempo's {"batches": …} and {"trace": {…}}, Jaeger's {"result": {…}} as the batch that they hold."""
    for wrapper in ("trace", "result"):
        if isinstance(document, dict) and isinstance(document.get(wrapper), dict):
            document = document[wrapper]
    if isinstance(document, dict) and "batches" in document:
        return {"resourceSpans": document["batches"]}
    return document


def _decoded(value: Any) -> Any:
    """OTLP writes ids as hexadecimal, protobuf's JSON reads bytes as base64. Raises: ValueError."""
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: _id(key, item) if key in _IDS and item else _decoded(item) for key, item in value.items()}


def _id(key: str, value: Any) -> str:
    try:
        data = base64.b64decode(value, validate=True) if value.endswith("=") else bytes.fromhex(value)
        return base64.b64encode(data).decode()
    except (AttributeError, TypeError, ValueError):
        raise ValueError(f"{key}: {value!r:.60} is not hexadecimal") from None


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
