"""The marker's Triton kernels against their plain twins on random inputs.

On a CUDA device they are compiled (`-m gpu`); elsewhere Triton's interpreter runs them, where Triton is
installed at all, which the CPU needs for nothing else.
"""

from __future__ import annotations

import pytest
import torch

from services.watermark.hparams import Hparams
from services.watermark.kernels import (
    PRECISIONS,
    History,
    Layer,
    OutputLayer,
    fused,
    plain,
    round_to_tf32,
    weight_columns,
)
from services.watermark.marker import Marker
from services.watermark.state_pool import StatePool
from services.watermark.weights import load_nets, write_random

BINS = 21


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # or convolutions of fp32 round
    if request.param == "cpu" and torch.cuda.is_available():
        pytest.skip("the kernels are compiled here, not interpreted")
    torch.manual_seed(0)
    return torch.device(request.param)


def layer_of(device, precision, given, channels) -> Layer:
    weight = torch.randn(2 * channels, given, 3, 3, device=device) / (9 * given) ** 0.5
    if precision == "tf32" and given > 1:
        weight = round_to_tf32(weight)
    weight = weight.to(dtype_of(precision, given)).contiguous(memory_format=torch.channels_last)
    bias, shift = torch.randn(2 * channels, device=device), torch.randn(channels, device=device)
    columns = weight_columns(weight) if precision != "fp32" and given > 1 else None
    return Layer(weight, bias, shift, precision == "tf32", columns=columns)


def dtype_of(precision, given) -> torch.dtype:
    return torch.float16 if precision == "fp16" and given > 1 else torch.float32


def inputs(device, precision, count, columns, given) -> torch.Tensor:
    window = torch.randn(count, 2 + columns, BINS, given, device=device).to(dtype_of(precision, given))
    return round_to_tf32(window) if precision == "tf32" and given > 1 else window


def near(got, wanted, precision) -> None:
    """Two ways to sum up differ in fp32's last bits; where a result is then rounded, now and then by a step of that."""
    got, wanted = got.double(), wanted.double()
    step = 1e-5 if precision == "fp32" else 2e-3
    assert torch.isfinite(got).all()
    assert ((got - wanted).abs() <= step * (1 + wanted.abs())).all()
    assert (got - wanted).norm() <= (1e-6 if precision == "fp32" else 3e-4) * wanted.norm()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("given", "channels", "width", "extra"),
    [(1, 32, 32, 0), (32, 32, 32, 0), (32, 32, 40, 2), (40, 96, 96, 0), (1, 8, 8, 0)],
)
@pytest.mark.parametrize(
    ("count", "columns", "cut", "brought"),
    [(3, 1, True, None), (2, 2, False, None), (2, 5, True, None), (3, 5, True, [1, 5, 3]), (3, 2, False, [2, 1, 2])],
)
def test_gated(device, precision, given, channels, width, extra, count, columns, cut, brought):
    """Streams in slots that lie anywhere; a pass shorter than what is kept, too; and of others nothing changes."""
    layer, window = layer_of(device, precision, given, channels), inputs(device, precision, count, columns, given)
    ours = torch.randn(5, 2, BINS, width, device=device).to(dtype_of(precision, width))
    theirs, before = ours.clone(), ours.clone()
    rows = torch.tensor([3, 0, 2][:count], device=device)
    inside = torch.rand(count, columns, device=device) < 0.5 if cut else None
    more = 100 * torch.randn(count, columns, BINS, extra, device=device) if extra else None
    counts = None if brought is None else torch.tensor(brought, device=device)
    got = fused.gated_layer(window, layer, History(ours, rows, counts), inside, more)
    wanted = plain.gated_layer(window, layer, History(theirs, rows, counts), inside, more)
    assert got.dtype == wanted.dtype == theirs.dtype and got.shape == wanted.shape == (count, 2 + columns, BINS, width)
    assert torch.equal(got[:, :2], before[rows]) and torch.equal(wanted[:, :2], before[rows])
    near(got, wanted, precision)
    near(ours, theirs, precision)
    others = [slot for slot in range(5) if slot not in rows.tolist()]
    assert torch.equal(ours[others], before[others])
    for row, end in enumerate(brought or [columns] * count):  # what comes after a stream's own leaves no trace
        assert torch.equal(ours[rows[row]], got[row, end : end + 2])
    if cut:
        assert not got[:, 2:][~inside].any()
    if extra:
        assert not got[:, 2:, :, channels + extra :].any()
    if precision == "tf32":
        assert torch.equal(round_to_tf32(got[:, 2:]), got[:, 2:])


