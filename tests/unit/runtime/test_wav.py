"""WAV files as other programs write them (libsndfile, FFmpeg, scipy, Python), and as programs damage them."""

import io
import struct
import time
import wave
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from scipy.io import wavfile

from services.runtime import wav
from services.runtime.audio import AudioError, read_wav

DATA = Path(__file__).parents[2] / "data/wav"
RATE = 24_000
# Subtype of libsndfile: how far a sample may be from what was written.
SUBTYPES = {
    "PCM_U8": 2**-7,
    "PCM_16": 2**-15,
    "PCM_24": 2**-22,
    "PCM_32": 2**-22,
    "FLOAT": 0.0,
    "DOUBLE": 2**-24,
    "ULAW": 2**-5,
    "ALAW": 2**-5,
}


def tone(seconds=0.1, rate_hz=RATE, hz=440.0):
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def by_libsndfile(samples, subtype="PCM_16", form="WAV", rate_hz=RATE, endian="FILE"):
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, subtype=subtype, format=form, endian=endian)
    return file.getvalue()


class Pipe(io.RawIOBase):
    """A writer that cannot go back."""

    def __init__(self):
        self.data = bytearray()

    def writable(self):
        return True

    def seekable(self):
        return False

    def write(self, data):
        self.data += data
        return len(data)


def by_ffmpeg(samples, codec="pcm_s16le", rate_hz=RATE, layout="mono", pipe=True, **options):
    """FFmpeg's muxer, into a pipe or into a file."""
    file = Pipe() if pipe else io.BytesIO()
    with av.open(file, "w", format="wav", options=options) as container:
        stream = container.add_stream(codec, rate=rate_hz, layout=layout)
        planes = np.atleast_2d(np.rint(samples * 32767).astype(np.int16))
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(planes.T.reshape(1, -1)), format="s16", layout=layout)
        frame.sample_rate = rate_hz
        resampler = av.AudioResampler(format=stream.codec_context.format, layout=layout, rate=rate_hz)
        for part in [*resampler.resample(frame), None]:
            container.mux(stream.encode(part))
    return bytes(file.data) if pipe else file.getvalue()


def take(data, max_duration_s=10.0):
    return read_wav(data, max_duration_s=max_duration_s)


@pytest.mark.parametrize("form", ["WAV", "WAVEX", "RF64"])
@pytest.mark.parametrize("subtype", SUBTYPES)
def test_reads_what_libsndfile_writes(subtype, form):
    whole = by_libsndfile(tone(), subtype, form)
    theirs, _ = soundfile.read(io.BytesIO(whole), dtype="float32")
    clip = take(whole)
    assert clip.samples.dtype == np.float32 and clip.sample_rate_hz == RATE
    np.testing.assert_allclose(clip.samples, theirs, atol=2**-24)
    np.testing.assert_allclose(clip.samples, tone(), atol=SUBTYPES[subtype])


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_reads_big_endian_files(subtype):
    whole = by_libsndfile(tone(), subtype, endian="BIG")
    assert whole[:4] == b"RIFX"
    np.testing.assert_allclose(take(whole).samples, tone(), atol=SUBTYPES[subtype])


@pytest.mark.parametrize("subtype", ["ULAW", "ALAW"])
def test_every_companded_byte_has_the_value_that_libsndfile_gives_it(subtype):
    head = by_libsndfile(np.zeros(256), subtype)[:-256]
    whole = head + bytes(range(256))
    theirs, _ = soundfile.read(io.BytesIO(whole), dtype="float32")
    np.testing.assert_array_equal(take(whole).samples, theirs)


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000, 192_000])
def test_reads_the_usual_rates(rate_hz):
    clip = take(by_libsndfile(tone(rate_hz=rate_hz), rate_hz=rate_hz))
    assert clip.sample_rate_hz == rate_hz and len(clip.samples) == rate_hz // 10


@pytest.mark.parametrize("form", ["WAV", "WAVEX"])
@pytest.mark.parametrize("channels", [2, 6, 8])
def test_channels_are_averaged_and_kept(channels, form):
    samples = np.stack([tone(hz=200 * (1 + one)) for one in range(channels)], axis=1)
    clip = take(by_libsndfile(samples, "FLOAT", form))
    np.testing.assert_allclose(clip.samples, samples.mean(axis=1), atol=1e-6)
    np.testing.assert_array_equal(clip.channels, samples.T)


@pytest.mark.parametrize(
    ("codec", "error"),
    [("pcm_u8", 2**-7), ("pcm_s16le", 2**-14), ("pcm_s24le", 2**-14), ("pcm_s32le", 2**-14), ("pcm_f32le", 2**-14),
     ("pcm_f64le", 2**-14), ("pcm_mulaw", 2**-5), ("pcm_alaw", 2**-5)],
)  # fmt: skip
@pytest.mark.parametrize(
    "options", [{}, {"pipe": False}, {"pipe": False, "rf64": "always"}, {"pipe": False, "write_bext": "1"}]
)
def test_reads_what_ffmpeg_writes_into_files_and_pipes(codec, error, options):
    whole = by_ffmpeg(tone(), codec, **options)
    clip = take(whole)
    assert len(clip.samples) == len(tone())
    np.testing.assert_allclose(clip.samples, tone(), atol=error)
    if options == {}:
        assert whole[4:8] == b"\xff" * 4, "the length is not known in a pipe"


