"""Riva's speech synthesis API over fake stages, with requests as its clients were seen to send them."""

from __future__ import annotations

import asyncio
import hashlib
import io

import av
import grpc
import numpy as np
import pytest

from gateway.audio import open_encoder
from gateway.riva import riva_common_pb2, riva_tts_pb2, riva_tts_pb2_grpc
from gateway.riva.servicer import _field
from services.runtime.audio import wav_bytes
from support.fake_stages import MARK, SAMPLES_PER_FRAME

PCM = riva_common_pb2.LINEAR_PCM
SPOKEN = 10 * SAMPLES_PER_FRAME * 2  # bytes: the fake backbone makes ten frames


def stub_of(chain):
    return riva_tts_pb2_grpc.RivaSpeechSynthesisStub(chain.channel)


def request(text="hello", **fields):
    given = {"language_code": "en-US", "encoding": PCM, "sample_rate_hz": 24_000} | fields
    return riva_tts_pb2.SynthesizeSpeechRequest(text=text, **given)


async def refused(call, code=grpc.StatusCode.INVALID_ARGUMENT):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is code
    return caught.value.details()


async def test_whole_audio_without_a_header_at_the_rate_asked_for(open_chain):
    chain = await open_chain()
    for rate in (8000, 16_000, 22_050, 24_000, 44_100, 48_000, 0):
        answer = await stub_of(chain).Synthesize(request(sample_rate_hz=rate), timeout=10)
        assert len(answer.audio) == round(SPOKEN * (rate or 24_000) / 24_000 / 2) * 2
    samples = np.frombuffer((await stub_of(chain).Synthesize(request(), timeout=10)).audio, "<i2")
    assert samples.min() >= round(MARK * 32767) - 1


@pytest.mark.parametrize(
    ("encoding", "form", "asked_hz", "rate_hz"),
    [
        (riva_common_pb2.MULAW, "mulaw", 8_000, 8_000),
        (riva_common_pb2.MULAW, "mulaw", 0, 8_000),
        (riva_common_pb2.ALAW, "alaw", 16_000, 16_000),
        (riva_common_pb2.FLAC, "flac", 22_050, 22_050),
        (riva_common_pb2.OGGOPUS, "ogg", 22_050, 48_000),  # what riva.client asks for; Opus is always played at 48 kHz
        (riva_common_pb2.OGGOPUS, "ogg", 0, 48_000),
    ],
)
async def test_every_encoding_of_riva(open_chain, encoding, form, asked_hz, rate_hz):
    """A list of texts is one file, as riva.client writes it down."""
    chain = await open_chain()
    fields = {"encoding": encoding, "sample_rate_hz": asked_hz}
    whole = (await stub_of(chain).Synthesize(request(**fields), timeout=10)).audio
    texts = iter([request("One.", **fields), request("Two.", **fields)])
    answers = [answer.audio async for answer in stub_of(chain).SynthesizeOnline(texts, timeout=30)]
    assert all(answers)
    for data, turns in ((whole, 1), (b"".join(answers), 2)):
        options = {"sample_rate": str(rate_hz)} if form.endswith("law") else {}
        with av.open(io.BytesIO(data), format=form, options=options) as file:
            assert file.streams.audio[0].rate == rate_hz
            samples = np.concatenate([part.to_ndarray().reshape(-1) for part in file.decode(audio=0)])
        assert len(samples) / rate_hz == pytest.approx(turns * 10 * 0.08, abs=0.001)


async def test_the_texts_of_a_call_share_their_encoding(open_chain):
    chain = await open_chain()
    texts = iter([request("One.", encoding=riva_common_pb2.FLAC), request("Two.")])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [answer async for answer in stub_of(chain).SynthesizeOnline(texts, timeout=30)]
    assert "encoding: and sample_rate_hz must be the same" in caught.value.details()


async def test_texts_are_spoken_as_they_come_and_the_stream_stays_open_between_them(open_chain, probe):
    chain = await open_chain(max_streams=1)
    call = stub_of(chain).SynthesizeOnline(timeout=30)
    audio = []
    for number, text in enumerate(("First.", "Second, a longer one.")):
        await call.write(request(text, id=riva_common_pb2.RequestId(value=f"r{number}")))
        heard = 0
        while heard < SPOKEN:
            answer = await call.read()
            assert len(answer.audio) > 0 and len(answer.audio) % 2 == 0
            assert answer.id.value == f"r{number}"
            heard += len(answer.audio)
        audio.append(heard)
        # Between texts the call holds nothing: another caller finds the only permit free.
        await probe.until(lambda: not +probe.active)
        await stub_of(chain).Synthesize(request("Meanwhile."), timeout=10)
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert audio == [SPOKEN, SPOKEN]


async def test_several_texts_may_wait(open_chain):
    chain = await open_chain()
    texts = iter([request("One."), request("Two."), request("Three.")])
    audio = b"".join([answer.audio async for answer in stub_of(chain).SynthesizeOnline(texts, timeout=30)])
    assert len(audio) == 3 * SPOKEN


async def test_a_caller_who_leaves_frees_the_slots(open_chain, probe):
    chain = await open_chain()
    probe.frames, probe.gate = 100, 5
    call = stub_of(chain).SynthesizeOnline(timeout=30)
    await call.write(request())
    await call.read()
    call.cancel()
    await probe.until(lambda: not +probe.active)


