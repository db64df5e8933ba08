"""The products beside the gated one for Hopper GPUs against their twins; repeated, after other launches, in a graph."""

from __future__ import annotations

import pytest
import torch

from services.backbone.kernels import gated_product, reference, row_product
from services.backbone.kernels.row_product import linear_add_scaled, linear_scaled
from services.engine.graphs import GraphRecorder

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
COUNTS = [2, 17, 64, 65, 96, 192, 200, 256, 384, 512, 640, 1000, 1024, 1536, 2048]


@pytest.fixture(autouse=True)
def supported():
    if not torch.cuda.is_available() or not gated_product.has_kernels(CUDA):
        pytest.skip("needs a Hopper GPU")
    torch.manual_seed(0)


def inputs(count, width, outputs):
    weight = torch.randn(outputs, width, device=CUDA, dtype=torch.bfloat16) * width**-0.5
    return torch.randn(count, width, device=CUDA, dtype=torch.bfloat16), weight


def error(got, wanted):
    """‖got - wanted‖ / ‖wanted‖. NaN stays NaN and passes no comparison."""
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(("width", "outputs"), [(1024, 1024), (8192, 1024), (2048, 2048), (8192, 2048)])
def test_residual(count, width, outputs):
    rows, weight = inputs(count, width, outputs)
    given, scale = torch.randn(count, outputs, device=CUDA), torch.rand(outputs, device=CUDA).bfloat16()
    parts, seen = row_product.empty_parts(CUDA), []
    wanted = given.double() + rows.double() @ weight.double().T
    for _ in range(10):
        x = given.clone()
        seen.append((x, *linear_add_scaled(rows, weight, x, scale, parts)))
    x, out, squares = seen[0]
    assert error(x, wanted) < 1e-5  # tensor cores cut what they add
    assert torch.equal(out, (x * scale.float()).bfloat16())
    assert torch.allclose(squares.sum(1), x.square().sum(1), rtol=1e-5)
    for others in seen[1:]:
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(others, seen[0], strict=True))


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(("width", "outputs"), [(1024, 1536), (1024, 2048), (2048, 3072), (2048, 1024), (2048, 2048)])
def test_factor(count, width, outputs):
    rows, weight = inputs(count, width, outputs)
    squares = torch.rand(count, 8, device=CUDA) * width
    for given in (None, squares):
        wanted = reference.linear_scaled(rows.float(), given, 1e-5, weight.float())
        out = linear_scaled(rows, given, 1e-5, weight)
        assert error(out, wanted) < 4e-3  # one rounding to bf16 is 1.7e-3
        assert torch.equal(linear_scaled(rows, given, 1e-5, weight), out)


@pytest.mark.parametrize("count", [64, 200, 256, 512, 1024])
def test_factor_of_the_gated_product(count):
    rows, weight = inputs(count, 1024, 2 * 8192)
    squares = torch.rand(count, 8, device=CUDA) * 1024
    out = gated_product.linear_gated(rows, weight, None, squares, 1e-5)
    assert error(out, reference.linear_gated(rows.float(), weight.float(), False, squares, 1e-5)) < 4e-3


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_stays_in_its_row(bad):
    rows, weight = inputs(300, 1024, 1024)
    clean, parts = torch.randn(300, 1024, device=CUDA), row_product.empty_parts(CUDA)
    scale, stream = torch.ones(1024, device=CUDA).bfloat16(), clean.clone()
    wanted = linear_scaled(*linear_add_scaled(rows, weight, stream, scale, parts), 1e-5, weight)
    rows[131, 7] = bad
    got = linear_scaled(*linear_add_scaled(rows, weight, clean, scale, parts), 1e-5, weight)
    others = torch.arange(300, device=CUDA) != 131
    assert torch.equal(got[others], wanted[others]) and got[131].isnan().all()


@pytest.mark.parametrize("count", [64, 256, 512, 1024])
def test_launches_that_follow_one_another(count):
    """Each may start before the launch ahead, which writes its rows, is over: a graph of a layer's end, with other rows each time."""
    rows, down = inputs(count, 8192, 1024)
    _, qkv = inputs(count, 1024, 1536)
    given = torch.zeros_like(rows)
    sources, scale = torch.randn(20, *rows.shape, device=CUDA).bfloat16(), torch.rand(1024, device=CUDA).bfloat16()
    stream, index = torch.randn(count, 1024, device=CUDA), torch.zeros(1, dtype=torch.int64, device=CUDA)
    parts = row_product.empty_parts(CUDA)

    def run():
        given.copy_(sources.index_select(0, index)[0])
        x = stream.clone()
        out = linear_scaled(*linear_add_scaled(given, down, x, scale, parts), 1e-5, qkv)
        index.add_(1)
        return out

    replay, out = GraphRecorder()(run)
    index.zero_()
    seen = []
    for _ in sources:
        replay()
        seen.append(out.clone())
    for rows, got in zip(sources, seen, strict=True):
        x = stream.clone()
        scaled, squares = reference.linear_add_scaled(rows.float(), down.float(), x, scale.float(), parts)
        assert error(got, reference.linear_scaled(scaled, squares, 1e-5, qkv.float())) < 5e-3
