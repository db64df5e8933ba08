"""The gated product's CUDA source on a CPU against its twin, as tests/gpu/test_gated_product.py has it on a GPU."""

from __future__ import annotations

import pytest
import torch

from services.backbone.kernels import gated_product, reference
from services.backbone.kernels.gated_product import Tiling
from support import cuda_on_cpu


@pytest.mark.slow
@pytest.mark.skipif(not cuda_on_cpu.CAN_RUN, reason="needs g++ on x86-64")
@pytest.mark.parametrize(
    ("count", "width", "outputs", "tiling", "resident", "parts"),
    [
        (70, 640, 128, Tiling(1, 32), 3, None),
        (200, 128, 128, Tiling(2, 64, row_blocks=2), 1, 4),
        (130, 320, 192, Tiling(2, 32, output_blocks=2), 2, None),
        (65, 192, 128, Tiling(1, 32, row_blocks=2, output_blocks=2), 1, None),
        (140, 832, 256, Tiling(2, 128, row_blocks=2), 1, 8),
        (130, 640, 128, Tiling(2, 64), 3, 32),
    ],
)
def test_against_the_twin(count, width, outputs, tiling, resident, parts, tmp_path, monkeypatch):
    def compiled(source, name, options):
        ptx = tiling.ptx_source()
        return cuda_on_cpu.compile_for_cpu(source, ptx, options, tmp_path, "gated_product", replacement="tiles.h")

    monkeypatch.setattr(gated_product, "compile_cuda", compiled)
    monkeypatch.setattr(gated_product, "Kernel", cuda_on_cpu.Kernel)
    monkeypatch.setattr(cuda_on_cpu.Kernel, "resident_clusters", lambda *_: resident, raising=False)
    monkeypatch.setattr(gated_product, "tensor_map", cuda_on_cpu.tensor_map)
    gated_product._kernel.cache_clear()
    gated_product.cubin_of.cache_clear()
    rows, weight = torch.randn(count, width).bfloat16(), (torch.randn(2 * outputs, width) * width**-0.5).bfloat16()
    squares = None if parts is None else torch.rand(count, parts) * width
    for _ in range(2):
        ours = gated_product.linear_gated(rows, weight, tiling, squares, 1e-5)
        theirs = reference.linear_gated(rows.float(), weight.float(), False, squares, 1e-5)
        assert (ours.float() - theirs).norm() / theirs.norm() < 5e-3
    gated_product._kernel.cache_clear()
    gated_product.cubin_of.cache_clear()


@pytest.mark.parametrize(
    ("width", "outputs", "dtype", "fits"),
    [
        (1024, 8192, torch.bfloat16, True), (1024, 8192, torch.float32, False), (1000, 8192, torch.bfloat16, False),
        (64, 256, torch.bfloat16, False), (128, 128, torch.bfloat16, False), (128, 256, torch.bfloat16, True),
    ],
)  # fmt: skip
def test_what_is_supported(width, outputs, dtype, fits, monkeypatch):
    rows, weight = torch.empty(3, width, dtype=dtype), torch.empty(2 * outputs, width, dtype=dtype)
    assert not gated_product.supports(rows, weight)  # on a CPU
    monkeypatch.setattr(gated_product, "has_kernels", lambda _: True)
    assert gated_product.supports(rows, weight) == fits
