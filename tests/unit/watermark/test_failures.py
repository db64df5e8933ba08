"""EmbedPass that fail, streams that are dropped after an error, and callers who bring a sample at a time."""

import gc

import numpy as np
import pytest

from services.watermark.embed_pass import EmbedPass
from services.watermark.embedder import Embedder
from services.watermark.key import PUBLIC_KEY
from services.watermark.level import RunningLevel
from support.watermark_pair import speech_like

FRAME = 1920


@pytest.mark.parametrize("pad", [False, True])
def test_streams_of_a_failed_pass_are_over_and_the_others_go_on(untrained, pad, monkeypatch):
    """What they brought to it is lost: going on, they would give audio with a gap, and a mark that fits neither side."""
    embedder = Embedder(untrained, PUBLIC_KEY, level=RunningLevel(), slots=3, pad=pad)
    clip = speech_like(0.4)
    first, second, other = (embedder.open() for _ in range(3))
    heard = [other.push(clip[:FRAME])]
    embedder.advance([(first, clip[:FRAME]), (second, clip[:FRAME])])
    with monkeypatch.context() as broken:

        def fail(self, *arguments, **named):
            raise RuntimeError("no memory")

        broken.setattr(EmbedPass, "run", fail)
        with pytest.raises(RuntimeError, match="no memory"):
            embedder.advance([(first, clip[FRAME:]), (second, clip[FRAME:])])
    assert embedder.state.free == 2
    for stream in (first, second):
        with pytest.raises(ValueError, match="closed"):
            stream.push(clip[FRAME:])
        with pytest.raises(ValueError, match="closed"):
            stream.finish()
    heard += [other.push(clip[FRAME:]), other.finish()]
    alone = Embedder(untrained, PUBLIC_KEY, level=RunningLevel()).embed(clip)
    assert np.abs(np.concatenate(heard) - alone).max() < 1e-6
    again = embedder.open()
    assert np.abs(np.concatenate([again.push(clip), again.finish()]) - alone).max() < 1e-6
    assert embedder.state.reallocations == 0


def test_where_there_is_no_memory_for_more_slots_none_is_lost(untrained, monkeypatch):
    embedder = Embedder(untrained, PUBLIC_KEY, slots=2)
    clip = speech_like(0.1)
    streams = [embedder.open() for _ in range(3)]
    for stream in streams[:2]:
        stream.push(clip)

    def fail():
        raise MemoryError("no room")

    monkeypatch.setattr(embedder.state, "_grow", fail)
    with pytest.raises(MemoryError):
        embedder.advance([(streams[0], clip), (streams[2], clip)])
    streams[1].close()
    for stream in streams:
        stream.close()
    assert embedder.state.free == 2


def test_a_stream_dropped_after_an_error_frees_its_slot_at_once(untrained):
    """The error held its traceback, that the pieces of its pass, and those the streams: until Python looked for circles."""
    embedder = Embedder(untrained, PUBLIC_KEY, slots=2)
    clip, wrong = speech_like(0.1), np.full(9, np.nan, np.float32)
    gc.disable()
    try:
        for _ in range(4):
            streams = [embedder.open(), embedder.open()]
            embedder.advance([(stream, clip) for stream in streams])
            results = embedder.advance([(streams[0], wrong), (streams[1], clip)])
            assert isinstance(results[0], ValueError)
            del streams, results
            assert embedder.state.free == 2
    finally:
        gc.enable()
    assert embedder.state.reallocations == 0


def test_what_waits_lies_in_one_piece_however_small_those_that_came(untrained):
    """Else each push would copy all that came before it, one by one."""
    embedder = Embedder(untrained, PUBLIC_KEY, level=RunningLevel())
    clip, stream = speech_like(0.05), embedder.open()
    heard = []
    for start in range(len(clip)):
        heard.append(stream.push(clip[start : start + 1]))
        assert len(stream._samples) <= 1
    heard.append(stream.finish())
    alone = Embedder(untrained, PUBLIC_KEY, level=RunningLevel()).embed(clip)
    assert np.abs(np.concatenate(heard) - alone).max() < 1e-6
