"""Traces on this machine's disk: a folder with one file a trace, one JSON object a span.

`csm up` writes it (through `gateway.collector`) and `csm say --trace` reads it from another process.
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
            whole = is_whole(spans)
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


def is_whole(spans: Iterable[Span]) -> bool:
    """Whether nothing is missing: one top span, and each call to a stage together with the stage's side of it.

    A call that failed may have no other side: its server was gone.
    """
    own = [span for span in spans if not span.linked]
    ids, parents = {span.span_id for span in own}, {span.parent_id for span in own}
    tops = [span for span in own if span.parent_id not in ids]
    answered = all(span.span_id in parents or span.error for span in own if span.kind == "client")
    return len(tops) == 1 and tops[0].kind == "server" and answered
