"""The tokenizer service with a tiny Mimi, called as the gateway calls it."""

import io

import grpc
import numpy as np
import pytest
import soundfile
from csm.common.v1 import common_pb2
from csm.tokenizer.v1 import tokenizer_pb2
from google.rpc import error_details_pb2
from transformers import PreTrainedTokenizerFast

from models.files import PartError
from services.runtime.audio import wav_bytes
from services.runtime.errors import rich_details
from support.tokenizer_calls import FLOATS, codes_of, expected, raw, segments, serve, tone, wav

S16 = common_pb2.AUDIO_ENCODING_PCM_S16LE


@pytest.fixture
async def tokenizer(bundle_folder):
    async with serve(bundle_folder, max_audio_s=3.0, max_segments=4) as stub:
        yield stub


def compressed(kind, subtype, seconds=1.0):
    file = io.BytesIO()
    soundfile.write(file, tone(24_000, seconds=seconds), 24_000, format=kind, subtype=subtype)
    return tokenizer_pb2.EncodeAudioRequest(audio=common_pb2.AudioClip(file=file.getvalue()))


async def test_a_flac_is_encoded_as_its_samples_are(tokenizer):
    whole = np.rint(tone(24_000, seconds=1.0) * 32767).astype("<i2")
    samples = (whole / 32768).astype("<f4")
    file = io.BytesIO()
    soundfile.write(file, whole, 24_000, format="FLAC")
    given = await tokenizer.EncodeAudio(
        tokenizer_pb2.EncodeAudioRequest(audio=common_pb2.AudioClip(file=file.getvalue())), timeout=20
    )
    wanted = await tokenizer.EncodeAudio(raw(samples, 24_000), timeout=20)
    assert np.array_equal(codes_of(given), codes_of(wanted)) and wanted.cached  # the same samples, whatever container


@pytest.mark.parametrize(("kind", "subtype"), [("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS"), ("OGG", "OPUS")])
async def test_lossy_files_are_taken_and_long_ones_refused(tokenizer, kind, subtype):
    given = await tokenizer.EncodeAudio(compressed(kind, subtype), timeout=20)
    assert 12 <= len(given.frames) <= 14
    field, description = await refusal(tokenizer.EncodeAudio(compressed(kind, subtype, 4.0), timeout=20))
    assert field == "audio.file" and "3 s" in description


@pytest.mark.parametrize("name", ["mulaw", "alaw"])
async def test_samples_of_a_telephone_are_taken(tokenizer, name):
    encoding = common_pb2.AudioEncoding.Value(f"AUDIO_ENCODING_{name.upper()}")
    form = common_pb2.AudioFormat(encoding=encoding, sample_rate_hz=8_000)
    audio = common_pb2.AudioClip(raw=common_pb2.RawAudio(format=form, data=bytes(range(256)) * 32))
    given = await tokenizer.EncodeAudio(tokenizer_pb2.EncodeAudioRequest(audio=audio), timeout=20)
    assert given.audio_duration.ToMilliseconds() == 1024


