"""What a request's span tells of its audio: every chunk, or a bounded choice of them, and the listener's gaps."""

from itertools import pairwise

import pytest
from csm.speech.v1 import speech_pb2
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gateway.timeline import MAX_AUDIO_EVENTS, Timeline


def span_of(monkeypatch, chunks, *options, waits=(), **named):
    """The span of a request whose audio came as `chunks`: (seconds since its start, seconds of audio)."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with provider.get_tracer("t").start_as_current_span("request"):
        made = Timeline(*options, **named)
        waits = dict(waits)
        made.output("tokenizer")
        for at_s, length_s in chunks:
            monkeypatch.setattr(made, "now", lambda at_s=at_s: at_s)
            made.audio(length_s)
            made.waited(waits.get(at_s, 0.0))
        made.close()
    (span,) = exporter.get_finished_spans()
    return span


def numbers(span):
    return [
        tuple(event.attributes[f"csm.{name}_ms"] for name in ("position", "duration", "lead"))
        for event in span.events
        if event.name == "audio"
    ]


def test_each_chunk_is_told_with_what_its_listener_had_left(monkeypatch):
    span = span_of(monkeypatch, [(1.0, 0.5), (1.2, 0.25), (2.0, 0.5), (2.1, 0.5)])
    # 0.75 s of audio from 1.0 s on: it ends at 1.75 s, so the third chunk is 0.25 s late and play goes on at 2.0 s.
    assert numbers(span) == [(0, 500, 0), (500, 250, 300), (750, 500, -250), (1250, 500, 400)]
    wanted = {"csm.audio_ms": 1750, "csm.chunks": 4, "csm.underruns": 1, "csm.time_to_first_audio_ms": 1000,
              "csm.buffer_needed_ms": 250}  # fmt: skip
    assert dict(span.attributes) == wanted
    assert [event.name for event in span.events] == ["first_output", *["audio"] * 4]


def test_a_listener_buffers_before_playing_and_again_after_an_underrun(monkeypatch):
    span = span_of(monkeypatch, [(1.0, 0.5), (1.6, 0.5), (2.4, 0.5), (3.0, 0.5)], 0.2)
    # Play begins at 1.2 s, ends at 2.2 s and goes on at 2.6 s: the last chunk, needed at 3.1 s, is in time.
    assert numbers(span) == [(0, 500, 200), (500, 500, 100), (1000, 500, -200), (1500, 500, 100)]
    assert span.attributes["csm.underruns"] == 1


def test_time_for_which_the_server_waited_is_no_underrun(monkeypatch):
    span = span_of(monkeypatch, [(1.0, 0.5), (26.2, 0.5)], waits={1.0: 25.0})
    assert numbers(span) == [(0, 500, 0), (500, 500, 300)]


@pytest.mark.parametrize(
    ("chunks", "waits", "needed_s"),
    [
        ([(1.0, 0.5), (1.2, 0.5)], {}, 0.0),
        ([(1.0, 0.5), (1.6, 0.5), (2.4, 0.5), (2.5, 0.5)], {}, 0.4),  # the worst, measured from the first piece on
        ([(1.0, 0.5), (26.7, 0.5)], {1.0: 25.0}, 0.2),  # 25 s of it the caller's
        ([(1.0, 0.5), (26.0, 0.5)], {1.0: 25.0}, 0.0),
    ],
)
def test_a_player_with_the_buffer_needed_has_no_underrun(monkeypatch, metrics, chunks, waits, needed_s):
    metrics()
    span = span_of(monkeypatch, chunks, waits=waits)
    assert span.attributes["csm.buffer_needed_ms"] == pytest.approx(needed_s * 1e3)
    measured = metrics()
    (point,) = measured["csm.stream.buffer_needed"]
    assert (point.count, point.sum) == (1, pytest.approx(needed_s))
    with_it = span_of(monkeypatch, chunks, needed_s + 1e-9, waits=waits)
    assert with_it.attributes["csm.underruns"] == 0
    if needed_s:
        assert span_of(monkeypatch, chunks, needed_s - 0.01, waits=waits).attributes["csm.underruns"] == 1


def test_a_reader_at_its_own_pace_does_not_make_speech_slow(monkeypatch, metrics):
    """The factor is of the stages' time: 0.5 s for each 1 s of audio, though its reader takes 1 s for each."""
    made, now_s = Timeline(), 0.0
    monkeypatch.setattr(made, "now", lambda: now_s)
    metrics()
    for _ in range(10):
        now_s += 0.5
        made.output("watermark")
        made.audio(1.0)
        now_s += 0.5
        made.waited(0.5)
    summary = speech_pb2.SpeechSummary()
    made.fill(summary, 10.0)
    assert summary.real_time_factor == pytest.approx(0.5)
    (point,) = metrics()["csm.request.real_time_factor"]
    assert point.sum == pytest.approx(0.5)


def test_a_unary_call_has_no_listener(monkeypatch, metrics):
    metrics()
    span = span_of(monkeypatch, [(1.0, 0.5), (9.0, 0.5)], streamed=False)
    assert not {"csm.stream.buffer_needed", "csm.stream.underruns"} & metrics().keys()
    assert dict(span.attributes) == {"csm.audio_ms": 1000}
    assert numbers(span) == []


def test_a_request_without_audio_says_so(monkeypatch):
    span = span_of(monkeypatch, [])
    assert dict(span.attributes) == {"csm.audio_ms": 0, "csm.chunks": 0, "csm.underruns": 0}
    assert numbers(span) == []


@pytest.mark.parametrize("count", [MAX_AUDIO_EVENTS, MAX_AUDIO_EVENTS + 1, 150, 1125])
@pytest.mark.parametrize("slow", [False, True])
def test_a_long_one_keeps_its_ends_and_its_worst_gaps(monkeypatch, count, slow):
    chunks = [(1.0 + number * 0.05 + (0.3 if number == 77 else 0), 0.01 if slow else 0.08) for number in range(count)]
    span = span_of(monkeypatch, chunks)
    found = numbers(span)
    assert MAX_AUDIO_EVENTS / 2 <= len(found) <= MAX_AUDIO_EVENTS
    assert span.events[0].name == "first_output" and span.dropped_events == 0
    positions = [position for position, _, _ in found]
    assert positions == sorted(set(positions))
    length_ms = chunks[0][1] * 1e3
    assert positions[0] == 0 and positions[-1] == pytest.approx((count - 1) * length_ms)
    if slow:  # otherwise no listener waited for it
        assert 77 * length_ms in [pytest.approx(position) for position in positions]
    assert span.attributes["csm.chunks"] == count
    gaps = [(b - a) / length_ms for a, b in pairwise(positions)]
    assert max(gaps) <= 2 * count / MAX_AUDIO_EVENTS * 2
