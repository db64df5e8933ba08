"""What spans tell of a request: how it ended, what they lack, what was heard of its audio."""

from dataclasses import replace

import pytest

from gateway.cli.trace.page import page, story
from gateway.cli.trace.playback import Chunk, timeline_of
from gateway.cli.trace.request_trace import requests_of
from gateway.cli.trace.spans import Event
from support.page_reader import Reader
from support.request_spans import FACTS, ID, MS, T0, audio, call, request, root, span


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
    assert (
        story(requests_of(spans)[0])
        == "Ended by RESOURCE_EXHAUSTED after 1.0 ms: refused by the gateway itself, before it asked any stage."
    )
    assert "Token phones" in Reader(page(ID, spans)).text


def test_a_caller_who_left():
    spans = [*call("backbone", "Generate", 1, 1, 999, 1, error="CANCELLED: Locally cancelled by application!"), root(1)]
    assert (
        "Ended by CANCELLED after 1.00 s: the caller left. 1.20 s of audio had gone out."
        in Reader(page(ID, spans)).text
    )


def test_one_that_was_tried_again_is_one_request_and_two_calls_of_a_caller_are_two():
    tries = [root(8, "r1", "app", 0, 2, attributes={}, events=()), root(0, "r2", "app", 300, 1300)]
    (one,) = requests_of([*tries, *call("codec", "Decode", 1, 310, 1200, parent="r2")])
    assert (len(one.attempts), one.status, one.took_s) == (2, "OK", 1.3)
    assert "Attempts 2" in Reader(page(ID, [*tries])).text
    calls = [replace(tries[0], attributes={"rpc.response.status_code": "OK"}), tries[1]]
    first, second = requests_of([*calls, *call("codec", "Decode", 1, 310, 1200, parent="r2")])
    assert (len(first.spans), len(second.spans)) == (1, 3)
    text = Reader(page(ID, calls)).text
    assert "Request 1 of 2" in text and "Request 2 of 2" in text


def test_a_callers_own_program_is_left_out():
    app = [
        span("shop", "checkout", "server", "app", "", -5000, 9000),
        span("shop", "pay", "client", "pay", "app", -4000, -3000),
    ]
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
    late = [
        replace(one, start_ns=one.start_ns + 40 * MS, end_ns=one.end_ns + 40 * MS) if one.service == "codec" else one
        for one in request()
    ]
    text = Reader(page(ID, late)).text
    assert "The codec's clock is at least 39 ms ahead of the gateway's" in text
    assert "clock is" not in Reader(page(ID, request())).text


def test_a_unary_request_heard_nothing_before_its_end():
    whole = replace(root(), name="csm.speech.v1.SpeechService/Synthesize")
    text = Reader(page(ID, [whole])).text
    assert "heard nothing before the end" in text and "audio made" in text


def test_an_older_gateway_without_chunks():
    text = Reader(page(ID, request(events=(), attributes={}))).text
    assert "recorded no chunks of audio" in text and "Took 1.00 s." in text


def test_what_was_heard_waits_where_it_ran_dry():
    playback = timeline_of(root(), T0)
    assert playback.underruns == (Chunk(0.9, 0.24, 0.32, -0.16),)
    assert playback.played(1.0) == [
        pytest.approx(point)
        for point in (
            (0.5, 0.0),
            (0.55, 0.05),
            (0.74, 0.24),
            (0.9, 0.24),
            (0.95, 0.29),
            (1.0, 0.34),
        )
    ]
    assert playback.delivered(1.0)[-2:] == [pytest.approx((0.95, 1.2)), pytest.approx((1.0, 1.2))]
    heard = playback.played(99)[-1]
    assert heard == pytest.approx((1.86, 1.2)), "play ends with the audio"


def test_chunks_that_were_not_told_are_a_slope_and_a_note():
    some = audio((500, 0, 80, 0), (900, 800, 80, 400))
    told = request(events=some, attributes=FACTS | {"csm.chunks": 11, "csm.underruns": 0})
    assert timeline_of(told[-1], T0).delivered(1.0)[2] == pytest.approx((0.9, 0.8))
    assert "2 of 11 chunks are in the trace" in Reader(page(ID, told)).text


@pytest.mark.parametrize(
    "wrong", [float("nan"), float("inf"), -float("inf"), -1e308, 1e308, pytest.param(10**400, id="huge"), 8.64e7 + 1]
)
@pytest.mark.parametrize("place", [1, 2, 3])
def test_a_chunk_that_cannot_be_is_left_out(place, wrong):
    told = [600, 80, 80, 30]
    told[place] = wrong
    spans = request(events=(*audio((500, 0, 80, 0)), *audio(told)))
    assert timeline_of(spans[-1], T0).chunks == (Chunk(0.5, 0.0, 0.08, 0.0),)
    text = Reader(page(ID, spans)).text
    assert "nan" not in text.lower() and "inf" not in text.lower().replace("information", "") and "e+" not in text


def test_audio_before_the_request_or_of_negative_length_is_left_out():
    wrong = audio((-5, 0, 80, 0), (600, -1, 80, 0), (600, 0, -80, 0), (600, True, "80", None))
    assert timeline_of(root(events=wrong), T0) is None


def test_nothing_ends_before_it_began():
    back = [
        root(start_ms=900, end_ms=100, events=()),
        span(
            "codec",
            "work",
            "internal",
            "w",
            "root",
            950,
            200,
            events=(Event("first_output", T0 - 5 * MS), Event("first_frame", T0 + 2000 * MS)),
        ),
    ]
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
