"""Counter-based noise: Philox against its published vectors, the mapping, the distribution."""

from __future__ import annotations

import math

import pytest
import torch

from services.backbone.noise import gumbel, philox

CPU = torch.device("cpu")


# Known answers of Random123 1.14 (kat_vectors), philox4x32 with 10 rounds.
@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_words(counter, key, answer):
    words = philox(*(tuple(torch.tensor([word]) for word in words) for words in (counter, key)))
    assert tuple(int(word) for word in words) == answer


def test_a_draw_depends_on_its_four_numbers_alone():
    seeds, frames = [7, 2**64 - 1, 7], [0, 5, 2000]
    batch = gumbel(seeds, frames, codebooks=32, tokens=2048, device=CPU)
    assert batch.shape == (3, 32, 2048) and batch.dtype == torch.float32
    for row, (seed, frame) in enumerate(zip(seeds, frames, strict=True)):
        # alone, and with fewer codebooks and tokens asked for
        assert torch.equal(gumbel([seed], [frame], 32, 2048, CPU)[0], batch[row])
        assert torch.equal(gumbel([seed], [frame], 3, 1023, CPU)[0], batch[row, :3, :1023])


def test_a_draw_is_the_documented_word():
    seed, frame, codebook, token = 0x299F31D0_A4093822, 77, 5, 1022
    counter = (torch.tensor([token // 4]), torch.tensor([codebook]), torch.tensor([frame]), torch.tensor([0]))
    word = int(philox(counter, (torch.tensor([0xA4093822]), torch.tensor([0x299F31D0])))[token % 4])
    uniform = ((word >> 9) + 0.5) / 2**23
    wanted = -math.log(-math.log(uniform))
    assert float(gumbel([seed], [frame], 6, 1024, CPU)[0, codebook, token]) == pytest.approx(wanted, rel=1e-7)


def test_different_seeds_frames_codebooks_and_tokens_differ():
    noise = gumbel([1, 1, 2, 1 + 2**32], [0, 1, 0, 0], 2, 64, CPU)
    assert len(noise.flatten().unique()) == noise.numel()


def test_the_distribution_is_gumbels():
    noise = gumbel([3], [0], 32, 2048, CPU).double()
    euler = 0.5772156649
    assert float(noise.mean()) == pytest.approx(euler, abs=0.02)
    assert float(noise.var()) == pytest.approx(math.pi**2 / 6, abs=0.05)
    assert torch.isfinite(noise).all()
    # neighbouring tokens, codebooks and frames are uncorrelated
    flat = gumbel([3], [1], 32, 2048, CPU).double()
    for other in (noise.roll(1, -1), noise.roll(1, 1), flat):
        correlation = torch.corrcoef(torch.stack([noise.flatten(), other.flatten()]))[0, 1]
        assert abs(float(correlation)) < 0.015  # 3.8 standard deviations of 65,536 pairs
