"""From records to what a report says: splits, percentiles, errors, tables, JSON, the picture."""

import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest

from gateway.cli.bench import report
from gateway.cli.bench.command import _Counts, _Rates
from gateway.cli.bench.fleet import Outcome
from gateway.cli.bench.listener import Listener
from gateway.cli.bench.plan import Plan
from gateway.cli.bench.plot import NoPlot, plot
from gateway.cli.bench.record import ACCOUNTING, OK, UNFINISHED, Record
from gateway.cli.bench.stats import Spread, point
from gateway.cli.bench.texts import Texts, sentences
from gateway.cli.trace.spans import Span
from models.bundle import load_bundle
from services.tokenizer.text import load_text_tokenizer


def record(status=OK, first_s=0.1, intended_s=0.0, **fields):
    stages = {"tokenizer": 0.01, "backbone": 0.04, "codec": 0.05, "watermark": 0.08}
    values = {"took_s": 1.0, "audio_s": 2.0, "bytes": 96_000, "frames": 25, "stages": stages, **fields}
    return Record(intended_s, intended_s, status, first_audio_s=first_s, server_first_audio_s=0.08, **values)


def outcome(records, **plan):
    return Outcome(Plan(**{"streams": 2, **plan}), 1, records, [0.001], wall_s=4.0)


def test_percentiles_are_values_that_were_seen():
    values = [random.Random(3).random() for _ in range(997)]
    spread = Spread.of(values)
    ordered = sorted(values)
    assert (spread.p50, spread.p95, spread.p99, spread.most) == (ordered[498], ordered[947], ordered[987], ordered[-1])
    assert Spread.of([]) is None
    one = Spread.of([7.0])
    assert one.p50 == one.p99 == 7.0


def test_a_point_counts_what_went_well_and_names_what_did_not():
    records = [
        record(first_s=0.1),
        record(first_s=0.3, underruns=2, underrun_s=0.5, gaps_s=[0.2, 0.4]),
        record("UNAVAILABLE", None, problem="gone", audio_s=0.0, bytes=0, took_s=0.5),
        record("UNAVAILABLE", None, problem="gone again", audio_s=0.0, bytes=0, took_s=0.5),
        record(ACCOUNTING, problem="1 frame is missing"),
        record(UNFINISHED, None, audio_s=0.4, bytes=9_600, underruns=1),
    ]
    found = point(outcome(records))
    assert (found.requests, found.ok, found.unfinished, found.unfinished_underrun, found.miscounted) == (6, 2, 1, 1, 1)
    assert "1 cut off by the end, 1 of them after a buffer underrun." in report.markdown([Plan(streams=2)], [found], {})
    assert found.errors == {"UNAVAILABLE": 2, ACCOUNTING: 1}
    assert found.examples["UNAVAILABLE"] == "gone"
    assert (found.first_audio_s.p50, found.first_audio_s.p95) == (0.1, 0.3)
    assert (found.underrun_streams, found.underruns, found.underrun_s, found.gap_s.count) == (1, 2, 0.5, 2)
    assert found.real_time_factor.p50 == 0.5
    assert found.real_time_streams == pytest.approx((2 + 2 + 2 + 0.4) / 4)
    assert found.mean_in_flight == pytest.approx((1 + 1 + 0.5 + 0.5 + 1 + 1) / 4)
    assert {part: spread.p50 for part, spread in found.stage_s.items()} == pytest.approx(
        {"tokenizer": 0.01, "backbone": 0.03, "codec": 0.01, "watermark": 0.03, "way to the caller": 0.02}
    )


