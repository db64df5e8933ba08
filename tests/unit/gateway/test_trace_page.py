"""The page of a request: its figures are the trace's, every text in it is text, and it needs nothing beside it."""

import html
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gateway import trace_page
from gateway.cadence import Chunk, cadence_of
from gateway.request_trace import requests_of
from gateway.trace_page import page, story
from gateway.trace_picture import ticks
from gateway.traces import MAX_SPANS, Event, Span

MS = 10**6
T0 = 1_700_000_000 * 10**9
ID = "ab" * 16
SPEAK = "csm.speech.v1.SpeechService/StreamSynthesize"
VOID = {"meta", "br", "img"}


def span(service, name, kind, span_id, parent, start_ms, end_ms, code=None, **more):
    more["attributes"] = {**more.get("attributes", {}), **({} if code is None else {"rpc.grpc.status_code": code})}
    return Span(service, name, kind, span_id, parent, T0 + int(start_ms * MS), T0 + int(end_ms * MS), **more)


def call(stage, method, number, start_ms, end_ms, code=0, parent="root", error="", events=()):
    """Both sides of the gateway's call to a stage."""
    name = f"csm.{stage}.v1.{stage.title()}Service/{method}"
    rpc = {"rpc.service": name.partition("/")[0]}
    return [
        span("gateway", name, "client", f"c{number}", parent, start_ms, end_ms, code, attributes=rpc, error=error),
        span(stage, name, "server", f"s{number}", f"c{number}", start_ms + 1, end_ms - 1, code, events=events),
    ]


def audio(*chunks):
    """Events of (at ms, position ms, duration ms, lead ms)."""
    names = ("csm.position_ms", "csm.duration_ms", "csm.lead_ms")
    return tuple(Event("audio", T0 + int(at * MS), dict(zip(names, rest, strict=True))) for at, *rest in chunks)


CHUNKS = audio((500, 0, 80, 0), (550, 80, 160, 30), (900, 240, 320, -160), (950, 560, 640, 270))
FACTS = {
    "csm.bundle": "embedded", "csm.seed": str(2**64 - 1), "csm.text_characters": 57, "csm.context_turns": 2,
    "csm.prompt_rows": 63, "csm.frames": 15, "csm.finish_reason": "FINISH_REASON_END_OF_SPEECH",
    "csm.real_time_factor": 0.8333, "csm.underruns": 1, "csm.chunks": 4,
}


def root(code=0, span_id="root", parent="", start_ms=0, end_ms=1000, **more):
    more = {"attributes": FACTS, "events": CHUNKS} | more
    return span("gateway", SPEAK, "server", span_id, parent, start_ms, end_ms, code, **more)


def request(**more):
    return [
        *call("watermark", "Embed", 4, 100, 1000), *call("codec", "Decode", 3, 100, 990),
        *call("backbone", "Generate", 2, 20, 900, events=(Event("first_frame", T0 + 300 * MS),)),
        span("backbone", "queue", "internal", "q", "s2", 22, 40), span("backbone", "prefill", "internal", "p", "s2", 40, 250),
        *call("tokenizer", "Tokenize", 1, 1, 20), root(**more),
    ]


