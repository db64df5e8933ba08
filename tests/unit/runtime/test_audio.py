"""Clips and WAV files, against soundfile (libsndfile) and the stdlib's wave module."""

import io
import struct
import time
import wave

import numpy as np
import pytest
import soundfile

from services.runtime.audio import (
    AudioError,
    Clip,
    from_bytes,
    read_raw,
    read_wav,
    resample,
    to_bytes,
    wav_bytes,
    wav_header,
)

RATE = 24_000


def tone(seconds=0.1, rate_hz=RATE, hz=440.0):
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def by_soundfile(samples, rate_hz=RATE, subtype="PCM_16", fmt="WAV"):
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, subtype=subtype, format=fmt)
    return file.getvalue()


@pytest.mark.parametrize("fmt", ["WAV", "WAVEX"])  # WAVEX: WAVE_FORMAT_EXTENSIBLE
@pytest.mark.parametrize("subtype, error", [("PCM_16", 2**-15), ("FLOAT", 0)])
@pytest.mark.parametrize("rate_hz", [8_000, 44_100, 48_000])
def test_reads_what_libsndfile_writes(subtype, error, rate_hz, fmt):
    samples = tone(rate_hz=rate_hz)
    clip = read_wav(by_soundfile(samples, rate_hz, subtype, fmt), max_duration_s=10)
    assert clip.sample_rate_hz == rate_hz
    assert clip.samples.dtype == np.float32
    np.testing.assert_allclose(clip.samples, samples, atol=error)


def test_stereo_is_averaged():
    left, right = tone(), tone(hz=880)
    clip = read_wav(by_soundfile(np.stack([left, right], axis=1), subtype="FLOAT"), max_duration_s=1)
    np.testing.assert_allclose(clip.samples, (left + right) / 2, atol=1e-7)


def test_chunks_before_the_samples_are_skipped():
    whole = wav_bytes(tone(), RATE)
    odd = whole[:36] + b"LIST" + struct.pack("<I", 3) + b"abc\0" + whole[36:]
    np.testing.assert_array_equal(read_wav(odd, max_duration_s=1).samples, read_wav(whole, max_duration_s=1).samples)


@pytest.mark.parametrize("encoding, subtype", [("s16le", "PCM_16"), ("f32le", "FLOAT")])
def test_libsndfile_reads_what_we_write(encoding, subtype):
    samples = tone()
    file = io.BytesIO(wav_bytes(samples, RATE, encoding))
    info = soundfile.info(file)
    assert (info.subtype, info.samplerate, info.frames, info.channels) == (subtype, RATE, len(samples), 1)
    file.seek(0)
    read, _ = soundfile.read(file, dtype="float32")
    np.testing.assert_allclose(read, samples, atol=2**-15)


def test_wave_reads_what_we_write():
    with wave.open(io.BytesIO(wav_bytes(tone(), RATE))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE, 1, 2)
        assert file.readframes(10**6) == to_bytes(tone(), "s16le")


@pytest.mark.parametrize("encoding", ["s16le", "f32le"])
def test_streamed_header_reads_back(encoding):
    data = to_bytes(tone(), encoding)
    clip = read_wav(wav_header(encoding, RATE) + data, max_duration_s=1)
    np.testing.assert_array_equal(clip.samples, from_bytes(data, encoding))


def test_pcm_round_trip_is_exact():
    every = np.arange(-32768, 32768).astype("<i2").tobytes()
    assert to_bytes(from_bytes(every, "s16le"), "s16le") == every
    assert to_bytes(np.array([2.0, -2.0, 1.0], np.float32), "s16le") == struct.pack("<hhh", 32767, -32768, 32767)


def test_resample_keeps_tone_and_length():
    clip = resample(Clip(tone(seconds=1.0, rate_hz=44_100), 44_100), RATE)
    assert (clip.sample_rate_hz, len(clip.samples), clip.samples.dtype) == (RATE, RATE, np.float32)
    np.testing.assert_allclose(clip.samples[2000:-2000], tone(seconds=1.0)[2000:-2000], atol=1e-3)


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 48_000])
def test_resample_never_leaves_nothing(rate_hz):
    assert len(resample(Clip(np.ones(1, np.float32), rate_hz), RATE).samples) >= 1


RAW = {"encoding": "f32le", "sample_rate_hz": RATE, "channels": 1, "max_duration_s": 1.0}
FLOATS = tone().tobytes()


