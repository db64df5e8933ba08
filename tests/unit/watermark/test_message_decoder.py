import copy
import dataclasses
from pathlib import Path

import pytest
import torch

from services.watermark.message_decoder import MessageDecoder, cpu_decoder
from services.watermark.weights import FILES, load_nets

needs_vnni = pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="this CPU does not multiply 8-bit integers")


@pytest.fixture(scope="module")
def bundled():
    folder = Path(__file__).parents[3] / "models/embedded/watermark"
    return load_nets({role: folder / name for role, name in FILES.items()})


def magnitudes(bins, columns, seed=0):
    """As of noise that is louder at low frequencies."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, 1, bins, columns, generator=generator).square().sum(0).sqrt()
    return noise * torch.logspace(0.5, -1.5, bins)[:, None]


@pytest.mark.parametrize("left, right", [(0, 0), (3, 3), (0, 3), (3, 0), (1, 2), (12, 12)])
def test_scores_are_the_stock_modules(pair, left, right):
    """Of what is wanted, whatever of the context is left out on the way."""
    torch.manual_seed(0)
    magnitudes = torch.rand(2, pair.hparams.message_band_size, 40)
    with torch.inference_mode():
        stock = pair.dec_m(magnitudes[:, None])[:, 0]
        ours = MessageDecoder(pair.dec_m, torch.float32)(magnitudes, left, right)
    assert stock.std() > 0.1
    torch.testing.assert_close(ours, stock[..., left : 40 - right], atol=1e-4, rtol=1e-4)


@needs_vnni
@pytest.mark.parametrize("left, right", [(0, 0), (3, 3), (0, 3), (3, 0)])
def test_8_bits_change_probabilities_little(bundled, left, right):
    """With and without the clip's ends, whose padding is another code than zero."""
    read = magnitudes(bundled.hparams.message_band_size, 27, seed=3)
    with torch.inference_mode():
        exact, short = (
            MessageDecoder(bundled.dec_m, torch.float32, quantized=quantized)(read, left, right).softmax(1)
            for quantized in (False, True)
        )
    assert exact.max() > 0.7 and exact.std() > 0.1
    change = (exact - short).abs()
    assert change.mean() < 0.01 and change[..., [0, -1]].mean() < 0.015


@needs_vnni
def test_batched_columns_are_decoded_as_alone_in_8_bits(bundled):
    """The first layers' last bit depends on the batch, and a value that lies between two codes may round to either.

    In which of these clips one does depends on the CPU.
    """
    decoder, equal = MessageDecoder(bundled.dec_m, torch.float32, quantized=True), 0
    for seed in range(8):
        read = torch.cat([magnitudes(bundled.hparams.message_band_size, 27, seed + k) * 3**k for k in range(3)])
        with torch.inference_mode():
            alone = torch.cat([decoder(each[None], 3, 3) for each in read])
            batched = decoder(read, 3, 3)
        change = (batched - alone).abs()
        assert change.max() < 0.02 and change.mean() < 0.001 and alone.std() > 0.5
        equal += torch.allclose(batched, alone, atol=1e-4, rtol=1e-4)
    assert equal


@needs_vnni
@pytest.mark.parametrize("misstated", [False, True])
def test_a_model_whose_range_its_normalisation_does_not_tell_is_not_quantised(bundled, misstated):
    nets = dataclasses.replace(bundled, dec_m=copy.deepcopy(bundled.dec_m))
    if misstated:
        nets.dec_m.main[9].bn.running_var /= 1e4
    assert cpu_decoder(nets).quantized is not misstated


def test_a_cpu_that_does_not_multiply_8_bits_is_not_given_them(pair, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    assert not cpu_decoder(pair).quantized
