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
from types import ModuleType

import torch
from torch import Tensor

from services.watermark.kernels import PAST, Ending, Kept, Layer, operations_for, rounded
from services.watermark.slots import Slots
from services.watermark.weights import Layer as Stock
from services.watermark.weights import Nets

_FEATURES = 32


class Marker:
    """The nets of one model, folded, and the state of all streams in them."""

    def __init__(self, nets: Nets, slots: Slots, precision: str = "fp32", operations: ModuleType | None = None):
        """
        precision: of what 3x3 layers but the first one multiply, one of PRECISIONS; sums are in fp32.
        operations: default: those for the device the nets lie on.
        """
        shape = nets.hparams
        self.rows, self.band, self.bins = shape.rows, shape.message_band_size, shape.bins
        self._slots = slots
        self._operations = operations or operations_for(nets.enc_c.linear.weight.device)
        half, rounds = precision == "fp16", precision == "tf32"
        dtype = torch.float16 if half else torch.float32
        # Channels of zeros, to 36 or 40: cuDNN wants rows of channels in multiples of 16 bytes on tensor cores.
        filled = 6 if half else 2
        opening, *encoder = nets.enc_c.main
        first, *middle, last = nets.dec_c.main
        folded = (_fold(first.conv.weight, filled), _fold(first.gate.weight, filled))
        self._layers = [
            _layer(opening, torch.float32, rounds),
            *(_layer(layer, dtype, rounds) for layer in encoder),
            _layer(first, dtype, rounds, folded),
            *(_layer(layer, dtype, rounds) for layer in middle),
        ]
        weight, bias, shift = _joined(last)
        self._ending = Ending(weight.flatten(1).contiguous(), torch.cat([bias, shift]))
        self._encoders = len(nets.enc_c.main)
        linear = nets.enc_c.linear
        spelled = (linear.weight + linear.bias[:, None]).T  # [symbols, band]
        self._spelled = torch.nn.functional.pad(spelled, (0, self.rows - self.band))
        # What is kept of each stream: the last columns of each 3x3 layer's input, and those columns of
        # carrier and message whose features are not known yet.
        self._tails = [
            slots.add(PAST, self.rows, layer.weight.shape[1], dtype=layer.weight.dtype) for layer in self._layers
        ]
        self._waiting = slots.add(self._encoders, self.rows, 2)
        self._behind = torch.arange(len(self._layers) + 1, device=linear.weight.device)[:, None, None]

    @torch.inference_mode()
    def step(
        self,
        rows: Tensor,
        carrier: Tensor,
        symbols: Tensor,
        valid: Callable[[Tensor], Tensor] | None,
        counts: Tensor | None = None,
    ) -> Tensor:
        """Advance streams by some columns each.

        rows: their slots [B]. carrier: magnitudes of bins 0 to rows - 1 [B, k, rows]. symbols: what
        each column says [B, k].
        valid: given [n, 1, 1] numbers of columns, which of the columns so many before these lie within
            their streams, [n, B, k]; None: all do.
        Returns: the mark's magnitude in the band [B, k, band] of columns `reach` before these, each
        column with the mean square 1 over all bins.
        """
        count, slots = carrier.shape[1], self._slots

        inside = [None] * len(self._behind) if valid is None else valid(self._behind)
        both = torch.stack([carrier, self._spelled[symbols]], dim=3)  # [B, k, rows, 2]
        if valid is not None:
            both.masked_fill_(~inside[0][:, :, None, None], 0)
        waiting = slots.behind(self._waiting, rows, both, counts)[:, :count]
        window = slots.behind(self._tails[0], rows, both[..., :1], counts)
        for number, layer in enumerate(self._layers[:-1], start=1):
            kept = Kept(slots.pool(self._tails[number]), rows, counts)
            extra = waiting if number == self._encoders else None  # the decoder's first layer sees them too
            window = self._operations.gated(window, layer, kept, inside[number], extra)
        mark = self._operations.ended(window, self._layers[-1], self._ending, inside[-1])
        mark = mark[:, :, : self.band]
        mean_square = mark.square().sum(dim=2, keepdim=True) / self.bins
        return mark * torch.rsqrt(mean_square.clamp_min(1e-30))


def _joined(layer: Stock, weights: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Weight [2 * C, C_in, columns, bins], bias [2 * C] and shift [C] of both convolutions as one."""
    conv, gate = weights or (layer.conv.weight, layer.gate.weight)
    norm = layer.bn
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    weight = torch.cat([conv * scale[:, None, None, None], gate]).transpose(2, 3)
    bias = torch.cat([layer.conv.bias * scale, layer.gate.bias])
    return weight, bias, norm.bias - norm.running_mean * scale


def _layer(layer: Stock, dtype: torch.dtype, rounds: bool, weights: tuple[Tensor, Tensor] | None = None) -> Layer:
    weight, bias, shift = _joined(layer, weights)
    if rounds and weight.shape[1] > 1:
        weight = rounded(weight)
    weight = weight.to(dtype).contiguous(memory_format=torch.channels_last)
    return Layer(weight, bias, shift, rounds)


def _fold(weight: Tensor, filled: int) -> Tensor:
    """[C, 96, 3, 3] over features, 32 carriers, 32 messages → [C, 34, 3, 3], and so many channels of zeros."""
    features, carrier, message = weight.split(_FEATURES, dim=1)
    summed = [part.sum(1, keepdim=True) for part in (carrier, message)]
    return torch.cat([features, *summed, weight.new_zeros(len(weight), filled, *weight.shape[2:])], dim=1)
