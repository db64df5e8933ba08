import numpy as np
import pytest

from services.watermark.embedder import Embedder
from services.watermark.key import PUBLIC_KEY
from services.watermark.level import RunningLevel
from support.watermark_pair import speech_like


@pytest.mark.parametrize("pad", [False, True])
def test_streams_marked_together_are_marked_as_each_alone(untrained, pad):
    embedder = Embedder(untrained, PUBLIC_KEY, level=RunningLevel(), pad=pad)
    clips = [speech_like(seconds, seed=seed) for seed, seconds in enumerate((0.9, 0.9, 0.5, 0.013, 0.9))]
    streams = [embedder.open() for _ in clips]
    sizes = (1920, 1920, 1920, 1920, 777)  # alike and not
    marked = [[] for _ in clips]
    sent, live = [0] * len(clips), set(range(len(clips)))
    while live:
        pieces = []
        for index in sorted(live):
            piece = clips[index][sent[index] : sent[index] + sizes[index]]
            sent[index] += len(piece)
            pieces.append((index, piece if len(piece) else None))
        results = embedder.advance([(streams[index], piece) for index, piece in pieces])
        for (index, piece), result in zip(pieces, results, strict=True):
            marked[index].append(result)
            if piece is None:
                live.remove(index)
    for clip, parts in zip(clips, marked, strict=True):
        assert (
            np.abs(np.concatenate(parts) - Embedder(untrained, PUBLIC_KEY, level=RunningLevel()).embed(clip)).max()
            < 1e-6
        )
    assert np.abs(np.concatenate(marked[0]) - clips[0]).max() > 1e-3  # there is a mark at all


def test_a_stream_that_fails_leaves_the_others_of_its_pass_alone(untrained):
    embedder = Embedder(untrained, PUBLIC_KEY)
    clip = speech_like(0.3)
    over, broken, good = (embedder.open() for _ in range(3))
    over.finish()
    results = embedder.advance([(over, clip), (broken, np.full(9, np.nan, np.float32)), (good, clip)])
    assert "finished" in str(results[0]) and "finite" in str(results[1])
    assert np.abs(np.concatenate([results[2], good.finish()]) - embedder.embed(clip)).max() < 1e-6


def test_slots_are_used_again_and_grow_while_streams_go_on(untrained):
    embedder = Embedder(untrained, PUBLIC_KEY, level=RunningLevel())  # room for one
    clips = [speech_like(0.4, seed=seed) for seed in range(3)]
    alone = [embedder.embed(clip) for clip in clips]  # one after the other, in the same slot
    streams, marked = [], [[], [], []]
    for index, clip in enumerate(clips):
        streams.append(embedder.open())
        marked[index].append(streams[index].push(clip[:4000]))
    assert len({stream.slot for stream in streams}) == 3
    rest = embedder.advance([(stream, clip[4000:]) for stream, clip in zip(streams, clips, strict=True)])
    for index, stream in enumerate(streams):
        got = np.concatenate([*marked[index], rest[index], stream.finish()])
        assert np.abs(got - alone[index]).max() < 1e-6
    slots = {stream.slot for stream in streams}
    stream = streams = None
    again = embedder.open()
    again.push(clips[0])
    assert again.slot in slots