@pytest.mark.parametrize(
    ("voice", "speaker"),
    [
        ("", 0),
        ("emma", 2),
        ("EMBEDDED.George", 3),
        ("Magpie-Multilingual.EN-US.Aria", 0),
        ("Magpie-Multilingual.EN-US.Leo", 0),
    ],
)
async def test_voices_by_name_and_the_clients_own_defaults(open_chain, probe, voice, speaker):
    chain = await open_chain()
    await stub_of(chain).Synthesize(request(voice_name=voice), timeout=10)
    assert probe.requests[0].prompt[-1].text.ids[1] == 10 + speaker


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"text": ""}, "text: must have 1 to"),
        ({"voice_name": "eve"}, "voice_name: must be one of the voices here (heart, michael, emma, george)"),
        ({"language_code": "de-DE"}, "language_code: must be one of en"),
        ({"encoding": 7}, "encoding: must be LINEAR_PCM, FLAC, MULAW, OGGOPUS or ALAW"),
        ({"sample_rate_hz": 96_000}, "sample_rate_hz"),
        ({"zero_shot_data": riva_tts_pb2.ZeroShotData(audio_prompt=b"RIFF")}, "zero_shot_data.transcript"),
        ({"custom_configuration": {"top_k": "many"}}, "custom_configuration[top_k]"),
        ({"custom_configuration": {"max_audio_ms": "0"}}, "custom_configuration[max_audio_ms]"),
    ],
)
async def test_refusals_say_all_in_words(open_chain, fields, words):
    chain = await open_chain()
    assert words in await refused(stub_of(chain).Synthesize(request(**fields), timeout=10))


def _mp3():
    encoder = open_encoder("mp3", input_rate_hz=24_000)
    return b"".join([*encoder.feed(np.zeros(48_000, np.float32)), *encoder.finish()])


async def test_a_clip_with_its_words_gives_the_voice(open_chain, probe):
    chain = await open_chain()
    wav = wav_bytes(np.zeros(48_000, np.float32), 24_000)
    for prompt in (
        riva_tts_pb2.ZeroShotData(audio_prompt=wav, quality=20, transcript="My words."),
        riva_tts_pb2.ZeroShotData(audio_prompt=bytes(4000), encoding=PCM, quality=20, transcript="My words."),
        riva_tts_pb2.ZeroShotData(audio_prompt=_mp3(), quality=20, transcript="My words."),
        riva_tts_pb2.ZeroShotData(
            audio_prompt=b"\xff" * 8000, encoding=riva_common_pb2.MULAW, quality=20, transcript="My words."
        ),
    ):
        await stub_of(chain).Synthesize(request(zero_shot_data=prompt), timeout=10)
        assert bytes(probe.requests[-1].prompt[0].text.ids[2:-1]) == b"My words."


async def test_what_is_not_ours_is_ignored(open_chain, probe):
    chain = await open_chain()
    extras = {"custom_dictionary": "word  wɜːd", "enable_word_time_offsets": True}
    tuning = {"seed": "9", "temperature": "0.5", "top_k": "7", "something": "else"}
    metadata = [("function-id", "0149dedb-2be8-4195-b9a0-e57e0e14f972")]
    await stub_of(chain).Synthesize(request(custom_configuration=tuning, **extras), timeout=10, metadata=metadata)
    sampling = probe.requests[0].sampling
    assert (sampling.seed, sampling.top_k, round(sampling.temperature, 3)) == (9, 7, 0.5)


async def test_the_configuration_lists_the_voices_and_needs_no_token(open_chain, tmp_path):
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(f'[ann]\nsha256 = ["{hashlib.sha256(b"ann").hexdigest()}"]\n')
    bearer = [("authorization", "Bearer ann")]
    chain = await open_chain(tokens_file=str(tokens), metadata=bearer)
    ask = riva_tts_pb2.RivaSynthesisConfigRequest()
    (config,) = (await stub_of(chain).GetRivaSynthesisConfig(ask, timeout=5)).model_config
    assert config.model_name == "embedded"
    assert dict(config.parameters) == {
        "language_code": "en-US",
        "voice_name": "embedded",
        "subvoices": "heart:0,michael:1,emma:2,george:3",
        "sample_rate": "24000",
    }
    other = riva_tts_pb2.RivaSynthesisConfigRequest(model_name="other")
    assert not (await stub_of(chain).GetRivaSynthesisConfig(other, timeout=5)).model_config
    await refused(stub_of(chain).Synthesize(request(), timeout=10), grpc.StatusCode.UNAUTHENTICATED)
    doubled = [*bearer, *bearer]  # with TLS the client sends it among its call credentials too
    assert (await stub_of(chain).Synthesize(request(), timeout=10, metadata=doubled)).audio


async def test_it_can_be_switched_off(open_chain):
    chain = await open_chain(riva=False)
    await refused(stub_of(chain).Synthesize(request(), timeout=10), grpc.StatusCode.UNIMPLEMENTED)


async def test_32_callers_at_once_hear_every_sample(open_chain, probe):
    """Two texts each: as stitched callers send them, by calls that stay open."""
    chain = await open_chain()

    async def heard(number):
        texts = iter([request(f"Caller {number}."), request("And more.")])
        return [answer.audio async for answer in stub_of(chain).SynthesizeOnline(texts, timeout=60)]

    answers = await asyncio.gather(*(heard(number) for number in range(32)))
    assert {len(b"".join(pieces)) for pieces in answers} == {2 * SPOKEN}
    assert all(piece and len(piece) % 2 == 0 for pieces in answers for piece in pieces)
    await probe.until(lambda: not +probe.active)


def test_a_prompt_that_is_too_long_has_rivas_field():
    assert _field("utterance.context") == _field("utterance.context[0].speaker") == "zero_shot_data"
    assert _field("utterance.context[0].text") == "zero_shot_data.transcript"
