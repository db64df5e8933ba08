"""Four speakers out of one teacher: hibari's "heart", as she is and with another throat.

hibari is a source-filter vocoder: its network gives pitch and spectral envelopes, and the waveform
is made outside it. So another speaker costs nothing: the pitch curve is moved and stretched before
synthesis, and the finished waveform is resampled, which moves the formants (the length of the
vocal tract) by the same factor; the network's own `speed` input makes up for the change of tempo.
The network also tells how long each phoneme lasts, which gives frame-exact phoneme labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from scipy.signal import resample_poly

SAMPLE_RATE_HZ = 24000
FRAME_SAMPLES = 1920  # Mimi's 80 ms
TEACHER_HOP = 300  # samples of one teacher frame
MEDIAN_F0_HZ = 185.0  # of "heart"
RMS = 0.06  # every utterance is brought to this level
LEAD_S, TAIL_S = 0.12, 0.20  # silence kept at the edges


@dataclass(frozen=True)
class Voice:
    """formants: factor on all resonances; f0_hz: median pitch; melody: stretch of log-pitch about it;
    pace: tempo against the teacher's."""

    name: str
    formants: Fraction
    f0_hz: float
    melody: float
    pace: float


TEACHER = "kokoro"  # who the shipped bundle's speakers learnt from (cast.py); "hibari" before recast.sh
VOICES = (
    Voice("heart", Fraction(1), 185.0, 1.0, 1.0),
    Voice("reed", Fraction(6, 7), 108.0, 0.9, 1.0),
    Voice("wren", Fraction(11, 10), 225.0, 1.15, 1.05),
    Voice("oak", Fraction(4, 5), 84.0, 1.0, 0.94),
)


@dataclass(frozen=True)
class Utterance:
    """text: as written; audio: int16 [samples], a whole number of 80 ms frames; phones: uint8 [samples / 960],
    the teacher's phoneme id sounding in each 40 ms half-frame."""

    text: str
    speaker: int
    audio: np.ndarray
    phones: np.ndarray


class Teacher:
    """hibari with its phoneme durations exposed. Needs onnx once, to name the hidden output."""

    def __init__(self, scratch: Path):
        import onnx
        import onnxruntime
        from hibari import Hibari

        self.tts = Hibari()
        graph = onnx.load(self.tts.model_path)
        (rounded,) = [node for node in graph.graph.node if node.op_type == "Clip"]
        self.durations = rounded.output[0]
        graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(self.durations))
        path = scratch / "teacher.onnx"
        if not path.exists():
            onnx.save(graph, str(path))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.names = ["lh", "theta", "ln", "lr", "phi", "f0", self.durations]

    def say(self, text: str, speaker: int, seed: int) -> Utterance | None:
        """One utterance, or None when the teacher finds nothing to say or splits the text into too long parts."""
        sentences = self.tts.phonemize(text)
        if not sentences:
            return None
        parts = [self._sentence(phonemes, VOICES[speaker], seed + i) for i, phonemes in enumerate(sentences)]
        audio = np.concatenate([audio for audio, _ in parts])
        phones = np.concatenate([phones for _, phones in parts])
        audio, phones = _trim(audio, phones)
        audio = audio * (RMS / (np.sqrt(np.mean(audio**2)) + 1e-6))
        peak = np.abs(audio).max()
        if not np.isfinite(peak) or len(audio) < SAMPLE_RATE_HZ // 4:
            return None
        audio = audio / max(1.0, peak / 0.95)
        frames = -(-len(audio) // FRAME_SAMPLES)
        audio = np.pad(audio, (0, frames * FRAME_SAMPLES - len(audio)))
        middles = np.minimum(np.arange(frames * 2) * 960 + 480, len(phones) - 1)
        return Utterance(text, speaker, (audio * 32767).astype(np.int16), phones[middles])

    def _sentence(self, phonemes: str, voice: Voice, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """(audio [samples] float32, phoneme id of every sample [samples] uint8)."""
        from hibari import dsp

        ids = self.tts.ids(phonemes)
        stretch = float(voice.formants)
        feed = {"ids": np.asarray([ids], np.int64), "speed": np.asarray([voice.pace / stretch], np.float32)}
        *spectra, durations = self.session.run(self.names, feed)
        lh, theta, ln, lr, phi, f0 = (array[0] for array in spectra)
        if voice.f0_hz != MEDIAN_F0_HZ or voice.melody != 1:
            voiced = f0 > 40
            moved = (voice.f0_hz / stretch) * (np.maximum(f0, 40) / MEDIAN_F0_HZ) ** voice.melody
            f0 = np.where(voiced, np.clip(moved, 50, 600), f0).astype(np.float32)
            lr = lr - 1.5 * voiced  # this branch holds traces of the teacher's own pitch
        audio = dsp.synth(lh, theta, ln, lr, phi, f0, np.random.default_rng(seed))
        phones = np.repeat(np.asarray(ids, np.uint8), durations.reshape(-1).astype(int) * TEACHER_HOP)
        if voice.formants != 1:
            audio = resample_poly(audio, voice.formants.denominator, voice.formants.numerator).astype(np.float32)
            phones = phones[(np.arange(len(audio)) * stretch).astype(int).clip(max=len(phones) - 1)]
        return audio, phones[: len(audio)]


def _trim(audio: np.ndarray, phones: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut edge silence down to LEAD_S and TAIL_S."""
    envelope = np.abs(audio[: len(audio) // 240 * 240]).reshape(-1, 240).max(1)
    loud = np.flatnonzero(envelope > 0.02 * envelope.max())
    first = max(0, int(loud[0] * 240 - LEAD_S * SAMPLE_RATE_HZ))
    last = min(len(audio), int((loud[-1] + 1) * 240 + TAIL_S * SAMPLE_RATE_HZ))
    return audio[first:last], phones[first:last]