def test_full_load_counts_neither_the_coming_nor_the_going_of_callers():
    records = [
        record(full_load_audio_s=10.0),
        record(full_load_audio_s=2.5),
        record("UNAVAILABLE", None, problem="gone", audio_s=0.0, bytes=0, took_s=0.5),
    ]
    assert point(outcome(records, ramp_up_s=2.0, duration_s=7.0)).full_load_streams == pytest.approx(2.5)
    assert point(outcome(records, ramp_up_s=8.0, duration_s=8.0)).full_load_streams is None
    assert point(outcome(records, ramp_up_s=2.0, duration_s=7.0, listens=True)).full_load_streams is None
    assert point(outcome([], ramp_up_s=2.0, duration_s=7.0)).full_load_streams == 0.0
    stopped = outcome(records, ramp_up_s=2.0, duration_s=7.0)
    stopped.is_complete = False  # after 4 s
    assert point(stopped).full_load_streams == pytest.approx(6.25)
    stopped.wall_s = 1.5
    assert point(stopped).full_load_streams is None


def test_a_listener_counts_what_comes_in_a_span_of_time():
    listener = Listener(0.2, (2.0, 7.0))
    for now_s in (1.9, 2.0, 4.0, 6.9, 7.0):
        listener.hear(now_s, 1.5)
    assert (listener.heard_s, listener.counted_s) == (7.5, 4.5)
    kept = record()
    kept.note(listener, 8.0)
    assert kept.full_load_audio_s == 4.5
    assert Listener(0.2).counted_s == 0.0
    assert Plan(streams=3, ramp_up_s=2.0, duration_s=7.0).full_load_s == (2.0, 7.0)


def test_the_warm_up_counts_in_errors_and_in_no_latency():
    records = [record(first_s=9.0, intended_s=0.5, underruns=1), record(first_s=0.1, intended_s=1.5)]
    found = point(outcome(records, warmup_s=1.0))
    assert (found.ok, found.measured, found.first_audio_s.most, found.underrun_streams) == (2, 1, 0.1, 0)


def test_traces_say_how_long_each_stage_worked():
    def span(service, name, kind, span_id, parent, start, end):
        return Span(service, name, kind, span_id, parent, int(start * 1e9), int(end * 1e9))

    spans = [
        span("gateway", "csm.speech.v1.SpeechService/StreamSynthesize", "server", "a", "", 0, 2),
        span("gateway", "csm.backbone.v1.BackboneService/Generate", "client", "b", "a", 0.1, 1.9),
        span("backbone", "csm.backbone.v1.BackboneService/Generate", "server", "c", "b", 0.2, 1.8),
        span("backbone", "prefill", "internal", "d", "c", 0.2, 0.5),
    ]
    found = point(outcome([record()]), [spans])
    assert found.traces == 1
    lengths = {name: spread.p50 for name, spread in found.trace_s.items()}
    (prefill,) = (length for name, length in lengths.items() if "prefill" in name)
    (generate,) = (length for name, length in lengths.items() if "Generate" in name)
    assert (prefill, generate) == pytest.approx((0.3, 1.6))


@pytest.mark.parametrize(("streams", "processes"), [(1, 1), (1, 4), (7, 3), (1000, 8)])
def test_streams_are_split_without_loss(streams, processes):
    parts = Plan(streams=streams).shares(processes)
    assert sum(part.streams for part in parts) == streams
    assert max(part.streams for part in parts) - min(part.streams for part in parts) <= 1
    assert len({part.seed for part in parts}) == len(parts) == min(streams, processes)


def test_rates_are_split_and_seeds_differ():
    parts = Plan(rate_hz=3.0).shares(4)
    assert sum(part.rate_hz for part in parts) == pytest.approx(3.0)
    assert len({part.seed for part in parts}) == 4


def test_lengths_are_those_of_prose():
    lengths = np.array([len(text) for text in sentences()])
    assert len(lengths) == 400 and lengths.min() >= 6 and lengths.max() <= 400
    assert all(text.isascii() and text == text.strip() for text in sentences())
    assert np.percentile(lengths, 95) > 4 * np.percentile(lengths, 25)
    drawn, again = Texts(5, sentences()), Texts(5, sentences())
    assert [drawn.next() for _ in range(20)] == [again.next() for _ in range(20)]


