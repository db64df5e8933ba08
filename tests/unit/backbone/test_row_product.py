"""The CUDA source of the products beside the gated one on a CPU against its twins."""

from __future__ import annotations

import pytest
import torch

from services.backbone.kernels import gated_product, reference, row_product
from services.backbone.kernels.row_product import Tiling
from support import cuda_on_cpu


@pytest.mark.slow
@pytest.mark.skipif(not cuda_on_cpu.CAN_RUN, reason="needs g++ on x86-64")
@pytest.mark.parametrize(
    ("count", "width", "outputs", "tiling"),
    [
        (70, 512, 128, Tiling(1, 64, splits=2)),
        (200, 512, 256, Tiling(2, 128, splits=4)),
        (200, 256, 64, Tiling(2, 64, row_blocks=2)),
        (130, 1024, 128, Tiling(2, 128, splits=8)),
        (130, 1024, 256, Tiling(2, 256, splits=4, row_blocks=2)),
    ],
)
def test_residual(count, width, outputs, tiling, tmp_path, monkeypatch):
    on_cpu(tiling, tmp_path, monkeypatch)
    rows, weight = torch.randn(count, width).bfloat16(), (torch.randn(outputs, width) * width**-0.5).bfloat16()
    scale, parts = torch.rand(outputs).bfloat16(), row_product.empty_parts(torch.device("cpu"))
    given = torch.randn(count, outputs)
    seen = []
    for _ in range(2):
        x = given.clone()
        out, squares = row_product.linear_add_scaled(rows, weight, x, scale, parts, tiling)
        wanted = given + rows.float() @ weight.float().T
        assert (x - wanted).norm() / wanted.norm() < 1e-6
        assert torch.equal(out, (x * scale).bfloat16())
        assert torch.allclose(squares, x.view(count, -1, tiling.outputs).square().sum(2), rtol=1e-5)
        seen.append(x)
    assert torch.equal(*seen)


@pytest.mark.slow
@pytest.mark.skipif(not cuda_on_cpu.CAN_RUN, reason="needs g++ on x86-64")
@pytest.mark.parametrize(
    ("tiling", "parts"), [(Tiling(1, 64), None), (Tiling(1, 64), 4), (Tiling(2, 96, row_blocks=2), 16)]
)
def test_factor(tiling, parts, tmp_path, monkeypatch):
    on_cpu(tiling, tmp_path, monkeypatch)
    count, width, outputs = 200, 320, 192
    rows, weight = torch.randn(count, width).bfloat16(), (torch.randn(outputs, width) * width**-0.5).bfloat16()
    squares = None if parts is None else torch.rand(count, parts) * width
    ours = row_product.linear_scaled(rows, squares, 1e-5, weight, tiling)
    theirs = reference.linear_scaled(rows.float(), squares, 1e-5, weight.float())
    assert (ours.float() - theirs).norm() / theirs.norm() < 5e-3


@pytest.mark.parametrize("count", [17, 64, 96, 200, 256, 640, 1024, 2048])
def test_all_that_a_layer_launches_is_compiled_ahead(count, monkeypatch):
    compiled = []

    def compiles(source, name, options):
        compiled.append(name)
        return b""

    for module in (row_product, gated_product):
        monkeypatch.setattr(module, "compile_cuda", compiles)
        monkeypatch.setattr(module, "tensor_map", cuda_on_cpu.tensor_map)
        monkeypatch.setattr(module, "Kernel", LaunchesNothing)
    sizes = {
        "qkv": (1536, 1024),
        "out": (1024, 1024),
        "gate_up": (1024, 1024),
        "down": (1024, 512),
        "head": (2048, 1024),
    }
    qkv, out, gate_up, down, head = (torch.zeros(size).bfloat16() for size in sizes.values())
    row_product.compile_deferring([count], qkv, out, gate_up, down, [head])
    assert {"row_product", "gated_product"} == set(compiled)
    ahead, x, scale = len(compiled), torch.zeros(count, 1024), torch.zeros(1024).bfloat16()
    parts = row_product.empty_parts(x.device)
    rows = row_product.linear_scaled(x.bfloat16(), None, 1e-5, qkv)
    rows, squares = row_product.linear_add_scaled(rows[:, :1024].contiguous(), out, x, scale, parts)
    rows = gated_product.linear_gated(rows, gate_up, None, squares, 1e-5)
    rows, squares = row_product.linear_add_scaled(rows, down, x, scale, parts)
    for weight in (qkv, head):
        row_product.linear_scaled(rows, squares, 1e-5, weight)
    assert len(compiled) == ahead


@pytest.mark.parametrize(
    ("dtype", "width", "fits"),
    [(torch.bfloat16, 1024, True), (torch.float32, 1024, False), (torch.bfloat16, 320, False)],
)
def test_which_models_defer_norms(dtype, width, fits, monkeypatch):
    out, down = torch.empty(256, 512, dtype=dtype), torch.empty(256, width, dtype=dtype)
    assert not row_product.defers_norms(out, down)  # on a CPU
    monkeypatch.setattr(row_product, "has_kernels", lambda _: True)
    assert row_product.defers_norms(out, down) is fits


def test_outputs_that_no_tile_fits():
    rows, weight, squares = torch.randn(20, 64).bfloat16(), torch.randn(33, 64).bfloat16(), torch.rand(20, 4)
    assert torch.equal(
        row_product.linear_scaled(rows, squares, 1e-5, weight), reference.linear_scaled(rows, squares, 1e-5, weight)
    )


class LaunchesNothing:
    def __init__(self, cubin, function, *, shared_bytes):
        assert cubin == b""

    def resident_clusters(self, threads, cluster):
        return 132

    def launch(self, *_, **__):
        pass


def on_cpu(tiling, folder, monkeypatch):
    def compiled(source, name, options):
        return cuda_on_cpu.compile_for_cpu(
            source, tiling.ptx_source(), options, folder, "row_product", replacement="tiles.h"
        )

    monkeypatch.setattr(row_product, "compile_cuda", compiled)
    monkeypatch.setattr(row_product, "Kernel", cuda_on_cpu.Kernel)
    monkeypatch.setattr(row_product, "tensor_map", cuda_on_cpu.tensor_map)


@pytest.fixture(autouse=True)
def forgets():
    """Compiled kernels, and fixed random numbers."""
    torch.manual_seed(0)
    yield
    for module in (row_product, gated_product):
        module.cubin_of.cache_clear()
        module._kernel.cache_clear()
