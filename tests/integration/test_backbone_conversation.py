"""Conversations over the backbone service: each turn's prompt is the one before it, its frames and new tokens."""

from __future__ import annotations

import random

import pytest
from csm.backbone.v1 import backbone_pb2

from services.backbone.blocks import BLOCK_TOKENS
from support.backbone_service import audio, codes_of, collect, request, serving, text, write_bundle

TURNS = 12


@pytest.fixture(scope="module")
def bundle_folder(tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("bundle"), 1024)


@pytest.mark.parametrize("runner", ["eager", "graph"])
async def test_a_turn_prefills_its_new_tokens_alone(bundle_folder, spans, runner):
    """Twelve turns of both parties: what was said before is in the cache, by either party."""
    chance = random.Random(1)
    parts, known, prefilled = [text(1, 2, 3), audio(*[[7] * 8] * 40)], 0, []
    async with serving(bundle_folder, runner=runner) as stub:
        for turn in range(TURNS):
            parts.append(text(*chance.choices(range(1, 500), k=8)))
            if turn % 3:  # the other party's turn
                parts.append(audio(*([code] * 8 for code in chance.choices(range(1, 1000), k=20))))
                parts.append(text(*chance.choices(range(1, 500), k=9)))
            started, chunks, _ = await collect(stub.Generate(request(*parts, max_frames=30), wait_for_ready=True))
            new = started.prompt_tokens - known
            prefilled.append(started.prompt_tokens - started.prefix_hit_tokens)
            assert new <= prefilled[-1] < new + BLOCK_TOKENS or turn == 0
            frames = codes_of(chunks)
            parts.append(audio(*frames))
            known = started.prompt_tokens + len(frames) - 1  # no step has computed the last frame
        assert started.prompt_tokens > 700 and max(prefilled[1:]) < 60
        load = await stub.GetLoad(backbone_pb2.GetLoadRequest())
    attributes = [span.attributes for span in spans() if span.name.endswith("BackboneService/Generate")]
    attributes = [each for each in attributes if "csm.prefix_hit_tokens" in each]
    assert [each["csm.prompt_tokens"] - each["csm.prefix_hit_tokens"] for each in attributes] == prefilled
    assert load.blocks_used == 0 and load.prompt_tokens - load.prefix_hit_tokens == sum(prefilled)


@pytest.mark.parametrize("runner", ["eager", "graph"])
async def test_what_was_heard_of_an_interrupted_turn_is_the_prefix_of_the_next(bundle_folder, runner):
    """Cut at any frame: the next turn prefills what is new, and gives the frames that it would without a cache."""
    first = [text(*range(1, 20)), audio(*[[9] * 8] * 10), text(4, 5, 6)]
    turns = []
    async with serving(bundle_folder, runner=runner) as stub:
        for heard in (1, 5, 16, 17, 40):
            seed = {"seed": 100 + heard}
            call = stub.Generate(request(*first, sampling=seed, max_frames=500), wait_for_ready=True)
            frames, started = [], None
            async for message in call:
                started = message.started if message.HasField("started") else started
                frames += codes_of([message.chunk])
                if len(frames) > heard:
                    break
            call.cancel()
            parts = [*first, audio(*frames[:heard]), text(30, 31, heard)]
            answer = await collect(stub.Generate(request(*parts, sampling=seed, max_frames=6)))
            new = answer[0].prompt_tokens - started.prompt_tokens - heard
            assert new == 4  # the frame that ends the segment, and three text ids
            assert new <= answer[0].prompt_tokens - answer[0].prefix_hit_tokens < new + BLOCK_TOKENS
            turns.append((parts, seed, codes_of(answer[1])))
        load = await stub.GetLoad(backbone_pb2.GetLoadRequest())
        assert (load.slots_active, load.blocks_used) == (0, 0)
    async with serving(bundle_folder, runner=runner, prefix_cache=False) as stub:
        for parts, seed, wanted in turns:
            call = stub.Generate(request(*parts, sampling=seed, max_frames=6), wait_for_ready=True)
            assert codes_of((await collect(call))[1]) == wanted


async def test_a_resumed_stream_finds_what_was_generated(bundle_folder):
    """On the same server; on another one it prefills, and the frames are the same."""
    whole = request(text(*range(1, 30)), max_frames=60)
    async with serving(bundle_folder) as stub:
        frames = codes_of((await collect(stub.Generate(whole, wait_for_ready=True)))[1])
        rest = request(text(*range(1, 30)), max_frames=60)
        for frame in frames[:40]:
            rest.generated.add(codes=frame)
        started, chunks, _ = await collect(stub.Generate(rest))
        assert codes_of(chunks) == frames[40:]
        assert started.prompt_tokens == 29 and started.prefix_hit_tokens == 64  # of 69: four whole blocks
    async with serving(bundle_folder) as stub:
        started, chunks, _ = await collect(stub.Generate(rest, wait_for_ready=True))
        assert codes_of(chunks) == frames[40:] and started.prefix_hit_tokens == 0
