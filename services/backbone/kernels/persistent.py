"""The depth decoder's whole frame in one launch: compiles depth_cuda/, packs the weights, calls the kernel.

Only bf16, the shapes of CSM-1B's depth decoder (any number of layers), up to 16 rows, and GPUs of compute
capability 9.0 with at least 128 multiprocessors. Twin: depth_decoder.DepthDecoder.

The blocks of the launch wait for each other, so all must be on the GPU together. The launch is cooperative:
it fails where they do not fit. Kernels of other processes end by themselves and only delay it. But two
processes that both run this kernel on one GPU under MPS can each hold a part of the GPU and wait forever, so
the backbone's setting `auto` does not use it there. Without MPS processes take turns on the GPU as a whole.
"""

from __future__ import annotations

import ctypes
import itertools
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from models.bundle import GeneratorPart
from services.backbone.kernels.nvrtc import HOPPER_SHARED_BYTES, Kernel, compile_cuda, compiles_for, options_for

ARCHITECTURE = "sm_90"
BLOCKS, THREADS = 128, 256
MAX_BATCH = 16
_WARPS, _PIECE, _POSITIONS, _BINS, _COPIES = 8, 2048, 32, 2048, 4
_DIM, _QKV, _INTERMEDIATE = 1024, 1536, 8192
_KEEP_PERCENT = 8  # of the layers' weights stay in the L2 cache from step to step
_MOST_JOINED = 8  # rows whose first two positions go through the layers together (JOINS)


