"""Winograd's convolution against torch's own, for any number of bins, columns and streams."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from services.watermark.kernels import winograd
from services.watermark.kernels.winograd import convolve, factors


def joined(window: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """[B, k, rows, O]; every cell is yielded once."""
    count, columns, rows = len(window), window.shape[1] - 2, window.shape[2]
    out = torch.full((count, columns, rows, len(weight)), torch.nan)
    for stream, part, values in convolve(window, factors(weight), bias):
        assert out[stream, part].isnan().all()
        out[stream, part] = values
    return out


@pytest.mark.parametrize("rows", [1, 4, 6, 99, 100, 101])
@pytest.mark.parametrize(("streams", "columns"), [(1, 1), (3, 2), (2, 33)])
def test_it_equals_the_plain_convolution(streams, columns, rows):
    random = torch.Generator().manual_seed(rows)
    window = torch.randn(streams, 2 + columns, rows, 12, generator=random)
    weight, bias = torch.randn(20, 12, 3, 3, generator=random), torch.randn(20, generator=random)
    wanted = F.conv2d(window.permute(0, 3, 1, 2).double(), weight.double(), bias.double(), padding=(0, 1))
    got = joined(window, weight, bias)
    assert wanted.std() > 5
    torch.testing.assert_close(got, wanted.permute(0, 2, 3, 1).float(), atol=2e-4, rtol=0)


@pytest.mark.parametrize("tiles", [1, 25, 10_000])
def test_the_size_of_a_round_changes_no_cell(monkeypatch, tiles):
    random = torch.Generator().manual_seed(1)
    window, weight = torch.randn(1, 12, 40, 8, generator=random), torch.randn(16, 8, 3, 3, generator=random)
    wanted = joined(window, weight, torch.zeros(16))
    monkeypatch.setattr(winograd, "_MAX_TILES", tiles)
    torch.testing.assert_close(joined(window, weight, torch.zeros(16)), wanted, atol=1e-5, rtol=0)
