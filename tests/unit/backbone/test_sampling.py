"""Sampling: top-k with ties, temperature, the codec's bins, and the distribution it draws from."""

from __future__ import annotations

import torch

from services.backbone.noise import gumbel
from services.backbone.sampling import sample

CPU = torch.device("cpu")


def draw(logits, *, temperature=1.0, top_k=50, draws=1, bins=None, first_frame=0):
    """`draws` samples from one row of logits, each with the noise of another frame."""
    bins = bins or len(logits)
    noise = gumbel([9] * draws, range(first_frame, first_frame + draws), 1, bins, CPU)[:, 0]
    rows = torch.tensor(logits).expand(draws, -1)
    return sample(rows, torch.full((draws, 1), temperature), torch.full((draws, 1), top_k), top_k, noise)


def test_draws_follow_the_softmax():
    logits, draws = [2.0, 1.0, 0.0, -1.0, 0.5], 20_000
    for temperature in (0.5, 1.0, 1.7):
        counts = torch.bincount(draw(logits, temperature=temperature, draws=draws), minlength=5).double()
        expected = torch.softmax(torch.tensor(logits).double() / temperature, 0) * draws
        chi_squared = float(((counts - expected) ** 2 / expected).sum())
        assert chi_squared < 18.5  # 4 degrees of freedom, p = 0.001


def test_top_k_keeps_the_k_best_and_renormalises():
    logits, draws = [2.0, 1.0, 0.0, -1.0, 0.5], 20_000
    counts = torch.bincount(draw(logits, top_k=3, draws=draws), minlength=5).double()
    assert counts[2] == counts[3] == 0
    kept = torch.softmax(torch.tensor([2.0, 1.0, 0.5]).double(), 0) * draws
    assert float(((counts[[0, 1, 4]] - kept) ** 2 / kept).sum()) < 13.8  # 2 degrees of freedom, p = 0.001


def test_ties_at_the_kth_are_kept():
    drawn = draw([1.0, 3.0, 1.0, 0.9, 1.0], top_k=2, temperature=2.0, draws=500)
    assert set(drawn.tolist()) == {0, 1, 2, 4}


def test_top_k_1_is_the_first_maximum():
    assert set(draw([0.0, 5.0, 5.0, 1.0], top_k=1, draws=200).tolist()) == {1}


def test_tokens_the_codec_does_not_know_are_never_drawn():
    logits = [0.0, 0.1, 0.2, 50.0, float("inf"), 60.0]
    for top_k in (1, 2, 3, 50):
        assert int(draw(logits, top_k=top_k, draws=300, bins=3).max()) < 3
    # and they do not crowd the others out of the top k
    assert set(draw(logits, top_k=3, draws=300, bins=3).tolist()) == {0, 1, 2}


def test_rows_do_not_see_each_other():
    torch.manual_seed(0)
    logits = torch.randn(6, 64)
    temperature = torch.tensor([[0.3], [0.9], [1.0], [1.5], [2.0], [0.9]])
    top_k = torch.tensor([[1], [2], [10], [50], [64], [1000]])
    noise = gumbel(range(6), range(6), 1, 60, CPU)[:, 0]
    together = sample(logits, temperature, top_k, 1000, noise)
    for row in range(6):
        one = slice(row, row + 1)
        alone = sample(logits[one], temperature[one], top_k[one], int(top_k[row]), noise[one])
        assert int(alone) == int(together[row])