def test_reads_surround_of_ffmpeg():
    samples = np.stack([tone(hz=200 * (1 + one)) for one in range(6)])
    clip = take(by_ffmpeg(samples, layout="5.1"))
    np.testing.assert_allclose(clip.channels, samples, atol=2**-14)


@pytest.mark.parametrize("kind", ["u1", "<i2", "<i4", "<f4", "<f8"])
def test_reads_what_scipy_writes(kind):
    samples = tone()
    scale = {"u1": 127, "<i2": 32767, "<i4": 2147483647}.get(kind, 1)
    values = samples.astype(float) * scale
    values = values if scale == 1 else np.rint(values) + (128 if kind == "u1" else 0)
    file = io.BytesIO()
    wavfile.write(file, RATE, values.astype(kind))
    np.testing.assert_allclose(take(file.getvalue()).samples, samples, atol=2 / scale if 1 < scale < 2**20 else 2**-20)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_reads_what_python_writes(width):
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, width, RATE, 0, "NONE", ""))
        values = np.rint(tone().astype(float) * (2 ** (8 * width - 1) - 1)).astype(np.int64) + (
            128 if width == 1 else 0
        )
        writer.writeframes(b"".join(int(one).to_bytes(width, "little", signed=width > 1) for one in values))
    np.testing.assert_allclose(take(file.getvalue()).samples, tone(), atol=2 ** (2 - 8 * min(width, 3)))


@pytest.mark.parametrize("name", ["pcm24_8k", "rf64_8k", "size0_8k"])
def test_reads_files_that_failed_once(name):
    clip = take((DATA / f"{name}.wav").read_bytes())
    assert clip.sample_rate_hz == 8_000 and clip.duration_s == pytest.approx(1.92, abs=0.01)
    level = float(np.sqrt(np.mean(clip.samples**2)))
    assert 0.01 < level < 0.3, "speech"


def test_those_files_hold_one_and_the_same_speech():
    clips = [take((DATA / f"{name}.wav").read_bytes()).samples for name in ("pcm24_8k", "rf64_8k", "size0_8k")]
    for clip in clips[1:]:
        np.testing.assert_allclose(clip, clips[0], atol=2**-14)


def headerless(size, riff_size, data):
    fmt = struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16)
    chunks = b"fmt " + struct.pack("<I", 16) + fmt + b"data" + struct.pack("<I", size)
    return b"RIFF" + struct.pack("<I", riff_size) + b"WAVE" + chunks + data


@pytest.mark.parametrize(
    ("size", "riff_size"), [(0, 0), (0, 36), (0xFFFFFFFF, 0xFFFFFFFF), (0x7FFFFFFF, 0x7FFFFFFF), (0x7FFFF000, 0x7FFFF024), (0, 0xFFFFFFFF)]
)  # fmt: skip
def test_a_length_that_was_never_filled_in_means_all_that_is_there(size, riff_size):
    samples = np.rint(tone() * 32767).astype("<i2")
    clip = take(headerless(size, riff_size, samples.tobytes()))
    np.testing.assert_array_equal(clip.samples, samples / np.float32(32768))


def test_an_empty_data_chunk_before_others_holds_no_samples():
    tags = b"LIST" + struct.pack("<I", 4) + b"INFO"
    with pytest.raises(AudioError, match="holds no samples"):
        take(headerless(0, 36 + len(tags), tags))


@pytest.mark.parametrize("cut", [1, 2, 3, 4_000])
def test_a_file_that_lost_its_last_moment_is_taken(cut):
    whole = by_libsndfile(tone(0.5))
    assert len(take(whole[:-cut]).samples) == (len(whole) - 44 - cut) // 2


def test_a_file_that_lost_more_is_refused():
    with pytest.raises(AudioError, match="truncated"):
        take(by_libsndfile(tone(0.5))[:-5_000])


def test_samples_that_fill_part_of_their_bytes():
    """12 bits are the upper ones of 16, as the format asks for."""
    samples = (np.rint(tone() * 2047).astype("<i2") << 4).astype("<i2")
    whole = bytearray(headerless(2 * len(samples), 36 + 2 * len(samples), samples.tobytes()))
    whole[34:36] = struct.pack("<H", 12)
    np.testing.assert_allclose(take(bytes(whole)).samples, tone(), atol=2**-10)


