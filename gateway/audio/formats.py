"""The formats by name."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.audio import coded
from gateway.audio.pcm import SAMPLE_FORMATS, RawEncoder, WavEncoder
from gateway.audio.resampler import COMMON_RATES_HZ, StreamResampler
from gateway.audio.stream_encoder import FormatError, StreamEncoder
from services.runtime.audio import MAX_RATE_HZ, MIN_RATE_HZ

_OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)
_TELEPHONY_HZ = 8_000
_WEBRTC_HZ = 48_000
# MP3 delays by a number of samples: at 48 kHz by 73 ms, within one codec frame of 80 ms; at 24 kHz by 92.
_MP3_HZ = 48_000


@dataclass(frozen=True)
class Format:
    """content_type: `{rate}` stands for the rate. samples: a name of SAMPLE_FORMATS. rates: none allows all.

    default_rate_hz: None is the input's. wav: whether a WAV header stands before the samples.
    """

    content_type: str
    samples: str = ""
    codec: coded.Codec | None = None
    rates: tuple[int, ...] = ()
    default_rate_hz: int | None = None
    wav: bool = False


FORMATS: dict[str, Format] = {
    "pcm": Format("audio/pcm", "s16le"),
    "f32": Format("application/octet-stream", "f32le"),
    "mulaw": Format("audio/basic", "mulaw", default_rate_hz=_TELEPHONY_HZ),
    "alaw": Format("audio/x-alaw-basic", "alaw", default_rate_hz=_TELEPHONY_HZ),
    "wav": Format("audio/wav", "s16le", wav=True),
    "wav_f32": Format("audio/wav", "f32le", wav=True),
    "wav_mulaw": Format("audio/wav", "mulaw", default_rate_hz=_TELEPHONY_HZ, wav=True),
    "wav_alaw": Format("audio/wav", "alaw", default_rate_hz=_TELEPHONY_HZ, wav=True),
    "flac": Format("audio/flac", codec=coded.FLAC),
    "mp3": Format("audio/mpeg", codec=coded.MP3, rates=COMMON_RATES_HZ, default_rate_hz=_MP3_HZ),
    "ogg_opus": Format("audio/ogg", codec=coded.OGG_OPUS, rates=_OPUS_RATES),
    "opus_packets": Format("audio/opus", codec=coded.OPUS_PACKETS, rates=(_WEBRTC_HZ,), default_rate_hz=_WEBRTC_HZ),
}


def output_rate_hz(name: str, input_rate_hz: int, sample_rate_hz: int | None) -> int:
    """The rate of the format's output. sample_rate_hz: the one asked for. Raises: FormatError."""
    if name not in FORMATS:
        raise FormatError("format", f"must be one of {', '.join(FORMATS)}, not {name[:32]!r}")
    form = FORMATS[name]
    rate = form.default_rate_hz or input_rate_hz if sample_rate_hz is None else sample_rate_hz
    if not MIN_RATE_HZ <= rate <= MAX_RATE_HZ:
        raise FormatError("sample_rate_hz", f"must be {MIN_RATE_HZ} to {MAX_RATE_HZ}, not {rate}")
    if form.rates and rate not in form.rates:
        if sample_rate_hz is not None:
            known = ", ".join(map(str, form.rates))
            raise FormatError("sample_rate_hz", f"of {name} must be one of {known}, not {rate}")
        rate = min((known for known in form.rates if known >= rate), default=form.rates[-1])
    return rate


def open_encoder(
    name: str,
    *,
    input_rate_hz: int,
    sample_rate_hz: int | None = None,
    streamed: bool = True,
    model: str = "",
) -> StreamEncoder:
    """An encoder of one utterance.

    name: a key of FORMATS. input_rate_hz: of the samples that are fed. sample_rate_hz: of the output; None is the
    format's default. streamed: False for a whole file, whose header knows its length: all bytes come with `finish`.
    model: the bundle's id, for the file's tag.
    Raises: FormatError.
    """
    rate = output_rate_hz(name, input_rate_hz, sample_rate_hz)
    form, resampler = FORMATS[name], StreamResampler(input_rate_hz, rate)
    if form.codec is None:
        samples = SAMPLE_FORMATS[form.samples]
        if form.wav:
            return WavEncoder(samples, resampler, streamed=streamed, model=model)
        return RawEncoder(samples, resampler, form.content_type)
    if not form.codec.muxer:
        return coded.PacketEncoder(form.codec, resampler, form.content_type)
    return coded.CodedEncoder(form.codec, resampler, form.content_type, streamed=streamed, model=model)
