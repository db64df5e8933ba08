"""What our encoders write, as libsndfile and FFmpeg read it."""

import asyncio
import io
import subprocess
import sys
import threading

import av
import numpy as np
import pytest
import soundfile
import soxr

from gateway.audio import FORMATS, AsyncEncoder, FormatError, open_encoder

RATE = 24_000
FILES = ["wav", "wav_f32", "wav_mulaw", "wav_alaw", "flac", "mp3", "ogg_opus"]
RAW = {"pcm": ("s16le", RATE), "f32": ("f32le", RATE), "mulaw": ("mulaw", 8_000), "alaw": ("alaw", 8_000)}


def speech(seconds=1.7, rate_hz=RATE):
    """A voice's harmonics, which rise and fall; a whole number of nothing."""
    t = np.arange(int(seconds * rate_hz) + 123) / rate_hz
    pitch = 2 * np.pi * np.cumsum(120 + 30 * np.sin(2 * np.pi * 0.7 * t)) / rate_hz
    tones = sum(np.sin(pitch * k) / k for k in range(1, 20))
    return (0.15 * tones * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * t))).astype(np.float32)


def encode(name, samples, piece=1920, **options):
    encoder = open_encoder(name, input_rate_hz=RATE, **options)
    pieces = []
    for at in range(0, len(samples), piece):
        pieces += encoder.feed(samples[at : at + piece])
    pieces += encoder.finish()
    return pieces, encoder


def by_ffmpeg(data, form=None):
    """(samples float32 [T], rate) as FFmpeg decodes a file."""
    with av.open(io.BytesIO(data), format=form) as file:
        stream = file.streams.audio[0]
        parts = [frame.to_ndarray() for frame in file.decode(stream)]
        rate_hz = stream.rate
    samples = np.concatenate([part.reshape(-1) for part in parts])
    if samples.dtype == np.int16:
        samples = samples.astype(np.float32) / 32768
    return samples, rate_hz


def tags(data):
    with av.open(io.BytesIO(data)) as file:
        found = {**file.metadata, **file.streams.audio[0].metadata}
    return {name.lower(): value for name, value in found.items()}


def likeness(heard, said):
    """Of two signals, at the lag that fits best: (correlation, lag)."""
    size = 1 << (len(heard) + len(said)).bit_length()
    product = np.fft.irfft(np.fft.rfft(heard, size) * np.conj(np.fft.rfft(said, size)))
    lag = int(np.argmax(product))
    return product[lag] / np.sqrt(np.sum(heard**2) * np.sum(said**2)), lag if lag < size // 2 else lag - size


@pytest.mark.parametrize("name", FILES)
def test_a_file_decodes_to_the_speech(name):
    said = speech()
    pieces, encoder = encode(name, said)
    heard, rate_hz = by_ffmpeg(b"".join(pieces))
    assert rate_hz == {"wav_mulaw": 8_000, "wav_alaw": 8_000, "ogg_opus": 48_000, "mp3": 48_000}.get(name, RATE)
    said = soxr.resample(said, RATE, rate_hz)
    alike, lag = likeness(heard, said)
    assert alike > (0.999 if name in ("wav", "wav_f32", "flac") else 0.99)
    assert abs(lag) <= (1_200 if name == "mp3" else 1)  # MP3 has nowhere to state its encoder's delay
    assert encoder.samples == len(said) or name == "ogg_opus"  # which is decoded at 48 kHz whatever it was
    assert len(heard) == len(said) or name == "mp3"


@pytest.mark.parametrize("name", FILES)
def test_streamed_and_whole_files_decode_to_the_same_samples(name):
    said = speech()
    streamed = b"".join(encode(name, said)[0])
    whole = b"".join(encode(name, said, piece=5_000, streamed=False)[0])
    first, second = by_ffmpeg(streamed)[0], by_ffmpeg(whole)[0]
    assert np.array_equal(first, second)


@pytest.mark.parametrize("name", ["wav", "wav_f32", "wav_mulaw", "wav_alaw", "flac", "ogg_opus", "mp3"])
def test_libsndfile_reads_a_whole_file_and_its_length(name):
    said = speech()
    data = b"".join(encode(name, said, streamed=False)[0])
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        length = file.frames / file.samplerate
        assert abs(len(file.read()) - file.frames) <= (2_304 if name == "mp3" else 0)  # it drops the encoder's delay
    assert length == pytest.approx(len(said) / RATE, abs=0.11 if name == "mp3" else 0.001)


