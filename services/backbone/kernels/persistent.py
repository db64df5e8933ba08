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
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from models.bundle import GeneratorPart
from services.backbone.kernels.nvrtc import Kernel, compile_cuda, has_nvrtc

BLOCKS, THREADS = 128, 256
MAX_BATCH = 16
_WARPS, _PIECE, _POSITIONS, _BINS, _COPIES = 8, 2048, 32, 2048, 4
_DIM, _QKV, _INTERMEDIATE = 1024, 1536, 8192
_SHARED_LIMIT = 227 * 1024  # bytes that a block of a Hopper GPU can have
_PARTS = ("shapes", "ptx", "words", "weight_ring", "products", "rows", "attention", "sampling", "frame")
_KEEP_PERCENT = 8  # of the layers' weights stay in the L2 cache from step to step


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
        and has_nvrtc()
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


def in_turn(gate_up: Tensor) -> Tensor:
    """[2 F, M], gate first → rows in an order in which block c's tiles are gate and up in turn, of columns from c F / BLOCKS on."""
    tiles = gate_up.view(2, BLOCKS, -1, 8, gate_up.shape[1])  # gate or up, block, tile, output
    return tiles.permute(2, 0, 1, 3, 4).reshape(gate_up.shape)


def weight_streams(weights: list[Tensor]) -> Tensor:
    """What each warp of each block reads, in order, flat. Block c has the tiles of 8 outputs c, c + BLOCKS, …"""
    packed = [pack(weight) for weight in weights]
    cuts = sorted({0, BLOCKS, *(len(tiles) % BLOCKS for tiles in packed)})
    streams = []
    for low, high in itertools.pairwise(cuts):  # blocks with equally many tiles
        read = [tiles[at + low : at + high] for tiles in packed for at in range(0, len(tiles) - low, BLOCKS)]
        streams.append(torch.cat(read, dim=2).flatten())
    return torch.cat(streams)


def shared_layout(batch: int) -> tuple[int, int]:
    """(pieces in a warp's ring, bytes of shared memory)."""
    partial_results = (16 + (6 if batch <= 8 else 0)) * _WARPS * batch * 8 * 4
    attention = _WARPS * (256 + 256 + 128) + 2 * 512
    single_row = (_WARPS if batch == 1 else 1) * (256 + 2048) + 16
    sampling = 2 * _WARPS * 16
    runs = (2 * _POSITIONS + 1) * 24
    fixed = partial_results + attention + single_row + sampling + runs + _WARPS * 2 * 16 * 4 + 128
    stages = (_SHARED_LIMIT - fixed) // (_WARPS * _PIECE)
    return stages, fixed + stages * _WARPS * _PIECE


def compiler_options(batch: int, layers: int, codebooks: int, vocab: int) -> list[str]:
    stages, shared = shared_layout(batch)
    values = {
        "ROWS": batch, "LAYERS": layers, "CODEBOOKS": codebooks, "VOCAB": vocab,
        "STAGES": stages, "SHARED": shared, "KEEP": _KEEP_PERCENT,
    }  # fmt: skip
    return ["--gpu-architecture=sm_90", "--std=c++17", *(f"-D{name}={value}" for name, value in values.items())]


@cache
def source() -> str:
    """CUDA C++."""
    return "\n".join((Path(__file__).with_name("depth_cuda") / f"{name}.cu").read_text() for name in _PARTS)


class _Arguments(ctypes.Structure):
    _names = (
        "first layers heads norms rope table hidden slots top_k seeds frames temperature codes forced "
        "x squares qkv logits attended gated drawn keys values frame"
    )
    _fields_ = [*((name, ctypes.c_void_p) for name in _names.split()), ("eps", ctypes.c_float)]


class DepthWeights:
    """The depth decoder's weights, packed: one copy for all batch sizes, 0.36 GB for CSM-1B."""

    def __init__(
        self, layers: list[tuple[Tensor, Tensor, Tensor, Tensor]], norms: list[Tensor], projection: Tensor,
        heads: list[Tensor], rope: Tensor, table: Tensor, eps: float,
    ):  # fmt: skip
        """
        layers: qkv, out, gate_up, down of each, [N, M] bf16. norms: attention's and MLP's of each layer, then the
            last, [d]. projection: [d, D]. heads: [bins, D], then [bins, d] each. rope: [positions, hd] fp32.
        table: [K, V, d], the codes' projected embeddings.
        """
        self.first = weight_streams([projection, heads[0]])
        self.layers = weight_streams([
            weight for qkv, out, gate_up, down in layers for weight in (qkv, out, in_turn(gate_up), down)
        ])  # fmt: skip
        # A block's parts of all heads lie together: few pages of memory for each.
        self.heads = torch.stack([weight_streams([head]).view(BLOCKS, -1) for head in heads[1:]], dim=1)
        self.norms = torch.stack(norms).contiguous()
        self.rope, self.table, self.eps = rope.contiguous(), table.contiguous(), eps
        self.layer_count, self.codebooks, self.vocab = len(layers), table.shape[0], table.shape[1]


class DepthKernel:
    """The launch for one batch size, with its buffers. One launch at a time may use them."""

    def __init__(self, weights: DepthWeights, batch: int):
        """Raises: CompileError."""
        if not 1 <= batch <= MAX_BATCH:
            raise ValueError(f"batch of {batch}, 1 to {MAX_BATCH} fit")
        self.batch = batch
        self._weights = weights
        options = compiler_options(batch, weights.layer_count, weights.codebooks, weights.vocab)
        cubin = compile_cuda(source(), "depth_cuda", options)
        self._kernel = Kernel(cubin, "decode_frame", shared_bytes=shared_layout(batch)[1])
        device = weights.norms.device

        def words(*shape: int) -> Tensor:
            return torch.zeros(shape, device=device, dtype=torch.int32)

        kv_cache = torch.zeros(2, weights.layer_count, batch, 2, _POSITIONS, 128, device=device, dtype=torch.bfloat16)
        self._logits = words(weights.codebooks, batch, _BINS)
        self._buffers = {
            "x": words(_COPIES, batch, _DIM // 2), "squares": words(_COPIES, batch, _DIM // 8),
            "qkv": words(_COPIES, batch, _QKV), "logits": self._logits, "attended": words(batch, _DIM // 2),
            "gated": words(batch, _INTERMEDIATE // 2), "drawn": words(batch), "keys": kv_cache[0],
            "values": kv_cache[1], "frame": words(1),
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
            "first": weights.first, "layers": weights.layers, "heads": weights.heads, "norms": weights.norms,
            "rope": weights.rope, "table": weights.table, "hidden": hidden, "slots": slots, "top_k": top_k, "seeds": seeds,
            "frames": frames, "temperature": temperature, "codes": codes, **self._buffers,
        }  # fmt: skip
        if forced is not None:
            tensors["forced"] = forced
        for name, tensor in tensors.items():
            assert tensor.is_contiguous(), name
        pointers = {name: tensor.data_ptr() for name, tensor in tensors.items()}
        self._kernel.launch_cooperative(BLOCKS, THREADS, _Arguments(eps=weights.eps, **pointers))
