"""The picture in a trace page: stages as bars on one time axis, and below it the audio against its listener.

SVG without a viewBox: across, everything is a percentage of the plot, so that text keeps its size on any
width; down, everything is in pixels. What it draws stands in the page's tables too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

from gateway.cli.terminal import plain
from gateway.cli.trace.playback import Chunk, PlaybackTimeline
from gateway.cli.trace.request_trace import RequestTrace
from gateway.cli.trace.waterfall import Bar, seconds

_ROW, _AXIS, _CHART, _GAP = 26, 26, 190, 34  # pixels
_MOST_ROWS = 120
_LABEL_LETTERS = 27
_ALARM_SHARE = 0.24  # of the plot: what "late by 316 ms" takes on a narrow page


def text(value: object) -> str:
    """Anything as HTML text or the value of an attribute; letters that would steer the page are replaced."""
    return escape(plain(value), quote=True)


def ticks(total: float, most: int = 6) -> list[float]:
    """Round numbers from 0 up to `total`, at most `most` steps."""
    if not 0 < total < math.inf:
        return [0.0]
    power = 10.0 ** math.floor(math.log10(total / most))
    step = next(power * factor for factor in (1, 2, 5, 10) if total / (power * factor) <= most)
    return [step * number for number in range(int(total / step + 1e-9) + 1)]


class Picture:
    """One request's picture. `html()` is a figure's inside; ids in it begin with `prefix`."""

    def __init__(self, request: RequestTrace, prefix: str):
        self._request, self._prefix = request, prefix
        self._bars: Sequence[Bar] = request.bars[:_MOST_ROWS]
        self._playback: PlaybackTimeline | None = request.playback
        self._total_s = max(request.total_s, 1e-6)
        self._rows_end = _AXIS + _ROW * (len(self._bars) + (self._playback is not None))
        self._chart_top = self._rows_end + _GAP
        self._height = self._chart_top + _CHART + 8 if self._playback else self._rows_end + 6

    @property
    def left_out(self) -> int:
        """Rows that there was no room for."""
        return len(self._request.bars) - len(self._bars)

    def html(self, title: str, description: str) -> str:
        size = f'height="{self._height}"'
        return "\n".join(
            [
                f'<svg class="names" {size} aria-hidden="true">{"".join(self._names())}</svg>',
                f'<svg class="plot" {size} role="img" data-total="{self._total_s:.6f}" data-bottom="{self._height}"'
                f' aria-labelledby="{self._prefix}-title {self._prefix}-desc">',
                f'<title id="{self._prefix}-title">{text(title)}</title>',
                f'<desc id="{self._prefix}-desc">{text(description)}</desc>',
                *self._grid(),
                *self._gaps(),
                *self._stages(),
                *self._audio(),
                "</svg>",
                f'<svg class="took" {size} aria-hidden="true">{"".join(self._took())}</svg>',
            ]
        )

    # Right of the plot.

    def _names(self) -> Iterator[str]:
        for number, bar in enumerate(self._bars):
            label = (
                bar.label
                if len(bar.label) + 2 * bar.depth <= _LABEL_LETTERS
                else bar.label[: _LABEL_LETTERS - 2 * bar.depth - 1] + "…"
            )
            style = "name top" if bar.depth == 0 else "name"
            yield f'<text class="{style}" x="{2 + 14 * bar.depth}" y="{self._middle(number) + 4}">{text(label)}</text>'
        if self._playback:
            yield f'<text class="name top" x="2" y="{self._middle(len(self._bars)) + 4}">audio {self._made}</text>'
            yield f'<text class="name top" x="2" y="{self._chart_top - 12}">audio, in seconds</text>'
            for value in ticks(self._playback.audio_s, 4):
                y = f"{self._chart_y(value) + 4:.1f}"
                yield f'<text class="tick" x="100%" dx="-8" y="{y}" text-anchor="end">{value:g} s</text>'

    def _took(self) -> Iterator[str]:
        for number, bar in enumerate(self._bars):
            ended = outcome(bar)
            style, mark = ("took", "") if ended == "well" else (f"took {'bad' if ended == 'broken' else 'cut'}", "✗ ")
            yield (
                f'<text class="{style}" x="100%" y="{self._middle(number) + 4}" text-anchor="end">'
                f"{mark}{seconds(bar.end_s - bar.start_s)}</text>"
            )
        if self._playback:
            y = self._middle(len(self._bars)) + 4
            yield f'<text class="took" x="100%" y="{y}" text-anchor="end">{seconds(self._playback.audio_s)}</text>'

    # The plot.

    def _grid(self) -> Iterator[str]:
        bottom = self._chart_top + _CHART if self._playback else self._rows_end
        for value in ticks(self._total_s):
            x = self._x(value)
            anchor = "start" if value == 0 else "end" if value > 0.96 * self._total_s else "middle"
            yield f'<line class="grid" x1="{x}" x2="{x}" y1="{_AXIS - 6}" y2="{bottom}"/>'
            yield f'<text class="tick" x="{x}" y="{_AXIS - 11}" text-anchor="{anchor}">{_short(value)}</text>'
        for number in range(len(self._bars) + 1):
            y = _AXIS + _ROW * number
            yield f'<line class="rule" x1="0" x2="100%" y1="{y}" y2="{y}"/>'

    def _gaps(self) -> Iterator[str]:
        """Times when the listener had nothing to hear."""
        for chunk in self._playback.underruns if self._playback else ():
            yield (
                f'<rect class="gap" {self._span(chunk.needed_s, chunk.arrived_s)} y="{_AXIS}"'
                f' height="{self._chart_top + _CHART - _AXIS}"><title>{text(_gap(chunk))}</title></rect>'
            )

    def _stages(self) -> Iterator[str]:
        for number, bar in enumerate(self._bars):
            y, style = self._middle(number), f"bar {tone(bar.stage)} {outcome(bar)}"
            yield f'<g class="{style}"><title>{text(describe(bar))}</title>'
            # The whole row answers to the pointer, so that a bar of a millisecond can be found.
            yield f'<rect class="catch" x="0" width="100%" y="{y - _ROW // 2}" height="{_ROW}"/>'
            first_s = bar.first_output_s
            if first_s is not None:
                yield f'<rect class="wait" {self._span(bar.start_s, first_s)} y="{y - 3}" height="6"/>'
            begin_s = bar.start_s if first_s is None else first_s
            yield f'<rect class="work" {self._span(begin_s, bar.end_s)} y="{y - 7}" height="14" rx="1"/>'
            if first_s is not None:
                yield self._mark(first_s, y, '<path class="first" d="M0-8 6 0 0 8-6 0Z"/>')
            if outcome(bar) != "well":
                yield self._mark(bar.end_s, y, '<path class="cross" d="M-5-5 5 5M5-5-5 5"/>')
            yield "</g>"

    def _audio(self) -> Iterator[str]:
        if not self._playback:
            return
        bottom = self._chart_top + _CHART
        yield f'<line class="base" x1="0" x2="100%" y1="{bottom}" y2="{bottom}"/>'
        for value in ticks(self._playback.audio_s, 4)[1:]:
            height = f"{self._chart_y(value):.1f}"
            yield f'<line class="grid" x1="0" x2="100%" y1="{height}" y2="{height}"/>'
        given, heard = (
            self._path(points)
            for points in (self._playback.delivered(self._total_s), self._playback.played(self._total_s))
        )
        last_x = 1000 * self._share(self._total_s)
        first_x = 1000 * self._share(self._playback.chunks[0].arrived_s)
        # Curves need coordinates; a viewBox that is stretched gives them, and the lines keep their width.
        yield (
            f'<svg class="curves" x="0" y="{self._chart_top}" width="100%" height="{_CHART}"'
            f' viewBox="0 0 1000 {_CHART}" preserveAspectRatio="none">'
            f'<path class="area" d="{given}L{last_x:.2f} {_CHART}L{first_x:.2f} {_CHART}Z"/>'
            f'<path class="given" d="{given}"/><path class="heard" d="{heard}"/></svg>'
        )
        y = self._middle(len(self._bars))
        for number, chunk in enumerate(self._playback.chunks):
            style = "chunk late" if chunk.late else "chunk"
            x = self._x(chunk.arrived_s)
            yield f'<g class="{style}"><title>{text(self._describe_chunk(number, chunk))}</title>'
            yield self._mark(chunk.arrived_s, y, '<rect class="tick" x="-1" y="-8" width="2.5" height="16"/>')
            yield f'<circle cx="{x}" cy="{self._chart_y(chunk.end_s):.1f}" r="3"/></g>'
            after_s = (
                self._playback.chunks[number + 1].arrived_s if number + 1 < len(self._playback.chunks) else math.inf
            )
            if chunk.late and min(after_s, self._total_s) - chunk.arrived_s > _ALARM_SHARE * self._total_s:
                yield f'<text class="alarm" x="{x}" dx="7" y="{y + 4}">late by {seconds(-chunk.lead_s)}</text>'

    @property
    def _made(self) -> str:
        """Whether the caller heard the audio as it came: the unary method gives it all at the end."""
        return "made" if self._request.is_unary else "delivered"

    def _describe_chunk(self, number: int, chunk: Chunk) -> str:
        assert self._playback is not None
        name = f"chunk {number + 1}: " if self._playback.total == len(self._playback.chunks) else ""
        spare = _gap(chunk) if chunk.late else f"needed at {seconds(chunk.needed_s)}, {seconds(chunk.lead_s)} to spare"
        if number == 0:
            spare = "the first: play begins"
        what = f"{name}audio {chunk.position_s:.2f} to {chunk.end_s:.2f} s"
        return f"{what}\ncame at {seconds(chunk.arrived_s)}; {spare}"

    def _middle(self, row: int) -> int:
        return _AXIS + _ROW * row + _ROW // 2

    def _mark(self, at_s: float, y: int, shape: str) -> str:
        """A shape of its own size at a moment."""
        return f'<svg x="{self._x(at_s)}" y="{y}" overflow="visible">{shape}</svg>'

    def _share(self, at_s: float) -> float:
        return min(max(at_s / self._total_s, 0.0), 1.0)

    def _x(self, at_s: float) -> str:
        return f"{100 * self._share(at_s):.3f}%"

    def _span(self, from_s: float, to_s: float) -> str:
        low, high = self._share(from_s), self._share(to_s)
        return f'x="{100 * min(low, 0.9985):.3f}%" width="{100 * max(high - low, 0.0015):.3f}%"'

    def _chart_y(self, position_s: float) -> float:
        return self._chart_top + _CHART - _CHART * self._part(position_s)

    def _part(self, position_s: float) -> float:
        assert self._playback is not None
        return min(max(position_s / (1.06 * max(self._playback.audio_s, 1e-6)), 0.0), 1.0)

    def _path(self, points: Sequence[tuple[float, float]]) -> str:
        return "M" + "L".join(
            f"{1000 * self._share(at_s):.2f} {_CHART - _CHART * self._part(position_s):.2f}"
            for at_s, position_s in points
        )


def describe(bar: Bar) -> str:
    """A bar in words, for who points at it."""
    lines = [
        f"{bar.label}: {seconds(bar.end_s - bar.start_s)}",
        f"from {seconds(bar.start_s)} to {seconds(bar.end_s)}",
    ]
    if bar.first_output_s is not None:
        lines.append(
            f"first output at {seconds(bar.first_output_s)},"
            f" {seconds(bar.first_output_s - bar.start_s)} after its start"
        )
    lines += details(bar)
    if outcome(bar) != "well":
        lines.append(bar.error or bar.note or bar.status)
    return "\n".join(lines)


def details(bar: Bar) -> list[str]:
    """What a stage noted of its work, such as `frames 58`."""
    if bar.stage == "gateway" and bar.depth == 0:
        return []  # the page's heading
    return [
        f"{key.removeprefix('csm.').replace('_', ' ')} {value}"
        for key, value in bar.attributes.items()
        if key.startswith("csm.")
    ][:12]


def _gap(chunk: Chunk) -> str:
    return f"buffer underrun of {seconds(-chunk.lead_s)}, from {seconds(chunk.needed_s)} on"


def outcome(bar: Bar) -> str:
    """`well`, `cut` by its caller, or `broken`."""
    if bar.error:
        return "broken"
    return {"": "well", "OK": "well", "CANCELLED": "cut"}.get(bar.status, "broken")


def tone(stage: str) -> str:
    """The style of a stage's colour."""
    return stage if stage in ("gateway", "tokenizer", "backbone", "codec", "watermark") else "other"


def _short(value_s: float) -> str:
    if value_s == 0:
        return "0"
    return f"{value_s * 1e3:.4g} ms" if value_s < 0.9995 else f"{value_s:.4g} s"
