"""FLAC, MP3 and Ogg that callers send: what is read, what is refused, and what a hostile file can do."""

import io
import os
import signal
import sys
import time

import av
import numpy as np
import psutil
import pytest
import soundfile

from gateway.audio import open_encoder
from services.runtime import decoder_process
from services.runtime.audio import AudioError, wav_bytes
from services.runtime.audio_file import CompressedFile, read_file, sniff
from services.runtime.decoder_process import DecodeError, DecoderProcess

KINDS = [("FLAC", "PCM_16"), ("FLAC", "PCM_24"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")]


def tone(seconds=1.0, rate_hz=48_000, hz=440.0):
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def written(samples, kind, subtype, rate_hz=48_000):
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, format=kind, subtype=subtype)
    return file.getvalue()


def refused(data, max_duration_s=10.0):
    with pytest.raises(AudioError) as caught:
        read_file(data, max_duration_s=max_duration_s)
    assert caught.value.field == "file" and "\n" not in str(caught.value)
    return caught.value.description


@pytest.mark.parametrize(("kind", "subtype"), KINDS)
@pytest.mark.parametrize("channels", [1, 2])
def test_reads_what_libsndfile_writes(kind, subtype, channels):
    said = np.stack([tone(), 0.5 * tone()][:channels], axis=1)
    data = written(said, kind, subtype)
    assert sniff(data[:8192]) == kind.lower()
    clip = read_file(data, max_duration_s=10)
    assert clip.sample_rate_hz == 48_000 and clip.duration_s == pytest.approx(1.0, abs=0.05)
    middle = slice(10_000, 30_000)
    lossy = kind != "FLAC"
    assert np.std(clip.samples[middle]) == pytest.approx(np.std(said.mean(axis=1)[middle]), rel=0.05 if lossy else 1e-3)
    if channels == 2:
        assert np.std(clip.channels[1][middle]) == pytest.approx(np.std(said[middle, 1]), rel=0.05 if lossy else 1e-3)


@pytest.mark.parametrize("name", ["flac", "mp3", "ogg_opus", "wav", "wav_mulaw"])
@pytest.mark.parametrize("streamed", [True, False])
def test_reads_what_we_send(name, streamed):
    encoder = open_encoder(name, input_rate_hz=24_000, streamed=streamed)
    data = b"".join([*encoder.feed(tone(rate_hz=24_000)), *encoder.finish()])
    clip = read_file(data, max_duration_s=10)
    assert clip.duration_s == pytest.approx(1.0, abs=0.11)


@pytest.mark.parametrize(
    ("codec", "muxer", "rate_hz", "layout"),
    [
        ("flac", "flac", 96_000, "5.1"),
        ("libopus", "ogg", 16_000, "mono"),
        ("mp3", "mp3", 22_050, "mono"),
        ("mp3", "mp3", 11_025, "mono"),
    ],
)
def test_reads_what_ffmpeg_writes(codec, muxer, rate_hz, layout):
    file = io.BytesIO()
    with av.open(file, "w", format=muxer) as container:
        stream = container.add_stream(codec, rate=rate_hz, layout=layout, options={"strict": "-2"})
        channels = stream.layout.nb_channels
        planes = np.tile(np.rint(tone(rate_hz=rate_hz) * 32767).astype(np.int16), (channels, 1))
        frame = av.AudioFrame.from_ndarray(planes, format="s16p", layout=layout)
        frame.sample_rate = rate_hz
        resampler = av.AudioResampler(stream.format, layout, rate_hz)
        for part in [*resampler.resample(frame), *resampler.resample(None), None]:
            container.mux(stream.encode(part))
    clip = read_file(file.getvalue(), max_duration_s=10)
    assert clip.duration_s == pytest.approx(1.0, abs=0.11)
    assert (0 if clip.channels is None else len(clip.channels)) == (0 if channels == 1 else channels)


def test_a_wav_may_come_as_a_file_too():
    assert read_file(wav_bytes(tone(), 48_000), max_duration_s=10).duration_s == 1.0
    assert "lasts 1.00 s, at most 0.5 s" in refused(wav_bytes(tone(), 48_000), 0.5)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"hello", "is no WAV, FLAC, MP3 or Ogg"),
        (bytes(100_000), "is no WAV, FLAC, MP3 or Ogg"),
        (b"fLaC", "cannot be decoded"),
        (b"fLaC" + bytes(1000), "cannot be decoded"),
        (b"OggS" + bytes(1000), "cannot be decoded"),
        (b"ID3" + bytes(1000), "cannot be decoded"),
        (b"ID3\4\0\0\0\0\0\0" + wav_bytes(tone(), 48_000), ""),  # a WAV behind a tag: another parser of libsndfile
        (b"ID3\4\0\0\x7f\x7f\x7f\x7f" + bytes(100), "cannot be decoded"),
    ],
)
def test_what_is_no_audio_is_refused_in_a_line(data, says):
    assert says in refused(data)