class Reader(HTMLParser):
    """What a browser would make of the page. Raises: AssertionError when tags do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.marks, self.texts, self.links = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.marks.append((tag, dict(attributes)))
        self.links += [value for name, value in attributes if name in ("src", "href", "action", "data", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.marks.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.texts.append(data.strip())

    @property
    def text(self):
        return " ".join(text for text in self.texts if text)

    def rects(self, style):
        """(x, width) in percent of all with this class."""
        found = [marks for tag, marks in self.marks if tag == "rect" and style in marks.get("class", "").split()]
        return [(float(marks["x"].rstrip("%")), float(marks["width"].rstrip("%"))) for marks in found if "%" in marks["x"]]


def test_the_heading_tells_what_the_gateway_noted():
    text = Reader(page(ID, request())).text
    for told in (ID, "OK · done", "500 ms", "1.20 s", "0.83", "embedded", str(2**64 - 1), "57 characters", "END_OF_SPEECH (the model ended it)"):
        assert told in text, told
    assert "2023-11-14 22:13:20.000 UTC" in text
    assert story(requests_of(request())[0]) == (
        "1.20 s of speech in 1.00 s. The first audio was there after 500 ms."
        " A listener who plays from there on ran dry once, for 160 ms in all."
    )


def test_words_stand_there_only_when_given():
    assert "Guten Tag" not in page(ID, request())
    assert "Guten &lt;Tag&gt;" in page(ID, request(), "Guten <Tag>")


def test_bars_lie_where_their_times_are():
    seen = Reader(page(ID, request()))
    # gateway, tokenizer, backbone, queue, prefill, watermark, codec: of 1000 ms
    assert seen.rects("work") == [pytest.approx(pair, abs=0.16) for pair in (
        (0, 100), (0.2, 1.8), (30, 59.9), (2.2, 1.8), (4, 21), (10.1, 89.8), (10.1, 88.8),
    )]
    assert seen.rects("wait") == [pytest.approx((2.1, 27.9), abs=0.01)]
    assert seen.rects("gap") == [pytest.approx((74, 16), abs=0.01)]
    assert [marks["class"] for tag, marks in seen.marks if tag == "g" and "chunk" in marks["class"]] == [
        "chunk", "chunk", "chunk late", "chunk", "chunk"  # the last is the legend's
    ]


def test_it_needs_nothing_beside_it_and_allows_no_other_script():
    text = page(ID, request())
    seen = Reader(text)
    assert not seen.links and "@import" not in text and "url(" not in text and "http:" not in text.replace("http-equiv", "")
    assert seen.tags.count("script") == 1
    policy = next(marks["content"] for tag, marks in seen.marks if tag == "meta" and "content" in marks and "default-src" in marks["content"])
    assert "default-src 'none'" in policy and "'unsafe-inline'" not in policy.partition("script-src")[2]
    assert "prefers-color-scheme: dark" in text and "@media print" in text


def test_it_can_be_listened_to():
    seen = Reader(page(ID, request()))
    plot = next(marks for tag, marks in seen.marks if tag == "svg" and marks.get("role") == "img")
    ids = {marks.get("id") for _, marks in seen.marks}
    assert set(plot["aria-labelledby"].split()) <= ids
    assert "html" in seen.tags and dict(seen.marks[0][1]) == {"lang": "en"}
    assert "backbone Generate: 878 ms, from 21 ms to 899 ms, first output at 300 ms" in seen.text


def colours(scheme):
    """The page's colours by name: RGB of 0 to 1."""
    light, _, dark = (Path(trace_page.__file__).with_suffix(".html").read_text().partition("@media (prefers-color-scheme: dark)"))
    found = dict(re.findall(r"--([\w-]+): #([0-9a-f]{6});", light if scheme == "light" else dark.partition("* {")[0]))
    return {name: [int(value[at : at + 2], 16) / 255 for at in (0, 2, 4)] for name, value in found.items()}


def luminance(rgb):
    """https://www.w3.org/TR/WCAG21/#dfn-relative-luminance"""
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_enough_to_read(scheme):
    """WCAG AA: 4.5 for text, 3 for what a picture needs."""
    of = colours(scheme)
    texts = [(ink, ground) for ink in ("ink", "quiet") for ground in ("page", "card")] + [("bad", "card"), ("warn", "card")]
    texts += [(name, f"{name}-page") for name in ("good", "warn", "bad")]
    marks = [(name, "card") for name in ("gateway", "tokenizer", "backbone", "codec", "watermark", "other", "given", "heard", "gap")]
    for least, pairs in ((4.5, texts), (3.0, marks)):
        for pair in pairs:
            dim, bright = sorted(luminance(of[name]) for name in pair)
            assert (bright + 0.05) / (dim + 0.05) >= least, pair


