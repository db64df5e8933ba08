"""bench_shared.py: what a variant sets, and at what pace codec and watermark work; no GPU and no process."""

import os

import pytest
import shared_stages
from bench_shared import Variant, read_pace
from shared_stages import FOLLOW, Made, Passes, Request

PRIORITY, PERCENTAGE = "CUDA_MPS_CLIENT_PRIORITY", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"


class Clock:
    """In place of `time`: goes on by what is slept and by each pass."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(shared_stages, "time", clock)
    return clock


@pytest.fixture
def made(tmp_path):
    (tmp_path / "made").write_bytes(bytes(8))
    return Made(tmp_path / "made")


def passes(clock, made, took_s=0.01, makes_s=2.0, meanwhile=lambda: None):
    """Passes of `makes_s` seconds of audio that take `took_s` each."""

    def step():
        clock.now += took_s
        meanwhile()
        return makes_s

    return Passes(step, made)


def test_a_variant_is_for_codec_and_watermark_or_for_one_stage():
    assert Variant.read("plain").env == {"backbone": {}, "codec": {}, "watermark": {}}
    env = Variant.read("priority=1,codec.percentage=25,backbone.stream=-5").env
    assert env == {
        "backbone": {"STREAM_PRIORITY": "-5"}, "codec": {PRIORITY: "1", PERCENTAGE: "25"}, "watermark": {PRIORITY: "1"},
    }  # fmt: skip


def test_a_variant_may_have_another_checkouts_code(tmp_path):
    env = Variant.read(f"backbone.code={tmp_path}").env
    assert env["backbone"]["PYTHONPATH"].split(os.pathsep)[:2] == [f"{tmp_path}", f"{tmp_path}/protos"]
    assert not env["codec"]


@pytest.mark.parametrize("text", ["", "priority", "nice=1", "gateway.priority=1", "priority=1,"])
def test_what_is_no_variant_is_refused(text):
    with pytest.raises(ValueError, match=r"must be \[STAGE\.\]NAME=VALUE"):
        Variant.read(text)


def test_a_pace_is_a_number_flat_or_what_frames_make():
    assert [read_pace(text) for text in ("1600", "flat", "follow")] == [1600.0, None, FOLLOW]
    with pytest.raises(ValueError):
        read_pace("fast")


def test_passes_keep_to_their_share_of_the_pace(clock, made):
    answer = passes(clock, made).answer(Request(101.0, 111.0, pace=40.0, share=0.5))
    assert answer.audio_s == pytest.approx(200.0, abs=2.0)
    assert answer.times_ms == pytest.approx([10.0] * len(answer.times_ms))


def test_flat_out_they_do_not_wait(clock, made):
    answer = passes(clock, made).answer(Request(101.0, 102.0))
    assert answer.audio_s == pytest.approx(2.0 / 0.01, abs=2.0)


def test_they_follow_what_frames_make_from_then_on(clock, made):
    made.audio_s = 1000.0
    work = passes(clock, made)
    assert work.answer(Request(101.0, 102.0, pace=FOLLOW)).audio_s == 0.0

    def frame():
        made.audio_s += 0.5

    followed = passes(clock, made, meanwhile=frame)
    assert followed.answer(Request(103.0, 104.0, pace=FOLLOW)).audio_s == 0.0  # no frame, no pass
    clock.sleep = lambda seconds: (setattr(clock, "now", clock.now + seconds), frame())
    before_s = made.audio_s
    answer = followed.answer(Request(105.0, 106.0, pace=FOLLOW, share=0.5))
    assert answer.audio_s == pytest.approx((made.audio_s - before_s) / 2, abs=2.0)
    assert answer.audio_s > 10.0
