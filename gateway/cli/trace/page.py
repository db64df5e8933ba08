"""A request as one HTML file: what came of it, a picture of where its time went, and the figures.

    html = page(trace_id, spans)

The file needs no server, no network and no other file; its one script is its own, and its policy
(Content-Security-Policy) allows no other. Everything that comes from a trace is escaped.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from string import Template

from gateway.cli.trace.picture import Picture, describe, text
from gateway.cli.trace.request_trace import RequestTrace, requests_of
from gateway.cli.trace.spans import Span
from gateway.cli.trace.tables import chunk_table, facts, stage_table, tiles
from gateway.cli.trace.waterfall import seconds

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
_LEGEND = (
    ('<rect class="wait" x="0" y="5" width="32" height="6"/>', "before its first output"),
    ('<path class="first" transform="translate(16 8)" d="M0-8 6 0 0 8-6 0Z"/>', "first output"),
    (
        '<rect class="work" x="0" y="1" width="32" height="14" rx="1"/>',
        "after it; or work without a first output",
    ),
)
_LEGEND_AUDIO = (
    (
        '<g class="curves"><path class="given" d="M0 13H12V3H32"/></g>'
        '<g class="chunk"><circle cx="12" cy="3" r="3"/></g>',
        "audio {made}, a dot a chunk",
    ),
    (
        '<g class="curves"><path class="heard" d="M0 14 32 2"/></g>',
        "what the listener has heard",
    ),
)
_LEGEND_GAP = (('<rect class="gap" x="6" y="0" width="18" height="16"/>', "buffer underrun"),)


def page(trace_id: str, spans: Iterable[Span], words: str | None = None) -> str:
    """The whole file. words: what was said, to stand in the heading; traces do not know it.

    Raises: ValueError without spans.
    """
    requests = requests_of(spans)
    if not requests:
        raise ValueError("a trace without spans cannot be drawn")
    shown = requests[-_MOST_REQUESTS:]
    script = (_HERE / "page.js").read_text()
    return Template((_HERE / "page.html").read_text()).substitute(
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
    took, playback = seconds(request.took_s or 0.0), request.playback
    parts = []
    if request.status != "OK":
        why = f": {request.reason}" if request.reason else ""
        went = f" {playback.audio_s:.2f} s of audio had gone out." if playback and not request.is_unary else ""
        parts.append(f"Ended by {request.status} after {took}{why}{'' if why.endswith('.') else '.'}{went}")
    elif playback:
        parts.append(f"{playback.audio_s:.2f} s of speech in {took}.")
    else:
        parts.append(f"Took {took}.")
    if playback:
        parts.append(f"The first audio was there after {seconds(playback.chunks[0].arrived_s)}.")
        if request.is_unary:
            parts.append("The caller asked for one answer, so it heard nothing before the end;")
            parts.append("what follows is when the audio was made.")
        if late := request.underruns:
            gaps = sum(-chunk.lead_s for chunk in playback.underruns)
            parts.append(f"Playback from there on has a buffer underrun {_times(late)}, for {seconds(gaps)} in all.")
        elif (least := playback.least_lead_s) is not None:
            parts.append("Playback from there on has no buffer underrun;")
            parts.append(f"the tightest chunk came {seconds(least)} before it was needed.")
    return " ".join(parts)


def _section(request: RequestTrace, number: int, count: int, words: str | None) -> str:
    picture = Picture(request, f"p{number}")
    status = request.status or "INCOMPLETE"
    tone = "good" if status == "OK" else "warn" if status in ("CANCELLED", "INCOMPLETE") else "bad"
    meaning = _STATUS_WORDS.get(status, "")
    which = f"Request {number} of {count}" if count > 1 else "What came of it"
    heard = f"<blockquote>{text(words)}</blockquote>" if words and number == count else ""
    legend = [
        *_LEGEND,
        *(_LEGEND_AUDIO if request.playback else ()),
        *(_LEGEND_GAP if request.underruns else ()),
    ]
    made = "made" if request.is_unary else "delivered"
    return "\n".join(
        [
            f'<section class="request" aria-label="{text(which)}">',
            f'<div class="top"><h2 style="margin:0">{text(which)}</h2><span class="status {tone}">{text(status)}'
            f"{text(' · ' + meaning if meaning else '')}</span></div>",
            f'<p class="story">{text(story(request))}</p>{heard}',
            *_notes(request, picture),
            *tiles(request),
            '<figure class="card"><div class="drawing">',
            picture.html("Where the time of the request went", _spoken(request)),
            "</div><figcaption>",
            *(
                f'<span class="gateway"><svg aria-hidden="true">{mark}</svg>{says.format(made=made)}</span>'
                for mark, says in legend
            ),
            "</figcaption></figure>",
            f'<div class="card"><h2>The request</h2><dl class="facts">{"".join(facts(request))}</dl></div>',
            *stage_table(request),
            *chunk_table(request),
            "</section>",
        ]
    )


def _notes(request: RequestTrace, picture: Picture) -> Iterator[str]:
    notes = []
    if absent := request.missing_spans:
        more = f" and {len(absent) - 6} more" if len(absent) > 6 else ""
        notes.append(
            f"The trace is incomplete: it lacks {', '.join(absent[:6])}{more}."
            " The request may still be running, or a process ended before it exported its spans."
        )
    for stage, skew_s in request.clock_skew_s.items():
        way = "behind" if skew_s < 0 else "ahead of"
        notes.append(
            f"The {stage}'s clock is at least {seconds(abs(skew_s))} {way} the gateway's;"
            " its bars are drawn by its own clock."
        )
    if picture.left_out:
        notes.append(f"{picture.left_out} more rows are left out of the picture; the table below goes on.")
    if request.playback and request.playback.total > len(request.playback.chunks):
        notes.append(
            f"{len(request.playback.chunks)} of {request.playback.total} chunks are in the trace;"
            " a slope in the audio's line stands for the others."
        )
    if (
        request.root is not None
        and request.status == "OK"
        and request.playback is None
        and request.fact("csm.chunks") is None
        and request.root.name.endswith("Synthesize")
    ):
        notes.append("This gateway recorded no chunks of audio.")
    if notes:
        yield f'<ul class="notes">{"".join(f"<li>{text(note)}</li>" for note in notes)}</ul>'


def _spoken(request: RequestTrace) -> str:
    """The picture for who cannot see it."""
    rows = "; ".join(describe(bar).replace("\n", ", ") for bar in request.bars[:12])
    return f"{story(request)} Bars, top to bottom: {rows}."


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")
