"""The persistent kernel's index logic on a CPU: what it packs is what the lanes of mma.m16n8k16 multiply."""

from __future__ import annotations

import dataclasses
import itertools
import re
import shutil
import subprocess
from collections import Counter

import pytest
import torch

from models.bundle import load_bundle
from services.backbone import __main__ as backbone
from services.backbone.config import BackboneSettings
from services.backbone.graph_runner import kernel_plan_for
from services.backbone.kernels import persistent
from services.runtime.settings import StartError

WARPS, PIECE = 8, 1024  # weights of a piece


def lane_products(piece: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """One piece, [1024], by the lanes' fragments: x [128] → the sums of 8 outputs."""
    fragments = piece.view(4, 32, 8).double()  # 32 columns each; lane; its eight weights
    lane = torch.arange(32)
    output, columns = lane // 4, (lane % 4 * 8)[:, None] + torch.arange(8)
    products = (fragments * x.view(4, 32).double()[:, columns]).sum(dim=(0, 2))
    return torch.zeros(8, dtype=torch.float64).index_add_(0, output, products)


def test_streams_hold_every_product_once():
    """Each block walks its stream as the kernel does; all blocks' sums are the products."""
    draw = torch.Generator().manual_seed(0)
    sizes = [(1536, 1024), (1024, 1024), (1024, 2048)]
    weights = [torch.randn(size, generator=draw) for size in sizes]
    inputs = [torch.randn(width, generator=draw) for _, width in sizes]
    stream = persistent.weight_streams([persistent.pack(weight) for weight in weights])
    assert stream.numel() == sum(weight.numel() for weight in weights)
    sums = [torch.zeros(outputs, dtype=torch.float64) for outputs, _ in sizes]
    split = 64  # blocks with one tile of the first product more
    for block in (0, 1, 63, 64, 127):
        tiles = [len(range(block, outputs // 8, persistent.BLOCKS)) for outputs, _ in sizes]
        pieces = sum(count * width // 1024 for count, (_, width) in zip(tiles, sizes, strict=True))
        more = 0 if block < split else split * WARPS * (pieces + 1)
        for warp in range(WARPS):
            at = (more + ((block - (split if more else 0)) * WARPS + warp) * pieces) * PIECE
            for which, (_, width) in enumerate(sizes):
                for tile in range(tiles[which]):
                    output = (block + tile * persistent.BLOCKS) * 8
                    for piece in range(width // 1024):
                        column = warp * width // WARPS + piece * 128
                        part = lane_products(stream[at : at + PIECE], inputs[which][column : column + 128])
                        sums[which][output : output + 8] += part
                        at += PIECE
        for which, weight in enumerate(weights):
            for tile in range(tiles[which]):
                rows = slice((block + tile * persistent.BLOCKS) * 8, (block + tile * persistent.BLOCKS) * 8 + 8)
                torch.testing.assert_close(sums[which][rows], weight[rows].double() @ inputs[which].double())


@pytest.mark.parametrize("ranks", [1, 8])
def test_neighbours_share_the_columns_of_down(ranks):
    """Each block's parts of `down`, as it walks its stream, add up to the product; its columns are those that it made."""
    draw = torch.Generator().manual_seed(1)
    weight, x = torch.randn(1024, 8192, generator=draw), torch.randn(8192, generator=draw)
    packed = persistent.pack_split(weight, ranks)
    sums = torch.zeros(1024, dtype=torch.float64)
    own = 5 * ranks  # the first block of some neighbours
    for rank in range(ranks):
        for warp in range(WARPS):
            pieces = packed[own + rank, warp].view(-1, PIECE)
            column = rank * 8192 // ranks + warp * (1024 // ranks)
            for at, piece in enumerate(pieces):
                tile, part = own + at // (8 // ranks), column + at % (8 // ranks) * 128
                sums[tile * 8 : tile * 8 + 8] += lane_products(piece, x[part : part + 128])
    rows = slice(own * 8, (own + ranks) * 8)
    torch.testing.assert_close(sums[rows], weight[rows].double() @ x.double())


@pytest.mark.parametrize("ranks", [1, 8])
def test_gate_and_up_come_in_turn(ranks):
    """Block c's tiles have the columns that layer.cu hands on as made from them."""
    rows = persistent.in_turn(torch.arange(16384).view(-1, 1).expand(-1, 2).contiguous(), ranks)[:, 0].view(16, 128, 8)
    for block in (0, 1, 77, 127):
        for tile in range(8):
            first = block % ranks * (8192 // ranks) + (block // ranks * 8 + tile) * 8
            assert rows[2 * tile, block].tolist() == list(range(first, first + 8))
            assert rows[2 * tile + 1, block].tolist() == list(range(8192 + first, 8192 + first + 8))


@pytest.mark.parametrize("batch", range(1, persistent.MAX_BATCH + 1))
def test_shared_memory_holds_a_ring_of_at_least_four_pieces(batch):
    stages, shared = persistent.shared_layout(batch)
    assert stages >= 4 and shared <= 227 * 1024


def test_each_size_is_compiled_once(monkeypatch):
    compiled: list[str] = []

    def compile_cuda(source, name, options):
        rows = next(option for option in options if option.startswith("-DROWS="))
        compiled.append(rows)
        return rows.encode()

    monkeypatch.setattr(persistent, "compile_cuda", compile_cuda)
    heads, table = [torch.zeros(2048, 2048), torch.zeros(2048, 1024)], torch.zeros(2, 3, 1024)
    rope, first_qkv = torch.zeros(33, 128), torch.zeros(2, 3, 1536)
    weights = persistent.DepthWeights(
        [], [torch.ones(1024)], torch.zeros(1024, 2048), heads, rope, table, first_qkv, 1e-5
    )
    weights.compile((1, 2))
    weights.compile((2, 4))
    assert [weights.cubin(batch) for batch in (4, 2, 1)] == [b"-DROWS=4", b"-DROWS=2", b"-DROWS=1"]
    assert sorted(compiled) == ["-DROWS=1", "-DROWS=2", "-DROWS=4"]


JOINS = {1: True, 2: True, 16: False}  # whether the first two positions of each row go through the layers together


# What the kernel's blocks read and write, operation by operation, as depth_cuda/frame.cu has it.
def schedule(layers: int, codebooks: int, batch: int) -> list[tuple[str | None, str | None]]:
    """(the buffer that every block reads, the buffer that it writes then)."""
    several, ranks = batch > 1, persistent.ranks_for(batch)

    def draw(step: int) -> list[tuple[str | None, str | None]]:
        return [(f"logits {step}", "drawn"), ("drawn", None)] if several else [(f"logits {step}", None)]

    def rest_of_layer(both: str) -> list[tuple[str | None, str | None]]:
        down = ["gated", "inbox", "x"] if ranks > 1 else ["gated", "x"]
        return [(both + source, both + target) for source, target in itertools.pairwise(["x", *down])]

    operations: list[tuple[str | None, str | None]] = [(None, "x")]
    if JOINS[batch]:
        operations += [(None, "logits 0"), ("x", "qkv"), *draw(0)]
        for layer in range(layers):
            operations += [("both x", "both qkv")] if layer else []
            operations += [("both qkv" if layer else "qkv", "both attended"), ("both attended", "both x")]
            operations += rest_of_layer("both ")
        operations += [("both x", "logits 1"), *draw(1)]
    for step in range(2 if JOINS[batch] else 0, codebooks):
        for layer in range(layers):
            is_known = layer == 0 and step > 0
            operations += [] if is_known else [("x", "qkv")]
            if step == 0 and layer == layers - 1:
                operations.append(("qkv", None))
                break
            source = None if is_known else "qkv"
            operations += [(source, "attended"), ("attended", "x")] if several else [(source, "x")]
            operations += rest_of_layer("")
        operations += [("x" if step else None, f"logits {step}"), *draw(step)]
    return operations


@pytest.mark.parametrize("layers", [1, 4])
@pytest.mark.parametrize("batch", JOINS)
def test_no_buffer_is_overwritten_while_a_block_reads_it(layers, batch):
    """A block writes a buffer again only after it has got a value that all blocks wrote after they read the old ones."""
    by_some = {"attended", "both attended", "drawn"}  # which say nothing of the blocks that do not write them
    if persistent.ranks_for(batch) > 1:
        by_some |= {"gated", "both gated"}  # a block reads those of one rank
    of_all = {
        "inbox": "gated",
        "both inbox": "both gated",
    }  # from each rank, whose blocks have read what all of it made
    written: dict[str, int] = {}  # when last, operations in order
    read: dict[str, int] = {}
    got: list[int] = []  # by each operation: when what it reads was written by all blocks
    for now, (source, target) in enumerate(schedule(layers, 32, batch)):
        if source is not None:
            read[source] = now
        got.append(-1 if source is None or source in by_some else written[of_all.get(source, source)])
        if target in read:
            assert read[target] > written[target], f"{target} is written twice and not read"
            assert max(got[read[target] :]) >= read[target], (now, target)
        if target is not None:
            written[target] = now


@pytest.mark.parametrize("layers", [1, 4])
@pytest.mark.parametrize("batch", JOINS)
def test_tags_flip_with_every_use(layers, batch):
    """A frame begins with the tag that follows the last frame's: the kernel's counts of uses are the schedule's."""
    uses = Counter(target for _, target in schedule(layers, 32, batch))
    source = persistent.source()
    numbers = {"K": 32, "LAYERS": layers}

    def value(expression: str) -> int:
        choice = re.fullmatch(r"JOINS \? (.*) : (.*)", expression)
        return eval(choice[1 if JOINS[batch] else 2] if choice else expression, numbers)

    for name in ("STEPS", "ALONE", "X_USES", "QKV_USES", "MLP_USES"):
        numbers[name] = value(re.search(rf"\b{name} = ([^,;]+)[,;]", source)[1])
    for variable, prefix in (("rows", ""), ("both", "both ")):
        initial = re.search(rf"::Layers {variable} = {{(.*?)}}", source, re.DOTALL)[1]
        counts = [value(count) for count in re.findall(r"first_tag\(([^,]+),", initial)]
        names = ("x", "qkv", "attended", "gated")
        for name, count in zip(names, counts, strict=True):
            if prefix + name in uses:
                assert count % 2 == uses[prefix + name] % 2, prefix + name
    if batch > 1:
        assert uses["drawn"] == value(re.search(r"drawn_tag = first_tag\((\w+),", source)[1])


def test_cpu_is_not_supported_and_plans_stay_as_they_are():
    part = load_bundle("csm-1b").generator
    assert not persistent.supports(part, torch.bfloat16, torch.device("cpu"))
    assert not any(kernel_plan_for(batch).persistent_depth for batch in (1, 16, 64))
    persisting = [batch for batch in (1, 16, 17, 32, 64, 1024) if kernel_plan_for(batch, True).persistent_depth]
    assert persisting == [1, 16]


@pytest.mark.parametrize(
    ("setting", "is_supported", "mps", "used"),
    [
        ("auto", True, False, True), ("auto", True, True, False), ("auto", False, False, False),
        ("on", True, True, True), ("off", True, False, False),
    ],
)  # fmt: skip
def test_setting(setting, is_supported, mps, used, monkeypatch, tmp_path):
    monkeypatch.setattr(persistent, "supports", lambda *_: is_supported)
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    if mps:
        (tmp_path / "control").touch()
    settings = dataclasses.replace(BackboneSettings(), persistent_depth=setting)
    bundle = load_bundle("csm-1b")
    assert backbone._uses_persistent_depth(settings, bundle, torch.bfloat16, torch.device("cpu")) is used


def test_on_where_it_cannot_run_is_an_error():
    settings = dataclasses.replace(BackboneSettings(), persistent_depth="on")
    with pytest.raises(StartError, match="CSM_BACKBONE_PERSISTENT_DEPTH=on: needs a Hopper GPU"):
        backbone._uses_persistent_depth(settings, load_bundle("csm-1b"), torch.float32, torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no CUDA compiler")
@pytest.mark.parametrize("batch", [1, 8, 16])
def test_compiles_for_hopper_without_much_spilling(batch, tmp_path):
    options = [each for each in persistent.compiler_options(batch, 4, 32, 2051) if each.startswith("-D")]
    (tmp_path / "kernel.cu").write_text(persistent.source())
    command = ["nvcc", "-arch=sm_90", "-cubin", "-Xptxas", "-v", *options, "kernel.cu", "-o", "kernel.cubin"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    spilled = [
        int(line.split(" bytes spill stores")[0].split()[-1]) for line in said.stderr.splitlines() if "spill" in line
    ]
    assert spilled and max(spilled) <= 256
