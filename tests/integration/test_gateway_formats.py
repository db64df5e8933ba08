"""The formats of the public API over fake stages: what is sent decodes to what the chain made."""

from __future__ import annotations

import io

import av
import grpc
import numpy as np
import pytest
from csm.common.v1 import common_pb2
from csm.speech.v1 import speech_pb2

from support.fake_stages import MARK, SAMPLES_PER_FRAME

SECONDS = 10 * SAMPLES_PER_FRAME / 24_000  # the fake backbone makes ten frames
MULAW, ALAW = common_pb2.AUDIO_ENCODING_MULAW, common_pb2.AUDIO_ENCODING_ALAW
FILES = [
    (speech_pb2.CONTAINER_FLAC, "flac", 24_000),
    (speech_pb2.CONTAINER_MP3, "mp3", 48_000),
    (speech_pb2.CONTAINER_OGG_OPUS, "ogg", 48_000),
]


def utterance(**fields):
    return speech_pb2.Utterance(text="hello", **fields)


async def listen(chain, **options):
    """(started, messages, summary)."""
    request = speech_pb2.StreamSynthesizeRequest(utterance=utterance(), output=speech_pb2.OutputOptions(**options))
    started, messages, summary = None, [], None
    async for response in chain.speech.StreamSynthesize(request, timeout=20):
        match response.WhichOneof("event"):
            case "started":
                started = response.started
            case "audio":
                messages.append(response.audio.data)
            case "finished":
                summary = response.finished.summary
    return started, messages, summary


async def whole(chain, **options):
    request = speech_pb2.SynthesizeRequest(utterance=utterance(), output=speech_pb2.OutputOptions(**options))
    return await chain.speech.Synthesize(request, timeout=20)


def decoded(data, form, rate_hz=None):
    with av.open(io.BytesIO(data), format=form, options={"sample_rate": str(rate_hz)} if rate_hz else {}) as file:
        parts = [frame.to_ndarray().reshape(-1) for frame in file.decode(audio=0)]
    samples = np.concatenate(parts)
    return samples / np.float32(32768) if samples.dtype == np.int16 else samples


@pytest.mark.parametrize(("container", "form", "rate_hz"), FILES)
async def test_files_streamed_and_whole(open_chain, container, form, rate_hz):
    chain = await open_chain()
    started, messages, summary = await listen(chain, container=container)
    answer = await whole(chain, container=container)
    assert started.container == answer.container == container
    own_hz = 48_000 if form == "mp3" else 24_000  # before Opus' decoders, which give 48 kHz
    assert started.format == answer.format and started.format.sample_rate_hz == own_hz
    assert all(messages) and summary.samples == answer.summary.samples == round(SECONDS * own_hz)
    first, second = decoded(b"".join(messages), form), decoded(answer.audio, form)
    assert np.array_equal(first, second)
    assert len(first) / rate_hz == pytest.approx(SECONDS, abs=0.1 if form == "mp3" else 1e-3)
    if form == "flac":
        assert first[100] == pytest.approx(MARK, abs=2**-14)  # frame 0 is the mark alone


@pytest.mark.parametrize(("encoding", "form"), [(MULAW, "mulaw"), (ALAW, "alaw")])
@pytest.mark.parametrize("rate_hz", [None, 16_000])
async def test_telephony_is_8_khz_unless_another_rate_is_asked_for(open_chain, encoding, form, rate_hz):
    chain = await open_chain()
    options = {"encoding": encoding} | ({"sample_rate_hz": rate_hz} if rate_hz else {})
    started, messages, summary = await listen(chain, **options)
    assert started.format.encoding == encoding and started.format.sample_rate_hz == (rate_hz or 8_000)
    assert len(b"".join(messages)) == summary.samples == round(SECONDS * (rate_hz or 8_000))
    assert len(decoded((await whole(chain, container=speech_pb2.CONTAINER_WAV, **options)).audio, "wav")) == (
        summary.samples
    )


async def test_each_message_of_opus_packets_is_one_packet(open_chain):
    chain = await open_chain()
    started, packets, summary = await listen(chain, container=speech_pb2.CONTAINER_OPUS_PACKETS)
    assert started.format.sample_rate_hz == 48_000 and summary.samples == round(SECONDS * 48_000)
    decoder = av.CodecContext.create("libopus", "r")
    decoder.sample_rate, decoder.layout = 48_000, "mono"
    assert {frame.samples for packet in packets for frame in decoder.decode(av.Packet(packet))} == {960}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"container": speech_pb2.CONTAINER_FLAC, "encoding": 2}, "output.encoding: of FLAC must be PCM_S16LE"),
        (
            {"container": speech_pb2.CONTAINER_MP3, "encoding": 1},
            "output.encoding: of MP3 must be unset, not PCM_S16LE",
        ),
        (
            {"container": speech_pb2.CONTAINER_MP3, "sample_rate_hz": 9_000},
            "output.sample_rate_hz: of mp3 must be one of",
        ),
        ({"container": speech_pb2.CONTAINER_OGG_OPUS, "sample_rate_hz": 44_100}, "must be one of 8000, 12000, 16000"),
        ({"container": 60}, "output.container: must be RAW, WAV, FLAC, MP3, OGG_OPUS, OPUS_PACKETS, not 60"),
        ({"encoding": 60}, "output.encoding: of RAW must be PCM_S16LE, PCM_F32LE, MULAW, ALAW, not 60"),
    ],
)
async def test_what_does_not_go_together_is_refused(open_chain, options, says):
    chain = await open_chain()
    for call in (listen(chain, **options), whole(chain, **options)):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT and says in caught.value.details()


async def test_packets_want_a_stream(open_chain):
    chain = await open_chain()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await whole(chain, container=speech_pb2.CONTAINER_OPUS_PACKETS)
    assert "output.container: OPUS_PACKETS are for streams" in caught.value.details()


async def test_each_turn_of_a_conversation_is_a_file(open_chain):
    chain = await open_chain()
    call = chain.speech.Converse(timeout=30)
    output = speech_pb2.OutputOptions(container=speech_pb2.CONTAINER_FLAC)
    await call.write(speech_pb2.ConverseRequest(configure=speech_pb2.ConverseConfigure(output=output)))
    for text in ("One.", "Two."):
        await call.write(speech_pb2.ConverseRequest(append_text=speech_pb2.AppendText(text=text)))
        await call.write(speech_pb2.ConverseRequest(flush=speech_pb2.FlushTurn()))
    await call.done_writing()
    turns = {0: b"", 1: b""}
    async for response in call:
        if response.HasField("audio"):
            turns[response.audio.turn] += response.audio.data
    for data in turns.values():
        assert len(decoded(data, "flac")) == round(SECONDS * 24_000)
