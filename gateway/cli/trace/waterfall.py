"""Where a request's time went, as bars on one time axis for a terminal of 80 columns.

bars = bars_of_trace(spans)        # or bars_of_summary(summary), when no trace is at hand
console.print(draw(bars, width=80))
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from csm.speech.v1 import speech_pb2
from rich.text import Text

from gateway.cli.terminal import plain_line
from gateway.cli.trace.spans import Attributes, Span

_LABEL_COLUMNS, _TIME_COLUMNS = 26, 9
_MANY = 3  # more siblings of one name than this share a row
_DEEPEST = 32  # rows below rows; more is no trace of ours
_STYLES = {"gateway": "bold", "tokenizer": "cyan", "backbone": "magenta", "codec": "green", "watermark": "yellow"}
LEGEND = "░ before its first output ◆   █ after it"


@dataclass(frozen=True)
class Bar:
    """One row. Times in seconds since the request's start; first_output_s None when the trace does not say.

    error: what failed, in words. status: a call's outcome, such as CANCELLED; empty for work that is no call.
    note: the message sent with it.
    """

    label: str
    stage: str
    depth: int
    start_s: float
    end_s: float
    first_output_s: float | None = None
    error: str = ""
    status: str = field(default="", compare=False)
    note: str = field(default="", compare=False)
    attributes: Attributes = field(default_factory=dict, compare=False, repr=False)


def zero_ns(spans: Iterable[Span]) -> int:
    """The moment that bars count from: the request's start."""
    return min((span.start_ns for span in spans if not span.linked), default=0)


def status(span: Span) -> str:
    """How a call ended, by gRPC's names; empty when `span` is no call."""
    return str(span.attributes.get("rpc.response.status_code", ""))


def bars_of_trace(spans: Iterable[Span]) -> list[Bar]:
    """Rows in the order of calls: the gateway, below it each stage, below that the stage's own spans.

    A call's two sides, the gateway's and the stage's, are one row; many alike (steps, chunks) are too.
    """
    by_id = {span.span_id: span for span in spans}  # an export that is tried again gives a span twice
    spans = list(by_id.values())
    if not spans:
        return []
    servers: dict[str, str] = {}  # service → its side of the request, which linked spans are shown under
    for span in spans:
        if span.kind == "server":
            servers.setdefault(span.service, span.span_id)
    # None is above the topmost: an id, even an empty one, may be a span's, and then it would be its own child.
    children: dict[str | None, list[Span]] = defaultdict(list)
    for span in sorted(spans, key=lambda span: span.start_ns):
        parent = servers.get(span.service) if span.linked else span.parent_id
        children[parent if parent and parent in by_id else None].append(span)
    zero = zero_ns(spans)
    first_outputs = {  # the gateway's own view of its stages, for a stage that says nothing itself
        str(event.attributes.get("stage")): (event.time_ns - zero) / 1e9
        for span in spans
        if span.service == "gateway"
        for event in span.events
        if event.name == "first_output"
    }

    def rows(parent_id: str | None, depth: int) -> Iterable[Bar]:
        groups: dict[tuple[str, str], list[tuple[Span, str]]] = defaultdict(list)
        for span in children[parent_id] if depth < _DEEPEST else ():
            sides, told_caller = children[span.span_id], span.error
            while span.kind == "client" and len(sides) == 1:
                span, sides = sides[0], children[sides[0].span_id]
            groups[_stage(span), span.name].append((span, told_caller))
        for group in groups.values():
            if len(group) > _MANY:
                yield _merged([_bar(span, depth, zero, note) for span, note in group])
                continue
            for span, note in group:
                bar = _bar(span, depth, zero, note)
                if bar.first_output_s is None and span.kind in ("server", "client"):
                    first_s = first_outputs.get("watermark" if bar.stage == "gateway" else bar.stage)
                    if first_s is not None and bar.start_s <= first_s <= bar.end_s:
                        bar = replace(bar, first_output_s=first_s)
                yield bar
                yield from rows(span.span_id, depth + 1)

    return list(rows(None, 0))


def bars_of_summary(summary: speech_pb2.SpeechSummary) -> list[Bar]:
    """Rows from what the answer itself says of its stages: coarser than a trace, but always there."""
    took_s = summary.real_time_factor * _seconds(summary.audio_duration)
    bars = [
        Bar(timing.stage, timing.stage, 1, 0.0, _seconds(timing.last_output), _seconds(timing.first_output))
        for timing in summary.stages
    ]
    took_s = max([took_s, *(bar.end_s for bar in bars)])
    return [Bar("gateway", "gateway", 0, 0.0, took_s, _seconds(summary.time_to_first_audio) or None), *bars]


