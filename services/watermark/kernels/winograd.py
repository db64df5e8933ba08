"""A 3x3 convolution on a CPU with half the multiplications: Winograd's minimal filtering along the bins.

Four neighbouring bins of an output are had from six products instead of twelve, F(4, 3) of Lavin and Gray, "Fast algorithms
for convolutional neural networks" (2015). Columns are summed plainly, so a result depends neither on how a stream was cut nor
on the other streams of its pass. In fp32 it differs from the plain convolution by a few roundings.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

_OUTPUTS, _POINTS = 4, 6  # bins of a tile, and products that they take
_MAX_TILES = 192  # of one round: what lies between the transforms stays in the cache, and malloc keeps the memory
# How a tile's three weights make the six factors (the paper's G).
_FACTORS = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)


def factors(weight: Tensor) -> Tensor:
    """weight: [O, I, 3 columns, 3 bins] → [3 columns, 6, I, O], for convolve()."""
    transform = torch.tensor(_FACTORS, dtype=torch.float64, device=weight.device)
    return torch.einsum("oicb,pb->cpio", weight.double(), transform).float().contiguous()


def convolve(window: Tensor, factors: Tensor, bias: Tensor) -> Iterator[tuple[int, slice, Tensor]]:
    """Pads bins, not columns. window: [B, 2 + k, rows, I]; bias: [O].

    Yields: a stream, some of its columns, and their result [columns, rows, O].
    """
    rows, width = window.shape[2:]
    columns, tiles, outputs = window.shape[1] - 2, -(-rows // _OUTPUTS), factors.shape[3]
    step = max(1, _MAX_TILES // tiles)
    for stream, x in enumerate(window):
        for start in range(0, columns, step):
            count = min(step, columns - start)
            padded = F.pad(x[start : start + count + 2], (0, 0, 1, _OUTPUTS * tiles + 1 - rows))
            inputs = _inputs(padded, tiles).view(_POINTS, -1, width)
            products = torch.bmm(inputs[:, : count * tiles], factors[0])
            for column in (1, 2):
                products.baddbmm_(inputs[:, column * tiles : (column + count) * tiles], factors[column])
            products[1] += bias  # the second product is in all four outputs once
            yield stream, slice(start, start + count), _outputs(products).view(count, -1, outputs)[:, :rows]


def _inputs(x: Tensor, tiles: int) -> Tensor:
    """The six factors of each tile (the paper's Bᵀ d). x: [n, 4 * tiles + 2, I] → [6, n, tiles, I]."""
    d = [x[:, bin : bin + _OUTPUTS * (tiles - 1) + 1 : _OUTPUTS] for bin in range(_POINTS)]
    out = x.new_empty(_POINTS, *d[0].shape)
    torch.add(torch.sub(d[4], d[2], alpha=5), d[0], alpha=4, out=out[0])
    even, odd = torch.sub(d[4], d[2], alpha=4), torch.sub(d[3], d[1], alpha=4)
    torch.add(even, odd, out=out[1])
    torch.sub(even, odd, out=out[2])
    even, odd = d[4] - d[2], d[3] - d[1]
    torch.add(even, odd, alpha=2, out=out[3])
    torch.sub(even, odd, alpha=2, out=out[4])
    torch.add(torch.sub(d[5], d[3], alpha=5), d[1], alpha=4, out=out[5])
    return out


def _outputs(m: Tensor) -> Tensor:
    """Four bins of each tile from its six products (the paper's Aᵀ m). m: [6, n, O], overwritten → [n, 4, O]."""
    out = m.new_empty(m.shape[1], _OUTPUTS, m.shape[2])
    sum1, difference1, sum2, difference2 = m[1] + m[2], m[1] - m[2], m[3] + m[4], m[3] - m[4]
    torch.add(m[0].add_(sum1), sum2, out=out[:, 0])
    torch.add(difference1, difference2, alpha=2, out=out[:, 1])
    torch.add(sum1, sum2, alpha=4, out=out[:, 2])
    torch.add(m[5].add_(difference1), difference2, alpha=8, out=out[:, 3])
    return out