@pytest.mark.parametrize("subtype", ["MS_ADPCM", "IMA_ADPCM", "GSM610", "G721_32", "NMS_ADPCM_16"])
def test_other_encodings_are_named(subtype):
    if subtype not in soundfile.available_subtypes("WAV"):
        pytest.skip("this libsndfile does not write it")
    with pytest.raises(
        AudioError, match=r"must be PCM of 8, 16, 24 or 32 bit, float of 32 or 64, A-law or µ-law, not "
    ):
        take(by_libsndfile(tone(rate_hz=8000), subtype, rate_hz=8000))


def test_limits_are_checked_before_anything_is_decoded(monkeypatch):
    def decode(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr("services.runtime.wav.decode", decode)
    for whole, words in (
        (by_libsndfile(tone(1.0), "DOUBLE"), "lasts 1.00 s, at most 0.5 s"),
        (by_libsndfile(np.zeros((100, 9)), "PCM_24"), "1 to 8 channels, not 9"),
        (by_libsndfile(np.zeros(100), "PCM_24", rate_hz=4_000), "8000 to 192000 Hz, not 4000"),
    ):
        with pytest.raises(AudioError, match=words):
            take(whole, 0.5)


def corpus():
    """Headers of real programs, each with some samples."""
    short = tone(0.004)
    yield from (by_libsndfile(short, subtype, form) for subtype in SUBTYPES for form in ("WAV", "WAVEX", "RF64"))
    yield from (by_libsndfile(short, subtype, endian="BIG") for subtype in ("PCM_16", "PCM_24", "FLOAT"))
    yield from (by_ffmpeg(short, codec) for codec in ("pcm_s16le", "pcm_s24le", "pcm_f64le", "pcm_mulaw", "adpcm_ms"))
    yield by_ffmpeg(short, pipe=False, rf64="always", write_bext="1")
    yield by_ffmpeg(np.stack([short] * 6), layout="5.1")
    yield from ((DATA / f"{name}.wav").read_bytes()[:400] for name in ("pcm24_8k", "rf64_8k", "size0_8k"))


@pytest.mark.parametrize("piece", [1, 7, 100, 100_000])
def test_a_file_in_pieces_is_the_whole_file(piece):
    read = 0
    for whole in corpus():
        try:
            info = wav.read_info(whole)
        except wav.WavError:
            continue
        decoder = wav.WavDecoder()
        parts = [decoder.feed(whole[start : start + piece]) for start in range(0, len(whole), piece)]
        found = np.concatenate([part for part in parts if len(part)])
        np.testing.assert_array_equal(found, wav.decode(whole, info))
        assert decoder.info is not None and decoder.info.sample_rate_hz == info.sample_rate_hz
        read += 1
    assert read > 25


def test_damaged_files_give_a_clip_or_an_audio_error():
    rng = np.random.default_rng(0)
    outcomes = {"clip": 0, "error": 0}
    began = time.perf_counter()
    for whole in corpus():
        header = whole.index(b"data") + 8 if b"data" in whole else len(whole)
        damaged = [whole[:cut] for cut in range(0, min(len(whole), header + 20))]
        for _ in range(300):
            flipped = bytearray(whole)
            for place in rng.integers(0, header, size=rng.integers(1, 5)):
                flipped[place] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.integers(0, 256)])
            damaged.append(bytes(flipped))
            first, second = sorted(rng.integers(0, header, size=2))
            damaged.append(whole[:first] + whole[second:])  # a part is missing
            damaged.append(whole[:second] + whole[first:])  # a part is there twice
        for data in damaged:
            try:
                clip = take(data, 1.0)
            except AudioError as error:
                assert str(error).isprintable()
                outcomes["error"] += 1
            else:
                assert clip.samples.ndim == 1 and len(clip.samples) >= 1 and np.isfinite(clip.samples).all()
                assert clip.duration_s <= 1.0
                outcomes["clip"] += 1
    assert min(outcomes.values()) > 1000, outcomes
    assert time.perf_counter() - began < 60


# Files that come in pieces.


@pytest.mark.parametrize("piece", [1, 7, 1000, 1 << 20])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_a_file_in_pieces_is_decoded_as_the_whole(subtype, piece):
    samples = np.stack([tone(0.05), tone(0.05, hz=300.0)], axis=1)
    data = by_libsndfile(samples, subtype) + b"LIST\x04\0\0\0abcd"
    decoder = wav.WavDecoder()
    parts = [part for first in range(0, len(data), piece) if len(part := decoder.feed(data[first : first + piece]))]
    decoder.finish()
    assert np.array_equal(np.concatenate(parts), wav.decode(data, wav.read_info(data)))


def test_a_file_in_pieces_that_is_cut_or_no_wav_is_refused():
    data = by_libsndfile(tone(5.0))
    decoder = wav.WavDecoder()
    decoder.feed(data[: len(data) // 2])
    with pytest.raises(wav.WavError, match="truncated"):
        decoder.finish()
    with pytest.raises(wav.WavError, match="not a WAV file"):
        wav.WavDecoder().feed(b"ID3" + bytes(100))
    empty = wav.WavDecoder()
    with pytest.raises(wav.WavError, match="not a WAV file"):
        empty.finish()