@pytest.mark.parametrize(("kind", "subtype"), KINDS)
def test_long_files_are_refused_by_their_seconds(kind, subtype):
    data = written(tone(3.0), kind, subtype)
    assert "at most 2 s are taken" in refused(data, 2.0) or "lasts more than 2 s" in refused(data, 2.0)


def test_a_small_file_of_hours_is_refused_before_it_is_decoded():
    hours = written(np.zeros(3 * 3600 * 8_000, np.int16), "FLAC", "PCM_16", 8_000)
    assert len(hours) < 300_000
    began = time.perf_counter()
    assert "lasts 10800.00 s, at most 10 s are taken" in refused(hours)
    lying = bytearray(hours)
    lying[21:26] = bytes([lying[21] & 0xF0, 0, 0, 0, 0])  # its header leaves the length open
    assert "lasts more than 10 s" in refused(bytes(lying))
    lying[21:26] = bytes([lying[21] & 0xF0, 0, 0, 0x1F, 0x40])  # its header says one second
    try:
        assert read_file(bytes(lying), max_duration_s=10.0).duration_s <= 10
    except AudioError:
        pass
    assert time.perf_counter() - began < 10


def test_what_unpacks_to_too_much_memory_is_refused():
    wide = written(np.zeros((192_000 * 30, 8), np.int16), "FLAC", "PCM_16", 192_000)
    assert len(wide) < 2_000_000
    assert "unpacks to 184 MB of samples or more, at most 134 are taken" in refused(wide, 60.0)


def test_many_channels_and_odd_rates_are_refused():
    assert "8000 to 192000 Hz, not 4000 Hz" in refused(written(tone(rate_hz=4_000), "FLAC", "PCM_16", 4_000))


def test_a_decoder_that_dies_refuses_its_file_alone():
    data = written(tone(3.0), "FLAC", "PCM_16")
    file = CompressedFile(data, max_duration_s=10)
    assert len(file.next_block())
    os.kill(file._decoder.pid, signal.SIGSEGV)
    with pytest.raises(AudioError, match="file: is damaged: its decoder failed"):
        file.next_block()
    file.close()
    assert read_file(data, max_duration_s=10).duration_s == 3.0


def test_a_decoder_that_hangs_is_ended():
    decoder = DecoderProcess(timeout_s=0.3)
    os.kill(decoder.pid, signal.SIGSTOP)
    with pytest.raises(DecodeError, match=r"takes more than 0.3 s"):
        decoder.open(bytes(1 << 22))
    assert not psutil.pid_exists(decoder.pid)


def test_a_decoder_knows_no_secret_of_the_server_and_little_memory(monkeypatch):
    monkeypatch.setenv("CSM_WATERMARK_KEY", "secret")
    decoder_process.end_idle()
    decoder = DecoderProcess()
    decoder.open(written(tone(), "FLAC", "PCM_16"))
    process = psutil.Process(decoder.pid)
    assert "CSM_WATERMARK_KEY" not in process.environ()
    if sys.platform == "linux":
        assert process.rlimit(psutil.RLIMIT_AS) == (1 << 30, 1 << 30)
    decoder.kill()


def test_one_process_serves_file_after_file_and_ends_with_us():
    decoder_process.end_idle()
    data = written(tone(), "OGG", "OPUS")
    pids = set()
    for _ in range(5):
        with CompressedFile(data, max_duration_s=10) as file:
            pids.add(file._decoder.pid)
            file.next_block()
        refused(b"fLaC" + bytes(50))
    assert len(pids) == 1
    decoder_process.end_idle()
    assert not psutil.pid_exists(pids.pop())
