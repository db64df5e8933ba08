"""A stage dies, freezes or loses its path in the middle of an utterance: another replica goes on, sample for sample.

Fake stages on real servers: frame i sounds as the value i / 1024, so a sample that is missing, doubled or unmarked shows.
"""

import asyncio
import time
from contextlib import AsyncExitStack

import grpc
import numpy as np
import pytest
from csm.common.v1 import common_pb2
from csm.speech.v1 import speech_pb2
from opentelemetry.trace import SpanKind

from gateway import stage_calls
from gateway.chain import ResumeBudget, SpeechChain
from models.bundle import load_bundle
from services.runtime.server import Stage, StageServer
from services.runtime.settings import ServerSettings, read
from support.fake_stages import LOOKAHEAD, MARK, SAMPLES_PER_FRAME, StageProbe, servicers
from support.tcp_path import TcpPath

STAGES = ("backbone", "codec", "watermark")
FRAMES = 40


class Replica:
    """One server of a stage behind a path of its own."""

    def __init__(self, stage):
        self.stage, self.probe, self.path = stage, StageProbe(load_bundle("embedded")), TcpPath()
        self.probe.frames, self.probe.gate = FRAMES, None

    async def start(self, stack):
        servicer, add = servicers(self.probe)[self.stage]
        self.server = StageServer(
            Stage(f"csm.{self.stage}.v1.{self.stage.capitalize()}Service", lambda server: add(servicer, server)),
            read(ServerSettings, environ={}, listen="127.0.0.1:0"),
        )
        await self.path.start(await self.server.start())
        stack.push_async_callback(self.server.stop, 0)
        stack.push_async_callback(self.path.stop)

    @property
    def active(self) -> int:
        return self.probe.active[self.stage]


@pytest.fixture
async def open_pair(open_chain, probe):
    """Call it with stages: a chain with two replicas of each; the rest is as ever. Gives the chain and the pairs."""
    async with AsyncExitStack() as stack:

        async def start(*stages, replicas=2, **settings):
            probe.frames = FRAMES
            pairs = {stage: tuple(Replica(stage) for _ in range(replicas)) for stage in stages}
            for pair in pairs.values():
                for replica in pair:
                    await replica.start(stack)
            targets = {stage: "ipv4:" + ",".join(one.path.address for one in pair) for stage, pair in pairs.items()}
            return await open_chain(**targets, **settings), pairs

        yield start


class Listener:
    """Reads one utterance and remembers what came."""

    def __init__(self, chain, timeout=30):
        output = speech_pb2.OutputOptions(encoding=common_pb2.AUDIO_ENCODING_PCM_F32LE)
        self.call = chain.speech.StreamSynthesize(
            speech_pb2.StreamSynthesizeRequest(utterance=speech_pb2.Utterance(text="hello"), output=output),
            timeout=timeout,
        )
        self.samples, self.longest_wait_s = np.zeros(0, np.float32), 0.0

    async def until(self, frames):
        """Read until so many frames of audio came, but for the look-ahead."""
        while len(self.samples) < frames * SAMPLES_PER_FRAME - LOOKAHEAD:
            await self._next()

    async def rest(self):
        while await self._next():
            pass
        return self.samples

    async def _next(self):
        began = time.monotonic()
        response = await self.call.read()
        self.longest_wait_s = max(self.longest_wait_s, time.monotonic() - began)
        if response is grpc.aio.EOF:
            return False
        self.samples = np.concatenate([self.samples, np.frombuffer(response.audio.data, "<f4")])
        return True


def whole():
    return np.repeat(np.arange(FRAMES, dtype=np.float32) / 1024, SAMPLES_PER_FRAME) + np.float32(MARK)


def hold_generation(probe, pairs, frames):
    """Let no backbone make more than `frames` frames; None for all."""
    for one in [probe, *(replica.probe for replica in pairs.get("backbone", ()))]:
        one.gate = frames
        one.touch()


async def busy_replica(pair):
    """The one of `pair` that works."""
    async with asyncio.timeout(10):
        while not any(replica.active for replica in pair):
            await asyncio.sleep(0.01)
    return next(replica for replica in pair if replica.active)


