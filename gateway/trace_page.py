"""A request as one HTML file: what came of it, a picture of where its time went, and the figures.

    html = page(trace_id, spans)

The file needs no server, no network and nothing beside it; its one script is its own, and its policy
(Content-Security-Policy) allows no other. Everything that comes from a trace is escaped.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from string import Template

from gateway.request_trace import RequestTrace, requests_of
from gateway.trace_picture import Picture, describe, details, outcome, text, tone
from gateway.traces import Span
from gateway.waterfall import seconds

_HERE = Path(__file__).parent
_MOST_REQUESTS = 20
_STATUS_WORDS = {
    "OK": "done",
    "CANCELLED": "broken off",
    "DEADLINE_EXCEEDED": "out of time",
    "INVALID_ARGUMENT": "refused: breaks a limit",
    "RESOURCE_EXHAUSTED": "refused: overloaded",
    "UNAUTHENTICATED": "refused: no valid token",
    "PERMISSION_DENIED": "refused: not allowed",
    "UNAVAILABLE": "a stage was gone",
}
_ENDS = {
    "FINISH_REASON_END_OF_SPEECH": "the model ended it",
    "FINISH_REASON_MAX_LENGTH": "cut at the length limit",
}
_LEGEND = (
    ('<rect class="wait" x="0" y="5" width="32" height="6"/>', "before its first output"),
    ('<path class="first" transform="translate(16 8)" d="M0-8 6 0 0 8-6 0Z"/>', "first output"),
    ('<rect class="work" x="0" y="1" width="32" height="14" rx="1"/>', "after it; or work without a first output"),
)
_LEGEND_AUDIO = (
    ('<g class="curves"><path class="given" d="M0 13H12V3H32"/></g><g class="chunk"><circle cx="12" cy="3" r="3"/></g>', "audio {made}, a dot a chunk"),
    ('<g class="curves"><path class="heard" d="M0 14 32 2"/></g>', "what a listener has heard who plays from the first audio on"),
)
_LEGEND_GAP = (('<rect class="gap" x="6" y="0" width="18" height="16"/>', "the listener ran dry"),)


def page(trace_id: str, spans: Iterable[Span], words: str | None = None) -> str:
    """The whole file. words: what was said, to stand in the heading; traces do not know it.

    Raises: ValueError without spans.
    """
    requests = requests_of(spans)
    if not requests:
        raise ValueError("a trace without spans cannot be drawn")
    shown = requests[-_MOST_REQUESTS:]
    script = (_HERE / "trace_page.js").read_text()
    return Template((_HERE / "trace_page.html").read_text()).substitute(
        title=text(f"csm trace {trace_id[:8]} · {shown[-1].status or 'incomplete'}"),
        trace_id=text(trace_id),
        requests="\n".join(
            _section(request, number, len(requests), words)
            for number, request in enumerate(shown, 1 + len(requests) - len(shown))
        ),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def story(request: RequestTrace) -> str:
    """What came of the request, in a sentence or two."""
    if request.root is None:
        return "The gateway's own span is not in the trace: what is known comes from its stages."
    took, cadence = seconds(request.took_s), request.cadence
    parts = []
    if request.status != "OK":
        why = f": {request.reason}" if request.reason else ""
        went = f" {cadence.audio_s:.2f} s of audio had gone out." if cadence and not request.is_unary else ""
        parts.append(f"Ended by {request.status} after {took}{why}{'' if why.endswith('.') else '.'}{went}")
    elif cadence:
        parts.append(f"{cadence.audio_s:.2f} s of speech in {took}.")
    else:
        parts.append(f"Took {took}.")
    if cadence:
        parts.append(f"The first audio was there after {seconds(cadence.chunks[0].arrived_s)}.")
        if request.is_unary:
            parts.append("The caller asked for one answer, so it heard nothing before the end; what follows is when the audio was made.")
        if late := _underruns(request):
            gaps = sum(-chunk.lead_s for chunk in cadence.underruns)
            parts.append(f"A listener who plays from there on ran dry {_times(late)}, for {seconds(gaps)} in all.")
        elif (least := cadence.least_lead_s) is not None:
            parts.append(f"A listener who plays from there on never ran dry; the tightest chunk came {seconds(least)} before it was needed.")
    return " ".join(parts)


def _section(request: RequestTrace, number: int, count: int, words: str | None) -> str:
    picture = Picture(request, f"p{number}")
    status = request.status or "INCOMPLETE"
    tone = "good" if status == "OK" else "warn" if status in ("CANCELLED", "INCOMPLETE") else "bad"
    meaning = _STATUS_WORDS.get(status, "")
    which = f"Request {number} of {count}" if count > 1 else "What came of it"
    heard = f"<blockquote>{text(words)}</blockquote>" if words and number == count else ""
    legend = [*_LEGEND, *(_LEGEND_AUDIO if request.cadence else ()), *(_LEGEND_GAP if _underruns(request) else ())]
    made = "made" if request.is_unary else "delivered"
    return "\n".join(
        [
            f'<section class="request" aria-label="{text(which)}">',
            f'<div class="top"><h2 style="margin:0">{text(which)}</h2><span class="status {tone}">{text(status)}'
            f"{text(' · ' + meaning if meaning else '')}</span></div>",
            f'<p class="story">{text(story(request))}</p>{heard}',
            *_notes(request, picture),
            *_tiles(request),
            '<figure class="card"><div class="drawing">',
            picture.html("Where the time of the request went", _spoken(request)),
            "</div><figcaption>",
            *(f'<span class="gateway"><svg aria-hidden="true">{mark}</svg>{says.format(made=made)}</span>' for mark, says in legend),
            "</figcaption></figure>",
            f'<div class="card"><h2>The request</h2><dl class="facts">{"".join(_facts(request))}</dl></div>',
            *_stage_table(request),
            *_chunk_table(request),
            "</section>",
        ]
    )


def _notes(request: RequestTrace, picture: Picture) -> Iterator[str]:
    notes = []
    if lacks := request.lacks:
        more = f" and {len(lacks) - 6} more" if len(lacks) > 6 else ""
        notes.append(f"The trace is incomplete: it lacks {', '.join(lacks[:6])}{more}. The request may still be running, or a process ended before it told.")
    for stage, skew_s in request.clock_skew_s.items():
        way = "behind" if skew_s < 0 else "ahead of"
        notes.append(f"The {stage}'s clock is at least {seconds(abs(skew_s))} {way} the gateway's; its bars are drawn by its own clock.")
    if picture.left_out:
        notes.append(f"{picture.left_out} more rows are left out of the picture; the table has them.")
    if request.cadence and request.cadence.total > len(request.cadence.chunks):
        notes.append(f"{len(request.cadence.chunks)} of {request.cadence.total} chunks were told; a slope in the audio's line stands for the others.")
    if request.root is not None and request.status == "OK" and request.cadence is None and request.fact("csm.chunks") is None and request.root.name.endswith("Synthesize"):
        notes.append("This gateway told nothing of its audio's chunks.")
    if notes:
        yield f'<ul class="notes">{"".join(f"<li>{text(note)}</li>" for note in notes)}</ul>'


def _tiles(request: RequestTrace) -> Iterator[str]:
    cadence, factor, late = request.cadence, request.fact("csm.real_time_factor"), _underruns(request)
    tiles = [
        ("First audio", seconds(cadence.chunks[0].arrived_s) if cadence else "–"),
        ("Audio", f"{cadence.audio_s:.2f} s" if cadence else "–"),
        ("Took", seconds(request.took_s) if request.took_s is not None else "–"),
        ("Real-time factor", f"{factor:.2f}" if isinstance(factor, int | float) and factor > 0 else "–"),
        ("Underruns", "–" if late is None else str(late)),
    ]
    yield '<dl class="tiles">'
    for name, value in tiles:
        bad = ' class="bad"' if name == "Underruns" and late else ""
        yield f"<div><dt>{name}</dt><dd{bad}>{text(value)}</dd></div>"
    yield "</dl>"


def _facts(request: RequestTrace) -> Iterator[str]:
    characters, reason = request.fact("csm.text_characters"), request.fact("csm.finish_reason")
    ended = str(reason).removeprefix("FINISH_REASON_") + (f" ({_ENDS[reason]})" if reason in _ENDS else "") if reason else None
    facts = {
        "Status": f"{request.status or 'not known'}{': ' + request.reason if request.reason else ''}",
        "Started": request.started,
        "Method": request.root.name if request.root else None,
        "Attempts": len(request.attempts) if len(request.attempts) > 1 else None,
        "Token": request.fact("csm.token"),
        "Bundle": request.fact("csm.bundle"),
        "Text": f"{characters} characters" if characters is not None else None,
        "Context turns": request.fact("csm.context_turns"),
        "Seed": request.fact("csm.seed"),
        "Prompt rows": request.fact("csm.prompt_rows"),
        "Frames": request.fact("csm.frames"),
        "Finish reason": ended,
    }
    for name, value in facts.items():
        if value is not None:
            yield f"<div><dt>{name}</dt><dd>{text(value)}</dd></div>"


def _stage_table(request: RequestTrace) -> Iterator[str]:
    yield '<div class="card long"><h2>Stages</h2><div class="scroll"><table><thead><tr><th scope="col">What</th>'
    for name in ("begins", "first output", "ends", "took"):
        yield f'<th scope="col" class="number">{name}</th>'
    yield '<th scope="col">outcome</th></tr></thead><tbody>'
    for bar in request.bars:
        said = bar.status if outcome(bar) == "well" else bar.error or bar.note or bar.status
        yield (
            f'<tr><th scope="row"><span class="depth{min(bar.depth, 3)}"><span class="swatch {tone(bar.stage)}"></span>{text(bar.label)}</span></th>'
            f'<td class="number">{seconds(bar.start_s)}</td>'
            f'<td class="number">{"–" if bar.first_output_s is None else seconds(bar.first_output_s)}</td>'
            f'<td class="number">{seconds(bar.end_s)}</td><td class="number">{seconds(bar.end_s - bar.start_s)}</td>'
            f'<td class="words{" bad" if outcome(bar) == "broken" else ""}">{text(", ".join(part for part in (said, *details(bar)) if part))}</td></tr>'
        )
    yield "</tbody></table></div></div>"


def _chunk_table(request: RequestTrace) -> Iterator[str]:
    cadence = request.cadence
    if cadence is None:
        return
    told = cadence.total == len(cadence.chunks)
    count = f"{cadence.total}" if told else f"{len(cadence.chunks)} of {cadence.total}"
    yield f'<details class="card long"><summary>Chunks of audio ({count})</summary><div class="scroll"><table><thead><tr>'
    for name in (*(("chunk",) if told else ()), "audio from", "to", "came", "needed", "to spare"):
        yield f'<th scope="col" class="number">{name}</th>'
    yield "</tr></thead><tbody>"
    for number, chunk in enumerate(cadence.chunks, 1):
        spare = f"late by {seconds(-chunk.lead_s)}" if chunk.late else "play begins" if number == 1 else seconds(chunk.lead_s)
        first = f'<th scope="row" class="number">{number}</th>' if told else ""
        yield (
            f'<tr>{first}<td class="number">{chunk.position_s:.2f} s</td><td class="number">{chunk.end_s:.2f} s</td>'
            f'<td class="number">{seconds(chunk.arrived_s)}</td><td class="number">{seconds(chunk.needed_s)}</td>'
            f'<td class="number{" bad" if chunk.late else ""}">{spare}</td></tr>'
        )
    yield "</tbody></table></div></details>"


def _spoken(request: RequestTrace) -> str:
    """The picture for who cannot see it."""
    rows = "; ".join(describe(bar).replace("\n", ", ") for bar in request.bars[:12])
    return f"{story(request)} Bars, top to bottom: {rows}."


def _underruns(request: RequestTrace) -> int | None:
    if request.cadence is None:
        return None
    told = request.fact("csm.underruns")  # not every chunk may have been told, but all were counted
    return told if isinstance(told, int) else len(request.cadence.underruns)


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")