@pytest.mark.parametrize("name", FILES)
def test_no_samples_are_a_file_too(name):
    data = b"".join(encode(name, np.zeros(0, np.float32))[0])
    assert data
    if name.startswith("wav"):
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            assert not len(file.read(1_000))


@pytest.mark.parametrize("name", RAW)
def test_raw_samples_are_what_ffmpeg_decodes(name):
    form, rate_hz = RAW[name]
    pieces, encoder = encode(name, speech())
    said = soxr.resample(speech(), RATE, rate_hz)
    with av.open(io.BytesIO(b"".join(pieces)), format=form, options={"sample_rate": str(rate_hz)}) as file:
        heard = np.concatenate([frame.to_ndarray().reshape(-1) for frame in file.decode(audio=0)])
    if heard.dtype == np.int16:
        heard = heard.astype(np.float32) / 32768
    assert len(heard) == encoder.samples == len(said)
    assert np.max(np.abs(heard - said)) < (2**-5 if name.endswith("law") else 2**-15)


@pytest.mark.parametrize("name", ["mulaw", "alaw"])
def test_companded_bytes_are_those_of_ffmpeg(name):
    """All 65,536 samples. At a tie between two codes either is as near."""
    samples = np.arange(-32768, 32768).astype(np.int16)
    ours = b"".join(encode(name, samples.astype(np.float32) / 32768, sample_rate_hz=RATE)[0])
    context = av.CodecContext.create(f"pcm_{name}", "w")
    context.sample_rate, context.layout, context.format = RATE, "mono", "s16"
    frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
    frame.sample_rate = RATE
    theirs = b"".join(bytes(packet) for part in (frame, None) for packet in context.encode(part))

    def values(data):
        with av.open(io.BytesIO(data), format=name, options={"sample_rate": str(RATE)}) as file:
            return np.concatenate([part.to_ndarray().reshape(-1) for part in file.decode(audio=0)]).astype(int)

    differ = np.frombuffer(ours, np.uint8) != np.frombuffer(theirs, np.uint8)
    ours_off, theirs_off = np.abs(values(ours) - samples), np.abs(values(theirs) - samples)
    assert np.all(ours_off <= theirs_off)
    assert np.mean(differ) < 0.01


