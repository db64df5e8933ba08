"""moshi's split residual VQ being trained: its codebooks follow the batches by exponential averages, all on the
device, with no point at which the host waits.
"""

from __future__ import annotations

import torch
from moshi.models import MimiModel
from moshi.quantization.core_vq import EuclideanCodebook, _run_kmeans
from torch import Tensor, nn


class Codebooks:
    """Trains the codebooks of `mimi` by exponential averages. Works on moshi's own buffers."""

    def __init__(self, mimi: MimiModel, decay: float = 0.99):
        self.first, self.rest = mimi.quantizer.rvq_first, mimi.quantizer.rvq_rest
        self.decay = decay

    def chains(self, x: Tensor):
        """(projected input [N, D], codebooks) of the semantic and of the acoustic quantiser."""
        for rvq in (self.first, self.rest):
            yield rvq, rvq.input_proj(x), [layer._codebook for layer in rvq.vq.layers]

    @torch.no_grad()
    def seed(self, x: Tensor, last: int | None = None) -> None:
        """k-means of every codebook on latents x [1, C, N], or of the `last` ones alone."""
        for rvq, projected, books in self.chains(x):
            residual = projected[0].T
            first = 0 if last is None else len(books) - (last if rvq is self.rest else 0)
            for book in books[:first]:
                residual = residual - table_of(book)[nearest(residual, table_of(book))]
            for book in books[first:]:
                centres, sizes = _run_kmeans(residual, book.codebook_size, 30)
                book.cluster_usage.copy_(sizes)
                book.embedding_sum.copy_(centres * sizes[:, None])
                book._initialized.fill_(1)
                residual = residual - centres[nearest(residual, centres)]

    @torch.no_grad()
    def level(self, vectors: float) -> None:
        """Bring the averages to the size of one batch of `vectors` vectors; the tables stay as they are."""
        for rvq in (self.first, self.rest):
            for layer in rvq.vq.layers:
                book = layer._codebook
                scale = vectors / book.cluster_usage.sum()
                book.cluster_usage.mul_(scale)
                book.embedding_sum.mul_(scale)

    @torch.no_grad()
    def free_zero(self) -> None:
        """Take entry 0 of codebook 0 out of use, by moving it far away: an all-zero frame then means
        end of speech and nothing else."""
        book = self.first.vq.layers[0]._codebook
        table = table_of(book)
        far = nn.functional.normalize(table[0], dim=0) * 10 * table.norm(dim=1).max()
        book.embedding_sum[0] = far * book.cluster_usage[0].clamp(min=1e-5)
        book._embedding = None

    def __call__(self, x: Tensor, keep: Tensor | None, update: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x [B, C, T]; keep [B]: acoustic codebooks in use per sample (None: all).

        Returns quantised [B, C, T], semantic part [B, C, T], commitment loss [], codes [B, K, T].
        """
        outputs, losses, codes = [], [], []
        for rvq, projected, books in self.chains(x):
            b, d, t = projected.shape
            flat = projected.transpose(1, 2).reshape(-1, d).float()
            residual, total = flat, torch.zeros_like(flat)
            for i, book in enumerate(books):
                table = table_of(book)
                picked = nearest(residual.detach(), table)
                value = table[picked]
                used = torch.ones(b, 1, device=x.device) if keep is None or i == 0 else (keep > i).float()[:, None]
                used = used.repeat_interleave(t, 0)
                losses.append(((residual - value) ** 2 * used).mean())
                if update:
                    follow(book, residual.detach(), picked, self.decay)
                total, residual = total + value * used, residual - value
                codes.append(picked.view(b, t))
            straight = flat + (total - flat).detach()
            outputs.append(rvq.output_proj(straight.view(b, t, d).transpose(1, 2)))
        return outputs[0] + outputs[1], outputs[0], torch.stack(losses).mean(), torch.stack(codes, 1)


def table_of(book: EuclideanCodebook) -> Tensor:
    return book.embedding_sum / book.cluster_usage.clamp(min=1e-5)[:, None]


def nearest(x: Tensor, table: Tensor) -> Tensor:
    """Index [N] of the row of table [K, D] nearest to each row of x [N, D]."""
    return ((table**2).sum(1) - 2 * x @ table.T).argmin(1)


@torch.no_grad()
def follow(book: EuclideanCodebook, x: Tensor, picked: Tensor, decay: float) -> None:
    """Move a codebook towards the vectors it was picked for; revive entries that fell out of use."""
    ones = torch.ones_like(picked, dtype=torch.float32)
    counts = torch.zeros_like(book.cluster_usage).scatter_add_(0, picked, ones)
    sums = torch.zeros_like(book.embedding_sum).index_add_(0, picked, x)
    book.cluster_usage.lerp_(counts, 1 - decay)
    book.embedding_sum.lerp_(sums, 1 - decay)
    mean = book.cluster_usage.mean()
    dead = book.cluster_usage < 0.1 * mean
    fresh = x[torch.randint(0, len(x), (len(dead),), device=x.device)]
    book.embedding_sum.copy_(torch.where(dead[:, None], fresh * mean, book.embedding_sum))
    book.cluster_usage.copy_(torch.where(dead, mean, book.cluster_usage))
    book._embedding = None