@pytest.mark.parametrize("stage", STAGES)
async def test_a_stage_that_dies_loses_no_sample(open_pair, probe, stage, metrics, spans):
    chain, pairs = await open_pair(stage)
    hold_generation(probe, pairs, 20)
    listener = Listener(chain)
    await listener.until(20)
    dying = await busy_replica(pairs[stage])
    await dying.server.stop(0)
    hold_generation(probe, pairs, None)
    np.testing.assert_array_equal(await listener.rest(), whole())
    assert not any(replica.active for replica in pairs[stage])
    counted = {tuple(point.attributes.values()): point.value for point in metrics()["csm.gateway.resumes"]}
    assert counted == {(stage, "resumed"): 1}
    (resume,) = (span for span in spans() if span.name == "csm.resume")
    (request,) = (
        span
        for span in spans()
        if span.name.endswith("SpeechService/StreamSynthesize") and span.kind is SpanKind.SERVER
    )
    assert resume.parent.span_id == request.context.span_id
    assert (resume.attributes["csm.stage"], resume.attributes["csm.outcome"]) == (stage, "resumed")
    assert dying.path.address in resume.attributes["csm.replica"]


async def test_all_three_stages_die_one_after_the_other(open_pair, probe):
    chain, pairs = await open_pair(*STAGES, resumes=3)
    listener = Listener(chain)
    for count, stage in enumerate(STAGES, 1):
        hold_generation(probe, pairs, 8 * count)
        await listener.until(8 * count)
        await (await busy_replica(pairs[stage])).server.stop(0)
    hold_generation(probe, pairs, None)
    np.testing.assert_array_equal(await listener.rest(), whole())


async def test_codec_and_watermark_die_together(open_pair, probe):
    chain, pairs = await open_pair("codec", "watermark", resumes=2)
    hold_generation(probe, pairs, 20)
    listener = Listener(chain)
    await listener.until(20)
    dying = [await busy_replica(pairs[stage]) for stage in ("codec", "watermark")]
    await asyncio.gather(*(replica.server.stop(0) for replica in dying))
    hold_generation(probe, pairs, None)
    np.testing.assert_array_equal(await listener.rest(), whole())


async def test_a_stage_dies_after_the_last_frame_was_made(open_pair, probe):
    """The watermark still has the look-ahead of a stream whose codec has finished."""
    chain, pairs = await open_pair("watermark")
    for replica in pairs["watermark"]:
        replica.probe.silent = {"watermark"}
    listener = Listener(chain)
    dying = await busy_replica(pairs["watermark"])
    await dying.probe.until(lambda: dying.probe.taken["watermark"] == FRAMES)
    await probe.until(lambda: not probe.active["codec"])
    for replica in pairs["watermark"]:
        replica.probe.silent = set()
    await dying.server.stop(0)
    np.testing.assert_array_equal(await listener.rest(), whole())


LONG = 900  # frames: 72 s


