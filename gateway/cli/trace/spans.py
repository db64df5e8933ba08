"""Traces on this machine's disk: a folder with one file a trace, one JSON object a span.

`csm up` writes it (through `gateway.cli.trace.collector`); `csm say --trace` and `csm trace` read it from other processes.
Bounded: at most `keep` traces, oldest out first, of at most MAX_SPANS spans each.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from gateway.stage_names import STAGES

MAX_SPANS = 2000
_POLL_S = 0.05
_SETTLE_S = 0.4  # a little more than the services' own delay before they export
_TRACE_ID = re.compile(r"[0-9a-f]{32}")

Attributes = dict[str, str | int | float | bool]


@dataclass(frozen=True)
class Event:
    """Something that happened at one moment of a span."""

    name: str
    time_ns: int
    attributes: Attributes = field(default_factory=dict)


@dataclass(frozen=True)
class Span:
    """One finished span. Ids are hexadecimal.

    parent_id: empty for a root. error: empty when all went well. linked: no part of the trace itself
    but of one linked to it, such as an engine's step that served several requests.
    """

    service: str
    name: str
    kind: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    error: str = ""
    linked: bool = False
    events: tuple[Event, ...] = ()
    attributes: Attributes = field(default_factory=dict)

    @classmethod
    def from_json(cls, line: str) -> Span:
        fields = json.loads(line)
        return cls(**{**fields, "events": tuple(Event(**event) for event in fields["events"])})


class TraceStore:
    """Traces in `folder`, as `<trace id>.jsonl`. One process writes, any number read."""

    def __init__(self, folder: Path, keep: int = 200):
        self.folder, self._keep = folder, keep
        self._counts: dict[str, int] | None = None  # trace id → spans kept, oldest trace first

    def add(self, trace_id: str, span: Span) -> bool:
        """Keep `span`; False when its trace is full already."""
        path, counts = self._path(trace_id), self._opened()
        if trace_id not in counts:
            while len(counts) >= self._keep:
                oldest = next(iter(counts))
                del counts[oldest]
                self._path(oldest).unlink(missing_ok=True)
            counts[trace_id] = 0
        if counts[trace_id] >= MAX_SPANS:
            return False
        counts[trace_id] += 1
        with path.open("a") as file:
            file.write(json.dumps(asdict(span)) + "\n")
        return True

    def ids(self) -> list[str]:
        """The traces that are here, newest first."""
        found = [(path.stat().st_mtime_ns, path.stem) for path in self.folder.glob("*.jsonl")]
        return [trace_id for _, trace_id in sorted(found, reverse=True) if _TRACE_ID.fullmatch(trace_id)]

    def read(self, trace_id: str) -> list[Span]:
        """The spans of a trace that are here so far, by start. Raises: ValueError for what is no trace id."""
        try:
            text = self._path(trace_id).read_text()
        except FileNotFoundError:
            return []
        complete = text[: text.rfind("\n") + 1]  # the writer may be in the middle of a line
        return sorted((Span.from_json(line) for line in complete.splitlines()), key=lambda span: span.start_ns)

    async def wait(self, trace_id: str, timeout_s: float) -> tuple[list[Span], bool]:
        """(spans, whether the trace is whole), once it is whole and has settled, or after `timeout_s`.

        Spans leave each process in batches, so they come here after the answer and in any order.
        """
        started = changed = time.monotonic()
        spans: list[Span] = []
        while True:
            now, found = time.monotonic(), self.read(trace_id)
            if len(found) != len(spans):
                spans, changed = found, now
            whole = is_complete(spans)
            if (whole and now - changed >= _SETTLE_S) or now - started >= timeout_s:
                return spans, whole
            await asyncio.sleep(_POLL_S)

    def _opened(self) -> dict[str, int]:
        if self._counts is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            files = sorted(self.folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime)
            self._counts = {path.stem: path.read_bytes().count(b"\n") for path in files}
        return self._counts

    def _path(self, trace_id: str) -> Path:
        if not _TRACE_ID.fullmatch(trace_id):
            raise ValueError(f"not a trace id: {trace_id!r}")
        return self.folder / f"{trace_id}.jsonl"


def is_complete(spans: Iterable[Span]) -> bool:
    """Whether nothing is missing."""
    return not missing_spans(spans)


def missing_spans(spans: Iterable[Span]) -> list[str]:
    """What a request's trace still lacks, each in a few words: the gateway's span; the other side of a call.

    A call that failed may have no other side: its server was gone. A request may have more than one
    span of the gateway, when its caller tried again. What is above the gateway is the caller's own.
    """
    own = [span for span in spans if not span.linked]
    ids, parents = {span.span_id for span in own}, {span.parent_id for span in own}
    found = [] if any(is_request(span) for span in own) else ["the gateway's own span"]
    for span in own:
        method = span.name.rpartition("/")[2]
        if span.service == "gateway" and span.kind == "client" and span.span_id not in parents and not span.error:
            found.append(f"the stage's side of {method}")
        if span.parent_id and span.parent_id not in ids and span.service in STAGES:
            above = (
                f"the gateway's side of {method}"
                if span.kind == "server"
                else f"what is above the {span.service}'s {method}"
            )
            found.append(above)
    return list(dict.fromkeys(found))


def is_request(span: Span) -> bool:
    """Whether this is the gateway's own span of a request."""
    return span.service == "gateway" and span.kind == "server"