async def refusal(awaitable):
    """(field, description) of a refused call."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, caught.value.details()
    (bad,) = [d for d in rich_details(caught.value) if isinstance(d, error_details_pb2.BadRequest)]
    return bad.field_violations[0].field, bad.field_violations[0].description


async def test_segments_come_back_in_order_in_the_template(tokenizer, bundle_folder):
    stock = PreTrainedTokenizerFast(tokenizer_file=str(bundle_folder / "tokenizer.json"))
    response = await tokenizer.Tokenize(segments((0, "Hello there."), (1, "<|end_of_text|> Grüße, 5 %")), timeout=10)
    first, second = (list(segment.ids) for segment in response.segments)
    bos, eos = stock.convert_tokens_to_ids(["<|begin_of_text|>", "<|end_of_text|>"])
    assert first == [bos, *stock.encode("[0]Hello there.", add_special_tokens=False), eos]
    assert second[0] == bos and second.count(eos) == 1 and second[-1] == eos
    assert stock.decode(second[1:-1]) == "[1]Grüße, five percent"
    assert [segment.spoken_text for segment in response.segments] == ["Hello there.", "Grüße, five percent"]


@pytest.mark.parametrize("asked, words", [(None, "five percent"), (True, "five percent"), (False, "<|eot_id|> 5 %")])
async def test_the_spoken_form_can_be_switched_off(tokenizer, asked, words):
    segment = tokenizer_pb2.TextSegment(text="<|eot_id|> 5 %", text_normalization=asked)
    response = await tokenizer.Tokenize(tokenizer_pb2.TokenizeRequest(segments=[segment]), timeout=10)
    assert response.segments[0].spoken_text == words


async def test_the_speaker_is_0_when_absent(tokenizer):
    absent = tokenizer_pb2.TokenizeRequest(segments=[tokenizer_pb2.TextSegment(text="hi")])
    assert await tokenizer.Tokenize(absent) == await tokenizer.Tokenize(segments((0, "hi")))


@pytest.mark.parametrize(
    "pairs, field, words",
    [
        ([], "segments", "1 to 4 segments, not 0"),
        ([(0, "x")] * 5, "segments", "1 to 4 segments, not 5"),
        ([(0, "fine"), (0, "")], "segments[1].text", "at least one character"),
        ([(0, " \n ")], "segments[0].text", "at least one character"),
        ([(0, "x" * 2**20)], "segments[0].text", "1048576 characters, at most 4096"),
        ([(0, "fine"), (0, "\u200b...")], "segments[1].text", "nothing to speak"),
        ([(0, "\u4f60\u597d")], "segments[0].text", "Han script"),
        ([(0, "fine"), (-1, "hi")], "segments[1].speaker", "0 or greater, not -1"),
    ],
)
async def test_bad_segments_are_refused_and_the_server_goes_on(tokenizer, pairs, field, words):
    told, description = await refusal(tokenizer.Tokenize(segments(*pairs), timeout=10))
    assert told == field
    assert words in description
    assert (await tokenizer.Tokenize(segments((0, "hi")), timeout=10)).segments


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 22_050, 24_000, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
async def test_clips_at_any_rate_become_mimis_codes(tokenizer, mimi, rate_hz, channels):
    left = tone(rate_hz)
    mono = left if channels == 1 else (left + tone(rate_hz, hz=700)) / 2
    sent = left if channels == 1 else np.stack([left, tone(rate_hz, hz=700)], axis=1)
    response = await tokenizer.EncodeAudio(raw(sent, rate_hz, channels=channels), timeout=30)
    np.testing.assert_array_equal(codes_of(response), expected(mimi, mono, rate_hz))
    assert response.audio_duration.ToNanoseconds() == pytest.approx(0.5e9)
    assert response.compute_duration.ToNanoseconds() > 0
    assert not response.cached


async def test_int16_and_wav(tokenizer, mimi):
    samples = np.rint(tone(16_000) * 32768) / np.float32(32768)
    want = expected(mimi, samples, 16_000)
    ints = (samples * 32768).astype("<i2").tobytes()
    for request in (
        raw(ints, 16_000, S16),
        wav(wav_bytes(samples, 16_000)),
        wav(wav_bytes(samples, 16_000, "f32le")),
    ):
        np.testing.assert_array_equal(codes_of(await tokenizer.EncodeAudio(request, timeout=30)), want)


async def test_the_same_content_is_encoded_once(tokenizer):
    samples = np.rint(tone(24_000, hz=431) * 32768) / np.float32(32768)
    first = await tokenizer.EncodeAudio(raw(samples, 24_000), timeout=30)
    again = await tokenizer.EncodeAudio(wav(wav_bytes(samples, 24_000)), timeout=30)
    assert (first.cached, again.cached) == (False, True)
    assert first.frames == again.frames
    assert again.compute_duration.ToNanoseconds() == 0


@pytest.mark.parametrize(
    "request_, field, words",
    [
        (tokenizer_pb2.EncodeAudioRequest(), "audio.source", "wav, file or raw"),
        (raw(b"", 24_000), "audio.raw.data", "no samples"),
        (raw(FLOATS, 0), "audio.raw.format.sample_rate_hz", "8000 to 192000 Hz, not 0 Hz"),
        (raw(FLOATS, 200_000), "audio.raw.format.sample_rate_hz", "8000 to 192000 Hz"),
        (raw(FLOATS[:900], 24_000, channels=9), "audio.raw.format.channels", "1 to 8 channels, not 9"),
        (raw(FLOATS, 24_000, channels=0), "audio.raw.format.channels", "1 to 8 channels, not 0"),
        (raw(FLOATS, 24_000, encoding=0), "audio.raw.format.encoding", "PCM_S16LE, PCM_F32LE, MULAW or ALAW"),
        (raw(FLOATS, 24_000, encoding=77), "audio.raw.format.encoding", "PCM_S16LE, PCM_F32LE, MULAW or ALAW"),
        (raw(np.float32([0, np.nan]), 24_000), "audio.raw.data", "NaN"),
        (raw(np.float32([np.inf, 0]), 24_000), "audio.raw.data", "infinite"),
        (raw(tone(24_000, seconds=3.1), 24_000), "audio.raw.data", "at most 3 s"),
        (wav(b"no wav"), "audio.wav", "not a WAV file"),
        (wav(b"fLaC" + bytes(99)), "audio.wav", "is no WAV file but FLAC, which goes into `file`"),
        (wav(wav_bytes(FLOATS, 24_000)[:-5_000]), "audio.wav", "truncated"),
        (wav(wav_bytes(FLOATS[:0], 24_000)), "audio.wav", "no samples"),
    ],
)
async def test_bad_clips_are_refused_and_the_server_goes_on(tokenizer, request_, field, words):
    told, description = await refusal(tokenizer.EncodeAudio(request_, timeout=10))
    assert told == field
    assert words in description
    assert (await tokenizer.EncodeAudio(raw(FLOATS, 24_000), timeout=10)).frames


async def test_info(tokenizer):
    info = await tokenizer.GetModelInfo(tokenizer_pb2.GetModelInfoRequest(), timeout=10)
    assert (info.bundle.bundle_id, info.bundle.codebooks, info.bundle.sample_rate_hz) == ("tiny", 4, 24_000)
    assert info.max_text_chars == 4096
    assert info.max_audio_duration.ToNanoseconds() == 3_000_000_000
    assert info.version and info.languages == ["en"]


async def test_a_damaged_tokenizer_is_a_start_error(bundle_folder, tmp_path):
    for path in bundle_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(PartError, match=r"text_tokenizer: .*not a tokenizer\.json"):
        async with serve(tmp_path):
            pass


@pytest.mark.parametrize(
    ("form", "subtype", "endian"),
    [("WAV", "PCM_24", "FILE"), ("WAV", "DOUBLE", "FILE"), ("RF64", "PCM_16", "FILE"), ("WAVEX", "PCM_32", "FILE"),
     ("WAV", "PCM_16", "BIG")],
)  # fmt: skip
async def test_the_same_samples_in_another_kind_of_wav_are_the_same_clip(tokenizer, form, subtype, endian):
    samples = np.rint(tone(24_000, seconds=0.3) * 32767).astype(np.int16)
    first = await tokenizer.EncodeAudio(wav(wav_bytes(samples.astype(np.float32) / 32768, 24_000)), timeout=10)
    file = io.BytesIO()
    values = samples / 32768 if subtype == "DOUBLE" else samples
    soundfile.write(file, values, 24_000, subtype=subtype, format=form, endian=endian)
    second = await tokenizer.EncodeAudio(wav(file.getvalue()), timeout=10)
    assert second.cached and second.frames == first.frames
