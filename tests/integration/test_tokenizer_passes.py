"""Many callers of the tokenizer service at once: which clips share a pass, who is refused, who gives a place back."""

import asyncio
import threading

import grpc
import numpy as np
from google.rpc import error_details_pb2

from services.engine.batcher import Batcher
from services.runtime.errors import rich_details
from services.tokenizer.encoder import ClipEncoder
from support.tokenizer_calls import FLOATS, codes_of, expected, raw, segments, serve, tone


class Gate:
    """Holds passes of ClipEncoder back until it is opened; tells what waits for one and what passes there were."""

    def __init__(self, monkeypatch):
        self.open, self.entered, self.passes = threading.Event(), threading.Event(), []
        self.batcher, self.handed = None, 0  # clips
        stock, run = ClipEncoder._pass, Batcher.run

        def held(encoder, clips):
            self.passes.append([len(clip) for clip in clips])
            self.entered.set()
            assert self.open.wait(30)
            return stock(encoder, clips)

        def counted(batcher, item, cost):
            self.batcher, self.handed = batcher, self.handed + 1
            return run(batcher, item, cost)

        monkeypatch.setattr(ClipEncoder, "_pass", held)
        monkeypatch.setattr(Batcher, "run", counted)

    async def hold(self, count):
        """Wait until `count` clips have come as far as to wait for their pass."""
        async with asyncio.timeout(20):
            while self.handed < count:
                await asyncio.sleep(0.005)


async def test_clips_that_wait_share_passes_with_their_like(bundle_folder, mimi, monkeypatch, spans, metrics):
    seconds = (0.3, 0.5, 1.9, 0.6, 0.45, 2.0, 0.55)
    async with serve(bundle_folder, batch=3) as tokenizer:
        gate, calls = Gate(monkeypatch), []
        for index, length in enumerate(seconds):  # one after the other, so that it is known who is the oldest
            calls.append(tokenizer.EncodeAudio(raw(tone(24_000, length, 200 + index), 24_000), timeout=60))
            await gate.hold(index + 1)
        gate.open.set()
        responses = await asyncio.gather(*calls)
    in_seconds = [[length / 24_000 for length in lengths] for lengths in gate.passes]
    assert in_seconds == [[0.3], [0.5, 0.55, 0.45], [1.9, 2.0], [0.6]]
    for index, (length, response) in enumerate(zip(seconds, responses, strict=True)):
        np.testing.assert_array_equal(codes_of(response), expected(mimi, tone(24_000, length, 200 + index), 24_000))
    sizes = [span.attributes["csm.batch_size"] for span in spans() if span.name.endswith("/EncodeAudio")]
    assert sorted(sizes) == [1, 1, 2, 2, 3, 3, 3]
    measured = metrics()
    for name in ("csm.stage.queue.duration", "csm.stage.chunk.duration"):
        (point,) = [point for point in measured[name] if point.attributes["rpc.method"].endswith("/EncodeAudio")]
        assert point.count == len(seconds)


async def test_a_pass_is_no_longer_than_set(bundle_folder, monkeypatch):
    async with serve(bundle_folder, batch=8, batch_audio_s=1.0) as tokenizer:
        gate, calls = Gate(monkeypatch), []
        for index, length in enumerate((0.3, 0.5, 0.5, 0.5, 0.6, 1.2)):
            calls.append(tokenizer.EncodeAudio(raw(tone(24_000, length, 200 + index), 24_000), timeout=60))
            await gate.hold(index + 1)
        gate.open.set()
        assert all(response.frames for response in await asyncio.gather(*calls))
    assert [len(lengths) for lengths in gate.passes] == [1, 2, 1, 1, 1]


async def test_a_clip_whose_caller_left_is_passed_over_and_its_neighbours_are_not(bundle_folder, mimi, monkeypatch):
    async with serve(bundle_folder, batch=8) as tokenizer:
        gate, calls = Gate(monkeypatch), []
        for index in range(4):
            calls.append(tokenizer.EncodeAudio(raw(tone(24_000, 0.4, 300 + index), 24_000), timeout=60))
            await gate.hold(index + 1)
        calls[1].cancel()
        async with asyncio.timeout(20):
            while len(gate.batcher._pending) > 2:
                await asyncio.sleep(0.005)
        gate.open.set()
        responses = await asyncio.gather(calls[0], *calls[2:])
    assert [len(lengths) for lengths in gate.passes] == [1, 2]
    for hz, response in zip((300, 302, 303), responses, strict=True):
        np.testing.assert_array_equal(codes_of(response), expected(mimi, tone(24_000, 0.4, hz), 24_000))


async def test_too_many_encodings_are_refused_with_a_time_to_retry(bundle_folder, monkeypatch):
    async with serve(bundle_folder, max_encodings=2) as tokenizer:
        gate = Gate(monkeypatch)
        running = [tokenizer.EncodeAudio(raw(tone(24_000, hz=200 + i), 24_000), timeout=30) for i in range(2)]
        try:
            assert await asyncio.to_thread(gate.entered.wait, 30)
            refused = None
            while refused is None:  # the second may not have arrived yet; then this one takes its place
                probe = tokenizer.EncodeAudio(raw(tone(24_000, hz=999), 24_000), timeout=1)
                try:
                    await probe
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                        refused = error
            assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            (retry,) = [d for d in rich_details(refused) if isinstance(d, error_details_pb2.RetryInfo)]
            assert retry.retry_delay.ToNanoseconds() > 0
            # Text is served all the while.
            assert (await tokenizer.Tokenize(segments((0, "hi")), timeout=10)).segments
        finally:
            gate.open.set()
        for call in running:
            assert (await call).frames


async def test_a_cancelled_caller_gives_its_place_back(bundle_folder, monkeypatch):
    async with serve(bundle_folder, max_encodings=1) as tokenizer:
        gate = Gate(monkeypatch)
        call = tokenizer.EncodeAudio(raw(tone(24_000, hz=250), 24_000), timeout=30)
        try:
            await asyncio.gather(asyncio.to_thread(gate.entered.wait, 30), asyncio.sleep(0))
            call.cancel()
            # The thread is still held, the place is free: a next caller is let in and waits.
            async with asyncio.timeout(20):
                while True:
                    try:
                        await tokenizer.EncodeAudio(raw(FLOATS, 24_000), timeout=0.2)
                    except grpc.aio.AioRpcError as error:
                        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                            break
        finally:
            gate.open.set()
        async with asyncio.timeout(20):
            while True:
                try:
                    assert (await tokenizer.EncodeAudio(raw(FLOATS, 24_000), timeout=10)).frames
                    break
                except grpc.aio.AioRpcError as error:
                    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