def supports(part: GeneratorPart, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the kernel can run this model on this device."""
    if device.type != "cuda" or dtype != torch.bfloat16:
        return False
    shape, properties = part.decoder, torch.cuda.get_device_properties(device)
    return (
        properties.major == 9
        and properties.multi_processor_count >= BLOCKS
        and (shape.dim, shape.heads, shape.kv_heads, shape.intermediate_dim) == (_DIM, 8, 2, _INTERMEDIATE)
        and part.backbone.dim == 2 * _DIM
        and part.audio_vocab_size - 3 == _BINS
        and part.codebooks <= _POSITIONS
        and compiles_for(ARCHITECTURE)
    )


def uses_mps() -> bool:
    """Whether CUDA programs of this machine share their GPU through an MPS daemon."""
    return (Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY") or "/tmp/nvidia-mps") / "control").exists()


def pack(weight: Tensor) -> Tensor:
    """[N, M] → [N / 8, warps, M]: for each 8 outputs and each warp's part of the columns, what its lanes read.

    Of 8 outputs and 32 columns lane 4 n + t reads output n, columns 8 t to 8 t + 7.
    """
    outputs, width = weight.shape
    return weight.view(outputs // 8, 8, width // 32, 4, 8).permute(0, 2, 1, 3, 4).reshape(outputs // 8, _WARPS, width)


def pack_split(weight: Tensor, ranks: int) -> Tensor:
    """[BLOCKS * 8, M] → [BLOCKS, warps, M]: of `ranks` neighbours block r has part r of the columns, for all their outputs."""
    # [ranks, tiles, warps, 8 M / ranks / warps]
    parts = torch.stack([pack(part) for part in weight.chunk(ranks, dim=1)])
    return parts.view(ranks, BLOCKS // ranks, ranks, _WARPS, -1).permute(1, 0, 3, 2, 4).reshape(BLOCKS, _WARPS, -1)


def in_turn(gate_up: Tensor, ranks: int) -> Tensor:
    """[2 F, M], gate first → rows in an order in which a block's tiles are gate and up in turn.

    Of `ranks` neighbours block r makes columns of the r-th part of F, those that it reads of `down`.
    """
    # Gate or up, rank, neighbours, tile, output.
    tiles = gate_up.view(2, ranks, BLOCKS // ranks, -1, 8, gate_up.shape[1])
    return tiles.permute(3, 0, 2, 1, 4, 5).reshape(gate_up.shape)


def weight_streams(packed: list[Tensor]) -> Tensor:
    """What each warp of each block reads, in order, flat. Block c has the tiles c, c + BLOCKS, … of each packed weight."""
    cuts = sorted({0, BLOCKS, *(len(tiles) % BLOCKS for tiles in packed)})
    streams = []
    for low, high in itertools.pairwise(cuts):  # blocks with equally many tiles
        read = [tiles[at + low : at + high] for tiles in packed for at in range(0, len(tiles) - low, BLOCKS)]
        streams.append(torch.cat(read, dim=2).flatten())
    return torch.cat(streams)


def ranks_for(batch: int) -> int:
    """Blocks that share the columns of `down`."""
    return 1 if batch == 1 else 8


def shared_layout(batch: int) -> tuple[int, int]:
    """(pieces in a warp's ring, bytes of shared memory)."""
    joined = 2 * batch if batch <= _MOST_JOINED else 0
    # Tiles of 8 outputs whose partial results are held at once.
    partial_results = max((20 if batch <= 8 else 16) * batch, 8 * joined) * _WARPS * 8 * 4
    sums = 8 if max(batch, joined) <= 8 else 16
    attention = _WARPS * (256 + 256 + 128) + 2 * 512
    single_row = (_WARPS if batch == 1 else 1) * 256 + 16
    sampling = 2 * _WARPS * 16
    runs = (2 * _POSITIONS + 1) * 24
    fixed = partial_results + attention + single_row + sampling + runs + _WARPS * 2 * sums * 4 + 128
    stages = (HOPPER_SHARED_BYTES - fixed) // (_WARPS * _PIECE)
    return stages, fixed + stages * _WARPS * _PIECE


def compiler_options(batch: int, layers: int, codebooks: int, vocab: int) -> list[str]:
    stages, shared = shared_layout(batch)
    values = {
        "ROWS": batch, "LAYERS": layers, "CODEBOOKS": codebooks, "VOCAB": vocab,
        "STAGES": stages, "SHARED": shared, "KEEP": _KEEP_PERCENT, "RANKS": ranks_for(batch),
    }  # fmt: skip
    return options_for(ARCHITECTURE, values)


@cache
def source() -> str:
    """CUDA C++. Some files are in it twice: for both first positions of each row, and for the rows of any other position."""

    def read(*names: str) -> str:
        return "\n".join((Path(__file__).with_name("depth_cuda") / f"{name}.cu").read_text() for name in names)

    def for_rows(*names: str) -> str:
        text = read(*names)
        return "\n".join(f"namespace {space} {{\n{text}\n}}" for space in ("joined", "plain"))

    numbers = (
        "namespace joined { constexpr bool JOINED = JOINS; constexpr int B = JOINS ? 2 * ROWS : ROWS; }\n"
        "namespace plain { constexpr bool JOINED = false; constexpr int B = ROWS; }"
    )
    return "\n".join((
        read("shapes"), numbers, for_rows("batch"), read("memory", "ptx", "words", "weight_ring"),
        for_rows("products", "rows", "layer"), read("attention", "sampling", "frame"),
    ))  # fmt: skip


class _Arguments(ctypes.Structure):
    _names = (
        "first layers heads norms rope table first_qkv hidden slots top_k seeds frames temperature codes forced "
        "logits drawn both_x both_squares both_qkv both_attended both_gated both_inbox "
        "x squares qkv attended gated inbox keys values frame"
    )
    _fields_ = [*((name, ctypes.c_void_p) for name in _names.split()), ("eps", ctypes.c_float)]


class DepthWeights:
    """The depth decoder's weights, packed: 0.36 GB for CSM-1B, and its layers (0.22 GB) again for more than one row."""

    def __init__(
        self, layers: list[tuple[Tensor, Tensor, Tensor, Tensor]], norms: list[Tensor], projection: Tensor,
        heads: list[Tensor], rope: Tensor, table: Tensor, first_qkv: Tensor, eps: float,
    ):  # fmt: skip
        """
        layers: qkv, out, gate_up, down of each, [N, M] bf16. norms: attention's and MLP's of each layer, then the
            last, [d]. projection: [d, D]. heads: [bins, D], then [bins, d] each. rope: [positions, hd] fp32.
        table: [K, V, d], the codes' projected embeddings. first_qkv: [K, V, (H + 2 KV) hd], what the first layer's norm
            and product make of them.
        """
        self._layers = layers
        self._streams: dict[int, Tensor] = {}
        self._cubins: dict[int, bytes] = {}  # of each batch size
        self.first = weight_streams([pack(projection), pack(heads[0])])
        # A block's parts of all heads lie together: few pages of memory for each.
        self.heads = torch.stack([weight_streams([pack(head)]).view(BLOCKS, -1) for head in heads[1:]], dim=1)
        self.norms = torch.stack(norms).contiguous()
        self.rope, self.table, self.eps = rope.contiguous(), table.contiguous(), eps
        self.first_qkv = first_qkv.contiguous()
        self.layer_count, self.codebooks, self.vocab = len(layers), table.shape[0], table.shape[1]

    def layers(self, ranks: int) -> Tensor:
        """What blocks read of all layers where `ranks` of them share the columns of `down`. Packed at its first use."""
        if ranks not in self._streams:
            self._streams[ranks] = weight_streams([
                weight
                for qkv, out, gate_up, down in self._layers
                for weight in (pack(qkv), pack(out), pack(in_turn(gate_up, ranks)), pack_split(down, ranks))
            ])  # fmt: skip
        return self._streams[ranks]

    def compile(self, sizes: Iterable[int]) -> None:
        """The kernel for these batch sizes, side by side: each takes a processor seconds. Raises: CompileError."""
        new = [size for size in sizes if size not in self._cubins]
        with ThreadPoolExecutor(len(new) or 1) as pool:
            self._cubins.update(zip(new, pool.map(self._compile, new), strict=True))

    def _compile(self, batch: int) -> bytes:
        options = compiler_options(batch, self.layer_count, self.codebooks, self.vocab)
        return compile_cuda(source(), "depth_cuda", options)

    def cubin(self, batch: int) -> bytes:
        self.compile([batch])
        return self._cubins[batch]


class DepthKernel:
    """The launch for one batch size, with its buffers. One launch at a time may use them."""

    def __init__(self, weights: DepthWeights, batch: int):
        """Raises: CompileError."""
        if not 1 <= batch <= MAX_BATCH:
            raise ValueError(f"batch of {batch}, 1 to {MAX_BATCH} fit")
        self.batch = batch
        self._weights, self._layers = weights, weights.layers(ranks_for(batch))
        self._kernel = Kernel(weights.cubin(batch), "decode_frame", shared_bytes=shared_layout(batch)[1])
        device = weights.norms.device

        def words(*shape: int) -> Tensor:
            return torch.zeros(shape, device=device, dtype=torch.int32)

        kv_cache = torch.zeros(2, weights.layer_count, batch, 2, _POSITIONS, 128, device=device, dtype=torch.bfloat16)
        self._logits = words(weights.codebooks, batch, _BINS)
        self._buffers = {
            "logits": self._logits, "drawn": words(batch), "keys": kv_cache[0], "values": kv_cache[1], "frame": words(1),
        }  # fmt: skip
        for prefix, rows in (("both_", 2 * batch), ("", batch)):
            self._buffers |= {
                f"{prefix}x": words(_COPIES, rows, _DIM // 2), f"{prefix}squares": words(_COPIES, rows, _DIM // 8),
                f"{prefix}qkv": words(_COPIES, rows, _QKV), f"{prefix}attended": words(rows, _DIM // 2),
                f"{prefix}gated": words(rows, _INTERMEDIATE // 2), f"{prefix}inbox": words(BLOCKS, 8, rows, 8),
            }  # fmt: skip

    @property
    def logits(self) -> Tensor:
        """Of the last frame, [K, B, bins] fp32."""
        return (self._logits & ~0x40000000).view(torch.float32) * 2.0**64  # words.cu: tags and scaling

    def decode(
        self, hidden: Tensor, slots: Tensor, temperature: Tensor, top_k: Tensor, seeds: Tensor, frames: Tensor,
        codes: Tensor, forced: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Backbone outputs [B, D] bf16 → codes [B, K] int64, written.

        slots: [B] int64, which rows of the tables temperature (fp32), top_k, seeds, frames (int64) apply.
        forced: [B, K] int64, codes to use instead of sampled ones, for tests.
        """
        if hidden.shape[0] != self.batch or hidden.dtype != torch.bfloat16:
            raise ValueError(f"hidden is {tuple(hidden.shape)} {hidden.dtype}, must be {self.batch} rows of bfloat16")
        weights = self._weights
        tensors = {
            "first": weights.first, "layers": self._layers, "heads": weights.heads, "norms": weights.norms,
            "rope": weights.rope, "table": weights.table, "first_qkv": weights.first_qkv, "hidden": hidden,
            "slots": slots, "top_k": top_k, "seeds": seeds, "frames": frames, "temperature": temperature,
            "codes": codes, **self._buffers,
        }  # fmt: skip
        if forced is not None:
            tensors["forced"] = forced
        for name, tensor in tensors.items():
            assert tensor.is_contiguous(), name
        pointers = {name: tensor.data_ptr() for name, tensor in tensors.items()}
        self._kernel.launch_cooperative(BLOCKS, THREADS, _Arguments(eps=weights.eps, **pointers))
