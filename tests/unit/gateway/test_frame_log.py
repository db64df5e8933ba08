from csm.common.v1 import common_pb2

from gateway.chain.frame_log import FrameLog


def frame(n):
    return common_pb2.Frame(codes=[n, 2050, n + 1])


def test_frames_come_back_as_they_were_fed():
    log = FrameLog()
    assert len(log) == 0 and log.frames() == [] and list(log.chunks(4)) == []
    log.extend([frame(0), frame(1)])
    log.extend(frame(n) for n in range(2, 10))
    assert len(log) == 10 and log.frames() == [frame(n) for n in range(10)]
    assert log.frames(3, 5) == [frame(3), frame(4)] and log.frames(8, 99) == [frame(8), frame(9)]


def test_chunks_are_no_larger_than_a_message_may_be():
    log = FrameLog()
    log.extend(frame(n) for n in range(10))
    chunks = list(log.chunks(4))
    assert [len(chunk) for chunk in chunks] == [4, 4, 2]
    assert [one for chunk in chunks for one in chunk] == log.frames()
