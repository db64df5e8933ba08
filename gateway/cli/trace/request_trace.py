"""One request, from its trace: the facts, what went wrong, what is missing. A trace may hold several."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

from gateway.cli.trace.playback import PlaybackTimeline, timeline_of
from gateway.cli.trace.spans import Span, is_request, missing_spans
from gateway.cli.trace.waterfall import Bar, bars_of_trace, status, zero_ns
from gateway.stage_names import STAGES

_TRIED_AGAIN = (
    "UNAVAILABLE",
    "RESOURCE_EXHAUSTED",
)  # what clients try again; so the next span is the same request


@dataclass(frozen=True)
class RequestTrace:
    """attempts: the gateway's spans, one unless the caller tried again; empty when none has arrived."""

    attempts: tuple[Span, ...]
    spans: tuple[Span, ...]

    @property
    def root(self) -> Span | None:
        """The gateway's span of the last attempt."""
        return self.attempts[-1] if self.attempts else None

    @cached_property
    def bars(self) -> list[Bar]:
        return bars_of_trace(self.spans)

    @cached_property
    def playback(self) -> PlaybackTimeline | None:
        return timeline_of(self.root, self.zero_ns) if self.root else None

    @property
    def zero_ns(self) -> int:
        return zero_ns(self.spans)

    @cached_property
    def total_s(self) -> float:
        """The request's end, or that of whatever outlived it."""
        return max((bar.end_s for bar in self.bars), default=0.0)

    @property
    def took_s(self) -> float | None:
        """From the first attempt's start to the last one's end."""
        return max(self.root.end_ns - self.attempts[0].start_ns, 0) / 1e9 if self.root else None

    @property
    def started(self) -> str:
        """When it began, by the clock of the first span."""
        first = self.attempts[0] if self.attempts else self.spans[0]
        try:
            return datetime.fromtimestamp(first.start_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + " UTC"
        except (ValueError, OverflowError, OSError):
            return "not known"

    @property
    def status(self) -> str:
        """gRPC's name of the outcome; empty while it is not known."""
        if self.root is None:
            return ""
        return status(self.root) or ("UNKNOWN" if self.root.error else "OK")

    @property
    def reason(self) -> str:
        """In words, why it did not end well: the gateway's status, else a stage's."""
        if self.root is None or self.status == "OK":
            return ""
        own = self.root.error.removeprefix(f"{self.status}: ")
        if own and own != self.status:
            return own
        if self.status == "CANCELLED":
            return "the caller left"
        said = [bar.note for bar in self.bars if bar.depth and bar.note and bar.status == self.status]
        if not said and not any(bar.depth for bar in self.bars):
            return "refused by the gateway itself, before it asked any stage"
        return said[0].removeprefix(f"{self.status}: ") if said else ""

    @property
    def underruns(self) -> int | None:
        """Number of buffer underruns; None when the trace does not say."""
        if self.playback is None:
            return None
        counted = self.fact("csm.underruns")  # not every chunk may be in the trace, but all were counted
        if isinstance(counted, int) and not isinstance(counted, bool) and counted >= len(self.playback.underruns):
            return counted
        return len(self.playback.underruns)

    @property
    def is_unary(self) -> bool:
        """Whether the caller asked for the whole audio in one answer, at the end."""
        return self.root is not None and self.root.name.endswith("/Synthesize")

    @property
    def missing_spans(self) -> list[str]:
        """What has not arrived of it."""
        return missing_spans(self.spans)

    @property
    def clock_skew_s(self) -> dict[str, float]:
        """Stage → by how much its side of a call lies outside the gateway's, where that is a millisecond or more."""
        by_id = {span.span_id: span for span in self.spans}
        skews: dict[str, float] = {}
        for span in self.spans:
            call = by_id.get(span.parent_id)
            if span.kind == "server" and span.service in STAGES and call is not None and call.kind == "client":
                early, late = (call.start_ns - span.start_ns) / 1e9, (span.end_ns - call.end_ns) / 1e9
                # A stage may go on for a moment after a call was cancelled; it never begins before it.
                skew_s = -early if early >= 1e-3 else late if late >= 1e-3 and status(span) == "OK" else 0.0
                if abs(skew_s) > abs(skews.get(span.service, 0.0)):
                    skews[span.service] = skew_s
        return skews

    def fact(self, name: str) -> str | int | float | bool | None:
        """What the gateway noted of the request under `name`."""
        return self.root.attributes.get(name) if self.root else None


def requests_of(spans: Iterable[Span]) -> list[RequestTrace]:
    """The requests that a trace holds, oldest first; what belongs to the caller's own program is left out."""
    spans = sorted({span.span_id: span for span in spans}.values(), key=lambda span: span.start_ns)
    if not spans:
        return []
    attempts = _grouped([span for span in spans if is_request(span)])
    if not attempts:
        return [RequestTrace((), tuple(spans))]
    owner = {span.span_id: number for number, group in enumerate(attempts) for span in group}
    by_id = {span.span_id: span for span in spans}
    below: dict[int, list[Span]] = defaultdict(list)
    for span in spans:
        number = _request_above(span, by_id, owner)
        if number is None and (span.linked or span.service in ("gateway", *STAGES)):
            # An orphan: what is above it has not arrived. It is the request's that ran at the time.
            number = max((n for n, group in enumerate(attempts) if group[0].start_ns <= span.end_ns), default=0)
        if number is not None:
            below[number].append(span)
    return [RequestTrace(tuple(group), tuple(below[number])) for number, group in enumerate(attempts)]


def _grouped(roots: list[Span]) -> list[list[Span]]:
    groups: list[list[Span]] = []
    for span in roots:
        before = groups[-1][-1] if groups else None
        is_same = before is not None and (before.parent_id, before.name) == (span.parent_id, span.name)
        if before is not None and is_same and span.parent_id and status(before) in _TRIED_AGAIN:
            groups[-1].append(span)
        else:
            groups.append([span])
    return groups


def _request_above(span: Span, by_id: dict[str, Span], owner: dict[str, int]) -> int | None:
    seen = set()
    above: Span | None = span
    while above is not None and above.span_id not in seen:
        if above.span_id in owner:
            return owner[above.span_id]
        seen.add(above.span_id)
        above = by_id.get(above.parent_id)
    return None
