"""Sizes of a stream's chunks: by a fixed ramp, and by how far the stream is ahead of its listener."""

import pytest

from gateway.cli.bench.listener import Listener
from services.backbone.chunk_sizer import ChunkSizer

FRAME_S = 0.08


def spoken(chunks, frames, pace_s):
    """(sizes, [(when, frames sent)]) of an utterance made at `pace_s` a frame."""
    sizes, times, sent, now = [], [], 0, 100.0
    while sent < frames:
        size = min(chunks.next_size(sent, now), frames - sent)
        now += size * pace_s
        sent += size
        sizes.append(size)
        times.append((now, sent))
    return sizes, times


def test_without_a_listener_the_ramp_alone_decides():
    assert spoken(ChunkSizer((1, 1, 2, 4, 8), FRAME_S), 30, 1.0)[0] == [1, 1, 2, 4, 8, 8, 6]
    assert spoken(ChunkSizer((), FRAME_S), 12, 0.0)[0] == [1, 1, 2, 4, 4]
    assert spoken(ChunkSizer((3,), FRAME_S), 7, 0.0)[0] == [3, 3, 1]


@pytest.mark.parametrize(
    ("held_back", "first"), [(0, [1]), (1, [1, 1]), (2, [2, 1]), (4, [3, 1, 1]), (9, [5, 3, 1, 1])]
)
def test_the_first_frame_that_can_be_heard_is_the_last_of_a_chunk(held_back, first):
    sizes, _ = spoken(ChunkSizer((16,), FRAME_S, held_back), held_back + 1, 0.01)
    assert sizes == first


@pytest.mark.parametrize("pace_s", [0.008, 0.0175, 0.03, 0.06, 0.079])
@pytest.mark.parametrize("held_back", [0, 2, 4])
def test_a_stream_faster_than_speech_never_lets_its_listener_run_dry(pace_s, held_back):
    sizes, times = spoken(ChunkSizer((16,), FRAME_S, held_back), 250, pace_s)
    began = next(now for now, sent in times if sent > held_back)
    heard = 1  # frames that can be played from `began` on
    for now, sent in times:
        if sent > held_back + 1:
            assert now <= began + heard * FRAME_S + 1e-9
            heard = sent - held_back
    assert max(sizes) <= 16 and min(sizes[:-1]) == 1


@pytest.mark.parametrize("held_back", [0, 2, 4])
def test_an_opening_goes_at_once_and_the_first_frames_after_it_as_ever(held_back):
    without, _ = spoken(ChunkSizer((16,), FRAME_S, held_back), held_back + 1, 0.01)
    sizes, _ = spoken(ChunkSizer((16,), FRAME_S, held_back, 1), held_back + 1, 0.01)
    assert sizes[0] == 1 and sum(sizes) == held_back + 1 and len(sizes) <= len(without) + 1
    assert ChunkSizer((16,), FRAME_S, 4, 2).next_size(0, 0.0) == 2
    assert ChunkSizer((16,), FRAME_S, 4, 2).next_size(1, 0.0, ready=9) == 1


@pytest.mark.parametrize("pace_s", [0.008, 0.0175, 0.03])
def test_after_an_opening_a_listener_with_a_buffer_never_runs_dry(pace_s, held_back=4, buffer_s=0.2):
    _, times = spoken(ChunkSizer((16,), FRAME_S, held_back, 1), 250, pace_s)
    began, heard = times[0][0] + buffer_s, 1
    for now, sent in times[1:]:
        if sent > held_back:
            assert now <= began + heard * FRAME_S
            heard = sent - held_back


def test_far_ahead_chunks_are_large():
    sizes, _ = spoken(ChunkSizer((16,), FRAME_S, 4), 250, 0.01)
    assert sizes[:4] == [3, 1, 1, 1] and len(sizes) < 25
    assert sizes[-2] == 16 and sizes == [*sizes[:3], *sorted(sizes[3:-1]), sizes[-1]]


def test_slower_than_speech_every_frame_goes_at_once():
    sizes, _ = spoken(ChunkSizer((16,), FRAME_S, 4), 60, 0.1)
    assert sizes[1:] == [1] * (len(sizes) - 1)


def test_a_ramp_still_bounds_what_the_lead_allows():
    sizes, _ = spoken(ChunkSizer((1, 1, 2), FRAME_S, 4), 60, 0.001)
    assert sizes[:2] == [1, 1] and max(sizes) == 2


def test_a_pace_that_drops_makes_chunks_smaller_again():
    chunks = ChunkSizer((16,), FRAME_S, 0)
    sent, now = 0, 0.0
    while (size := chunks.next_size(sent, now)) < 16:
        sent, now = sent + size, now + size * 0.01
    sent, now = sent + 16, now + 16 * 0.15
    assert chunks.next_size(sent, now) < 16


