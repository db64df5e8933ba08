import pytest
from csm.common.v1 import common_pb2

from gateway.chain.frame_log import FrameLog


def frame(n):
    return common_pb2.Frame(codes=[n, 2050, n + 1])


def test_frames_come_back_as_they_were_fed():
    log = FrameLog()
    assert len(log) == 0 and log.frames() == [] and list(log.chunks(0, 4)) == []
    log.extend([frame(0), frame(1)])
    log.extend(frame(n) for n in range(2, 10))
    assert len(log) == 10 and log.frames() == [frame(n) for n in range(10)]
    assert log.frames(3, 5) == [frame(3), frame(4)] and log.frames(8, 99) == [frame(8), frame(9)]


def test_chunks_are_no_larger_than_a_message_may_be():
    log = FrameLog()
    log.extend(frame(n) for n in range(10))
    chunks = list(log.chunks(0, 4))
    assert [len(chunk) for chunk in chunks] == [4, 4, 2]
    assert [one for chunk in chunks for one in chunk] == log.frames()


def test_forgotten_frames_take_no_memory_and_change_no_number():
    log = FrameLog()
    log.extend(frame(n) for n in range(400))
    log.forget(200)
    assert log.first == 0  # too few to be worth it
    log.forget(300)
    assert (log.first, len(log)) == (300, 400)
    assert log.frames(300, 302) == [frame(300), frame(301)]
    assert [len(chunk) for chunk in log.chunks(390, 8)] == [8, 2]
    with pytest.raises(ValueError, match="before 300 are forgotten"):
        log.frames(299)
    log.forget(900)
    assert log.first == 300
    log.extend(frame(n) for n in range(400, 700))
    log.forget(700)
    assert (log.first, len(log), log.frames(700)) == (700, 700, [])


def test_stored_frames_are_a_sequence_of_messages():
    log = FrameLog()
    log.extend(frame(n) for n in range(10))
    stored = log.stored(8)
    log.extend([frame(10)])
    assert len(stored) == 8 and list(stored) == [frame(n) for n in range(8)]
    assert stored[3] == frame(3) and stored[-1] == frame(7)
    assert list(stored[2:4]) == [frame(2), frame(3)] and len(stored[:0]) == 0
    assert list(log.stored(99)) == log.frames()
    with pytest.raises(IndexError):
        stored[8]