@pytest.mark.parametrize(
    "data, change, field, words",
    [
        (b"", {}, "raw.data", "no samples"),
        (FLOATS, {"sample_rate_hz": 0}, "raw.format.sample_rate_hz", "8000 to 192000 Hz, not 0"),
        (FLOATS, {"sample_rate_hz": -24000}, "raw.format.sample_rate_hz", "8000 to 192000"),
        (FLOATS, {"sample_rate_hz": 192_001}, "raw.format.sample_rate_hz", "8000 to 192000"),
        (FLOATS, {"channels": 0}, "raw.format.channels", "1 to 8 channels, not 0"),
        (FLOATS, {"channels": 9}, "raw.data", "no whole number of 36-byte"),
        (bytes(36), {"channels": 9}, "raw.format.channels", "1 to 8 channels, not 9"),
        (FLOATS[:-1], {}, "raw.data", "no whole number of 4-byte"),
        (FLOATS, {"max_duration_s": 0.05}, "raw.data", "at most 0.05 s"),
        (np.float32([0, np.nan]).tobytes(), {}, "raw.data", "NaN"),
        (np.float32([0, -np.inf]).tobytes(), {}, "raw.data", "infinite"),
        (np.float32([0, 20_000]).tobytes(), {}, "raw.data", "in [-1, 1], found 20000"),
    ],
)
def test_bad_raw_audio_is_refused(data, change, field, words):
    with pytest.raises(AudioError) as caught:
        read_raw(data, **(RAW | change))
    assert caught.value.field == field
    assert words in str(caught.value)


def fmt(tag=1, channels=1, rate_hz=RATE, block_bytes=2, bits=16):
    return struct.pack("<HHIIHH", tag, channels, rate_hz, rate_hz * 2, block_bytes, bits)


def riff(*chunks):
    body = b"".join(name + struct.pack("<I", len(data)) + data for name, data in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


@pytest.mark.parametrize(
    "data, words",
    [
        (b"", "not a WAV"),
        (b"RIFF\0\0\0\0", "not a WAV"),
        (b"ID3\3" + bytes(100), "not a WAV"),
        (riff((b"fmt ", fmt())), "no data chunk"),
        (riff((b"data", bytes(8)), (b"fmt ", fmt())), "before any fmt"),
        (riff((b"fmt ", fmt()[:10]), (b"data", bytes(8))), "10 bytes"),
        (riff((b"fmt ", fmt(bits=40, block_bytes=5)), (b"data", bytes(10))), "PCM of 8, 16, 24 or 32 bit, float of 32"),
        (riff((b"fmt ", fmt(tag=3)), (b"data", bytes(8))), "not format 3 with 16 bit"),
        (riff((b"fmt ", fmt(tag=0x11, bits=4)), (b"data", bytes(8))), "not IMA ADPCM"),
        (riff((b"fmt ", fmt(tag=0x55)), (b"data", bytes(8))), "not MP3"),
        (riff((b"fmt ", fmt(block_bytes=4)), (b"data", bytes(8))), "contradicts itself"),
        (riff((b"fmt ", fmt(rate_hz=0)), (b"data", bytes(8))), "not 0 Hz"),
        (riff((b"fmt ", fmt(channels=9, block_bytes=18)), (b"data", bytes(36))), "1 to 8 channels, not 9"),
        (riff((b"fmt ", fmt()), (b"data", b"")), "no samples"),
        (riff((b"fmt ", fmt()), (b"data", bytes(1))), "no samples"),
        (riff((b"fmt ", fmt(channels=0, block_bytes=0)), (b"data", bytes(8))), "contradicts itself"),
        (wav_bytes(tone(0.5), RATE)[:-5000], "truncated: 24000 bytes of samples announced, 19000 there"),
        (wav_bytes(tone(), RATE)[:30], "truncated"),
    ],
)
def test_bad_wav_is_refused(data, words):
    with pytest.raises(AudioError, match=words) as caught:
        read_wav(data, max_duration_s=10)
    assert caught.value.field == "wav"


def test_every_prefix_and_many_bit_flips_give_a_clip_or_an_audio_error():
    whole = wav_bytes(tone(seconds=0.01), RATE, "f32le")
    rng = np.random.default_rng(0)
    broken = [whole[:n] for n in range(len(whole))]
    for _ in range(3000):
        flipped = bytearray(whole)
        for place in rng.integers(0, 64, size=3):
            flipped[place] = rng.integers(0, 256)
        broken.append(bytes(flipped))
    refused = 0
    for data in broken:
        try:
            clip = read_wav(data, max_duration_s=1)
        except AudioError:
            refused += 1
        else:
            assert np.isfinite(clip.samples).all()
    assert refused >= len(whole)


def test_wav_beyond_4_gib_is_refused():
    with pytest.raises(ValueError, match="4 GiB"):
        wav_header("s16le", RATE, 1, 2**32)


@pytest.mark.parametrize(("chunks", "taken"), [(200, True), (1_000_000, False)])
def test_a_wav_has_a_few_hundred_chunks_at_most(chunks, taken):
    wav = wav_bytes(np.zeros(100, np.float32), 24_000)
    padded = wav[:12] + b"LIST\0\0\0\0" * chunks + wav[12:]
    if taken:
        assert len(read_wav(padded, max_duration_s=1).samples) == 100
    else:
        began = time.perf_counter()
        with pytest.raises(AudioError, match="no data chunk among its first 256"):
            read_wav(padded, max_duration_s=1)
        assert time.perf_counter() - began < 0.1