def test_what_is_made_already_goes_in_one_chunk():
    chunks = ChunkSizer((1, 16), FRAME_S, 4)
    assert chunks.next_size(0, 0.0, ready=6) == 1  # the caller's own bound holds
    assert chunks.next_size(1, 5.0, ready=6) == 6
    assert chunks.next_size(7, 10.0, ready=0) == 1  # seconds behind: every frame as it comes
    assert chunks.next_size(8, 10.0, ready=3) == 3
    assert chunks.next_size(11, 10.0, ready=40) == 16


def test_without_a_listener_it_does_not_matter_what_is_made():
    chunks = ChunkSizer((1, 1, 2), FRAME_S)
    assert [chunks.next_size(sent, 0.0, ready=30) for sent in (0, 1, 2, 4)] == [1, 1, 2, 2]


@pytest.mark.parametrize("pace_s", [0.008, 0.0175, 0.03, 0.04, 0.055, 0.065, 0.075, 0.079])
@pytest.mark.parametrize("held_back", [0, 2, 4])
def test_half_of_the_listeners_buffer_makes_fewer_messages_and_two_fifths_of_it_are_used(pace_s, held_back):
    alone, _ = spoken(ChunkSizer((24,), FRAME_S, held_back), 250, pace_s)
    sizes, times = spoken(ChunkSizer((24,), FRAME_S, held_back, listener_buffer_s=0.2), 250, pace_s)
    assert len(sizes) < len(alone) and (pace_s < 0.05 or len(sizes) < 0.95 * len(alone))
    assert pace_s < 0.07 or len(sizes) < 0.8 * len(alone)
    began = next(now for now, sent in times if sent > held_back)
    heard = 1
    for now, sent in times:
        if sent > held_back + 1:
            assert now <= began + heard * FRAME_S + 0.08 + 1e-9  # of the 0.2 s after which playing starts
            heard = sent - held_back


@pytest.mark.parametrize(("buffer_s", "pace_s", "frames"), [(0.2, 0.1, 4), (0.2, 0.2, 1), (0.1, 0.1, 1), (0.0, 0.1, 1)])
def test_a_little_slower_than_speech_a_buffered_listener_gets_four_frames_at_a_time(buffer_s, pace_s, frames):
    sizes, _ = spoken(ChunkSizer((16,), FRAME_S, 4, listener_buffer_s=buffer_s), 60, pace_s)
    late = [size for at, size in enumerate(sizes[:-1]) if sum(sizes[:at]) >= 5 + 14]  # the buffer is played by then
    assert late == [frames] * len(late) and len(late) > 5


@pytest.mark.parametrize(("pace_s", "frames"), [(0.0805, 50), (0.081, 60), (0.082, 40)])
def test_a_stream_that_its_listeners_buffer_makes_up_for_has_no_underrun(pace_s, frames):
    _, times = spoken(ChunkSizer((24,), FRAME_S, 5, listener_buffer_s=0.2), frames, pace_s)
    listener, heard = Listener(0.2), 0
    for now, sent in times:
        if sent > 5:
            listener.hear(now, (sent - 5 - heard) * FRAME_S)
            heard = sent - 5
    assert heard > 30 and listener.underruns == 0


def test_a_stream_that_makes_up_for_a_slow_beginning_is_no_slow_one():
    chunks = ChunkSizer((24,), FRAME_S, 0, listener_buffer_s=0.2)
    sent, now, sizes = 0, 0.0, []
    for _ in range(60):
        size = chunks.next_size(sent, now)
        now += size * (0.12 if sent < 40 else 0.04)
        sent += size
        sizes.append(size)
    slow = sizes.index(4)
    assert sizes[slow : slow + 5] == [4] * 5 and max(sizes) > 8


def test_the_wait_for_the_prompt_makes_no_slow_stream():
    """The first frame comes two steps late; then a frame comes in 75 ms."""
    chunks = ChunkSizer((24,), FRAME_S, 4, listener_buffer_s=0.2)
    sent, now, sizes = 0, 0.0, []
    while sent < 60:
        size = chunks.next_size(sent, now)
        now = 0.15 + (sent + size) * 0.075
        sent += size
        sizes.append(size)
    assert max(sizes[2:12]) <= 2


def test_messages_of_a_stream_near_real_time():
    def messages(pace_s):
        return len(spoken(ChunkSizer((24,), FRAME_S, 5, listener_buffer_s=0.2), 250, pace_s)[0])

    # With half of the buffer: 20, 24, 36, 81 and 194, and 247 beyond real time.
    assert messages(0.045) <= 21 and messages(0.055) <= 23 and messages(0.065) <= 31
    assert messages(0.075) <= 67 and messages(0.079) <= 125 and messages(0.081) <= 120
    assert messages(0.09) <= 76
