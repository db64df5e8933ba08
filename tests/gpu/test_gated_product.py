"""The gated product for Hopper GPUs against its twin in fp32; after other launches, and in a graph."""

from __future__ import annotations

import pytest
import torch

from services.backbone.kernels import gated_product, reference
from services.backbone.kernels.gated_product import Tiling, linear_gated, tiling_for
from services.engine.graphs import GraphRecorder

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
TILINGS = sorted({tiling_for(count) for count in range(1, 4097)}, key=repr)


@pytest.fixture(autouse=True)
def supported():
    if not torch.cuda.is_available() or not gated_product.supports(*inputs(1, 128, 256)):
        pytest.skip("needs a Hopper GPU")
    torch.manual_seed(0)


def inputs(count, width, outputs):
    weight = torch.randn(2 * outputs, width, device=CUDA, dtype=torch.bfloat16) * width**-0.5
    return torch.randn(count, width, device=CUDA, dtype=torch.bfloat16), weight


def error(got, rows, weight):
    """‖got - twin in fp32‖ / ‖twin‖. NaN stays NaN and passes no comparison."""
    wanted = reference.linear_gated(rows.float(), weight.float())
    return float((got.float() - wanted).norm() / wanted.norm())


def poison(count, outputs):
    """Memory of the result's size is NaN when the allocator gives it out."""
    torch.full((count, outputs), float("nan"), device=CUDA, dtype=torch.bfloat16)


@pytest.mark.parametrize("tiling", TILINGS, ids=repr)
@pytest.mark.parametrize("count", [1, 63, 64, 65, 129, 300, 1000])
@pytest.mark.parametrize(("width", "outputs"), [(1024, 8192), (2048, 8192), (320, 768)])
def test_against_the_twin(tiling: Tiling, count, width, outputs):
    rows, weight = inputs(count, width, outputs)
    linear_gated(rows, weight, tiling)
    poison(count, outputs)
    out = linear_gated(rows, weight, tiling)
    assert error(out, rows, weight) < 4e-3  # one rounding to bf16 is 1.7e-3
    for _ in range(10):
        assert torch.equal(linear_gated(rows, weight, tiling), out)


@pytest.mark.parametrize("count", [64, 128, 256, 1024])
def test_waits_for_the_launch_ahead(count):
    """It may start before the launch that writes its rows is over: a graph of both, with other rows each time."""
    rows, weight = inputs(count, 1024, 8192)
    normed, sources = torch.zeros_like(rows), torch.randn(20, count, 1024, device=CUDA, dtype=torch.bfloat16)
    index = torch.zeros(1, dtype=torch.int64, device=CUDA)

    def run():
        normed.copy_(sources.index_select(0, index)[0])
        out = linear_gated(normed, weight)
        index.add_(1)
        return out

    replay, out = GraphRecorder()(run)
    index.zero_()
    seen = []
    for _ in sources:
        replay()
        seen.append(out.clone())
    for rows, got in zip(sources, seen, strict=True):
        assert error(got, rows, weight) < 4e-3
