"""The embedding nets on streams: carrier columns in, mark columns out, each computed once.

Every 3x3 layer keeps the last two columns of its input, so a column costs the same whether it
comes alone or with a thousand others, and the result is that of the whole clip. Each layer is one
column behind the one before it; columns that lie before a stream's first or after its last one are
made zero at every layer, which are the zeros that the stock pads each layer with. So streams at any
point of theirs take part in the same pass, as long as each brings equally many columns.

Columns are the images' height and bins their width, and channels lie innermost: what is kept of a
stream is then one piece of memory, and convolutions take 2 to 5 times less than with bins as height.

Two savings that change nothing:
- the mark is zero from `message_band_size` bins up, and a cell depends on `reach` bins around it,
  so higher bins are never computed;
- the stock repeats carrier and message 32 times each on the carrier decoder's 96 input channels
  (silentcipher/server.py: encode_wav); their weights are summed once instead, which leaves 34.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from services.watermark.slots import Slots
from services.watermark.weights import Layer, Nets

_FEATURES = 32
_FILLED = 2  # channels of zeros, to 36: cuDNN's TF32 wants rows of channels in multiples of 16 bytes


class _GatedConv:
    """BatchNorm(conv(x) * sigmoid(gate(x))) in eval mode, both convolutions as one."""

    def __init__(self, layer: Layer, weights: tuple[Tensor, Tensor] | None = None):
        conv, gate = weights or (layer.conv.weight, layer.gate.weight)
        weight = torch.cat([conv, gate]).transpose(2, 3)  # [2 * C_out, C_in, columns, bins]
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.bias = torch.cat([layer.conv.bias, layer.gate.bias])
        self.pad = layer.conv.padding[0]
        norm = layer.bn
        self.scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        self.shift = norm.bias - norm.running_mean * self.scale

    def step(self, x: Tensor) -> Tensor:
        """x [B, k + 2 * pad, rows, C_in] → [B, k, rows, C_out]; bins are padded, columns are not."""
        both = torch.nn.functional.conv2d(x.permute(0, 3, 1, 2), self.weight, self.bias, padding=(0, self.pad))
        return torch.addcmul(self.shift, torch.nn.functional.glu(both.permute(0, 2, 3, 1), dim=3), self.scale)


class Marker:
    """The nets of one model, folded, and the state of all streams in them."""

    def __init__(self, nets: Nets, slots: Slots):
        shape = nets.hparams
        self.rows, self.band, self.bins = shape.rows, shape.message_band_size, shape.bins
        self._slots = slots
        self._encoder = [_GatedConv(layer) for layer in nets.enc_c.main]
        first, *rest = nets.dec_c.main
        folded = (_fold(first.conv.weight), _fold(first.gate.weight))
        self._decoder = [_GatedConv(first, folded), *(_GatedConv(layer) for layer in rest)]
        linear = nets.enc_c.linear
        spelled = (linear.weight + linear.bias[:, None]).T  # [symbols, band]
        self._spelled = torch.nn.functional.pad(spelled, (0, self.rows - self.band))
        # What is kept of each stream: the last columns of each 3x3 layer's input, and those columns of
        # carrier and message whose features are not known yet.
        layers = [*self._encoder, *self._decoder]
        self._tails = [slots.add(2, self.rows, layer.weight.shape[1]) if layer.pad else None for layer in layers]
        self._waiting = slots.add(len(self._encoder), self.rows, 2)

    @torch.inference_mode()
    def step(self, rows: Tensor, carrier: Tensor, symbols: Tensor, valid: Callable[[int], Tensor] | None) -> Tensor:
        """Advance streams by some columns each.

        rows: their slots [B]. carrier: magnitudes of bins 0 to rows - 1 [B, k, rows]. symbols: what
        each column says [B, k].
        valid: which of the columns so many before these lie within their streams, [B, k]; None: all do.
        Returns: the mark's magnitude in the band [B, k, band] of columns `reach` before these, each
        column with the mean square 1 over all bins.
        """
        tails, count, behind = iter(self._tails), carrier.shape[1], 0

        def cut(x: Tensor) -> Tensor:
            return x if valid is None else torch.where(valid(behind)[:, :, None, None], x, 0.0)

        both = cut(torch.stack([carrier, self._spelled[symbols]], dim=3))  # [B, k, rows, 2]
        h = both[..., :1]
        waiting = self._slots.behind(self._waiting, rows, both)[:, :count]
        for layer in self._encoder:
            h, behind = layer.step(self._slots.behind(next(tails), rows, h)), behind + 1
            h = cut(h)
        h = torch.cat([h, torch.nn.functional.pad(waiting, (0, _FILLED))], dim=3)
        for layer in self._decoder:
            tail = next(tails)
            if tail is not None:
                h, behind = self._slots.behind(tail, rows, h), behind + 1
            h = cut(layer.step(h))
        mark = h[:, :, : self.band, 0].abs()
        mean_square = mark.square().sum(dim=2, keepdim=True) / self.bins
        return mark * torch.rsqrt(mean_square.clamp_min(1e-30))


def _fold(weight: Tensor) -> Tensor:
    """[C, 96, 3, 3] over features, 32 carriers, 32 messages → [C, 34, 3, 3], and zeros to 36."""
    features, carrier, message = weight.split(_FEATURES, dim=1)
    summed = [part.sum(1, keepdim=True) for part in (carrier, message)]
    return torch.cat([features, *summed, torch.zeros_like(features[:, :_FILLED])], dim=1)