@pytest.mark.parametrize("precision", ["tf32", "fp16"])
def test_padding_rows_are_left_out(device, precision):
    """Their history stays as it is, and what the others get is what they get without them."""
    for given, channels in ((1, 32), (32, 32)):
        layer, window = layer_of(device, precision, given, channels), inputs(device, precision, 3, 2, given)
        pool = torch.randn(3, 2, BINS, 32, device=device).to(dtype_of(precision, 32))
        alone, rows = pool.clone(), torch.tensor([2, 0, 0], device=device)
        got = fused.gated_layer(window, layer, History(pool, rows, None, 0), None)
        assert torch.equal(got[:1], fused.gated_layer(window[:1], layer, History(alone, rows[:1]), None))
        assert torch.equal(pool, alone)
    ending = OutputLayer(torch.randn(2, 32, device=device), torch.randn(3, device=device))
    got = fused.output_layers(window, layer, ending, None, rows, 0)
    assert torch.equal(got[:1], fused.output_layers(window[:1], layer, ending, None))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("count", "columns", "channels", "cut"), [(2, 1, 96, True), (1, 3, 96, False), (2, 2, 40, True)]
)
def test_ended(device, precision, count, columns, channels, cut):
    layer, window = layer_of(device, precision, 32, channels), inputs(device, precision, count, columns, 32)
    ending = OutputLayer(torch.randn(2, channels, device=device) / channels**0.5, torch.randn(3, device=device))
    inside = torch.rand(count, columns, device=device) < 0.5 if cut else None
    got, wanted = (each.output_layers(window, layer, ending, inside) for each in (fused, plain))
    assert got.dtype == wanted.dtype == torch.float32 and got.shape == wanted.shape == (count, columns, BINS)
    near(got, wanted, precision)
    assert not cut or not got[~inside].any()


@pytest.mark.parametrize("each", [fused, plain], ids=["fused", "plain"])
def test_half_precision_holds_what_is_too_large_and_shows_what_is_no_number(device, each):
    layer, window = layer_of(device, "fp16", 32, 32), inputs(device, "fp16", 1, 2, 32)
    layer.bias[32:] = 30.0  # gates wide open
    layer.weight[32:] = 0.0
    pool = torch.zeros(1, 2, BINS, 32, device=device, dtype=torch.float16)
    kept = History(pool, torch.zeros(1, dtype=torch.int64, device=device))
    loud = each.gated_layer((window * 30000).clamp(-65504, 65504), layer, kept, None)
    assert torch.isfinite(loud).all() and loud.abs().max() == 65504
    window[0, 2, 3, 4] = torch.nan
    assert torch.isnan(each.gated_layer(window, layer, kept, None)).any()


@pytest.mark.parametrize("each", [fused, plain], ids=["fused", "plain"])
@pytest.mark.parametrize("given", [1, 32])
def test_rounding_to_tf32_shows_what_is_no_number(device, each, given):
    """Of NaN as a GPU makes it: all bits but the sign. Rounded as other numbers are, it would be -0."""
    layer, rows = layer_of(device, "tf32", given, 32), torch.tensor([1], device=device)
    shift = torch.full((32,), 0x7FFFFFFF, device=device, dtype=torch.int32).view(torch.float32)
    history = History(torch.zeros(2, 2, BINS, 32, device=device), rows, None)
    new = each.gated_layer(inputs(device, "tf32", 1, 3, given), layer._replace(shift=shift), history, None)[:, 2:]
    assert torch.isnan(new).all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_marks_of_streams_at_different_points(device, precision, tmp_path):
    """The nets as a whole, streams that begin and end in the middle of passes included."""
    shape = Hparams(sample_rate_hz=24000, n_fft=64, hop_length=32, message_band_size=20, message_sdr_db=20.0)
    nets = load_nets(write_random(tmp_path, shape, 3), device)
    makers = [Marker(nets, StatePool(3, device), precision, operations) for operations in (fused, plain)]
    lengths, first, at = torch.tensor([5, 3], device=device), torch.tensor([0, -1], device=device), 0
    rows = torch.tensor([2, 0], device=device)
    for columns in (1, 2, 1, 8):
        index = first[:, None] + at + torch.arange(columns, device=device)
        carrier, symbols = 300 * torch.rand(2, columns, shape.rows, device=device), index % 5

        def valid(behind, index=index):
            return (index >= behind) & (index < lengths[:, None] + behind)

        counts = torch.tensor([columns, max(1, columns - 1)], device=device)
        got, wanted = (maker.step(rows, carrier, symbols, valid, counts) for maker in makers)
        assert (got - wanted).norm() <= (1e-5 if precision == "fp32" else 3e-3) * wanted.norm()
        at += columns
    assert at > 5 + shape.context_columns