EVIL = "</title></desc></script><script>alert(1)</script><img src=x onerror='a(\"b\")'>&amp;\x00\x1b\u202e$title"


@pytest.mark.parametrize("where", ["name", "service", "error", "attribute", "key", "bundle", "event", "text", "id"])
def test_everything_is_escaped(where):
    spans, words, trace_id = request(), None, ID
    match where:
        case "name":
            spans.append(span("gateway", EVIL, "client", "x", "root", 5, 6, 0))
        case "service":
            spans.append(span(EVIL, "work", "internal", "x", "s2", 5, 6))
        case "error":
            spans = [*request(code=14, error=EVIL), *call("codec", "Decode", 9, 5, 7, 14, error=EVIL)]
        case "attribute":
            spans.append(span("codec", "work", "internal", "x", "s3", 5, 6, attributes={"csm.frames": EVIL}))
        case "key":
            spans.append(span("codec", "work", "internal", "x", "s3", 5, 6, attributes={f"csm.{EVIL}": 1}))
        case "bundle":
            spans = request(attributes={name: EVIL for name in FACTS})
        case "event":
            spans = request(events=(*CHUNKS, *audio((960, EVIL, 1, 1))))
        case "text":
            words = EVIL
        case "id":
            trace_id = EVIL
    text = page(trace_id, spans, words)
    seen = Reader(text)
    assert seen.tags.count("script") == 1 and "img" not in seen.tags
    assert not {name for _, marks in seen.marks for name in marks if name.startswith("on")}
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202e]", text)
    if where in ("error", "attribute", "key", "text", "id"):  # the others are shown in part or not at all
        assert "alert(1)" in html.unescape(seen.text)


def test_a_stage_that_died_is_told_with_its_error():
    gone = "UNAVAILABLE: the codec stage went away"
    spans = [one for one in request(code=14, error=gone) if one.span_id != "s3"]
    spans = [replace(one, error=gone) if one.span_id == "c3" else one for one in spans]
    seen = Reader(page(ID, spans))
    assert "UNAVAILABLE · a stage was gone" in seen.text
    assert "Ended by UNAVAILABLE after 1.00 s: the codec stage went away. 1.20 s of audio had gone out." in seen.text
    assert sum("broken" in marks.get("class", "") for tag, marks in seen.marks if tag == "g") == 2
    assert "incomplete" not in seen.text


def test_a_request_that_is_refused_says_why_by_what_its_stage_told():
    told = "INVALID_ARGUMENT: segments[0].text: has 5000 characters, at most 4096 are taken"
    spans = [*call("tokenizer", "Tokenize", 1, 1, 3, 3, error=told), root(3, end_ms=4, attributes={}, events=())]
    assert story(requests_of(spans)[0]) == f"Ended by INVALID_ARGUMENT after 4.0 ms: {told.partition(': ')[2]}."
    text = Reader(page(ID, spans)).text
    assert "INVALID_ARGUMENT · refused: breaks a limit" in text and "Chunks of audio" not in text


def test_a_gateway_that_refused_by_itself():
    spans = [root(8, end_ms=1, attributes={"csm.token": "phones"}, events=())]
    assert story(requests_of(spans)[0]) == "Ended by RESOURCE_EXHAUSTED after 1.0 ms: refused by the gateway itself, before it asked any stage."
    assert "Token phones" in Reader(page(ID, spans)).text


def test_a_caller_who_left():
    spans = [*call("backbone", "Generate", 1, 1, 999, 1, error="CANCELLED: Locally cancelled by application!"), root(1)]
    assert "Ended by CANCELLED after 1.00 s: the caller left. 1.20 s of audio had gone out." in Reader(page(ID, spans)).text


