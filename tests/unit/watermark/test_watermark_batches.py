import asyncio
import threading

import numpy as np
import pytest
from watermark_pair import speech_like

from services.watermark.batches import Batches
from services.watermark.embedder import Embedder
from services.watermark.key import PUBLIC_KEY
from services.watermark.level import RunningLevel
from services.watermark.pool import Pool


@pytest.fixture
def pool():
    pool = Pool("test", 1)
    yield pool
    pool.close()


class Gate:
    """Work that waits for its release, so that pieces gather behind it."""

    def __init__(self):
        self.began, self.release, self.batches = threading.Event(), threading.Event(), []

    def __call__(self, pieces):
        self.batches.append(list(pieces))
        self.began.set()
        assert self.release.wait(10)
        return [ValueError(piece) if piece < 0 else 10 * piece for piece in pieces]


async def gathered(batches, gate, pieces):
    """Tasks of `pieces`, the first of which is being worked on and the rest waiting."""
    tasks = [asyncio.create_task(batches.run(pieces[0], 1))]
    assert await asyncio.to_thread(gate.began.wait, 10)
    tasks += [asyncio.create_task(batches.run(piece, piece)) for piece in pieces[1:]]
    await asyncio.sleep(0)  # each task is in the queue now
    return tasks


async def test_pieces_that_wait_are_worked_on_together_oldest_first(pool):
    gate = Gate()
    tasks = await gathered(Batches(gate, pool, 3), gate, [1, 2, 3, 4, 5])
    gate.release.set()
    done = await asyncio.gather(*tasks)
    assert gate.batches == [[1], [2, 3, 4], [5]]
    assert [each.result for each in done] == [10, 20, 30, 40, 50]
    # A pass is shared out by load.
    assert done[2].share_s == pytest.approx(done[2].seconds * 3 / 9)
    assert sum(each.share_s for each in done[1:4]) == pytest.approx(done[1].seconds)


async def test_a_piece_that_fails_fails_alone(pool):
    gate = Gate()
    tasks = await gathered(Batches(gate, pool, 3), gate, [1, 2, -3, 4])
    gate.release.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results.pop(2), ValueError)
    assert [each.result for each in results] == [10, 20, 40]


async def test_work_that_breaks_off_fails_all_its_pieces(pool):
    def work(pieces):
        raise RuntimeError("no device")

    with pytest.raises(RuntimeError, match="no device"):
        await Batches(work, pool, 2).run(1, 1)


async def test_who_left_is_passed_over_and_nobody_else_is(pool):
    gate = Gate()
    tasks = await gathered(Batches(gate, pool, 1), gate, [1, 2, 3, 4])
    tasks[1].cancel()
    await asyncio.gather(tasks[1], return_exceptions=True)
    gate.release.set()
    assert [each.result for each in await asyncio.gather(tasks[0], *tasks[2:])] == [10, 30, 40]
    assert gate.batches == [[1], [3], [4]]


@pytest.mark.parametrize("fill", [False, True])
def test_streams_marked_together_are_marked_as_each_alone(untrained, fill):
    embedder = Embedder(untrained, PUBLIC_KEY, level=RunningLevel(), fill=fill)
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
        assert np.abs(np.concatenate(parts) - Embedder(untrained, PUBLIC_KEY, level=RunningLevel()).embed(clip)).max() < 1e-6
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