@pytest.mark.parametrize("stage", ["codec", "watermark"])
async def test_a_replay_and_what_is_kept_for_it_are_bounded(open_pair, stage):
    """Of a long stream with pauses that dies twice."""
    chain, pairs = await open_pair(stage, replicas=3)
    sounds = np.repeat(np.arange(LONG, dtype=np.float32) / 1024, SAMPLES_PER_FRAME)
    pause = SAMPLES_PER_FRAME + 7
    expected, heard, kept, deaths = [], [], [], {LONG // 2: 0, LONG - 20: 0}
    async with SpeechChain(chain.stages, resumes=ResumeBudget(2), timeout=lambda: 60.0, pauses=True) as speech:
        await speech.open()
        output = aiter(speech.output())

        async def hear():
            while sum(map(len, heard)) < sum(map(len, expected)) - LOOKAHEAD:
                heard.append(await anext(output))

        for begin in range(0, LONG, 10):
            await speech.feed([common_pb2.Frame(codes=[n] * 8) for n in range(begin, begin + 10)])
            expected.append(sounds[begin * SAMPLES_PER_FRAME :][: 10 * SAMPLES_PER_FRAME])
            if begin % 50 == 0:
                speech.pause(pause)
                expected.append(np.zeros(pause, np.float32))
            await hear()
            kept.append(len(speech._codec._log) - speech._codec._log.first)
            if begin in deaths:
                dying = await busy_replica(pairs[stage])
                for replica in pairs[stage]:
                    replica.probe.taken.clear()
                await dying.server.stop(0)
                await speech.feed([common_pb2.Frame(codes=[LONG - 1] * 8)])
                expected.append(np.full(SAMPLES_PER_FRAME, (LONG - 1) / 1024, np.float32))
                await hear()
                deaths[begin] = sum(replica.probe.taken[stage] for replica in pairs[stage])
        speech.finish()
        heard += [samples async for samples in output]
    np.testing.assert_array_equal(np.concatenate(heard), np.concatenate(expected) + np.float32(MARK))
    assert all(0 < frames < 40 for frames in deaths.values()), deaths
    assert max(kept) < 256 + 40


@pytest.mark.parametrize("stage", ["codec", "watermark"])
async def test_a_pause_stays_where_it_was(open_pair, stage):
    """Silence that a speaker waited for text is put in again at the same place."""
    chain, pairs = await open_pair(stage)
    frames = [common_pb2.Frame(codes=[n] * 8) for n in range(FRAMES)]
    pieces: list[np.ndarray] = []
    async with SpeechChain(chain.stages, resumes=ResumeBudget(1), timeout=lambda: 30.0, pauses=True) as speech:
        await speech.open()
        output = aiter(speech.output())
        await speech.feed(frames[:10])
        speech.pause(2 * SAMPLES_PER_FRAME)
        while sum(map(len, pieces)) < 12 * SAMPLES_PER_FRAME - LOOKAHEAD:
            pieces.append(await anext(output))
        await (await busy_replica(pairs[stage])).server.stop(0)
        await speech.feed(frames[10:])
        speech.finish()
        pieces += [samples async for samples in output]
    silence = np.full(2 * SAMPLES_PER_FRAME, MARK, np.float32)
    expected = np.concatenate([whole()[: 10 * SAMPLES_PER_FRAME], silence, whole()[10 * SAMPLES_PER_FRAME :]])
    np.testing.assert_array_equal(np.concatenate(pieces), expected)


async def test_the_budget_is_one_for_all_stages(open_pair, probe):
    chain, pairs = await open_pair("codec", "watermark", resumes=1)
    hold_generation(probe, pairs, 10)
    listener = Listener(chain)
    await listener.until(10)
    await (await busy_replica(pairs["codec"])).server.stop(0)
    hold_generation(probe, pairs, 20)
    await listener.until(20)
    await (await busy_replica(pairs["watermark"])).server.stop(0)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await listener.rest()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    np.testing.assert_array_equal(listener.samples, whole()[: len(listener.samples)])


@pytest.mark.parametrize("stage", STAGES)
async def test_a_path_that_swallows_bytes_is_noticed_in_3_s(open_pair, probe, stage):
    chain, pairs = await open_pair(stage)
    hold_generation(probe, pairs, 20)
    listener = Listener(chain)
    await listener.until(20)
    frozen = await busy_replica(pairs[stage])
    frozen.path.cut()
    cut_at = time.monotonic()
    hold_generation(probe, pairs, None)
    np.testing.assert_array_equal(await listener.rest(), whole())
    assert time.monotonic() - cut_at < 4.0  # 2.5 s to notice it, and the rest of the utterance
    # New calls avoid it, and it comes back when its path does.
    began = time.monotonic()
    np.testing.assert_array_equal(await Listener(chain).rest(), whole())
    assert time.monotonic() - began < 2.0
    frozen.path.mend()
    replica = next(one for one in getattr(chain.stages, stage).replicas if one.address.endswith(frozen.path.address))
    async with asyncio.timeout(15):
        while not replica.usable:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("stage", ["codec", "watermark"])
async def test_a_stage_that_answers_but_gives_nothing_is_left(open_pair, probe, stage, monkeypatch):
    """Its process is alive, its device hangs: health says SERVING, streams stand still."""
    monkeypatch.setattr(stage_calls, "STALL_FLOOR_S", 0.5)
    chain, pairs = await open_pair(stage)
    hold_generation(probe, pairs, 20)
    listener = Listener(chain)
    await listener.until(20)
    hanging = await busy_replica(pairs[stage])
    hanging.probe.silent = {stage}
    hold_generation(probe, pairs, 35)
    (other,) = (replica for replica in pairs[stage] if replica is not hanging)
    await other.probe.until(lambda: other.active, 10)
    hold_generation(probe, pairs, None)
    np.testing.assert_array_equal(await listener.rest(), whole())
    assert listener.longest_wait_s < 15


async def test_a_slow_reader_is_no_frozen_stage(open_pair, probe, monkeypatch):
    monkeypatch.setattr(stage_calls, "STALL_FLOOR_S", 0.5)
    chain, pairs = await open_pair(*STAGES)
    listener = Listener(chain)
    await listener.until(2)
    await asyncio.sleep(4)  # the listener reads nothing: longer than a frozen stage is given
    np.testing.assert_array_equal(await listener.rest(), whole())
    assert sum(replica.probe.calls[stage] for stage in STAGES for replica in pairs[stage]) == len(STAGES)