@pytest.mark.parametrize(
    "plan", [Plan(streams=1), Plan(streams=1, audio_s=20.0), Plan(streams=1, speaker=12345)], ids=repr
)
def test_sentences_that_may_not_fit_are_left_out(plan):
    bundle = load_bundle("embedded")
    # Any speaker: the length of its number counts.
    tokenizer, most = (
        load_text_tokenizer(replace(bundle, voices=()), max_chars=4096),
        bundle.generator.backbone.max_seq_len,
    )
    fitting = replace(plan, max_seq_len=most, frame_rate_hz=bundle.frame_rate_hz).texts
    assert plan.texts == sentences() and 300 < len(fitting) < 400
    rows = {
        text: len(tokenizer.encode(plan.speaker, text).ids) + math.ceil(plan.max_audio_ms(text) / 80)
        for text in sentences()
    }
    assert all((rows[text] <= most) == (text in fitting) for text in sentences())  # a byte is a token in this bundle


def test_audio_is_limited_by_the_text_or_by_a_length():
    assert Plan(streams=1, ms_per_character=80).max_audio_ms("x" * 100) == 8000
    assert Plan(streams=1, audio_s=20.0).max_audio_ms("x") == 20_000
    assert Plan(streams=1, ms_per_character=1).max_audio_ms("x") == 80  # one frame


def test_the_report_shows_every_number_and_what_failed():
    plans = [Plan(streams=2), Plan(streams=8)]
    bad = [record(), record(ACCOUNTING, problem="3 frames | are 11520 bytes,\n7 came")]
    points = [point(outcome([record(first_s=0.123)])), point(Outcome(plans[1], 2, bad, [0.9], 1.0, is_complete=False))]
    text = report.markdown(plans, points, {"address": "here:1", "bundle": "noise"})
    rows = [line for line in text.splitlines() if line.startswith("| 2") or line.startswith("| 8")]
    assert "123.0" in rows[0] and "all right" in rows[0] and "0 of 1" in rows[0]
    assert "stopped early" in rows[1] and "1 wrong" in rows[1]
    assert "3 frames / are 11520 bytes, 7 came" in text
    assert "came late" in text  # 900 ms of delay in the tool's own loop
    columns = {line.count("|") for line in text.splitlines()[5:9]}
    assert len(columns) == 1
    both = json.loads(report.to_json(plans, points, {"address": "here:1"}))
    assert both["points"][0]["first_audio_s"]["p50"] == 0.123
    assert both["points"][1]["errors"] == {ACCOUNTING: 1} and both["points"][1]["plan"]["streams"] == 8


def test_a_point_in_which_nothing_happened_can_be_shown():
    plan = Plan(rate_hz=1.0)
    text = report.markdown([plan], [point(Outcome(plan, 1))], {})
    assert "| 1/s" in text


def test_the_picture_is_a_png(tmp_path):
    pytest.importorskip("matplotlib")
    points = [point(outcome([record()], streams=n)) for n in (1, 16, 64)]
    plot(points, tmp_path / "bench.png", is_rate=False, buffer_s=0.2)
    assert (tmp_path / "bench.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_without_matplotlib_one_line_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(NoPlot, match=r"csm-serve\[bench\]"):
        plot([point(outcome([record()]))], tmp_path / "x.png", is_rate=False, buffer_s=0.2)


@pytest.mark.parametrize("value", ["", "0", "1,,2", "x", "1.5", "1000000"])
def test_wrong_numbers_of_streams_are_refused(value):
    with pytest.raises(Exception, match="whole numbers"):
        _Counts()(value)
    assert _Counts()("1,16,64") == [1, 16, 64]


@pytest.mark.parametrize("value", ["", "0", "nan", "-1", "inf"])
def test_wrong_rates_are_refused(value):
    with pytest.raises(Exception, match="numbers"):
        _Rates()(value)
    assert _Rates()("0.5,2") == [0.5, 2.0]
