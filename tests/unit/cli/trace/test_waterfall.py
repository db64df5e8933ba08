"""Bars: whose they are, where they begin and end on the axis, and that they fit the terminal."""

from dataclasses import replace

import pytest
from csm.speech.v1 import speech_pb2

from gateway.cli.trace.spans import Event
from gateway.cli.trace.waterfall import Bar, bars_of_summary, bars_of_trace, draw, seconds
from support.request_spans import MS, SPEAK, T0, call, span


def event(name, at_ms, **attributes):
    return Event(name, T0 + at_ms * MS, attributes)


def request():
    told = (event("first_output", 400, stage="codec"), event("first_output", 500, stage="watermark"))
    return [
        *call("watermark", "Embed", 4, 100, 1000),
        *call("codec", "Decode", 3, 100, 990),
        *call("backbone", "Generate", 2, 20, 900, events=(event("first_frame", 300),)),
        span("backbone", "prefill", "internal", "p", "s2", 40, 250),
        span("backbone", "queue", "internal", "q", "s2", 22, 40),
        *call("tokenizer", "Tokenize", 1, 1, 20),
        span("gateway", SPEAK, "server", "root", "", 0, 1000, events=told),
    ]


def test_rows_are_in_the_order_of_calls_with_both_sides_as_one():
    bars = bars_of_trace(request())
    assert [(bar.depth, bar.label) for bar in bars] == [
        (0, "gateway StreamSynthesize"),
        (1, "tokenizer Tokenize"),
        (1, "backbone Generate"),
        (2, "queue"),
        (2, "prefill"),
        (1, "watermark Embed"),
        (1, "codec Decode"),
    ]
    assert (bars[4].start_s, bars[4].end_s) == (0.04, 0.25)
    assert [bar.first_output_s for bar in bars] == [0.5, None, 0.3, None, None, 0.5, 0.4]


def test_a_call_without_its_other_side_is_shown_with_its_error():
    spans = request()
    client = next(span for span in spans if span.kind == "client" and "codec" in span.name)
    rest = [span for span in spans if "Decode" not in span.name]
    bars = bars_of_trace([*rest, replace(client, error="UNAVAILABLE: gone")])
    codec = next(bar for bar in bars if bar.stage == "codec")
    assert (codec.label, codec.error) == ("codec Decode", "UNAVAILABLE: gone")
    assert draw(bars).plain.splitlines()[-1] == "✗ codec Decode: UNAVAILABLE: gone"


def test_many_of_a_name_share_a_row_also_linked_ones():
    steps = [
        span("backbone", "step", "internal", f"t{n}", "", 300 + n, 301 + n, linked=True) for n in range(-400, 100, 5)
    ]
    bars = bars_of_trace([*request(), *steps])
    step = next(bar for bar in bars if bar.label.startswith("step"))
    assert (step.label, step.depth, step.start_s, step.end_s) == ("step ×100", 2, 0.0, 0.396)


def test_spans_without_a_root_are_still_shown():
    assert [bar.depth for bar in bars_of_trace([s for s in request() if s.span_id != "root"])] == [0, 0, 1, 1, 0, 0]
    assert bars_of_trace([]) == []


def test_every_bar_lies_where_its_time_is():
    lines = draw(bars_of_trace(request()), width=126).plain.splitlines()
    # 126 columns are 26 of labels, 91 of bars and 9 of durations.
    row = {line[:26].strip(): line[26:117] for line in lines[1:]}
    prefill = row["prefill"]
    assert len(prefill) - len(prefill.lstrip()) == int(91 * 0.04)
    assert len(prefill.rstrip()) == pytest.approx(91 * 0.25, abs=1)
    assert row["gateway StreamSynthesize"].index("◆") == int(91 * 0.5)
    assert set(row["gateway StreamSynthesize"]) == {"░", "◆", "█"}
    assert set(row["backbone Generate"].strip()) <= {"░", "◆", "█", "▌", "▐"}


@pytest.mark.parametrize("width", [60, 80, 81, 100])
def test_no_line_is_wider_than_the_terminal(width):
    bars = bars_of_trace(request())
    bars.append(Bar("a stage of a very long name indeed", "codec", 3, 0.9999, 1.0, 1.0, error="x" * 300))
    lines = draw(bars, width=width).plain.splitlines()
    assert all(len(line) <= width for line in lines)
    assert len(lines[1]) == width
    assert len(lines) == 1 + len(bars) + 2


def test_even_an_instant_is_seen():
    for start_s in (0.0, 0.5, 1.0):
        bars = [Bar("gateway", "gateway", 0, 0.0, 1.0), Bar("x", "codec", 1, start_s, start_s)]
        assert draw(bars).plain.splitlines()[2][26:71].strip() in ("▌", "▐")
    assert draw([Bar("gateway", "gateway", 0, 0.0, 0.0)]).plain.splitlines()[1].endswith("0.0 ms")


def test_the_summary_gives_bars_too():
    summary = speech_pb2.SpeechSummary(real_time_factor=0.5)
    summary.audio_duration.FromMilliseconds(4000)
    summary.time_to_first_audio.FromMilliseconds(300)
    timing = summary.stages.add(stage="backbone")
    timing.first_output.FromMilliseconds(200)
    timing.last_output.FromMilliseconds(1800)
    assert bars_of_summary(summary) == [
        Bar("gateway", "gateway", 0, 0.0, 2.0, 0.3),
        Bar("backbone", "backbone", 1, 0.0, 1.8, 0.2),
    ]
    assert bars_of_summary(speech_pb2.SpeechSummary())[0].first_output_s is None


@pytest.mark.parametrize(
    ("value_s", "text"),
    [
        (0.00042, "0.4 ms"),
        (0.0123, "12 ms"),
        (0.00996, "10 ms"),
        (0.9996, "1.00 s"),
        (3.419, "3.42 s"),
        (75, "75.00 s"),
    ],
)
def test_durations_read_well(value_s, text):
    assert seconds(value_s) == text


def test_a_call_without_an_id_is_one_row_and_not_below_itself():
    rows = bars_of_trace([span("gateway", "x/Call", "client", "", "", 0, 5)])
    assert [(bar.depth, bar.label) for bar in rows] == [(0, "gateway Call")]
    beside = bars_of_trace([*request(), span("gateway", "x/Call", "client", "", "", 0, 5)])
    assert [bar.label for bar in beside].count("gateway Call") == 1 and len(beside) == len(request()) - 4 + 1


class Counted(str):
    """Text that counts how often it is compared."""

    compared = 0

    def __eq__(self, other):
        Counted.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def test_linked_spans_find_their_place_without_a_search_through_all():
    steps = [span("backbone", "step", Counted("internal"), f"t{n}", "", n, n + 1, linked=True) for n in range(500)]
    Counted.compared = 0
    bars = bars_of_trace([*steps, *request()])
    assert next(bar for bar in bars if bar.label.startswith("step")).label == "step ×500"
    assert Counted.compared < 20 * len(steps)
