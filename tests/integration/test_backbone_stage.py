"""The backbone service whole, as its process opens it, over a tiny bundle on this disk."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from csm.backbone.v1 import backbone_pb2
from csm.common.v1 import common_pb2
from csm.version import __version__
from google.rpc import error_details_pb2

from models.device import DeviceError
from models.files import PartError
from services.runtime.errors import rich_details
from services.runtime.settings import StartError
from support.backbone_service import (
    BINS,
    CODEBOOKS,
    audio,
    codes_of,
    collect,
    frames_of,
    request,
    serving,
    text,
    write_bundle,
)

ROWS = 96
END_OF_SPEECH, MAX_LENGTH = common_pb2.FINISH_REASON_END_OF_SPEECH, common_pb2.FINISH_REASON_MAX_LENGTH


@pytest.fixture(scope="module")
def bundle_folder(tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("bundle"), ROWS)


@pytest.fixture
async def stub(bundle_folder):
    async with serving(bundle_folder, max_frames=64) as stub:
        await stub.GetLoad(backbone_pb2.GetLoadRequest(), wait_for_ready=True, timeout=20)
        yield stub


async def test_a_stream_from_started_to_finished(stub):
    started, chunks, finished = await collect(stub.Generate(request(audio([5] * 8), text(1, 2), max_frames=20)))
    assert (started.seed, started.prompt_tokens, started.max_frames) == (7, 4, 20)
    assert [len(chunk.frames) for chunk in chunks] == [1, 1, 2, 4, 8, 4]
    assert [chunk.first_frame_index for chunk in chunks] == [0, 1, 2, 4, 8, 16]
    assert all(len(frame) == CODEBOOKS and max(frame) < BINS for frame in codes_of(chunks))
    assert (finished.finish_reason, finished.frames) == (MAX_LENGTH, 20)
    assert finished.prefill_duration.ToNanoseconds() > 0
    assert finished.decode_duration.ToNanoseconds() > 0
    assert finished.queue_duration.ToNanoseconds() >= 0


@pytest.mark.parametrize(
    ("ramp", "sizes"), [([3], [3, 3, 3, 1]), ([1, 4], [1, 4, 4, 1]), ([64], [10]), ([2, 1, 5], [2, 1, 5, 2])]
)
async def test_the_callers_chunk_ramp(stub, ramp, sizes):
    policy = backbone_pb2.ChunkPolicy(ramp_frames=ramp)
    _, chunks, _ = await collect(stub.Generate(request(max_frames=10, chunk_policy=policy)))
    assert [len(chunk.frames) for chunk in chunks] == sizes


async def test_a_seed_is_drawn_and_repeats_the_stream(stub):
    started, chunks, _ = await collect(stub.Generate(request(sampling={}, max_frames=6)))
    again = await collect(stub.Generate(request(sampling={"seed": started.seed}, max_frames=6)))
    other = await collect(stub.Generate(request(sampling={}, max_frames=6)))
    assert codes_of(again[1]) == codes_of(chunks)
    assert other[0].seed != started.seed and codes_of(other[1]) != codes_of(chunks)


async def test_the_graph_runner_serves_the_same_codes(bundle_folder):
    """Without a CUDA device its frames are not captured, but they take the same way."""
    streams = []
    for runner in ("eager", "graph"):
        async with serving(bundle_folder, runner=runner) as stub:
            calls = [stub.Generate(request(text(1, 2, number), max_frames=9)) for number in (3, 4)]
            streams.append([codes_of((await collect(call))[1]) for call in calls])
    assert streams[0] == streams[1]


async def test_the_least_cap_on_frames_holds_and_is_said(stub):
    """The caller's, the server's and what fits; a cap above what fits refuses nothing."""
    assert (await collect(stub.Generate(request())))[0].max_frames == 64  # the server's own limit
    assert (await collect(stub.Generate(request(max_frames=750))))[0].max_frames == 64
    started, chunks, finished = await collect(stub.Generate(request(text(*[1] * 90), max_frames=750)))
    assert (started.max_frames, len(codes_of(chunks)), finished.finish_reason) == (6, 6, MAX_LENGTH)
    started, chunks, _ = await collect(stub.Generate(request(text(*range(1, 91)))))
    assert started.max_frames == 6 and len(codes_of(chunks)) == 6


@pytest.mark.parametrize("sampling", [{"seed": 1, "top_k": 1}, {"seed": 1, "temperature": 1.3, "top_k": 20}])
async def test_other_streams_do_not_change_a_stream(stub, sampling):
    def ask(index):
        ids = range(1, 5 + 11 * index)
        return stub.Generate(request(text(*ids), sampling=sampling | {"seed": index}, max_frames=8 + 3 * index))

    alone = [codes_of((await collect(ask(index)))[1]) for index in range(5)]
    together = await asyncio.gather(*(collect(ask(index)) for index in range(5)))  # five on three slots
    assert [codes_of(chunks) for _, chunks, _ in together] == alone


async def test_a_broken_stream_is_taken_up_where_it_ended(stub):
    whole = codes_of((await collect(stub.Generate(request(max_frames=15))))[1])
    for done in (1, 7, 14):
        rest = request(max_frames=15, generated=frames_of(whole[:done]))
        _, chunks, finished = await collect(stub.Generate(rest))
        assert codes_of(chunks) == whole[done:]
        assert chunks[0].first_frame_index == done and finished.frames == 15 - done
    nothing_left = await collect(stub.Generate(request(max_frames=15, generated=frames_of(whole))))
    assert nothing_left[1] == [] and nothing_left[2].finish_reason == MAX_LENGTH


@pytest.mark.parametrize(
    ("bad", "field", "limit"),
    [
        (backbone_pb2.GenerateRequest(), "prompt", "is empty"),
        (request(backbone_pb2.PromptPart()), "prompt[0]", "must be text or audio"),
        (request(text()), "prompt[0].text.ids", "is empty"),
        (request(text(1), audio([1] * 8)), "prompt[1]", "last part must be text"),
        (request(text(512)), "prompt[0].text.ids[0]", "must be below 512"),
        (request(audio([1] * 7), text(1)), "prompt[0].audio.frames[0].codes", "has 7 codes, must have 8"),
        (request(audio([1] * 7 + [1024]), text(1)), "prompt[0].audio.frames[0].codes[7]", "must be below 1024"),
        (request(audio([2**32 - 1] * 8), text(1)), "prompt[0].audio.frames[0].codes[0]", "must be below 1024"),
        (request(text(*[1] * 96)), "prompt", "takes 96 of 96 tokens, which leaves no room for a frame"),
        (request(max_frames=0), "max_frames", "must be at least 1"),
        (request(sampling={"temperature": 0.0}), "sampling.temperature", "must be greater than 0 and at most 2"),
        (request(sampling={"temperature": -0.5}), "sampling.temperature", "is -0.5"),
        (request(sampling={"temperature": 2.5}), "sampling.temperature", "at most 2"),
        (request(sampling={"temperature": float("nan")}), "sampling.temperature", "is nan"),
        (request(sampling={"top_k": 0}), "sampling.top_k", "must be at least 1"),
        (request(sampling={"top_k": -1}), "sampling.top_k", "must be at least 1"),
        (request(sampling={}, generated=frames_of([[1] * 8])), "sampling.seed", "must be given with generated"),
        (request(generated=frames_of([[0] * 8])), "generated[0].codes", "ends speech"),
        (
            request(chunk_policy=backbone_pb2.ChunkPolicy(ramp_frames=[1, 65])),
            "chunk_policy.ramp_frames[1]",
            "must be 1 to 64",
        ),
        (
            request(chunk_policy=backbone_pb2.ChunkPolicy(ramp_frames=[0])),
            "chunk_policy.ramp_frames[0]",
            "must be 1 to 64",
        ),
        (
            request(chunk_policy=backbone_pb2.ChunkPolicy(listener_buffer={"seconds": 11})),
            "chunk_policy.listener_buffer",
            "is 11 s, must be 0 to 10 s",
        ),
    ],
)
async def test_refusals_name_field_and_limit_and_the_server_goes_on(stub, bad, field, limit):
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await collect(stub.Generate(bad))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    violations = [d for d in rich_details(refused.value) if isinstance(d, error_details_pb2.BadRequest)]
    assert violations[0].field_violations[0].field == field
    assert limit in violations[0].field_violations[0].description
    assert len(codes_of((await collect(stub.Generate(request(max_frames=2))))[1])) == 2


async def test_what_it_serves_and_how_busy_it_is(stub):
    await collect(stub.Generate(request(max_frames=3)))
    info = await stub.GetModelInfo(backbone_pb2.GetModelInfoRequest())
    assert info.bundle == common_pb2.BundleIdentity(
        bundle_id="noise", codebooks=8, frame_rate_hz=12.5, sample_rate_hz=24000
    )
    assert (info.max_seq_len, info.text_vocab_size, info.codec_bins, info.max_frames) == (ROWS, 512, BINS, 64)
    assert (info.device, info.dtype, info.version) == ("cpu", "float32", __version__)
    load = await stub.GetLoad(backbone_pb2.GetLoadRequest())
    assert (load.slots_active, load.slots_capacity, load.queue_depth, load.queue_capacity) == (0, 3, 0, 8)
    assert 0 < load.frame_step_duration.ToNanoseconds() < 1e9


async def test_bfloat16_generates(bundle_folder):
    async with serving(bundle_folder, dtype="bfloat16") as stub:
        _, chunks, _ = await collect(stub.Generate(request(max_frames=5), wait_for_ready=True, timeout=30))
        assert len(codes_of(chunks)) == 5
        assert (await stub.GetModelInfo(backbone_pb2.GetModelInfoRequest())).dtype == "bfloat16"


async def test_it_says_why_it_cannot_start(bundle_folder, tmp_path):
    (tmp_path / "bundle.toml").write_text((bundle_folder / "bundle.toml").read_text())
    with pytest.raises(PartError, match=r"generator: .*config\.json: no such file"):
        async with serving(tmp_path):
            pass
    with pytest.raises(DeviceError, match="CSM_BACKBONE_DEVICE='toaster': cannot be used"):
        async with serving(bundle_folder, device="toaster"):
            pass


async def test_a_prompt_is_not_prefilled_again(bundle_folder):
    """The same voice prompt twice: shared tokens are counted, codes stay what they are without sharing."""
    voice = audio(*[[code] * 8 for code in range(1, 41)])

    async def codes_and_load(**overrides):
        async with serving(bundle_folder, max_prefill_tokens=16, **overrides) as stub:
            codes = []
            for words in ([5], [6, 7, 8]):
                call = stub.Generate(request(text(1, 2), voice, text(*words), max_frames=8))
                codes.append(codes_of((await collect(call))[1]))
            return codes, await stub.GetLoad(backbone_pb2.GetLoadRequest())

    codes, load = await codes_and_load()
    assert (load.prompt_tokens, load.prefix_hit_tokens) == (44 + 46, 32)
    assert (load.blocks_used, load.blocks_idle, load.blocks_capacity) == (0, 2 + 2, 3 * ROWS // 16)
    unshared, load = await codes_and_load(prefix_cache=False)
    assert load.prefix_hit_tokens == 0 and load.blocks_idle == 0
    assert codes == unshared


async def test_metrics_say_how_long_and_how_full(bundle_folder, metrics):
    async with serving(bundle_folder, max_prefill_tokens=16) as stub:
        for _ in range(2):
            await collect(stub.Generate(request(text(*range(1, 41)), max_frames=5)))
        points = {name: points for name, (points, *_) in metrics().items() if name.startswith("csm.backbone.")}
    counts = {name: points[f"csm.backbone.{name}.duration"].count for name in ("queue", "prefill", "frame_step")}
    assert counts == {"queue": 2, "prefill": 2, "frame_step": 10}
    assert points["csm.backbone.frame_step.duration"].min > 0
    assert (points["csm.backbone.batch.size"].count, points["csm.backbone.batch.size"].sum) == (10, 10)
    assert points["csm.backbone.blocks.capacity"].value == 3 * ROWS // 16
    assert (points["csm.backbone.blocks.used"].value, points["csm.backbone.blocks.idle"].value) == (0, 2)
    assert (points["csm.backbone.prompt.tokens"].value, points["csm.backbone.prompt.prefix_hit_tokens"].value) == (
        80,
        32,
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"blocks": 5}, "CSM_BACKBONE_BLOCKS=5: the longest request takes 6"),
    ],
)
async def test_a_cache_that_cannot_serve_stops_the_start(bundle_folder, overrides, message):
    with pytest.raises(StartError, match=message):
        async with serving(bundle_folder, **overrides):
            pass
