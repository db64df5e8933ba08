"""Find a key in a clip: how far its columns speak for it, from which sample on, and whether that is proof.

The stock decoder reports `status: True` for anything that spells some message, and looks for the
message's phase by decoding the whole clip at every tenth sample of a hop: 205 times for the public
model. Here no more of a clip is read than proves the key or leaves no hope of it: its loudest two
messages at a few offsets within a hop, farthest apart first, until the key is spelt. Only a clip that
seems to hold the key and does not prove it is looked at in full and more finely.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

OFFSETS = 8  # tried per hop where nothing is known of the decoder
_FINEST = 32  # a promising clip is tried down to a hop / 32
_NEAR_MESSAGES = 2  # length of the stretch that is read at every offset
_WIDE_MESSAGES = 8  # and of the one in which the best is sought
_PROMISING = 0.05  # when chance explains every offset better than this, finer ones are not worth their time
_BLOCK_CELLS = 32768  # bins x columns decoded at once, so that memory does not grow with the clip
_LEAST_BLOCK_COLUMNS = 128


@dataclass(frozen=True)
class Detection:
    """What was found.

    found: whether the key is there beyond chance (see evidence.py).
    confidence: how far the columns read agree with the key, as the mean probability of its symbols.
    threshold: from where that is proof.
    decoded_key: what those columns spell, all taken together; None when they spell no key.
    position_s: where the first whole message begins, right to half the distance of the offsets tried;
    None unless found.
    """

    found: bool
    confidence: float
    threshold: float
    decoded_key: bytes | None
    position_s: float | None


@dataclass(frozen=True)
class _Look:
    """One pass over a stretch. start: its first sample in the clip, a whole number of hops. offset: samples
    from there to the first column, 0 to hop - 1. sums: see evidence.tally."""

    start: int
    offset: int
    sums: NDArray[np.float64]
    sharpness: float
    fit: Fit

    @property
    def spelt(self) -> bytes | None:
        return symbols_key(vote(self.sums))


class Detector:
    """Looks for keys with one model's nets. Holds nothing of any clip; safe to share by threads."""

    def __init__(self, nets: Nets, *, max_seconds: float = 60.0, offsets: int = OFFSETS):
        """offsets: places within a hop at which columns are tried. A decoder that was trained on clips
        cut at any sample needs two; one that was not may read nothing a quarter of a hop beside its columns.

        Raises: ValueError when offsets is out of bounds.
        """
        if not 1 <= offsets <= _FINEST or offsets & (offsets - 1):
            raise ValueError(f"offsets is {offsets}, must be a power of two, at most {_FINEST}")
        self.hparams = nets.hparams
        self.max_seconds = max_seconds
        self.offsets = offsets
        self.device = nets.dec_m.linear.weight.device
        # A core reads a quarter faster with channels last; the values stay.
        layout = torch.channels_last if self.device.type == "cpu" else torch.preserve_format
        self._decoder = nets.dec_m.to(memory_format=layout)
        self._window = torch.hann_window(nets.hparams.n_fft, device=self.device)
        # How many columns on each side one symbol depends on: one for each 3x3 layer.
        self._reach = sum(1 for layer in nets.dec_m.main if hasattr(layer, "conv"))
        # Every look is a chance to be wrong: the coarse ones, the wide one, two for each halving, the whole clip.
        self._looks = offsets + 2 * (_FINEST // offsets).bit_length()

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
        look = self._find(audio, message, stopped)
        return Detection(
            look.fit.found,
            look.fit.share,
            look.fit.threshold,
            look.spelt,
            self._position(look) if look.fit.found else None,
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

    def _find(self, audio: Tensor, message: list[int], stopped: Callable[[], bool]) -> _Look:
        """The look that speaks most for the key, of as many as are needed."""
        hop, key = self.hparams.hop_length, symbols_key(message)
        looks: list[_Look] = []
        seen: set[tuple[int, int]] = set()  # length of the stretch and offset: a short clip is its own stretch

        def read(messages: int | None, offsets: Sequence[int]) -> None:
            stretch, start = self._loudest(audio, messages)
            offsets = [offset for offset in offsets if (len(stretch), offset) not in seen]
            seen.update((len(stretch), offset) for offset in offsets)
            if not offsets:
                return
            for offset, scores in zip(offsets, self._scores(stretch, offsets, stopped), strict=True):
                sums = tally(scores.exp().cpu().numpy(), self.hparams.message_len)
                result = fit(sums, message, self._looks)
                looks.append(_Look(start, offset, sums, self._sharpness(scores), result))

        def best() -> _Look:
            return min(looks, key=lambda look: (look.fit.chance, -look.fit.share))

        coarse = [hop * part // self.offsets for part in _spread(self.offsets)]
        # An accelerator takes all at once; a core saves the passes that are not needed.
        for offsets in [coarse] if self.device.type != "cpu" else [[offset] for offset in coarse]:
            read(_NEAR_MESSAGES, offsets)
            if best().fit.found and best().spelt == key:
                return best()
        if best().fit.chance > _PROMISING:
            sharpest = max(looks, key=lambda look: look.sharpness)
            if self._most_of(audio):
                return sharpest
            read(None, [sharpest.offset])
            return looks[-1]
        read(_WIDE_MESSAGES, [best().offset])
        if best().fit.found:
            return best()
        step = hop // self.offsets
        while (step := step // 2) and step * _FINEST >= hop:
            offset = best().offset
            read(_WIDE_MESSAGES, [(offset - step) % hop, (offset + step) % hop])
            if best().fit.found:
                return best()
        read(None, [best().offset])
        return best()

    def _loudest(self, audio: Tensor, messages: int | None) -> tuple[Tensor, int]:
        """The stretch of `messages` messages with the most energy, and where it starts: a whole number of hops in.

        None: all of it.
        """
        hop = self.hparams.hop_length
        length = ((messages or 0) * self.hparams.message_len + 1) * hop  # one hop to shift within
        if messages is None or len(audio) <= length:
            return audio, 0
        energy = audio[: len(audio) // hop * hop].reshape(-1, hop).square().sum(1).double().cumsum(0)
        span = length // hop
        sums = energy[span - 1 :] - torch.nn.functional.pad(energy, (1, 0))[: len(energy) - span + 1]
        start = int(sums.argmax()) * hop
        return audio[start : start + length], start

    def _most_of(self, audio: Tensor) -> bool:
        """Whether the stretch that was read holds most of the clip's energy: the rest will not prove a key."""
        stretch, _ = self._loudest(audio, _NEAR_MESSAGES)
        return float(stretch.square().sum()) >= 0.5 * float(audio.square().sum())

    def _scores(self, audio: Tensor, offsets: Sequence[int], stopped: Callable[[], bool]) -> Tensor:
        """Log-probability of each symbol in each column [len(offsets), symbols, T] of the audio from each offset on."""
        shape = self.hparams
        length = len(audio) - max(offsets)
        shifted = torch.stack([audio[offset : offset + length] for offset in offsets])
        spectrum = torch.stft(shifted, shape.n_fft, shape.hop_length, window=self._window, return_complex=True)
        magnitude = spectrum[:, None, : shape.message_band_size].abs()
        columns = magnitude.shape[3]
        block = max(_LEAST_BLOCK_COLUMNS, _BLOCK_CELLS // shape.message_band_size // len(offsets))
        blocks = []
        for start in range(0, columns, block):
            if stopped():
                raise InterruptedError("the search was given up")
            end = min(columns, start + block)
            first = max(0, start - self._reach)
            scores = self._decoder(magnitude[..., first : end + self._reach])[:, 0]
            blocks.append(scores[..., start - first : end - first])
        return torch.cat(blocks, dim=2).float().log_softmax(dim=1)

    def _sharpness(self, scores: Tensor) -> float:
        """How surely the columns say some message that repeats: needs no key, so it favours none."""
        period = self.hparams.message_len
        whole = scores.shape[1] // period * period or scores.shape[1]
        periods = max(1, whole // period)
        folded = scores[:, :whole].reshape(len(scores), periods, -1).mean(1)  # [symbols, place]
        return float(folded.max(dim=0).values.mean())

    def _position(self, look: _Look) -> float:
        """Seconds to the first whole message; one that begins a hair before the clip counts as whole."""
        shape = self.hparams
        period = shape.message_len * shape.hop_length
        position = (look.start + look.offset + look.fit.rotation * shape.hop_length) % period
        if period - position <= shape.hop_length // OFFSETS:
            position = 0
        return position / shape.sample_rate_hz


def _spread(count: int) -> list[int]:
    """0 to count - 1, a power of two, each as far as can be from those before it: bits in reverse."""
    bits = count.bit_length() - 1
    return sorted(range(count), key=lambda n: f"{n:0{bits}b}"[::-1])
