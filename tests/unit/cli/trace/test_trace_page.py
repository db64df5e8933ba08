"""The page of a request: its figures are the trace's, every text in it is text, and it needs nothing beside it."""

import html
import json
import re
from pathlib import Path

import pytest

from gateway.cli.trace import page as trace_page
from gateway.cli.trace.page import page, story
from gateway.cli.trace.picture import ticks
from gateway.cli.trace.request_trace import requests_of
from gateway.cli.trace.spans import MAX_SPANS, Span
from support.page_reader import Reader
from support.request_spans import CHUNKS, FACTS, ID, audio, call, request, root, span


def test_the_heading_tells_what_the_gateway_noted():
    text = Reader(page(ID, request())).text
    for told in (
        ID,
        "OK · done",
        "500 ms",
        "1.20 s",
        "0.83",
        "embedded",
        str(2**64 - 1),
        "57 characters",
        "END_OF_SPEECH (the model ended it)",
    ):
        assert told in text, told
    assert "2023-11-14 22:13:20.000 UTC" in text
    assert story(requests_of(request())[0]) == (
        "1.20 s of speech in 1.00 s. The first audio was there after 500 ms."
        " Playback from there on has a buffer underrun once, for 160 ms in all."
    )


def test_words_stand_there_only_when_given():
    assert "Guten Tag" not in page(ID, request())
    assert "Guten &lt;Tag&gt;" in page(ID, request(), "Guten <Tag>")


def test_bars_lie_where_their_times_are():
    seen = Reader(page(ID, request()))
    # gateway, tokenizer, backbone, queue, prefill, watermark, codec: of 1000 ms
    assert seen.rects("work") == [
        pytest.approx(pair, abs=0.16)
        for pair in (
            (0, 100),
            (0.2, 1.8),
            (30, 59.9),
            (2.2, 1.8),
            (4, 21),
            (10.1, 89.8),
            (10.1, 88.8),
        )
    ]
    assert seen.rects("wait") == [pytest.approx((2.1, 27.9), abs=0.01)]
    assert seen.rects("gap") == [pytest.approx((74, 16), abs=0.01)]
    assert [marks["class"] for tag, marks in seen.marks if tag == "g" and "chunk" in marks["class"]] == [
        "chunk",
        "chunk",
        "chunk late",
        "chunk",
        "chunk",  # the last is the legend's
    ]


def test_it_needs_nothing_beside_it_and_allows_no_other_script():
    text = page(ID, request())
    seen = Reader(text)
    assert (
        not seen.links
        and "@import" not in text
        and "url(" not in text
        and "http:" not in text.replace("http-equiv", "")
    )
    assert seen.tags.count("script") == 1
    policy = next(
        marks["content"]
        for tag, marks in seen.marks
        if tag == "meta" and "content" in marks and "default-src" in marks["content"]
    )
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
    light, _, dark = (
        Path(trace_page.__file__).with_suffix(".html").read_text().partition("@media (prefers-color-scheme: dark)")
    )
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
    texts = [(ink, ground) for ink in ("ink", "quiet") for ground in ("page", "card")] + [
        ("bad", "card"),
        ("warn", "card"),
    ]
    texts += [(name, f"{name}-page") for name in ("good", "warn", "bad")]
    marks = [
        (name, "card")
        for name in ("gateway", "tokenizer", "backbone", "codec", "watermark", "other", "given", "heard", "gap")
    ]
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


@pytest.mark.parametrize(
    "spans",
    [
        [Span("gateway", "", "server", "", "", 0, 0)],
        [Span("gateway", "x", "server", "1", "1", 5, 2)],
        [Span("codec", "x", "server", "1", "2", 5, 9), Span("codec", "y", "server", "2", "1", 5, 9)],
        [Span("gateway", "x", "server", "1", "", 0, 2**63), Span("gateway", "x", "client", "2", "1", 0, 0)],
        [Span("backbone", "step", "internal", "9", "", 1, 2, linked=True)],
        [
            Span("gateway", "x", "server", "0", "", 0, 9),
            *(Span("codec", f"n{n}", "internal", f"{n + 1}", f"{n}", n, n + 1) for n in range(MAX_SPANS)),
        ],
        [
            root(
                attributes={
                    "rpc.response.status_code": 99,
                    "csm.chunks": -1,
                    "csm.underruns": True,
                    "csm.real_time_factor": float("nan"),
                }
            )
        ],
        [root(events=audio((500, 0, 0, 0), (500, 0, 0, 0)))],
        [root(events=audio((500, -5, float("nan"), 1e300)))],
    ],
)
def test_odd_traces_are_drawn_too(spans):
    Reader(page(ID, spans))


def test_no_trace_no_page():
    with pytest.raises(ValueError, match="without spans"):
        page(ID, [])


@pytest.mark.parametrize(
    ("total", "last"), [(0.0026, 0.0025), (0.1, 0.1), (1.1, 1.0), (2.9, 2.5), (8.7, 8.0), (95, 80)]
)
def test_the_axis_has_round_numbers(total, last):
    marks = ticks(total)
    assert marks[0] == 0 and marks[-1] == pytest.approx(last) and 4 <= len(marks) <= 7
    assert all(len(json.dumps(round(mark, 9)).strip("0.")) <= 3 for mark in marks)
    assert ticks(0) == ticks(float("inf")) == [0.0]


def test_a_page_of_very_many_spans_stays_one_to_open():
    spans = [
        root(),
        *(span("codec", f"work{n}", "internal", f"w{n}", "root", n % 1000, n % 1000 + 1) for n in range(3000)),
    ]
    text = page(ID, spans)
    assert text.count("<tr>") < 1100
    assert "and 2001 more rows, which are left out" in Reader(text).text
