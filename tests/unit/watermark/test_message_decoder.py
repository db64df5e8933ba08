import pytest
import torch

from services.watermark.message_decoder import MessageDecoder


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
