"""The embedding nets as a stream: carrier columns in, mark columns out, each computed once.

Every 3x3 layer keeps the last two columns of its input, so a column costs the same whether it
comes alone or with a thousand others, and the result is that of the whole clip: the zeros with
which the stock pads each layer at the clip's ends are put in at the stream's ends.

Two savings that change nothing:
- the mark is zero from `message_band_size` bins up, and a cell depends on `reach` bins around it,
  so higher bins are never computed;
- the stock repeats carrier and message 32 times each on the carrier decoder's 96 input channels
  (silentcipher/server.py: encode_wav); their weights are summed once instead, which leaves 34.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from services.watermark.weights import Layer, Nets

_FEATURES = 32


@dataclass
class MarkState:
    """What one stream leaves behind in the nets. Leading dimension [B]: states of the same shape of
    streams that are fed the same number of columns can be concatenated and stepped as one."""

    tails: list[Tensor] = field(default_factory=list)  # per 3x3 layer: its input's last columns [B, C, rows, <=2]
    waiting: Tensor | None = None  # carrier and message whose features are not known yet [B, 2, rows, w]

    @property
    def tensors(self) -> list[Tensor]:
        return self.tails if self.waiting is None else [self.waiting, *self.tails]


class Part(Protocol):
    """One stream's share of a step, as Marker.step takes it but without the leading dimension."""

    @property
    def state(self) -> MarkState: ...
    @property
    def carrier(self) -> Tensor: ...
    @property
    def symbols(self) -> Tensor: ...
    @property
    def last(self) -> bool: ...


class _GatedConv:
    """BatchNorm(conv(x) * sigmoid(gate(x))) in eval mode, both convolutions as one."""

    def __init__(self, layer: Layer, weights: tuple[Tensor, Tensor] | None = None):
        conv, gate = weights or (layer.conv.weight, layer.gate.weight)
        self.weight = torch.cat([conv, gate])  # [2 * C_out, C_in, k, k]
        self.bias = torch.cat([layer.conv.bias, layer.gate.bias])
        self.pad = layer.conv.padding[0]
        norm = layer.bn
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        self.scale = scale[:, None, None]
        self.shift = (norm.bias - norm.running_mean * scale)[:, None, None]

    def step(self, x: Tensor) -> Tensor:
        """x [B, C_in, rows, k + 2 * pad] → [B, C_out, rows, k]; bins are padded, columns are not."""
        h, gate = torch.nn.functional.conv2d(x, self.weight, self.bias, padding=(self.pad, 0)).chunk(2, dim=1)
        return torch.addcmul(self.shift, h * torch.sigmoid(gate), self.scale)


class Marker:
    """The nets of one model, folded; shared by all streams, never changed."""

    def __init__(self, nets: Nets):
        shape = nets.hparams
        self.rows, self.band, self.bins = shape.rows, shape.message_band_size, shape.bins
        self._encoder = [_GatedConv(layer) for layer in nets.enc_c.main]
        first, *rest = nets.dec_c.main
        folded = (_fold(first.conv.weight), _fold(first.gate.weight))
        self._decoder = [_GatedConv(first, folded), *(_GatedConv(layer) for layer in rest)]
        linear = nets.enc_c.linear
        spelled = (linear.weight + linear.bias[:, None]).T  # [symbols, band]
        self._spelled = torch.nn.functional.pad(spelled, (0, self.rows - self.band))
        self.device = spelled.device

    @torch.inference_mode()
    def step_each(self, parts: Sequence[Part]) -> list[Tensor]:
        """Advance different streams, those alike in one pass; the marks [band, m] of each, on the CPU."""
        groups: dict[tuple, list[int]] = {}
        for index, part in enumerate(parts):
            alike = (part.last, part.carrier.shape, *(tensor.shape for tensor in part.state.tensors))
            groups.setdefault(alike, []).append(index)
        marks: dict[int, Tensor] = {}
        for members in groups.values():
            states = [parts[index].state for index in members]
            state = states[0] if len(states) == 1 else _join(states)
            carrier = torch.stack([parts[index].carrier for index in members]).to(self.device)
            symbols = torch.stack([parts[index].symbols for index in members]).to(self.device)
            mark = self.step(state, carrier, symbols, parts[members[0]].last).cpu()
            if len(states) > 1:
                _part(state, states)
            marks.update(zip(members, mark, strict=True))
        return [marks[index] for index in range(len(parts))]

    @torch.inference_mode()
    def step(self, state: MarkState, carrier: Tensor, symbols: Tensor, last: bool = False) -> Tensor:
        """Advance by some columns.

        carrier: magnitudes of bins 0 to rows - 1 [B, rows, k]. symbols: what each column says [B, k].
        last: no column follows; gives those held back.
        Returns: the mark's magnitude in the band [B, band, m], each column with the mean square 1
        over all bins.
        """
        both = torch.stack([carrier, self._spelled[symbols].transpose(1, 2)], dim=1)  # [B, 2, rows, k]
        waiting = both if state.waiting is None else torch.cat([state.waiting, both], dim=3)
        tails = iter(state.tails or [None] * (len(self._encoder) + len(self._decoder)))
        kept: list[Tensor] = []
        h = both[:, :1]
        for layer in self._encoder:
            h = self._advance(layer, h, next(tails), kept, last)
        known = h.shape[3]
        h = torch.cat([h, waiting[..., :known]], dim=1)
        state.waiting = waiting[..., known:]
        for layer in self._decoder:
            h = self._advance(layer, h, next(tails), kept, last)
        state.tails = kept
        mark = h[:, 0, : self.band].abs()
        mean_square = mark.square().sum(dim=1, keepdim=True) / self.bins
        return mark * torch.rsqrt(mean_square.clamp_min(1e-30))

    @staticmethod
    def _advance(layer: _GatedConv, x: Tensor, tail: Tensor | None, kept: list[Tensor], last: bool) -> Tensor:
        if layer.pad:
            edge = x.new_zeros(*x.shape[:3], layer.pad)
            x = torch.cat([edge if tail is None else tail, x] + [edge] * last, dim=3)
        kept.append(x[..., x.shape[3] - min(x.shape[3], 2 * layer.pad) :].clone())
        if x.shape[3] <= 2 * layer.pad:
            return x.new_zeros(x.shape[0], len(layer.scale), x.shape[2], 0)
        return layer.step(x)


def _join(states: list[MarkState]) -> MarkState:
    waiting = [state.waiting for state in states if state.waiting is not None]
    tails = [torch.cat(tails) for tails in zip(*(state.tails for state in states), strict=True)]
    return MarkState(tails, torch.cat(waiting) if waiting else None)


def _part(joined: MarkState, states: list[MarkState]) -> None:
    """Give each stream its own again: copies, or a stream that waits would keep the whole batch in memory."""
    for index, state in enumerate(states):
        state.tails = [tail[index : index + 1].clone() for tail in joined.tails]
        state.waiting = None if joined.waiting is None else joined.waiting[index : index + 1].clone()


def _fold(weight: Tensor) -> Tensor:
    """[C, 96, 3, 3] over features, 32 carriers, 32 messages → [C, 34, 3, 3]."""
    features, carrier, message = weight.split(_FEATURES, dim=1)
    return torch.cat([features, carrier.sum(1, keepdim=True), message.sum(1, keepdim=True)], dim=1)
