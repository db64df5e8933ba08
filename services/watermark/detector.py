"""Find a key in a clip: which symbols its columns say, from which sample on, and whether that is proof.

The stock decoder reports `status: True` for anything that spells some message, and looks for the
message's phase by decoding the whole clip at every tenth sample of a hop: 205 times for the public
model. Here the loudest few messages are decoded at eighths of a hop, then around the best ever
more finely, and the whole clip once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.watermark.evidence import UNREACHABLE, Fit, fit, tally, vote
from services.watermark.hparams import TRAINING_POWER
from services.watermark.key import check_key, key_symbols, symbols_key
from services.watermark.weights import Nets

_COARSE = 8  # offsets tried per hop
_FINE = 4  # halvings of the step after that: the position is right to hop / 128
_SEARCH_MESSAGES = 3  # length of the stretch that the search decodes
_PROMISING = 0.05  # when chance explains every coarse offset better than this, finer ones are not worth their time
_BLOCK_COLUMNS = 128  # decoded at once, so that memory does not grow with the clip


@dataclass(frozen=True)
class Detection:
    """What was found.

    found: whether the key is there beyond chance (see evidence.py).
    confidence: share of the decoded symbols that agree with the key. threshold: from where it is proof.
    decoded_key: what the symbols spell, by majority; None when they spell no key.
    position_s: where the first whole message begins; None unless found.
    """

    found: bool
    confidence: float
    threshold: float
    decoded_key: bytes | None
    position_s: float | None


class Detector:
    """Looks for keys with one model's nets. Holds nothing of any clip; safe to share by threads."""

    def __init__(self, nets: Nets, *, max_seconds: float = 60.0):
        self.hparams = nets.hparams
        self.max_seconds = max_seconds
        self._decoder = nets.dec_m
        self.device = nets.dec_m.linear.weight.device
        self._window = torch.hann_window(nets.hparams.n_fft, device=self.device)
        # How many columns on each side one symbol depends on: one for each 3x3 layer.
        self._reach = sum(1 for layer in nets.dec_m.main if hasattr(layer, "conv"))

    @torch.inference_mode()
    def detect(
        self,
        samples: NDArray[np.float32],
        sample_rate_hz: int,
        key: bytes,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Detection:
        """Look for `key` in mono audio [n].

        stopped: asked between passes of the decoder; when it says True the search is given up.

        Raises: ValueError naming field and limit when the clip is too long or not finite, or the key
        has another length; InterruptedError when stopped.
        """
        message = key_symbols(check_key(key, self.hparams.key_bytes))
        audio = self._prepare(np.asarray(samples, np.float32), sample_rate_hz)
        if audio is None:
            return Detection(False, 0.0, UNREACHABLE, None, None)
        offset = self._find_offset(audio, message, stopped)
        counts = self._count(self._scores(audio, offset, stopped))
        result = fit(counts, message)
        return Detection(
            result.found,
            result.share,
            result.threshold,
            symbols_key(vote(counts)),
            self._position(offset, result) if result.found else None,
        )

    def _prepare(self, samples: NDArray[np.float32], sample_rate_hz: int) -> Tensor | None:
        """Audio at the model's rate and level [n]; None when there is nothing to hear."""
        if samples.ndim != 1:
            raise ValueError(f"audio has {samples.ndim} dimensions, must have 1")
        if sample_rate_hz < 1:
            raise ValueError(f"sample_rate_hz is {sample_rate_hz}, must be at least 1")
        seconds = len(samples) / sample_rate_hz
        if seconds > self.max_seconds:
            raise ValueError(f"audio is {seconds:.1f} s, must be at most {self.max_seconds:g} s")
        if not np.isfinite(samples).all():
            raise ValueError("audio must be finite, found NaN or infinity")
        if sample_rate_hz != self.hparams.sample_rate_hz and len(samples):
            samples = soxr.resample(samples, sample_rate_hz, self.hparams.sample_rate_hz, "HQ")
        power = float(np.mean(np.square(samples, dtype=np.float64))) if len(samples) else 0.0
        if power < 1e-20:
            return None
        audio = torch.tensor(samples, device=self.device) * (TRAINING_POWER / power) ** 0.5
        # An offset of up to a hop and mirrored ends must leave one frame.
        return torch.nn.functional.pad(audio, (0, max(0, 2 * self.hparams.n_fft - len(audio))))

    def _find_offset(self, audio: Tensor, message: list[int], stopped: Callable[[], bool]) -> int:
        """The sample, 0 to hop - 1, from which columns a hop apart lie on the encoder's."""
        hop = self.hparams.hop_length
        stretch = self._loudest(audio)
        seen: dict[int, tuple[float, Fit]] = {}

        def look(offset: int) -> float:
            if offset not in seen:
                scores = self._scores(stretch, offset, stopped)
                seen[offset] = self._sharpness(scores), fit(self._count(scores), message)
            return seen[offset][0]

        step = max(1, hop // _COARSE)
        best = max(range(0, hop, step), key=look)
        if min(result.chance for _, result in seen.values()) > _PROMISING:
            return best
        for _ in range(_FINE):
            step = step // 2
            if not step:
                break
            best = max((best, (best - step) % hop, (best + step) % hop), key=look)
        return best

    def _loudest(self, audio: Tensor) -> Tensor:
        """The stretch of a few messages with the most energy; starts a whole number of hops in."""
        hop = self.hparams.hop_length
        length = (_SEARCH_MESSAGES * self.hparams.message_len + 1) * hop  # one hop to shift within
        if len(audio) <= length:
            return audio
        energy = audio[: len(audio) // hop * hop].reshape(-1, hop).square().sum(1).double().cumsum(0)
        span = length // hop
        sums = energy[span - 1 :] - torch.nn.functional.pad(energy, (1, 0))[: len(energy) - span + 1]
        start = int(sums.argmax()) * hop
        return audio[start : start + length]

    def _scores(self, audio: Tensor, offset: int, stopped: Callable[[], bool]) -> Tensor:
        """Log-probability of each symbol in each column [symbols, T] of the audio from `offset` on."""
        shape = self.hparams
        spectrum = torch.stft(
            audio[offset:], shape.n_fft, shape.hop_length, window=self._window, return_complex=True
        )
        magnitude = spectrum[: shape.message_band_size].abs()[None, None]
        columns = magnitude.shape[3]
        blocks = []
        for start in range(0, columns, _BLOCK_COLUMNS):
            if stopped():
                raise InterruptedError("the search was given up")
            end = min(columns, start + _BLOCK_COLUMNS)
            first = max(0, start - self._reach)
            scores = self._decoder(magnitude[..., first : end + self._reach])[0, 0]
            blocks.append(scores[:, start - first : end - first])
        return torch.cat(blocks, dim=1).float().log_softmax(dim=0)

    def _sharpness(self, scores: Tensor) -> float:
        """How surely the columns say some message that repeats: needs no key, so it favours none."""
        period = self.hparams.message_len
        whole = scores.shape[1] // period * period or scores.shape[1]
        periods = max(1, whole // period)
        folded = scores[:, :whole].reshape(len(scores), periods, -1).mean(1)  # [symbols, place]
        return float(folded.max(dim=0).values.mean())

    def _count(self, scores: Tensor) -> NDArray[np.int64]:
        """Symbols read at each place of the message [message_len, symbols]."""
        return tally(scores.argmax(0).cpu().numpy(), self.hparams.message_len, self.hparams.message_dim)

    def _position(self, offset: int, result: Fit) -> float:
        """Seconds to the first whole message; one that begins a hair before the clip counts as whole."""
        shape = self.hparams
        position = offset + result.rotation * shape.hop_length
        if shape.message_len * shape.hop_length - position <= shape.hop_length // _COARSE:
            position = 0
        return position / shape.sample_rate_hz