def test_opus_packets_are_20_ms_each_and_decode_to_the_speech():
    said = speech()
    packets, encoder = encode("opus_packets", said)
    assert encoder.sample_rate_hz == 48_000
    assert len(packets) == -(-(encoder.samples + 312) // 960)  # 312: Opus' look-ahead at 48 kHz
    decoder = av.CodecContext.create("libopus", "r")
    decoder.sample_rate, decoder.layout = 48_000, "mono"
    frames = [frame for packet in packets for frame in decoder.decode(av.Packet(packet))]
    assert {frame.samples for frame in frames} == {960}
    heard = np.concatenate([frame.to_ndarray().reshape(-1) for frame in frames]).astype(np.float32)
    alike, lag = likeness(heard[::2], said)
    assert alike > 0.99 and abs(lag - 156) <= 1


FRAME_MS = 80  # of the generator's codec
# What is held back at most, ms: half the resampler's filter, the encoder's block that is filling, and what it looks ahead.
HELD_MS = [
    *((name, rate, 8) for name in ("pcm", "mulaw", "alaw") for rate in (8_000, 16_000, 44_100, 48_000)),
    *(("pcm", rate, 0.1) for rate in (RATE, None)),
    *(("flac", rate, 32) for rate in (8_000, 16_000, RATE, 44_100, 48_000)),
    *(("ogg_opus", rate, 48) for rate in (8_000, 16_000, RATE, 48_000)),
    ("opus_packets", None, 28),
    *(("mp3", rate, FRAME_MS) for rate in (44_100, None)),
    ("pcm", 47_999, FRAME_MS),  # by soxr
]


@pytest.mark.parametrize(("name", "rate_hz", "most_ms"), HELD_MS)
def test_holds_back_less_than_a_frame_of_the_generator(name, rate_hz, most_ms):
    """What a decoder has made of the bytes so far lags behind the samples so far."""
    assert most_ms <= FRAME_MS
    held_ms = max_held_ms(name, rate_hz)
    assert held_ms <= most_ms
    if name == "mp3":
        assert held_ms > 40  # else its delay was not counted


def max_held_ms(name, rate_hz):
    encoder = open_encoder(name, input_rate_hz=RATE, sample_rate_hz=rate_hz)
    said, pieces, held_s = speech(1.0), [], []
    for at in range(0, RATE, 240):
        pieces += encoder.feed(said[at : at + 240])
        if at >= RATE // 2 and at % 720 == 0:
            held_s.append((at + 240) / RATE - decoded_s(name, pieces, encoder.sample_rate_hz))
    delay_s = 0.0
    if name == "mp3":  # its decoder begins with silence, which a file has no place to state
        heard, heard_hz = by_ffmpeg(b"".join([*pieces, *encoder.finish()]))
        delay_s = likeness(heard, soxr.resample(said, RATE, heard_hz))[1] / heard_hz
    return 1000 * (max(held_s) + delay_s)


def decoded_s(name, pieces, rate_hz):
    """Seconds of speech that a decoder has made of the pieces."""
    if name in RAW:
        return sum(map(len, pieces)) / {"pcm": 2, "f32": 4}.get(name, 1) / rate_hz
    if name == "opus_packets":
        return 0.02 * len(pieces) - 312 / 48_000  # Opus' look-ahead
    samples, heard_hz = by_ffmpeg(b"".join(pieces))
    return len(samples) / heard_hz


@pytest.mark.parametrize("name", ["wav", "flac", "ogg_opus", "mp3"])
@pytest.mark.parametrize("streamed", [True, False])
def test_a_file_says_that_its_speech_is_synthetic_and_by_what(name, streamed):
    found = tags(b"".join(encode(name, speech(), streamed=streamed, model="csm-1b")[0]))
    assert "Synthetic speech by Sesame CSM (csm-1b), watermarked" in found["comment"]
    assert "trainedAlgorithmicMedia" in " ".join(found.values())
    assert "csm-serve" in " ".join(found.values())


@pytest.mark.parametrize(
    ("name", "rate_hz", "field", "says"),
    [
        ("aac", None, "format", "must be one of pcm, f32, mulaw"),
        ("pcm", 4_000, "sample_rate_hz", "must be 8000 to 48000, not 4000"),
        ("ogg_opus", 44_100, "sample_rate_hz", "of ogg_opus must be one of 8000, 12000, 16000, 24000, 48000"),
        ("mp3", 10_000, "sample_rate_hz", "of mp3 must be one of 8000, 11025"),
        ("opus_packets", 24_000, "sample_rate_hz", "of opus_packets must be one of 48000, not 24000"),
    ],
)
def test_refuses_what_it_cannot_make(name, rate_hz, field, says):
    with pytest.raises(FormatError) as refused:
        open_encoder(name, input_rate_hz=RATE, sample_rate_hz=rate_hz)
    assert refused.value.field == field and says in refused.value.description


@pytest.mark.parametrize("name", FORMATS)
async def test_what_takes_long_runs_off_the_event_loop(name, monkeypatch):
    encoder = open_encoder(name, input_rate_hz=RATE)
    threads = []
    feed = encoder.feed
    monkeypatch.setattr(encoder, "feed", lambda samples: threads.append(threading.current_thread()) or feed(samples))
    wrapped = AsyncEncoder(encoder)
    await wrapped.feed(speech(0.05))
    await wrapped.feed(speech(1.0))
    await wrapped.feed(speech(6.0))
    await wrapped.finish()
    is_resampling = encoder.sample_rate_hz != RATE
    is_inline = [thread is threading.main_thread() for thread in threads]
    if FORMATS[name].codec is not None:
        assert is_inline == [False] * 3
    else:  # a thread for 1 s of plain samples would cost more than the work
        assert is_inline == [True, not is_resampling, False]


def test_opening_an_encoder_imports_no_codec():
    """The event loop opens it; its thread pays for the rest."""
    code = (
        "from gateway.audio import FORMATS, open_encoder; import sys;"
        "[open_encoder(name, input_rate_hz=24000) for name in FORMATS]; print('av' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True)
    assert out.stdout.strip() == b"False", out.stderr.decode()


@pytest.mark.parametrize("name", FORMATS)
async def test_an_encoder_that_is_dropped_halfway_leaves_nothing(name):
    for _ in range(20):
        encoder = AsyncEncoder(open_encoder(name, input_rate_hz=RATE))
        await encoder.feed(speech(0.1))
        del encoder
    await asyncio.sleep(0)