def test_one_that_was_tried_again_is_one_request_and_two_calls_of_a_caller_are_two():
    tries = [root(8, "r1", "app", 0, 2, attributes={}, events=()), root(0, "r2", "app", 300, 1300)]
    (one,) = requests_of([*tries, *call("codec", "Decode", 1, 310, 1200, parent="r2")])
    assert (len(one.attempts), one.status, one.took_s) == (2, "OK", 1.3)
    assert "Attempts 2" in Reader(page(ID, [*tries])).text
    calls = [replace(tries[0], attributes={"rpc.grpc.status_code": 0}), tries[1]]
    first, second = requests_of([*calls, *call("codec", "Decode", 1, 310, 1200, parent="r2")])
    assert (len(first.spans), len(second.spans)) == (1, 3)
    text = Reader(page(ID, calls)).text
    assert "Request 1 of 2" in text and "Request 2 of 2" in text


def test_a_callers_own_program_is_left_out():
    app = [span("shop", "checkout", "server", "app", "", -5000, 9000), span("shop", "pay", "client", "pay", "app", -4000, -3000)]
    (one,) = requests_of([*app, *request(parent="app")])
    assert one.zero_ns == T0 and one.total_s == 1.0
    assert not {"checkout", "pay"} & {bar.label for bar in one.bars}


@pytest.mark.parametrize(
    ("without", "told"),
    [
        ({"root"}, "it lacks the gateway's own span"),
        ({"s3"}, "it lacks the stage's side of Decode"),
        ({"c3"}, "it lacks the gateway's side of Decode"),
        ({"s2"}, "the stage's side of Generate, what is above the backbone's queue"),
    ],
)
def test_an_incomplete_trace_is_drawn_and_says_what_it_lacks(without, told):
    text = Reader(page(ID, [one for one in request() if one.span_id not in without])).text
    assert told in text and "backbone" in text


def test_a_clock_that_is_off_is_told():
    late = [replace(one, start_ns=one.start_ns + 40 * MS, end_ns=one.end_ns + 40 * MS) if one.service == "codec" else one for one in request()]
    text = Reader(page(ID, late)).text
    assert "The codec's clock is at least 39 ms ahead of the gateway's" in text
    assert "clock is" not in Reader(page(ID, request())).text


def test_a_unary_request_heard_nothing_before_its_end():
    whole = replace(root(), name="csm.speech.v1.SpeechService/Synthesize")
    text = Reader(page(ID, [whole])).text
    assert "heard nothing before the end" in text and "audio made" in text


def test_an_older_gateway_without_chunks():
    text = Reader(page(ID, request(events=(), attributes={}))).text
    assert "told nothing of its audio's chunks" in text and "Took 1.00 s." in text


def test_what_was_heard_waits_where_it_ran_dry():
    cadence = cadence_of(root(), T0)
    assert cadence.underruns == (Chunk(0.9, 0.24, 0.32, -0.16),)
    assert cadence.played(1.0) == [pytest.approx(point) for point in (
        (0.5, 0.0), (0.55, 0.05), (0.74, 0.24), (0.9, 0.24), (0.95, 0.29), (1.0, 0.34),
    )]
    assert cadence.delivered(1.0)[-2:] == [pytest.approx((0.95, 1.2)), pytest.approx((1.0, 1.2))]
    heard = cadence.played(99)[-1]
    assert heard == pytest.approx((1.86, 1.2)), "play ends with the audio"


def test_chunks_that_were_not_told_are_a_slope_and_a_note():
    some = audio((500, 0, 80, 0), (900, 800, 80, 400))
    told = request(events=some, attributes=FACTS | {"csm.chunks": 11, "csm.underruns": 0})
    assert cadence_of(told[-1], T0).delivered(1.0)[2] == pytest.approx((0.9, 0.8))
    assert "2 of 11 chunks were told" in Reader(page(ID, told)).text


