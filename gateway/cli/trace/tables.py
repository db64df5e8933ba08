"""The figures of a trace page: what the picture shows, and what the gateway noted, as HTML."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gateway.cli.trace.picture import details, outcome, text, tone
from gateway.cli.trace.request_trace import RequestTrace
from gateway.cli.trace.waterfall import seconds

_MOST_ROWS = 1000  # of the stages' table: more than a request makes, and a page that a browser opens at once
_ENDS = {
    "FINISH_REASON_END_OF_SPEECH": "the model ended it",
    "FINISH_REASON_MAX_LENGTH": "cut at the length limit",
    "FINISH_REASON_SILENCE": "cut in silence",
    "FINISH_REASON_CANCELLED": "cancelled by the caller",
    "FINISH_REASON_INTERRUPTED": "interrupted by the listener",
    "FINISH_REASON_EMPTY": "the model ended it at frame 0",
    "FINISH_REASON_REFUSED": "refused by a limit",
}


def tiles(request: RequestTrace) -> Iterator[str]:
    """What is asked first, in large figures."""
    playback, factor, late = request.playback, request.fact("csm.real_time_factor"), request.underruns
    tiles = [
        ("First audio", seconds(playback.chunks[0].arrived_s) if playback else "–"),
        ("Audio", f"{playback.audio_s:.2f} s" if playback else "–"),
        ("Took", seconds(request.took_s) if request.took_s is not None else "–"),
        ("Real-time factor", f"{factor:.2f}" if _is_measured(factor) else "–"),
        ("Underruns", "–" if late is None else str(late)),
    ]
    yield '<dl class="tiles">'
    for name, value in tiles:
        bad = ' class="bad"' if name == "Underruns" and late else ""
        yield f"<div><dt>{name}</dt><dd{bad}>{text(value)}</dd></div>"
    yield "</dl>"


def facts(request: RequestTrace) -> Iterator[str]:
    """What the gateway noted of the request."""
    characters, reason = request.fact("csm.text_characters"), request.fact("csm.finish_reason")
    words = f" ({_ENDS[reason]})" if reason in _ENDS else ""
    known = {
        "Status": f"{request.status or 'not known'}{': ' + request.reason if request.reason else ''}",
        "Started": request.started,
        "Method": request.root.name if request.root else None,
        "Attempts": len(request.attempts) if len(request.attempts) > 1 else None,
        "Token": request.fact("csm.token"),
        "Bundle": request.fact("csm.bundle"),
        "Text": f"{characters} characters" if characters is not None else None,
        "Context turns": request.fact("csm.context_turns"),
        "Seed": request.fact("csm.seed"),
        "Prompt tokens": request.fact("csm.prompt_tokens"),
        "Frames": request.fact("csm.frames"),
        "Finish reason": f"{reason}".removeprefix("FINISH_REASON_") + words if reason else None,
    }
    for name, value in known.items():
        if value is not None:
            yield f"<div><dt>{name}</dt><dd>{text(value)}</dd></div>"


def stage_table(request: RequestTrace) -> Iterator[str]:
    """Every row of the picture and those that it had no room for, up to a limit, in figures."""
    yield '<div class="card long"><h2>Stages</h2><div class="scroll"><table><thead><tr><th scope="col">What</th>'
    for name in ("begins", "first output", "ends", "took"):
        yield f'<th scope="col" class="number">{name}</th>'
    yield '<th scope="col">outcome</th></tr></thead><tbody>'
    for bar in request.bars[:_MOST_ROWS]:
        said = bar.status if outcome(bar) == "well" else bar.error or bar.note or bar.status
        words = ", ".join(part for part in (said, *details(bar)) if part)
        first = "–" if bar.first_output_s is None else seconds(bar.first_output_s)
        yield f'<tr><th scope="row"><span class="depth{min(bar.depth, 3)}"><span class="swatch {tone(bar.stage)}"></span>'
        yield f"{text(bar.label)}</span></th>"
        for value in (seconds(bar.start_s), first, seconds(bar.end_s), seconds(bar.end_s - bar.start_s)):
            yield f'<td class="number">{value}</td>'
        yield f'<td class="words{" bad" if outcome(bar) == "broken" else ""}">{text(words)}</td></tr>'
    if (more := len(request.bars) - _MOST_ROWS) > 0:
        yield f'<tr><td class="words" colspan="6">and {more} more rows, which are left out</td></tr>'
    yield "</tbody></table></div></div>"


def chunk_table(request: RequestTrace) -> Iterator[str]:
    """When each chunk of audio came, and when it was needed; nothing when the trace does not say."""
    playback = request.playback
    if playback is None:
        return
    all_known = playback.total == len(playback.chunks)
    count = f"{playback.total}" if all_known else f"{len(playback.chunks)} of {playback.total}"
    yield f'<details class="card long"><summary>Chunks of audio ({count})</summary>'
    yield '<div class="scroll"><table><thead><tr>'
    for name in (*(("chunk",) if all_known else ()), "audio from", "to", "came", "needed", "to spare"):
        yield f'<th scope="col" class="number">{name}</th>'
    yield "</tr></thead><tbody>"
    for number, chunk in enumerate(playback.chunks, 1):
        spare = f"late by {seconds(-chunk.lead_s)}" if chunk.late else seconds(chunk.lead_s)
        yield f'<tr><th scope="row" class="number">{number}</th>' if all_known else "<tr>"
        times = (seconds(chunk.arrived_s), seconds(chunk.needed_s))
        for value in (f"{chunk.position_s:.2f} s", f"{chunk.end_s:.2f} s", *times):
            yield f'<td class="number">{value}</td>'
        yield f'<td class="number{" bad" if chunk.late else ""}">{"play begins" if number == 1 else spare}</td></tr>'
    yield "</tbody></table></div></details>"


def _is_measured(factor: object) -> bool:
    return isinstance(factor, int | float) and 0 < factor < math.inf