def draw(bars: Sequence[Bar], *, width: int = 80) -> Text:
    """The rows below a time axis, then the legend, then what went wrong. No line is longer than `width`."""
    columns = max(width - _LABEL_COLUMNS - _TIME_COLUMNS, 10)
    total_s = max((bar.end_s for bar in bars), default=0.0) or 1e-9
    middle, end = seconds(total_s / 2), seconds(total_s)
    axis = "0" + middle.rjust(columns // 2 + len(middle) // 2 - 1)
    text = Text(" " * _LABEL_COLUMNS + axis + end.rjust(columns - len(axis)) + "\n", style="dim")
    for bar in bars:
        style = "red" if bar.error else _STYLES.get(bar.stage, "")
        label = "  " * bar.depth + plain_line(bar.label)
        if len(label) >= _LABEL_COLUMNS:
            label = label[: _LABEL_COLUMNS - 2] + "…"
        text.append(label.ljust(_LABEL_COLUMNS), style="not dim " + style)
        text.append(_cells(bar, columns, total_s), style="not dim " + style)
        took = ("✗ " if bar.error else "") + seconds(bar.end_s - bar.start_s)
        text.append(took.rjust(_TIME_COLUMNS) + "\n", style="not dim")
    if any(bar.first_output_s is not None for bar in bars):
        text.append(" " * min(_LABEL_COLUMNS, max(width - len(LEGEND), 0)) + LEGEND[:width] + "\n")
    for bar in bars:
        if bar.error:
            line = plain_line(f"✗ {bar.label}: {bar.error}")
            text.append((line if len(line) <= width else line[: width - 1] + "…") + "\n", style="not dim red")
    text.rstrip()
    return text


def seconds(value_s: float) -> str:
    """A duration in the unit that suits it: `0.4 ms`, `12 ms`, `3.42 s`."""
    if value_s < 0.00995:
        return f"{value_s * 1e3:.1f} ms"
    return f"{value_s * 1e3:.0f} ms" if value_s < 0.9995 else f"{value_s:.2f} s"


def _cells(bar: Bar, columns: int, total_s: float) -> str:
    """The bar itself, drawn to half a column; never empty."""
    halves = 2 * columns / total_s
    low = min(int(bar.start_s * halves), 2 * columns - 1)
    high = min(max(math.ceil(bar.end_s * halves - 1e-9), low + 1), 2 * columns)
    cells = []
    for column in range(columns):
        left, right = low <= 2 * column < high, low <= 2 * column + 1 < high
        cells.append("█" if left and right else "▌" if left else "▐" if right else " ")
    if bar.first_output_s is not None:
        mark = min(int(bar.first_output_s / total_s * columns), columns - 1)
        cells[:mark] = ["░" if cell != " " else " " for cell in cells[:mark]]
        cells[mark] = "◆"
    return "".join(cells)


def _bar(span: Span, depth: int, zero: int, note: str) -> Bar:
    stage, method = _stage(span), span.name.rpartition("/")[2]
    first = [event.time_ns for event in span.events if event.name in ("first_frame", "first_output")]
    own = [time_ns for time_ns in first if span.start_ns <= time_ns <= span.end_ns]
    return Bar(
        label=f"{stage} {method}" if span.kind in ("server", "client") else method,
        stage=stage,
        depth=depth,
        start_s=max(span.start_ns - zero, 0) / 1e9,  # a shared step may have begun earlier
        end_s=max(span.end_ns - zero, span.start_ns - zero, 0) / 1e9,  # nothing ends before it began
        first_output_s=(min(own) - zero) / 1e9 if own and stage != "gateway" else None,
        error=span.error,
        status=status(span),
        note=note or span.error,
        attributes=span.attributes,
    )


def _merged(bars: Sequence[Bar]) -> Bar:
    """One row for many of the same name."""
    return replace(
        bars[0],
        label=f"{bars[0].label} ×{len(bars)}",
        end_s=max(bar.end_s for bar in bars),
        error=next((bar.error for bar in bars if bar.error), ""),
    )


def _stage(span: Span) -> str:
    """The stage that a span is about: who is called, for a call; who did it, for work."""
    called = str(span.attributes.get("rpc.method", "")).split(".")  # csm.<stage>.v1.<Name>Service
    return called[1] if span.kind == "client" and len(called) > 1 else span.service


def _seconds(duration) -> float:
    return duration.ToNanoseconds() / 1e9