@pytest.mark.parametrize(
    "spans",
    [
        [Span("gateway", "", "server", "", "", 0, 0)],
        [Span("gateway", "x", "server", "1", "1", 5, 2)],
        [Span("codec", "x", "server", "1", "2", 5, 9), Span("codec", "y", "server", "2", "1", 5, 9)],
        [Span("gateway", "x", "server", "1", "", 0, 2**63), Span("gateway", "x", "client", "2", "1", 0, 0)],
        [Span("backbone", "step", "internal", "9", "", 1, 2, linked=True)],
        [Span("gateway", "x", "server", "0", "", 0, 9), *(Span("codec", f"n{n}", "internal", f"{n + 1}", f"{n}", n, n + 1) for n in range(MAX_SPANS))],
        [root(attributes={"rpc.grpc.status_code": 99, "csm.chunks": -1, "csm.underruns": True, "csm.real_time_factor": float("nan")})],
        [root(events=audio((500, 0, 0, 0), (500, 0, 0, 0)))],
        [root(events=audio((500, -5, float("nan"), 1e300)))],
    ],
)
def test_odd_traces_are_drawn_too(spans):
    Reader(page(ID, spans))


def test_no_trace_no_page():
    with pytest.raises(ValueError, match="without spans"):
        page(ID, [])


@pytest.mark.parametrize(("total", "last"), [(0.0026, 0.0025), (0.1, 0.1), (1.1, 1.0), (2.9, 2.5), (8.7, 8.0), (95, 80)])
def test_the_axis_has_round_numbers(total, last):
    marks = ticks(total)
    assert marks[0] == 0 and marks[-1] == pytest.approx(last) and 4 <= len(marks) <= 7
    assert all(len(json.dumps(round(mark, 9)).strip("0.")) <= 3 for mark in marks)
    assert ticks(0) == ticks(float("inf")) == [0.0]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf"), -1e308, 1e308, pytest.param(10**400, id="huge"), 8.64e7 + 1])
@pytest.mark.parametrize("place", [1, 2, 3])
def test_a_chunk_that_cannot_be_is_left_out(place, wrong):
    told = [600, 80, 80, 30]
    told[place] = wrong
    spans = request(events=(*audio((500, 0, 80, 0)), *audio(told)))
    assert cadence_of(spans[-1], T0).chunks == (Chunk(0.5, 0.0, 0.08, 0.0),)
    text = Reader(page(ID, spans)).text
    assert "nan" not in text.lower() and "inf" not in text.lower().replace("information", "") and "e+" not in text


def test_audio_before_the_request_or_of_negative_length_is_left_out():
    wrong = audio((-5, 0, 80, 0), (600, -1, 80, 0), (600, 0, -80, 0), (600, True, "80", None))
    assert cadence_of(root(events=wrong), T0) is None


def test_nothing_ends_before_it_began():
    back = [root(start_ms=900, end_ms=100, events=()), span("codec", "work", "internal", "w", "root", 950, 200,
            events=(Event("first_output", T0 - 5 * MS), Event("first_frame", T0 + 2000 * MS)))]
    (one,) = requests_of(back)
    assert one.took_s == 0 and all(bar.end_s >= bar.start_s >= 0 for bar in one.bars)
    assert [bar.first_output_s for bar in one.bars] == [None, None]
    assert "-" not in story(one).replace("-time", "")


@pytest.mark.parametrize("told", [-3, True, 0])
def test_underruns_are_at_least_those_that_were_seen(told):
    assert requests_of(request(attributes=FACTS | {"csm.underruns": told}))[0].underruns == 1


def test_an_endless_factor_is_none():
    text = Reader(page(ID, request(attributes=FACTS | {"csm.real_time_factor": float("inf")}))).text
    assert "Real-time factor –" in text


def test_a_page_of_very_many_spans_stays_one_to_open():
    spans = [root(), *(span("codec", f"work{n}", "internal", f"w{n}", "root", n % 1000, n % 1000 + 1) for n in range(3000))]
    text = page(ID, spans)
    assert text.count("<tr>") < 1100
    assert "and 2001 more rows, which are left out" in Reader(text).text
